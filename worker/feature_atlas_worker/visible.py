"""Which GPUs are here, asked without touching any in this process: what is forked from it could use none."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from feature_atlas.errors import DeviceError, RequestError

#: Seconds for torch to be imported on a busy machine, and to look.
_LONGEST = 120.0
_LOOK = """
import torch
print(f"torch {torch.__version__}")
for i in range(torch.cuda.device_count()):
    print(f"cuda:{i} ({torch.cuda.get_device_name(i)})")
"""


def gpus(text: str) -> list[str]:
    """The GPUs that ``all`` or ``0,2`` means, without touching any: as CUDA_VISIBLE_DEVICES names them.

    Raises:
        RequestError: neither.
        DeviceError: there are none.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        there = [part.strip() for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    else:
        there = [str(i) for i in range(_count())]
    if text == "all":
        chosen = there
    else:
        try:
            chosen = [there[int(part)] for part in text.split(",")]
        except ValueError:
            raise RequestError(f"--gpus {text!r}: say all, or numbers such as 0,2") from None
        except IndexError:
            raise DeviceError(f"--gpus {text!r}: this machine has {len(there)} GPUs") from None
    if not chosen:
        raise DeviceError("--gpus: no GPU is visible here (nvidia-smi -L lists none); leave it out to use the CPU")
    return chosen


def check_device(text: str) -> None:
    """Looks whether torch sees the GPU that ``cuda`` or ``cuda:N`` names; free for ``auto`` and ``cpu``.

    Raises:
        RequestError: not a device.
        DeviceError: there is no such GPU; the sentence names those that there are.
    """
    if text in ("auto", "cpu"):
        return
    if not re.fullmatch(r"cuda(:\d+)?", text):
        raise RequestError(f"no device {text!r}: auto, cpu, cuda or cuda:N")
    torch, *there = _look()
    if int(text.partition(":")[2] or 0) >= len(there):
        raise DeviceError(f"no device {text!r}: {torch} sees {', '.join(there) or 'no GPU'} here; say --device auto")


def _look() -> list[str]:
    """torch's version, and every GPU that it sees."""
    try:
        done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"torch has not said within {_LONGEST:.0f} s which GPUs it sees: is a driver stuck?"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise DeviceError(f"torch cannot say which GPUs it sees ({last})")
    return done.stdout.strip().splitlines()


def _count() -> int:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())

"""What to render on: the devices of this machine, and what a person calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from feature_atlas.errors import DeviceError, RequestError

_GIB = 2**30


def device_of(text: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means here.

    Raises:
        RequestError: not a device.
        DeviceError: there is no such GPU.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise RequestError(f"no device {text!r}: auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"no device {text!r}: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"no device {text!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here")
    return device


def computes_half(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32: a GPU, or a CPU with instructions for it."""
    if device.type != "cpu":
        return device.type == "cuda"
    able = processor()
    return torch.backends.mkldnn.is_available() and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def processor() -> Mapping[str, Any]:
    """What this machine's CPU can do, in PyTorch's words; empty where that does not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


class Device(NamedTuple):
    """One device of this machine, tried out."""

    name: str
    about: str
    works: bool = True


def devices() -> Iterator[Device]:
    """Every GPU that torch sees, after a small sum on it; the CPU where there is none."""
    if not torch.cuda.is_available():
        yield Device("cpu", f"{torch.get_num_threads()} threads; torch sees no GPU")
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
            free, total = torch.cuda.mem_get_info(index)
            yield Device(f"cuda:{index}", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
        except RuntimeError as error:
            yield Device(f"cuda:{index}", f"{name} does not compute ({str(error).splitlines()[0]})", works=False)

"""How much memory a row takes at its peak beyond what it began with."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from feature_atlas_worker.heap import give_memory_back

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(work: Callable[[], object], device: torch.device) -> float | None:
    """Bytes at the peak of ``work`` above the level before it; None where the system does not tell.

    On a CPU it is this process's resident memory, after freed memory was handed back: everything counts, that of
    oneDNN as well, and each row is measured as if it were alone.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return float(torch.cuda.max_memory_allocated(device) - before)
    try:
        give_memory_back()
        _RESET.write_text("5")  # the high-water mark begins anew
        resident = _kib("VmRSS")
        work()
        return 1024.0 * (_kib("VmHWM") - resident)
    except (OSError, StopIteration):  # no Linux
        work()
        return None


def _kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])

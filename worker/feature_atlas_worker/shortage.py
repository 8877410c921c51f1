"""What an error looks like where memory ran out, on a GPU or on a CPU: a smaller batch may help, no other request."""

from __future__ import annotations

import torch

from feature_atlas.errors import DeviceError

# A CPU's allocator raises a plain RuntimeError.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_shortage(error: BaseException) -> bool:
    """Whether a smaller batch could have helped."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | DeviceError) and any(text in str(error).lower() for text in _WORDS)

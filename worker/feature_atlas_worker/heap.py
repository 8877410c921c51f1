"""What the C library does with memory that tensors free; of glibc only, elsewhere nothing is changed."""

from __future__ import annotations

import ctypes
import functools
import sys

# malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free for the next ones, for the rest of the process.

    Every step takes and frees the same megabytes.  Handed back to the system, they come back page by page, zeroed: a
    tenth of a step.  :func:`give_memory_back` when a model is done with.
    """
    libc = _glibc()
    if libc is not None:
        for what, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            libc.mallopt(what, size)


def give_memory_back() -> None:
    """Hands what lies free to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

"""What the C library does with memory that tensors free; of glibc only, elsewhere nothing is changed."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

# malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
#: Smaller blocks come from the heap, which grows by what it lacks and this much.
_FROM_HEAP, _GROWTH = 32 << 20, 512 << 20
# mman.h
_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20


def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free for the next ones, for the rest of the process, on huge pages.

    Every step takes and frees the same megabytes.  Handed back to the system, they come back page by page, zeroed: a
    tenth of a step.  On pages of 4 KiB the processor looks up the place of each, in a virtual machine twice: another
    twentieth of a small network's step.  :func:`give_memory_back` when a model is done with.

    To be called once per layer: huge pages are asked for where the heap lies now.
    """
    libc = _glibc()
    if libc is not None:
        _set_thresholds(libc)
        if _system_leaves_it_to_programs():
            _use_huge_pages(libc)


def give_memory_back() -> None:
    """Hands what lies free to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _set_thresholds(libc: ctypes.CDLL) -> None:
    for what, size in ((_MMAP_THRESHOLD, _FROM_HEAP), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _GROWTH)):
        libc.mallopt(what, size)


def _system_leaves_it_to_programs() -> bool:
    try:
        return "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    # Has the heap grow now, which costs no memory: what is written before huge pages are asked for lies on small ones.
    libc.free(libc.malloc(_FROM_HEAP - 4096))
    start, end = -(-_heap() // _HUGE_PAGE), libc.sbrk(0) // _HUGE_PAGE
    if start < end:
        libc.madvise(start * _HUGE_PAGE, (end - start) * _HUGE_PAGE, _HUGEPAGE)


def _heap() -> int:
    """Where the heap begins; beyond all memory where there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            return int(line.split("-")[0], 16)
    return sys.maxsize


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc

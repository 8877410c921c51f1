"""The threads that PyTorch's own operations run on, for kernels of our own.

Between PyTorch's operations its OpenMP runtime keeps its threads awake for a while: any other would have to wait for a
core.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch  # noqa: F401 (loads the runtime)

#: Those that know what compilers of the GNU kind call: GCC's own, LLVM's and Intel's.
_RUNTIME = re.compile(r"/lib(g|i)?omp[^/]*\.so[^/]*$")
_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Parallel = ctypes.CFUNCTYPE(None, _Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
#: Whether this process has begun as a copy of another one, whose threads it has not.
_forked = False


def parallel() -> int | None:
    """The address of the runtime's ``GOMP_parallel``; None where there is none, or it has lost its threads."""
    return None if _forked else _runtime()


@functools.cache
def _runtime() -> int | None:
    try:
        loaded = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:  # not on Linux
        return None
    # Somebody else may have loaded another one.
    for path in sorted(filter(_RUNTIME.search, loaded), key=lambda path: "/torch" not in path):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def share(parts: Sequence[tuple[int, int]], work: Callable[[int, int], int]) -> list[int]:
    """What ``work`` gives for all parts, in any order; a thread each where there are as many."""
    address = parallel()
    if address is None:
        own, *others = parts
        waits = [_begun(len(parts), work, *other) for other in others]
        return [work(*own), *[wait() for wait in waits]]
    left, found, errors = deque(parts), list[int](), list[BaseException]()

    def one(_: object) -> None:
        try:
            while left:
                found.append(work(*left.popleft()))
        except IndexError:
            pass  # another thread was faster
        except BaseException as error:  # Ctrl-C, too: whoever calls this throws errors away
            errors.append(error)

    _Parallel(address)(_Work(one), None, len(parts), 0)
    if errors:
        raise errors[0]
    if len(found) < len(parts):
        raise RuntimeError("a part of the work was interrupted")
    return found


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "kernels")


def _begin_as_copy() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_as_copy)


def _begun(threads: int, work: Callable[[int, int], int], first: int, last: int) -> Callable[[], int]:
    """Begins a part in another thread; what is given back waits for it."""
    try:
        return _pool(threads).submit(work, first, last).result
    except RuntimeError:  # Python is about to end and begins no more threads
        return functools.partial(work, first, last)

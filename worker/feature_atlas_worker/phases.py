"""Where the seconds go: each phase of a job is timed, and whoever listens is told.

``wait`` for a job, ``load`` a model, ``render`` a batch, ``encode`` a picture, ``upload`` an object.  Encoding and
uploading run on threads beside the rendering, so that the sum of all is more than the time that passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["wait", "load", "render", "encode", "upload"]
PHASES: tuple[Phase, ...] = get_args(Phase)

#: Called with the phase, its seconds, and the jobs that it was for where they are side by side.
Listener = Callable[[Phase, float, int], None]
_listeners: list[Listener] = []


def listen(tell: Listener) -> None:
    """From now on calls ``tell`` at the end of each phase, on whatever thread it ran."""
    if tell not in _listeners:
        _listeners.append(tell)


def forget(tell: Listener) -> None:
    """Calls ``tell`` no more."""
    if tell in _listeners:
        _listeners.remove(tell)


def spent(phase: Phase, seconds: float, jobs: int = 1) -> None:
    """Tells of a phase that was timed elsewhere."""
    for tell in _listeners:
        tell(phase, seconds, jobs)


@contextmanager
def timed(phase: Phase, jobs: int = 1) -> Iterator[None]:
    """Times what happens inside, also where it fails."""
    started = time.monotonic()
    try:
        yield
    finally:
        spent(phase, time.monotonic() - started, jobs)

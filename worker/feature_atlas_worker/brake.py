"""When a batch must stop between two steps: its atlas is cancelled, or the worker ends before the batch could."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_atlas_worker.child import Child

#: Seconds of the grace period that are left for uploads.
_UPLOADS = 2.0


class Brake:
    """Asked by the executor between steps, told by it after each."""

    def __init__(self, child: Child, atlas: str) -> None:
        self.child, self.atlas = child, atlas
        self._step, self._steps = 0, 1
        self._seconds, self._last = 0.0, time.monotonic()
        self._drained_at: float | None = None

    def step(self, step: int, steps: int) -> None:
        """``step`` of ``steps`` is done."""
        now = time.monotonic()
        if step > 1:
            self._seconds = now - self._last
        self._last, self._step, self._steps = now, step, steps
        self.child.touch()

    def between_batches(self) -> bool:
        """As :meth:`pulled`, where no batch is under way."""
        self._step = 0
        return self.pulled()

    def pulled(self) -> bool:
        """Whether to leave the rest unfinished.  A batch that fits into the grace period is finished."""
        self.child.touch()
        if self.child.lease.flags.get(self.atlas) == "cancelled":
            return True
        if not self.child.pulse.draining:
            return False
        self._drained_at = self._drained_at or time.monotonic()
        if self._step in (0, self._steps):
            return True
        left = self.child.settings.grace - (time.monotonic() - self._drained_at)
        return (self._steps - self._step) * self._seconds > left - _UPLOADS

"""In the worker's parent: a consumer that takes nothing although jobs wait, and a child that gives no sign of life.

kombu can lose its place after a network that swallowed packets: the process lives and never consumes again.  Ending it
is the cure; whoever supervises starts it afresh.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis import RedisError

from feature_atlas.broker import is_writable
from feature_atlas.messages import QUEUE
from feature_atlas_worker import transport
from feature_atlas_worker.alive import AliveFile

if TYPE_CHECKING:
    import redis

    from feature_atlas_worker.pulse import Pulse

log = logging.getLogger(__name__)

#: The exit status after which a supervisor starts the worker afresh.
STALLED = 75


class Watchdog:
    """A thread that looks every second."""

    def __init__(
        self, client: redis.Redis, pulse: Pulse, *, patience: float, silence: float, grace: float, alive_file: str = ""
    ) -> None:
        """``patience``: seconds without a new task while jobs wait; ``silence``: of a child that works."""
        self.client, self.pulse = client, pulse
        self.patience, self.silence, self.grace = patience, silence, grace
        self.alive_file = AliveFile(alive_file) if alive_file else None
        self._seen, self._since = -1, time.monotonic()

    def start(self) -> None:
        """Begins to look."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(1)
            try:
                self.look()
            except Exception:
                log.exception("the watchdog failed")

    def look(self) -> None:
        """One look; the file is touched where nothing is amiss, and while the worker ends in order."""
        if (self.pulse.draining or self._well()) and self.alive_file is not None:
            self.alive_file.touch()

    def _well(self) -> bool:
        """Whether jobs are taken and the child lives; ends what does not."""
        if self.stalled():
            log.critical("jobs wait and none was taken for %.0f s: the worker starts afresh", self.patience)
            self._end()
            return False
        if self.pulse.busy and self.pulse.silence > self.silence:
            log.critical("the rendering process gave no sign of life for %.0f s: ended", self.pulse.silence)
            self.pulse.beat()
            _kill_children()
            return False
        return True

    def stalled(self) -> bool:
        """Whether nothing is in hand and nothing new was taken for too long, though jobs wait."""
        from celery.worker import state

        taken = state.all_total_count[0] + transport.Channel.aside
        if taken != self._seen or state.reserved_requests or state.active_requests:
            self._seen, self._since = taken, time.monotonic()
            return False
        if time.monotonic() - self._since < self.patience:
            return False
        try:
            waiting = self.client.llen(QUEUE)
            is_writable(self.client)
        except RedisError:  # an outage, or a broker that takes nothing: not ours to end
            waiting = 0
        if not waiting:
            self._since = time.monotonic()
        return bool(waiting)

    def _end(self, leave: Callable[[int], None] = os._exit) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(min(self.grace, 10.0))
        _kill_children()
        leave(STALLED)


def _kill_children() -> None:
    from billiard.process import active_children  # type: ignore[import-untyped]

    for process in active_children():
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)

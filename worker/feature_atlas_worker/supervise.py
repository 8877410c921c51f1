"""Worker processes started, one per device, and started afresh when they end; no torch, no queue, no threads here."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from feature_atlas.logs import say

log = logging.getLogger(__name__)

#: Seconds: a worker that ran for less waits before its next start, twice as long each time up to the longest.
_LONG_ENOUGH, _LONGEST_WAIT = 60.0, 60.0
#: The exit status of a wrong request or setting: no new start can help.
_WRONG = 2
_PR_SET_PDEATHSIG = 1


@dataclass
class Member:
    """One worker under supervision."""

    name: str
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    #: When to start it next.
    due: float = 0.0
    exits: list[int] = field(default_factory=list)


class Supervisor:
    """Workers that run while the ``with`` block lasts, and end with this process however that ends.

    Must be entered on the main thread.  SIGTERM and SIGINT ask for the end; a second one insists.
    """

    def __init__(
        self,
        environs: Mapping[str, Mapping[str, str]],
        *,
        grace: float = 25.0,
        logs: Path | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """Nothing starts yet.

        Args:
            environs: name -> what its environment has besides ours.
            grace: seconds that a batch may still take at the end.
            logs: a folder for what the workers say; None lets them speak where we do.
            command: starts one worker; its name is appended.
        """
        self.members = [Member(name, environ) for name, environ in environs.items()]
        self.grace, self.logs = grace, logs
        self.command = list(command) or [sys.executable, "-m", "feature_atlas_worker"]
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked == 1:
            say("ending: jobs in hand are finished or given back; Ctrl-C again insists")
        else:
            self._signal(signal.SIGKILL)

    def run(self, until: Callable[[], bool] = lambda: False, every: float = 0.5) -> int:
        """Keeps the workers running until asked to end or ``until()``; the exit status for this command."""
        while not self.asked and not until():
            for member in self.members:
                self._look_after(member)
            if all(member.exits[-1:] == [_WRONG] for member in self.members):
                return _WRONG
            time.sleep(every)
        return 0

    def _look_after(self, member: Member) -> None:
        now = time.monotonic()
        if member.process is None:
            if now >= member.due and member.exits[-1:] != [_WRONG]:
                self._start(member)
            return
        status = member.process.poll()
        if status is None:
            return
        member.process = None
        member.exits.append(status)
        if status == _WRONG:
            log.error(
                "worker %s ended with status %d, a wrong request or setting: it is not started again",
                member.name,
                status,
            )
            return
        member.failures = 0 if now - member.started > _LONG_ENOUGH else member.failures + 1
        wait = min(_LONGEST_WAIT, 2.0 ** (member.failures - 1)) if member.failures else 0.0
        member.due = now + wait
        log.warning("worker %s ended with status %d; it starts afresh in %.0f s", member.name, status, wait)

    def _start(self, member: Member) -> None:
        member.started = time.monotonic()
        with contextlib.ExitStack() as stack:
            output = stack.enter_context((self.logs / f"{member.name}.log").open("ab")) if self.logs else None
            # A group of its own, so that Ctrl-C reaches us alone and we tell the workers in order.
            member.process = subprocess.Popen(
                [*self.command, member.name], env={**os.environ, **member.environ}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def stop(self) -> None:
        """Ends the workers: SIGTERM, the grace period, SIGKILL."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + self.grace + 15.0
        for member in self.members:
            if member.process is None:
                continue
            try:
                member.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %s does not end: killed, its jobs come back by their leases", member.name)
                _kill_group(member.process.pid)
                member.process.wait()
            member.process = None

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                if number == signal.SIGKILL:
                    _kill_group(member.process.pid)
                else:
                    member.process.send_signal(number)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""One atlas in the course of a local render: what is missing, in batches, interruptible, published on the way."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from feature_atlas.cli import codes
from feature_atlas.cli.progress import Progress
from feature_atlas.cli.publisher import Publisher
from feature_atlas.errors import EnvironmentFault, IntegrityError, RequestError, StoreError, WeightsError

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas
    from feature_atlas.plan import Plan
    from feature_atlas.spec import Unit
    from feature_atlas_worker.execute import Executor, Outcome

#: Batches between two looks at what others have done meanwhile.
_BATCHES = 8


@dataclass
class Work:
    """One atlas in the course of a render."""

    atlas: Atlas
    #: The part of the atlas's plan that this command asked for.
    plan: Plan
    rendered: int = 0
    seconds: float = 0.0
    page: str = ""
    interrupted: bool = False
    errors: dict[str, int] = field(default_factory=dict)
    #: Pictures that publishing found damaged: made again, and left as they are with the reason.
    repaired: int = 0
    damaged: int = 0
    why_damaged: str = ""

    def render(self, executor: Executor, *, publish: bool) -> None:
        """Renders what is missing, group by group; a process beside us publishes on the way, and we at the end.

        What publishing finds damaged is removed, rendered and published again, once.
        """
        started = time.monotonic()
        todo = [unit for unit in self.atlas.missing() if unit in self.plan]
        self._make(executor, todo, len(self.plan), follow=publish)
        if publish:
            left_out = self._publish()
            if left_out and (removed := self._remove(executor, left_out)):
                self._make(executor, removed, len(removed), follow=False)
                left_out = self._publish()
                self.repaired = len(set(removed) & self.atlas.done() - set(left_out))
            self.damaged = len(left_out)
        self.seconds = time.monotonic() - started

    def _make(self, executor: Executor, todo: list[Unit], planned: int, *, follow: bool) -> None:
        """Renders these units, of ``planned`` ones to count."""
        with (
            Publisher(self.atlas.url, wanted=follow and bool(todo)),
            Progress(self.atlas.file.model.name, planned, planned - len(todo)) as progress,
            Interrupt() as interrupt,
        ):
            try:
                for _, units in groupby(todo, key=lambda unit: (unit.variant, unit.layer)):
                    self._group(executor, list(units), progress, interrupt)
                    if interrupt.asked:
                        break
            except EnvironmentFault:
                print(f"{self.rendered} new channels are kept; the same command goes on from there", file=sys.stderr)
                raise
        self.interrupted = interrupt.asked

    def _group(self, executor: Executor, units: list[Unit], progress: Progress, interrupt: Interrupt) -> None:
        """Renders one group, a few batches at a time: what others finished meanwhile is left out."""

        def report(outcome: Outcome) -> None:
            if outcome.status == "unfinished":
                return
            progress.add()
            self.rendered += outcome.manifest is not None
            if outcome.error:
                self.errors[outcome.error] = self.errors.get(outcome.error, 0) + 1

        def step(done: int, steps: int) -> None:
            progress.at(f"{units[0].layer} step {done}/{steps}")

        rest = units
        while rest and not interrupt.asked:
            there = self.atlas.done(units[0].variant, units[0].layer)
            progress.add(sum(unit in there for unit in rest))
            rest = [unit for unit in rest if unit not in there]
            jobs = [self.atlas.plan.job(unit) for unit in rest]
            count = _BATCHES * executor.sizes.of(jobs[0]) if jobs else 0
            executor.run(jobs[:count], self.atlas.store, report, interrupt.is_asked, step)
            rest = rest[count:]

    def _remove(self, executor: Executor, left_out: Sequence[Unit]) -> list[Unit]:
        """Removes what is damaged among these units, where this command can make it again; returns what is missing."""
        from feature_atlas.spec import RENDERER

        variants = self.atlas.plan.variants
        mine = [unit for unit in left_out if variants[unit.variant].renderer == RENDERER]
        if len(mine) < len(left_out):
            self.why_damaged = "planned for another release"
        try:
            executor.model(self.atlas.file.model, self.atlas.store.get)  # before anything is removed
            return self.atlas.repair(list(self.atlas.verify(mine)))
        except (RequestError, IntegrityError, StoreError, WeightsError) as error:
            self.why_damaged = str(error)
            return []

    def _publish(self) -> tuple[Unit, ...]:
        """Publishes what there is and returns what it left out; interrupted, it only tells the page that is there."""
        from feature_atlas import keys
        from feature_atlas.publish import publish
        from feature_atlas.publish.site import page_of

        if not self.interrupted:
            told = publish(self.atlas)
            self.page = told.page
            return told.left_out
        if any(self.atlas.store.list(keys.PAGE)):
            self.page = page_of(self.atlas.store)
        return ()

    def summary(self) -> dict[str, Any]:
        """What happened, for scripts."""
        return {
            "url": self.atlas.url, "model": self.atlas.file.model.name, "rendered": self.rendered,
            "seconds": round(self.seconds, 1), "page": self.page, "errors": self.errors,
            "repaired": self.repaired, "damaged": self.damaged,
        }  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Planned, done, dead, failed and missing of what was asked for."""
        units = set(self.plan.units())
        done, dead, failed = self.atlas.done() & units, self.atlas.dead() & units, self.atlas.failed() & units
        return {
            "planned": len(units), "done": len(done), "dead": len(done & dead), "failed": len(failed),
            "missing": len(units) - len(done) - len(failed),
        }  # fmt: skip


class Interrupt:
    """While this lasts, Ctrl-C (or SIGTERM) asks to stop; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def is_asked(self) -> bool:
        """Whether to stop."""
        return self.asked

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(codes.INTERRUPTED)
        self.asked = True
        os.write(2, b"\nstopping: uploads in hand are finished; Ctrl-C again ends at once\n")

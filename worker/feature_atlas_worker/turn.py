"""One task from its head message to its last sibling: claim, skip what is done, render, and account for every message.

Errors are of three kinds.  A wrong request is never tried again; what is only not for this worker goes back.  The
surroundings' faults are waited for in place and count as no attempt.  The job's own are counted, isolated, recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from feature_atlas import steer
from feature_atlas.atlas import Atlas
from feature_atlas.errors import (
    DeviceError,
    IntegrityError,
    ObjectNotFound,
    RequestError,
    StoreError,
    WeightsError,
)
from feature_atlas.logs import about
from feature_atlas.messages import VERSION, Message
from feature_atlas.reconcile import MOST_ATTEMPTS
from feature_atlas.spec import Job, Unit
from feature_atlas_worker import phases
from feature_atlas_worker.atlases import Refusal, StrangerError
from feature_atlas_worker.brake import Brake
from feature_atlas_worker.execute import Executor, Outcome, check_renderer
from feature_atlas_worker.opening import Opening
from feature_atlas_worker.retreat import Retreat

if TYPE_CHECKING:
    from feature_atlas_worker.child import Child

log = logging.getLogger(__name__)

#: Batches claimed at once, so that uploads overlap with rendering; fewer when the queue runs out.
_BATCHES = 4
#: Each failed attempt divides the batch by this: what ends its process is soon alone.
_DIVIDE = 8
#: Seconds until a model that cannot be loaded is tried again, and at least so many times what the try took: a source
#: of weights that never answers must not take the time of the atlases that can be served.
_UNFIT, _TIMES = 60.0, 10.0


class Turn:
    """The work of one task."""

    def __init__(self, child: Child, head: Message, opening: Opening | None = None) -> None:
        self.child, self.head, self.opening, self.hand = child, head, opening, child.hand
        self.order = head.order
        self.retreat = Retreat(child, head.order)
        self.brake = Brake(child, head.order.atlas)
        self._messages: dict[Unit, Message] = {}
        self._attempts: dict[Unit, int] = {}
        self._failed_before: Set[Unit] = frozenset()

    def go(self) -> None:
        """Works until every message is finished, given back or given up."""
        phases.spent("wait", time.monotonic() - self.child.idle_since)
        with about(atlas=self.order.atlas, variant=self.order.variant, layer=self.order.layer):
            self._go()
        self.child.idle_since = time.monotonic()

    def _go(self) -> None:
        self.hand.take(self.head)
        self.child.note(atlas=self.order.atlas, layer=self.order.layer, state="working", note=self.child.unfit_now())
        try:
            self._work()
            self.child.refused.clear()
            self.child.refusals = 0
        except Refusal as refusal:
            self.retreat.refuse(str(refusal))
        except StrangerError as error:
            self.retreat.put_aside(self.head, str(error))
        except StoreError as error:
            self.retreat.wait_for_store(error)
        except DeviceError as error:
            self.retreat.lose_device(error)
        except Exception as error:
            self.retreat.blame(error)
        finally:
            # Also on SystemExit, which a shutdown raises here: at once back to the front for the others.
            self.retreat.return_rest()
            self.child.note(state="idle")

    def _work(self) -> None:
        broker = self.retreat.broker
        known = self.opening
        flag = known.flag if known is not None else broker(lambda: steer.flag(self.child.client, self.order.atlas))
        if flag == "cancelled":
            self.retreat.drop()
            return
        if flag == "paused":
            raise Refusal("paused")
        if self.head.version > VERSION:
            raise Refusal(f"the message has version {self.head.version}, this release reads {VERSION}: update it")
        atlas = broker(lambda: self.child.atlases.open(self.order.atlas))
        executor = self.child.executor
        first = self._job(self.head)
        if first is None:
            return
        self._check_fit(executor, first, atlas)
        self.child.served.add(self.order.atlas)
        size = executor.sizes.of(first)
        todo = self._not_done([first, *self._claim(size)])
        if len(self._messages) < size:  # the group is at its end
            self.child.preload(atlas.url)
        before = self.child.beat.done
        for part in self._parts(todo, size):
            if self.brake.between_batches():
                break
            executor.run(
                part, self.child.patient(atlas.store), self._settle, self.brake.pulled, self.brake.step, self._begin,
                failed_before=self._failed_before,
            )  # fmt: skip
            self.child.pulse.device_failures = 0
        if len(self._messages) > 1:  # one alone was said already
            log.info("%s: %d of %d done", self.order.layer, self.child.beat.done - before, len(self._messages))

    def _job(self, message: Message) -> Job | None:
        """The job of a message; one that is not planned is given up, one sent twice is dropped."""
        order = message.order
        if order.unit in self._messages:
            self.hand.finish([message])
            return None
        try:
            job = self.retreat.broker(lambda: self.child.atlases.job(order.atlas, order.unit))
        except RequestError as error:
            self.retreat.give_up(message, str(error))
            return None
        self._messages[order.unit] = message
        return job

    def _check_fit(self, executor: Executor, job: Job, atlas: Atlas) -> None:
        """Loads the model.  Raises Refusal where this worker cannot: another may have the package, or the release."""
        if why := self.child.unfit_for(atlas.url):
            raise Refusal(why)
        began = time.monotonic()
        try:
            check_renderer(job)
            executor.model(job.model, atlas.store.get)
        except (RequestError, IntegrityError, WeightsError, ObjectNotFound, ModuleNotFoundError) as error:
            if isinstance(error, WeightsError | ObjectNotFound):  # the store may be well and lack this one file
                self.child.trouble("weights")
            now = time.monotonic()
            self.child.unfit[atlas.url] = now + max(_UNFIT, _TIMES * (now - began)), str(error)
            raise Refusal(str(error)) from error
        self.child.unfit.pop(atlas.url, None)
        self.child.touch()

    def _claim(self, size: int) -> list[Job]:
        """Siblings of the head: those missing to one batch, and up to three batches more while there are plenty."""
        if self.child.settings.batch == 1:
            return []
        shares = 2 * self.child.lease.workers
        claimed = self.hand.claim(self.order.group, size - 1, _BATCHES * size - 1, shares)
        return [job for job in map(self._job, claimed) if job is not None]

    def _not_done(self, jobs: Sequence[Job]) -> list[Job]:
        """Those whose picture is not in the store yet; the others are finished."""
        order = self.order
        fresh = any(message.redelivered for message in self._messages.values())
        listed = self.retreat.broker(
            lambda: self.child.atlases.listed(order.atlas, order.variant, order.layer, fresh=fresh)
        )
        self._failed_before = listed.failed
        there = [self._messages[job.unit] for job in jobs if job.channel in listed.done]
        self.child.tell("skipped", len(there))
        self.hand.finish(there)
        return [job for job in jobs if job.channel not in listed.done]

    def _parts(self, jobs: Sequence[Job], size: int) -> list[list[Job]]:
        """Jobs by how often they were begun: the untried together, the others in ever smaller parts.

        What was sent twice and given up meanwhile is finished: it would end one process after the other anew.
        """
        if not jobs:
            return []
        known, messages = self.opening, [self._messages[job.unit] for job in jobs]
        if known is not None and messages == [self.head]:
            counts = [known.attempts]
        else:
            counts = self.retreat.broker(lambda: self.hand.attempts(messages))
        begun = {job.unit: tried for job, tried in zip(jobs, counts, strict=True)}
        self.hand.finish([self._messages[unit] for unit, tried in begun.items() if tried is None])
        self._attempts = {unit: tried for unit, tried in begun.items() if tried is not None}
        parts = []
        for tried in sorted(set(self._attempts.values())):
            level = [job for job in jobs if self._attempts.get(job.unit) == tried]
            if tried >= MOST_ATTEMPTS:
                for job in level:
                    why = f"the process ended or hung {tried} times while rendering it"
                    self.retreat.give_up(self._messages[job.unit], why, tried, job)
                continue
            most = len(level) if tried == 0 else max(1, size // _DIVIDE**tried)
            parts += [level[i : i + most] for i in range(0, len(level), most)]
        return parts

    def _begin(self, batch: Sequence[Job]) -> None:
        """Counts an attempt at each job of a batch, and at none that merely waits in this worker's hands."""
        messages = [self._messages[job.unit] for job in batch]
        self.retreat.broker(lambda: self.hand.count(messages))
        self.child.note(batch=len(batch))

    def _settle(self, outcome: Outcome) -> None:
        """What becomes of the message of one finished, failed or unfinished job."""
        message = self._messages[outcome.job.unit]
        if outcome.status != "unfinished":
            # Before the broker forgets the job: a kill in between makes it count twice, not never.
            self.child.tell(outcome.status)
        if outcome.status in ("ok", "dead"):
            self.hand.finish([message])
            self.child.atlases.finished(self.order.atlas, outcome.job.unit)
            self.child.count(done=1)
        elif outcome.status != "unfinished":
            tried = self._attempts[outcome.job.unit] + 1
            if outcome.final or tried >= MOST_ATTEMPTS:
                self.retreat.give_up(message, outcome.error, tried)
            else:
                self.retreat.broker(lambda: self.hand.give_back([message], "back", uncount=False))

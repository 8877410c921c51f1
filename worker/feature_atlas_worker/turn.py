"""One task from its head message to its last sibling: claim, skip what is done, render, and account for every message.

Errors are of three kinds.  A wrong request is never tried again; what is only not for this worker goes back.  The
surroundings' faults are waited for in place and count as no attempt.  The job's own are counted, isolated, recorded.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from redis import RedisError

from feature_atlas import keys, manifest, steer
from feature_atlas.atlas import Atlas
from feature_atlas.errors import AtlasError, DeviceError, IntegrityError, RequestError, StoreError
from feature_atlas.manifest import Failure
from feature_atlas.messages import VERSION, Message
from feature_atlas.monitor import Beat, GivenUp
from feature_atlas.reconcile import MOST_ATTEMPTS
from feature_atlas.spec import Job, Unit
from feature_atlas_worker import commit
from feature_atlas_worker.atlases import Refusal, StrangerError
from feature_atlas_worker.execute import Executor, Outcome, check_renderer
from feature_atlas_worker.lease import BROKEN

if TYPE_CHECKING:
    from feature_atlas_worker.child import Child

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Batches claimed at once, so that uploads overlap with rendering; fewer when the queue runs out.
_BATCHES = 4
#: Each failed attempt divides the batch by this: what ends its process is soon alone.
_DIVIDE = 8
#: Messages of a refused or cancelled group that are moved at once.
_MOVED = 1000
#: Seconds: the longest wait after refusals, until a model that cannot be loaded is tried again, for a store that fails.
_LONGEST_WAIT, _UNFIT, _OUTAGE = 30.0, 60.0, 600.0
#: Bytes written to find out whether there is room again.
_PROBE = 2**18
#: Devices fail for good after this many processes met the failure.
_DEVICE_FAILURES = 3


class Turn:
    """The work of one task."""

    def __init__(self, child: Child, head: Message) -> None:
        self.child, self.head, self.hand = child, head, child.hand
        self.order = head.order
        self._messages: dict[Unit, Message] = {}
        self._attempts: dict[Unit, int] = {}
        self._position = (0, 1)
        self._step_seconds, self._last_step = 0.0, time.monotonic()
        self._drained_at: float | None = None

    def go(self) -> None:
        """Works until every message is finished, given back or given up."""
        self.hand.take(self.head)
        self.child.note(atlas=self.order.atlas, layer=self.order.layer, state="working")
        try:
            self._work()
            self.child.refused.clear()
            self.child.refusals = 0
        except Refusal as refusal:
            self._refuse(str(refusal))
        except StrangerError as error:
            self._put_aside(str(error))
        except StoreError as error:
            self._wait_for_store(error)
        except DeviceError as error:
            self._lose_device(error)
        except Exception as error:
            self._blame(error)
        finally:
            # Also on SystemExit, which a shutdown raises here: at once back to the front for the others.
            self._return_rest()
            self.child.note(state="idle")

    # -- the work

    def _work(self) -> None:
        flag = self._broker(lambda: steer.flag(self.child.client, self.order.atlas))
        if flag == "cancelled":
            self._drop()
            return
        if flag == "paused":
            raise Refusal("paused")
        if self.head.version > VERSION:
            raise Refusal(f"the message has version {self.head.version}, this release reads {VERSION}: update it")
        atlas = self._broker(lambda: self.child.atlases.open(self.order.atlas))
        executor = self.child.executor
        first = self._job(self.head)
        if first is None:
            return
        self._check_fit(executor, first, atlas)
        self.child.served.add(self.order.atlas)
        size = executor.sizes.of(first)
        jobs = [first, *self._claim(size)]
        for part in self._parts(self._not_done(jobs), size):
            if self._stop_before_batch():
                break
            messages = [self._messages[job.unit] for job in part]
            self._broker(functools.partial(self.hand.count, messages))
            self.child.note(batch=min(size, len(part)))
            executor.run(part, atlas.store, self._settle, self._stop, self._step)
            self.child.pulse.device_failures = 0

    def _job(self, message: Message) -> Job | None:
        """The job of a message; one that is not planned is given up, one sent twice is dropped."""
        order = message.order
        if order.unit in self._messages:
            self.hand.finish([message])
            return None
        try:
            job = self._broker(lambda: self.child.atlases.job(order.atlas, order.unit))
        except RequestError as error:
            self._give_up(message, str(error))
            return None
        self._messages[order.unit] = message
        return job

    def _check_fit(self, executor: Executor, job: Job, atlas: Atlas) -> None:
        """Loads the model.  Raises Refusal where this worker cannot: another may have the package, or the release."""
        until, why = self.child.unfit.get(atlas.url, (0.0, ""))
        if time.monotonic() < until:
            raise Refusal(why)
        try:
            check_renderer(job)
            executor.model(job.model, atlas.store.get)
        except (RequestError, IntegrityError, ModuleNotFoundError) as error:
            self.child.unfit[atlas.url] = time.monotonic() + _UNFIT, str(error)
            raise Refusal(str(error)) from error
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
        done = self._broker(lambda: self.child.atlases.done(order.atlas, order.variant, order.layer, fresh=fresh))
        self.hand.finish([self._messages[job.unit] for job in jobs if job.channel in done])
        return [job for job in jobs if job.channel not in done]

    def _parts(self, jobs: Sequence[Job], size: int) -> list[list[Job]]:
        """Jobs by how often they were begun: the untried together, the others in ever smaller parts."""
        if not jobs:
            return []
        counts = self._broker(lambda: self.hand.attempts([self._messages[job.unit] for job in jobs]))
        self._attempts = dict(zip((job.unit for job in jobs), counts, strict=True))
        parts = []
        for tried in sorted(set(counts)):
            level = [job for job in jobs if self._attempts[job.unit] == tried]
            if tried >= MOST_ATTEMPTS:
                for job in level:
                    self._exhaust(job, tried)
                continue
            most = len(level) if tried == 0 else max(1, size // _DIVIDE**tried)
            parts += [level[i : i + most] for i in range(0, len(level), most)]
        return parts

    def _exhaust(self, job: Job, tried: int) -> None:
        self._give_up(
            self._messages[job.unit], f"the process ended or hung {tried} times while rendering it", tried, job
        )

    def _settle(self, outcome: Outcome) -> None:
        """What becomes of the message of one finished, failed or unfinished job."""
        message = self._messages[outcome.job.unit]
        if outcome.status in ("ok", "dead"):
            self.hand.finish([message])
            self.child.count(done=1)
        elif outcome.status != "unfinished":
            tried = self._attempts[outcome.job.unit] + 1
            if outcome.final or tried >= MOST_ATTEMPTS:
                self._give_up(message, outcome.error, tried)
            else:
                self._broker(lambda: self.hand.give_back([message], "back", uncount=False))

    # -- between two steps

    def _step(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if step > 1:
            self._step_seconds = now - self._last_step
        self._last_step, self._position = now, (step, steps)
        self.child.touch()

    def _stop(self) -> bool:
        """Whether to leave the rest unfinished: cancelled, or the worker ends before this batch could."""
        self.child.touch()
        if self.child.lease.flags.get(self.order.atlas) == "cancelled":
            return True
        if not self.child.pulse.draining:
            return False
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        step, steps = self._position
        if step >= steps or step == 0:
            return True
        left = self.child.settings.grace - (time.monotonic() - self._drained_at)
        # A second or so goes into the uploads.
        return (steps - step) * self._step_seconds > left - 2.0

    def _stop_before_batch(self) -> bool:
        self._position = (0, 1)
        return self._stop()

    # -- ways out

    def _return_rest(self) -> None:
        rest = self.hand.messages()
        cancelled = self.child.lease.flags.get(self.order.atlas) == "cancelled"
        try:
            if cancelled:
                self.hand.finish(rest)
            elif rest:
                self.hand.give_back(rest)
        except RedisError as error:
            log.warning("%d messages come back by their leases only: %s", len(rest), error)

    def _drop(self) -> None:
        """The atlas was cancelled."""
        self.child.served.discard(self.order.atlas)
        self.hand.claim(self.order.group, _MOVED, _MOVED)
        self.hand.finish(self.hand.messages())

    def _refuse(self, why: str) -> None:
        """Gives the whole group back, behind everything else; waits once everything that waits was refused."""
        child, group = self.child, self.order.group
        child.note(state="waiting", note=f"{self.order.atlas}: {why}")
        if child.refusals == 0:
            log.warning("%s is not for this worker: %s", self.order.atlas, why)
        self.hand.claim(group, _MOVED, _MOVED)
        self._broker(lambda: self.hand.give_back(self.hand.messages(), "back"))
        if group in child.refused:
            child.refused.clear()
            child.refusals = min(child.refusals + 1, 10)
            self._sleep(random.uniform(0, min(_LONGEST_WAIT, 0.25 * 2**child.refusals)))
        child.refused.add(group)

    def _put_aside(self, why: str) -> None:
        log.error("a message was dropped: %s", why)
        self._broker(lambda: self.hand.put_aside(self.head, why))

    def _wait_for_store(self, error: StoreError) -> None:
        """Gives everything back, since others may reach the store, and takes nothing until it can be listed again."""
        log.error("the store fails, everything is given back: %s", error)
        self.child.note(state="waiting", note=str(error))
        self._broker(lambda: self.hand.give_back(self.hand.messages()))
        end = time.monotonic() + _OUTAGE
        for attempt in range(1000):
            self._sleep(random.uniform(0.1, min(_LONGEST_WAIT, 0.5 * 2 ** min(attempt, 10))))
            if time.monotonic() > end or self.child.pulse.draining:
                return
            try:
                _try_to_write(self.child.atlases.open(self.order.atlas), self.child.beat)
            except (AtlasError, RedisError) as again:
                log.warning("still: %s", again)
            else:
                self.child.note(note="")
                return

    def _lose_device(self, error: DeviceError) -> None:
        """Gives everything back and ends this process; the next one begins with a fresh device."""
        pulse = self.child.pulse
        pulse.device_failures += 1
        log.critical("the device failed (%s), for the %d. time in a row", error, pulse.device_failures)
        self.child.note(state="waiting", note=str(error))
        # Counted where a batch was running: it may be to blame.
        self._broker(lambda: self.hand.give_back(self.hand.messages(), uncount=False))
        if pulse.device_failures >= _DEVICE_FAILURES:
            log.critical("giving up this device: the worker ends")
            os.kill(os.getppid(), 15)
        os._exit(BROKEN)

    def _blame(self, error: Exception) -> None:
        """Nobody expected this: counted, and to the back of the queue, so that it cannot loop for ever."""
        if isinstance(error, RequestError):
            for message in self.hand.messages():
                self._give_up(message, str(error))
            return
        log.error("a turn failed: %s", error, exc_info=error)
        messages = self.hand.messages()
        try:
            self.hand.count(messages)
            self.hand.give_back(messages, "back", uncount=False)
        except RedisError as trouble:
            log.warning("%d messages come back by their leases only: %s", len(messages), trouble)
        self._sleep(random.uniform(0, 2))

    def _give_up(self, message: Message, why: str, tried: int = 1, job: Job | None = None) -> None:
        """Records a job that will not be tried again; ``job`` where its failure is not yet on record in the store."""
        log.error("%s is given up: %s", message.order.unit, why)
        host = self.child.beat.worker
        if job is not None:
            failure = Failure(
                unit=job.unit, job_id=job.id, error=why, traceback="".join(traceback.format_stack(limit=1)), host=host,
                attempts=tried, created=commit.now(),
            )  # fmt: skip
            store = self.child.atlases.open(message.order.atlas).store
            commit.patiently(
                lambda: store.put(keys.error(job.unit), manifest.dump(failure), content_type="application/json"),
                self.child.settings.patience,
            )
        given_up = GivenUp(error=why, host=host, attempts=tried, at=time.time())
        self._broker(lambda: self.hand.give_up(message, given_up))
        self.child.count(failed=1)

    # -- patience

    def _broker(self, action: Callable[[], T]) -> T:
        """The action's result, tried again with full jitter while the broker fails.  Raises RedisError in the end."""
        end = time.monotonic() + self.child.settings.patience
        for attempt in range(1000):
            try:
                return action()
            except RedisError as error:
                left = end - time.monotonic()
                if left <= 0 or self.child.pulse.draining:
                    raise
                wait = random.uniform(0, min(left, _LONGEST_WAIT, 0.5 * 2 ** min(attempt, 10)))
                log.warning("the broker fails (%s); trying again in %.1f s", error, wait)
                self._sleep(wait)
        raise AssertionError("unreachable")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.child.pulse.draining:
            self.child.touch()
            time.sleep(min(left, 0.2))


def _try_to_write(atlas: Atlas, beat: Beat) -> None:
    """Raises StoreError where the atlas takes no picture: a listing says nothing about a full disk."""
    key = keys.probe(f"{beat.host.replace('.', '-')}-{beat.pid}")
    atlas.store.put(key, bytes(_PROBE))
    atlas.store.delete(key)

"""What becomes of messages whose jobs are not done: given back, given up, dropped or put aside; and when to wait."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from redis import RedisError

from feature_atlas import keys, manifest
from feature_atlas.atlas import Atlas
from feature_atlas.broker_errors import refusal
from feature_atlas.errors import AtlasError, DeviceError, RequestError, StoreError
from feature_atlas.manifest import Failure
from feature_atlas.messages import Message, Order
from feature_atlas.monitor import Beat, GivenUp
from feature_atlas.spec import Job
from feature_atlas_worker import commit
from feature_atlas_worker.lease import BROKEN

if TYPE_CHECKING:
    from feature_atlas_worker.child import Child

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Messages of a refused or cancelled group that are moved at once.
_MOVED = 1000
#: Seconds: the longest wait between two tries, and for a store that fails.
_LONGEST_WAIT, _OUTAGE = 30.0, 600.0
#: Bytes written to find out whether there is room again.
_PROBE = 2**18
#: Devices fail for good after this many processes in a row met the failure.
_DEVICE_FAILURES = 3


class Retreat:
    """Ways out of a turn, each of which accounts for every message in hand."""

    def __init__(self, child: Child, order: Order) -> None:
        self.child, self.hand, self.order = child, child.hand, order

    def drop(self) -> None:
        """The atlas was cancelled: its messages are done with."""
        self.child.served.discard(self.order.atlas)
        self.child.unfit.pop(self.order.atlas, None)
        self.hand.claim(self.order.group, _MOVED, _MOVED)
        self.hand.finish(self.hand.messages())

    def put_aside(self, head: Message, why: str) -> None:
        """Drops a message that points where no producer ever pointed."""
        log.error("a message was dropped: %s", why)
        self.broker(lambda: self.hand.put_aside(head, why))

    def refuse(self, why: str) -> None:
        """Gives the whole group back, behind everything else; waits once everything that waits was refused."""
        child, group = self.child, self.order.group
        child.note(state="waiting", note=f"{self.order.atlas}: {why}")
        if child.refusals == 0:
            log.warning("%s is not for this worker: %s", self.order.atlas, why)
        self.hand.claim(group, _MOVED, _MOVED)
        self.broker(lambda: self.hand.give_back(self.hand.messages(), "back"))
        if group in child.refused:
            child.refused.clear()
            child.refusals = min(child.refusals + 1, 10)
            self.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.25 * 2**child.refusals)))
        child.refused.add(group)

    def wait_for_store(self, error: StoreError) -> None:
        """Gives everything back, since others may reach the store, and takes nothing until it can be written again."""
        self.child.trouble("store")
        log.error("the store fails, everything is given back: %s", error)
        self.child.note(state="waiting", note=str(error))
        self.broker(lambda: self.hand.give_back(self.hand.messages()))
        end = time.monotonic() + _OUTAGE
        for attempt in range(1000):
            self.sleep(random.uniform(0.1, min(_LONGEST_WAIT, 0.5 * 2 ** min(attempt, 10))))
            if time.monotonic() > end or self.child.pulse.draining:
                return
            try:
                _try_to_write(self.child.atlases.open(self.order.atlas), self.child.beat)
            except (AtlasError, RedisError) as again:
                self.child.trouble("store")  # an alert looks at what is new
                log.warning("still: %s", again)
            else:
                self.child.note(note="")
                return

    def lose_device(self, error: DeviceError) -> None:
        """Gives everything back and ends this process; the next one begins with a fresh device."""
        pulse = self.child.pulse
        pulse.device_failures += 1
        self.child.trouble("device")
        log.critical("the device failed (%s), for the %d. time in a row", error, pulse.device_failures)
        self.child.note(state="waiting", note=str(error))
        # Counted where a batch was running: it may be to blame.
        self.broker(lambda: self.hand.give_back(self.hand.messages(), uncount=False))
        if pulse.device_failures >= _DEVICE_FAILURES:
            log.critical("giving up this device: the worker ends")
            os.kill(os.getppid(), signal.SIGTERM)
        os._exit(BROKEN)

    def blame(self, error: Exception) -> None:
        """A wrong request ends here; what nobody expected is counted and goes to the back, so that it cannot loop."""
        messages = self.hand.messages()
        if isinstance(error, RequestError):
            for message in messages:
                self.give_up(message, str(error))
            return
        log.error("a turn failed: %s", error, exc_info=error)
        try:
            self.hand.count(messages)
            self.hand.give_back(messages, "back", uncount=False)
        except RedisError as trouble:
            log.warning("%d messages come back by their leases only: %s", len(messages), trouble)
        self.sleep(random.uniform(0, 2))

    def give_up(self, message: Message, why: str, tried: int = 1, job: Job | None = None) -> None:
        """Records a job that is not tried again; ``job`` where its failure is not yet on record in the store.

        Raises StoreError, RedisError.
        """
        log.error("%s is given up: %s", message.order.unit, why)
        host = self.child.beat.worker
        if job is not None:
            failure = Failure(
                unit=job.unit, job_id=job.id, error=why, host=host, attempts=tried, created=commit.now()
            )  # fmt: skip
            store = self.child.patient(self.child.atlases.open(message.order.atlas).store)
            store.put(keys.error(job.unit), manifest.dump(failure), content_type="application/json")
        given_up = GivenUp(error=why, host=host, attempts=tried, at=time.time())
        self.child.tell("given_up")  # before the broker forgets the job: a kill in between must not lose the count
        self.broker(lambda: self.hand.give_up(message, given_up))
        self.child.count(failed=1)

    def return_rest(self) -> None:
        """Back to the front with what is still in hand."""
        rest = self.hand.messages()
        try:
            if self.child.lease.flags.get(self.order.atlas) == "cancelled":
                self.hand.finish(rest)
            elif rest:
                self.hand.give_back(rest)
                self.child.tell("given_back", len(rest))
        except RedisError as error:
            log.warning("%d messages come back by their leases only: %s", len(rest), error)

    def broker(self, action: Callable[[], T]) -> T:
        """The action's result, tried again with full jitter while the broker fails.  Raises RedisError in the end."""
        end = time.monotonic() + self.child.settings.patience
        for attempt in range(1000):
            try:
                return action()
            except RedisError as error:
                left = end - time.monotonic()
                if left <= 0 or self.child.pulse.draining:
                    raise
                self.child.trouble("broker")
                wait = random.uniform(0, min(left, _LONGEST_WAIT, 0.5 * 2 ** min(attempt, 10)))
                log.warning("the broker %s; trying again in %.1f s", refusal(error) or f"fails ({error})", wait)
                self.sleep(wait)
        raise AssertionError("unreachable")

    def sleep(self, seconds: float) -> None:
        """Waits, unless the worker is to end."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.child.pulse.draining:
            self.child.touch()
            time.sleep(min(left, 0.2))


def _try_to_write(atlas: Atlas, beat: Beat) -> None:
    """Raises StoreError where the atlas takes no picture: a listing says nothing about a full disk."""
    key = keys.probe(f"{beat.host.replace('.', '-')}-{beat.pid}")
    atlas.store.put(key, bytes(_PROBE))
    atlas.store.delete(key)

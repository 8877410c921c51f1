"""Plan minus store minus queue: sends what is missing, at any time, as often as anybody likes.

Jobs move from the queue into a worker's hands and from there into the store.  Looking in that order, a job on its way
is seen at least once; one that moves back meanwhile may be sent twice, and whoever gets it second skips it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

from feature_atlas import keys, manifest, place
from feature_atlas.errors import BrokerError, IntegrityError, ObjectNotFound
from feature_atlas.manifest import Failure
from feature_atlas.messages import (
    ATLASES,
    FLAGS,
    QUEUE,
    UNACKED,
    attempts_key,
    dead_key,
    field,
    lock_key,
    peek,
    rest_key,
    unit_of,
)
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    import redis
    from redis.lock import Lock

    from feature_atlas.atlas import Atlas
    from feature_atlas.queue import Template

log = logging.getLogger(__name__)

#: How often a job may fail, or end its process, before it is given up.
MOST_ATTEMPTS = 4
#: Messages per command: about 2 MB.
_CHUNK = 5000
#: Seconds after which the lock of a dead process is anybody's.
LOCK = 60.0

Channels = dict[tuple[str, str], set[int]]
Told = Callable[[int], None]


class Reconciled(NamedTuple):
    """What was where, and what was sent: planned = done + failed + queued + in_hand + sent."""

    planned: int
    done: int
    failed: int
    queued: int
    in_hand: int
    sent: int
    #: Seconds for the listing of the store, and for the sending.
    listing: float
    sending: float

    @property
    def complete(self) -> bool:
        """Nothing is left to be done."""
        return self.done + self.failed == self.planned


def reconcile(
    client: redis.Redis, template: Template, atlas: Atlas, *, wait: float = 0.0, told: Told | None = None
) -> Reconciled:
    """Sends every job of the atlas that is neither done, failed for good, queued nor in hand.

    Args:
        client: of the broker.
        template: makes the messages.
        atlas: whose jobs; its plan is read again first.
        wait: seconds to wait while another process does the same.
        told: called with the number of messages sent so far.

    Raises:
        BrokerError: another process is at it, or the broker is full.
        StoreError: the atlas cannot be listed.
    """
    with Held(client, atlas.url, wait) as held:
        atlas.reload()
        queued, in_hand = where(client, atlas.url, held)
        started = time.monotonic()
        done, failed = _listed(client, atlas, (queued, in_hand), held)
        listing, started = time.monotonic() - started, time.monotonic()
        client.hset(ATLASES, atlas.url, place.describe(atlas.store))
        if place.is_held(atlas.store):
            client.hset(FLAGS, atlas.url, "paused")
        counts, sent = [0, 0, 0, 0], 0
        for variant, layer in atlas.plan.groups():
            planned, group = set(atlas.plan.channels(variant, layer)), (variant, layer)
            for i, there in enumerate((done, failed, in_hand, queued)):
                here = planned & there.get(group, set())
                counts[i] += len(here)
                planned -= here
            for chunk in _chunks(template.messages(atlas.url, variant, layer, sorted(planned))):
                _push(client, chunk)
                sent += len(chunk)
                held.on()
                if told is not None:
                    told(sent)
    if sent:
        client.delete(rest_key(atlas.url))
    sending = time.monotonic() - started
    return Reconciled(len(atlas.plan), counts[0], counts[1], counts[3], counts[2], sent, listing, sending)


class Held:
    """The right to reconcile one atlas, for as long as :meth:`on` is called now and then."""

    def __init__(self, client: redis.Redis, atlas: str, wait: float) -> None:
        self.atlas, self.wait = atlas, wait
        self._lock: Lock = client.lock(lock_key(atlas), timeout=LOCK, thread_local=False)
        self._renewed = 0.0

    def __enter__(self) -> Held:
        # Most are done at once; a killed one's lock lasts.
        if not self._acquire(min(2.0, self.wait)) and not self._wait_on():
            raise BrokerError(
                f"another process is looking through {self.atlas} just now: try again in a minute (nothing was sent)"
            )
        self._renewed = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.owned():
            self._lock.release()

    def _acquire(self, seconds: float) -> bool:
        return self._lock.acquire(blocking=seconds > 0, blocking_timeout=seconds)

    def _wait_on(self) -> bool:
        left = self.wait - 2.0
        if left <= 0:
            return False
        log.warning("another process is looking through %s: waiting for it, %.0f s at most", self.atlas, left)
        return self._acquire(left)

    def on(self) -> None:
        """Keeps the right.  Raises BrokerError where it was lost: we were asleep for a minute."""
        if time.monotonic() - self._renewed < LOCK / 6:
            return
        if not self._lock.owned():
            raise BrokerError(f"the lock of {self.atlas} was lost to another process: run the same command again")
        self._lock.reacquire()
        self._renewed = time.monotonic()


def where(client: redis.Redis, atlas: str, held: Held | None = None) -> tuple[Channels, Channels]:
    """(queued, in hand): the atlas's channels by group.  Reads the whole queue: 3 s per 100,000 messages."""
    queued, in_hand = Channels(), Channels()
    _sort(_queue(client, held), atlas, queued)
    _sort((unwrap(value) for _, value in client.hscan_iter(UNACKED, count=1000)), atlas, in_hand)
    return queued, in_hand


def _queue(client: redis.Redis, held: Held | None) -> Iterator[bytes]:
    """All waiting messages.  Those sent meanwhile push the others towards us: seen twice, never missed."""
    for start in range(0, 1 << 62, _CHUNK):
        chunk = cast("list[bytes]", client.lrange(QUEUE, start, start + _CHUNK - 1))
        yield from chunk
        if held is not None:
            held.on()
        if len(chunk) < _CHUNK:
            return


def unwrap(value: bytes) -> bytes:
    """The message within what kombu keeps of one in hand: ``[message, exchange, routing key]``."""
    end = value.rfind(b"}")
    return value[value.find(b"{") : end + 1]


def _sort(raws: Iterable[bytes], atlas: str, into: Channels) -> None:
    for raw in raws:
        found = peek(raw)
        if found is not None and found[0] == atlas:
            unit = found[1]
            into.setdefault((unit.variant, unit.layer), set()).add(unit.channel)


def _listed(
    client: redis.Redis, atlas: Atlas, pending: tuple[Channels, Channels], held: Held
) -> tuple[Channels, Channels]:
    """(done, failed for good) by listing the store, which outranks the broker's dead list."""
    done, recorded, failed = Channels(), Channels(), Channels()
    # Before the listing: a failure is recorded in the store first.
    given_up = {unit_of(name.decode()) for name in cast("list[bytes]", client.hkeys(dead_key(atlas.url)))}
    for prefix, found in ((keys.IMAGES, done), (keys.ERRORS, recorded)):
        for info in atlas.store.list(prefix):
            held.on()
            parsed = keys.parse_unit(info.key)
            if parsed is not None and parsed[2] == 0:
                found.setdefault(parsed[1][:2], set()).add(parsed[1].channel)
    for unit in given_up:
        if unit.channel in done.get(unit[:2], ()) or unit.channel not in recorded.get(unit[:2], ()):
            # Overcome, or forgotten by `retry`.
            client.hdel(dead_key(atlas.url), field(unit))
    for group, channels in recorded.items():
        for channel in channels - done.get(group, set()):
            unit = Unit(*group, channel)
            on_the_way = any(channel in there.get(group, ()) for there in pending)
            if unit in given_up or (not on_the_way and _is_final(atlas, unit)):
                failed.setdefault(group, set()).add(channel)
    _forget_attempts(client, atlas.url, (done, failed))
    return done, failed


def _forget_attempts(client: redis.Redis, atlas: str, settled: tuple[Channels, ...]) -> None:
    """Those at what is settled: a job that was sent twice leaves some where its second owner is killed."""
    begun = [(name, unit_of(name.decode())) for name in cast("list[bytes]", client.hkeys(attempts_key(atlas)))]
    over = [name for name, unit in begun if any(unit.channel in there.get(unit[:2], ()) for there in settled)]
    if over:
        client.hdel(attempts_key(atlas), *over)


def _is_final(atlas: Atlas, unit: Unit) -> bool:
    """Whether a failure on record is the last one; the broker may have forgotten."""
    try:
        failure = manifest.load(Failure, atlas.store.get(keys.error(unit)), keys.error(unit))
    except ObjectNotFound:
        return False
    except IntegrityError:
        return True
    return failure.attempts >= MOST_ATTEMPTS


def _chunks(messages: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(messages, _CHUNK)):
        yield chunk


def _push(client: redis.Redis, chunk: list[str]) -> None:
    from redis import ResponseError

    try:
        client.lpush(QUEUE, *chunk)
    except ResponseError as error:
        raise BrokerError(
            f"the broker takes no more messages ({error}): give it memory, then run the same command again"
        ) from error


def forget(client: redis.Redis, atlas: str) -> None:
    """Lets what was given up be tried again; the records under ``errors/`` are for the caller to remove."""
    client.delete(dead_key(atlas), attempts_key(atlas))

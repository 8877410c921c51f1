"""What the queue knows of an atlas: jobs waiting and in hand, jobs given up, and the workers."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ValidationError

from feature_atlas.messages import ATLASES, FLAGS, MALFORMED, QUEUE, UNACKED, WORKERS, Flag, dead_key, unit_of
from feature_atlas.reconcile import where
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    import redis

#: Seconds without a sign of life after which a worker counts as gone, and after which it is forgotten.
GONE, FORGOTTEN = 180.0, 24 * 3600.0
#: More waiting messages than this are counted, not told apart by layer.
_MOST_READ = 200_000
#: Messages that nobody can use are kept up to this number, and this many bytes of each.
MOST_MALFORMED, _KEPT = 1000, 2000


class Beat(BaseModel):
    """A worker's sign of life."""

    worker: str
    host: str
    pid: int
    device: str
    #: Of feature-atlas; empty from workers that did not say.
    release: str = ""
    #: Channels side by side in the last batch.
    batch: int = 0
    state: Literal["idle", "working", "waiting"] = "idle"
    atlas: str = ""
    layer: str = ""
    done: int = 0
    failed: int = 0
    #: Jobs per second over the last minutes.
    rate: float = 0.0
    #: Why it waits or refuses jobs.
    note: str = ""
    #: Seconds since 1970: in the broker by the broker's clock, once :func:`workers` has read them by this machine's.
    started: float = 0.0
    at: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return time.time() - self.at < GONE


class GivenUp(BaseModel):
    """Why a job is not tried again."""

    error: str
    host: str = ""
    attempts: int = 0
    at: float = 0.0


class QueueStatus(NamedTuple):
    """The queue's side of an atlas."""

    queued: int
    in_hand: int
    #: (variant, layer) -> (queued, in hand); empty where the queue is too long to be read through.
    groups: dict[tuple[str, str], tuple[int, int]]
    given_up: dict[Unit, GivenUp]
    flag: Flag | None
    #: Those heard of within a day, as :func:`workers` gives them.
    workers: tuple[Beat, ...]
    #: Messages that nobody could read, of any atlas.
    malformed: int

    @property
    def rate(self) -> float:
        """Jobs per second of all workers that live."""
        return sum(beat.rate for beat in self.workers if beat.alive)

    def to_json(self) -> dict[str, Any]:
        """For ``status --json``."""
        return {
            "queued": self.queued, "in_hand": self.in_hand, "flag": self.flag, "malformed": self.malformed,
            "rate": round(self.rate, 3),
            "given_up": [{"unit": str(unit), **why.model_dump()} for unit, why in self.given_up.items()],
            "workers": [{**beat.model_dump(), "alive": beat.alive} for beat in self.workers],
        }  # fmt: skip


def queue_status(broker: str, atlas: str) -> QueueStatus:
    """What the broker knows of the atlas.

    Raises:
        RequestError: not the URL of a broker.
        BrokerError: it cannot be reached or used.
    """
    from feature_atlas.broker import connect, trouble

    client = connect(broker, write=False)
    try:
        return read(client, atlas)
    except trouble() as error:
        from feature_atlas.broker import explain

        raise explain(error, broker) from error
    finally:
        client.close()


def read(client: redis.Redis, atlas: str) -> QueueStatus:
    """As :func:`queue_status`, over a client at hand."""
    value = cast("bytes | None", client.hget(FLAGS, atlas))
    given_up = {
        unit_of(field.decode()): GivenUp.model_validate_json(text)
        for field, text in cast("dict[bytes, bytes]", client.hgetall(dead_key(atlas))).items()
    }
    waiting = client.llen(QUEUE)
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    if waiting <= _MOST_READ:
        queued, in_hand = where(client, atlas)
        for group in queued.keys() | in_hand.keys():
            hand = in_hand.get(group, set())
            groups[group] = (len(queued.get(group, set()) - hand), len(hand))
        counts = sum(first for first, _ in groups.values()), sum(second for _, second in groups.values())
    else:
        counts = waiting, client.hlen(UNACKED)
    return QueueStatus(
        *counts, groups, given_up, cast("Flag | None", value.decode() if value else None), workers(client),
        client.hlen(MALFORMED),
    )  # fmt: skip


def workers(client: redis.Redis) -> tuple[Beat, ...]:
    """Every worker heard of within a day: the living by name, then the gone, latest first.  Forgets the others."""
    from feature_atlas.broker import clock_skew

    found, ahead = [], clock_skew(client)
    for name, text in cast("dict[bytes, bytes]", client.hgetall(WORKERS)).items():
        try:
            beat = Beat.model_validate_json(text)
        except ValidationError:  # of another release
            continue
        beat = beat.model_copy(update={"at": beat.at + ahead, "started": beat.started + ahead})
        if time.time() - beat.at > FORGOTTEN:
            client.hdel(WORKERS, name)
        else:
            found.append(beat)
    now = time.time()
    silent = {beat.worker: 0.0 if beat.alive else now - beat.at for beat in found}
    return tuple(sorted(found, key=lambda beat: (silent[beat.worker], beat.worker)))


def atlases(client: redis.Redis) -> list[str]:
    """The URL of every atlas that was enqueued and not cancelled."""
    return sorted(name.decode() for name in cast("list[bytes]", client.hkeys(ATLASES)))


def put_aside(client: redis.Redis, raw: bytes, why: str) -> None:
    """Keeps a message that nobody can use, for a person to look at; at most so many of them."""
    from feature_atlas.broker import put

    if client.hlen(MALFORMED) < MOST_MALFORMED:
        kept = {"error": why, "at": time.time(), "message": raw[:_KEPT].decode(errors="replace")}
        put(client, MALFORMED, hashlib.sha256(raw).hexdigest()[:16], json.dumps(kept))

"""What doctor looks at: the store and the broker, each tried as the work will use it."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from feature_atlas.errors import AtlasError, IntegrityError, StoreError

if TYPE_CHECKING:
    import redis

    from feature_atlas.store import Store

#: Clocks that differ by more make ages and times left wrong; from 15 minutes on S3 refuses every request.
_SKEW = 30.0
_SPACE = 1 * 2**30

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    what: str
    text: str


def store(url: str, *, make_bucket: bool) -> Iterator[Finding]:
    """Whether the place can be written, listed and read, and what atlas is there."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.store import open_store

    try:
        place = open_store(url)
    except AtlasError as error:
        yield Finding("fail", "store", str(error))
        return
    try:
        if make_bucket:
            yield _bucket(place)
        yield from _round_trip(place)
        yield from _space(place)
        atlas = Atlas.open(place)
        yield Finding("ok", "atlas", f"{len(atlas.plan)} channels of {atlas.file.model.name} are planned here")
    except StoreError as error:
        yield Finding("fail", "store", str(error))
    except IntegrityError as error:
        yield Finding("fail", "atlas", str(error))
    except AtlasError as error:  # there is none yet
        yield Finding("warn", "atlas", str(error))


def _bucket(place: Store) -> Finding:
    from feature_atlas.s3 import S3Store

    if not isinstance(place, S3Store):
        return Finding("warn", "bucket", f"--make-bucket is for s3://..., not for {place.url}")
    made = place.make_bucket()
    return Finding("ok", "bucket", f"{place.bucket} {'was made' if made else 'is there'}")


def _round_trip(place: Store) -> Iterator[Finding]:
    """Writes, lists, reads and deletes an object of its own, and compares the clocks."""
    key, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(4096)
    started = time.monotonic()
    place.put(key, data)
    written = time.monotonic()
    try:
        listed = list(place.list(key))
        same = place.get(key) == data and place.get_range(key, 100, 10) == data[100:110]
        took = f"write {1000 * (written - started):.0f} ms, list and read {1000 * (time.monotonic() - written):.0f} ms"
        conditions = list(_conditions(place, key))
    finally:
        place.delete(key)
    if not same:
        yield Finding("fail", "store", f"{place.url} gives back other bytes than were written: do not use it")
    elif [info.key for info in listed] != [key] or any(place.list(key)):
        yield Finding("fail", "store", f"{place.url} does not list what was just written or deleted: do not use it")
    else:
        yield Finding("ok", "store", f"{place.url}: {took}")
    yield from conditions
    if listed and not place.url.startswith("memory:"):
        yield clock("the store's", listed[0].modified - time.time())


def _conditions(place: Store, key: str) -> Iterator[Finding]:
    from feature_atlas.s3 import S3Store

    if isinstance(place, S3Store):
        kept = place.keeps_first(key)
        said = "are kept" if kept else "are ignored: no harm, nothing here relies on them"
        yield Finding("ok", "conditions", f"conditional puts {said}")


def _space(place: Store) -> Iterator[Finding]:
    if "://" in place.url or place.url.startswith("memory:"):
        return
    free = shutil.disk_usage(place.url).free
    text = f"{free / 2**30:.1f} GiB free, about {free // 50_000:,} pictures of 128 px"
    yield Finding("ok" if free > _SPACE else "warn", "space", text)


def broker(url: str) -> Iterator[Finding]:
    """Whether the broker answers and can do its work, and who works there.  Raises AtlasError."""
    from feature_atlas.broker import connect, examine, trouble

    found = [Finding(*found) for found in examine(url)]
    yield from found
    if any(finding.level == "fail" for finding in found):
        return
    client = connect(url)
    try:
        yield from _farm(client)
    except trouble() as error:  # a user who may not see this can still send jobs
        yield Finding("warn", "queue", f"cannot be looked at ({error})")
    finally:
        client.close()


def _farm(client: redis.Redis) -> Iterator[Finding]:
    from feature_atlas import __version__
    from feature_atlas.broker import clock_skew
    from feature_atlas.messages import MALFORMED, QUEUE, UNACKED
    from feature_atlas.monitor import workers

    yield clock("the broker's", -clock_skew(client))
    beats = [beat for beat in workers(client) if beat.alive]
    waiting, in_hand = client.llen(QUEUE), client.hlen(UNACKED)
    idle = waiting and not beats
    text = f"{waiting} jobs wait, {in_hand} in hand, {len(beats)} workers"
    yield Finding("warn" if idle else "ok", "queue", text + (": start some" if idle else ""))
    others = sorted({beat.release for beat in beats} - {__version__, ""})
    if others:
        text = (
            f"workers of feature-atlas {', '.join(others)}, and this is {__version__}: jobs of a newer one wait for it"
        )
        yield Finding("warn", "releases", text)
    if malformed := client.hlen(MALFORMED):
        text = f"{malformed} messages were put aside: look at them with HGETALL feature-atlas:malformed, then DEL it"
        yield Finding("warn", "queue", text)


def clock(whose: str, ahead: float) -> Finding:
    """How far another clock is ahead of ours, in seconds."""
    if abs(ahead) > _SKEW:
        return Finding("warn", "clock", f"{whose} clock differs by {ahead:+.0f} s: set this machine's by NTP")
    return Finding("ok", "clock", f"{whose} differs by {ahead:+.1f} s")

"""Whether an atlas holds what its records say, and how to put it right."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

from feature_atlas import keys, manifest
from feature_atlas.errors import IntegrityError, ObjectNotFound, StoreError
from feature_atlas.manifest import Manifest, SideCar
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

Kind = Literal["missing", "damaged", "foreign", "incomplete", "weights", "record", "marker", "unplanned"]
#: Found and put right at once, or of no consequence: no integrity failure.
HARMLESS = frozenset({"record", "marker", "unplanned"})
_THREADS = 8
_AT_ONCE = 256


class Problem(NamedTuple):
    """One thing that is not as recorded.  ``unit`` is None where it concerns the atlas as a whole."""

    unit: Unit | None
    kind: Kind
    sentence: str

    @property
    def harmless(self) -> bool:
        """Whether it was put right on the spot, or never mattered."""
        return self.kind in HARMLESS


def verify(
    atlas: Atlas, units: Iterable[Unit] | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[Problem]:
    """Every problem of these units (all that should be there when not given), in plan order.

    Pictures are decoded and compared with the hash in their own record, and the record with the plan.  A missing or
    differing side-car or dead marker is rebuilt on the way: the picture wins.  ``progress`` gets (checked, to check).
    """
    if units is None:
        yield from _whole(atlas)
        units = _present(atlas)
    dead = atlas.dead()
    chosen = list(units)
    with ThreadPoolExecutor(_THREADS, "verify") as pool:
        for start in range(0, len(chosen), _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            if progress is not None:
                progress(start, len(chosen))
            for problems in pool.map(lambda unit: _check(atlas, unit, unit in dead), part):
                yield from problems
    if progress is not None:
        progress(len(chosen), len(chosen))


def repair(atlas: Atlas, problems: Iterable[Problem]) -> list[Unit]:
    """Removes what is broken, so that the next render makes it again; returns the units that are now missing."""
    removed = dict.fromkeys(problem.unit for problem in problems if problem.unit is not None and not problem.harmless)
    for unit in removed:
        for key in (keys.image(unit), keys.manifest(unit), keys.dead(unit)):
            atlas.store.delete(key)
    return list(removed)


def _present(atlas: Atlas) -> list[Unit]:
    """Planned units with a picture, or with the side-car of one: it is written last, so a picture got lost."""
    there = atlas.done() | atlas.recorded()
    return [unit for unit in atlas.plan.units() if unit in there]


def _whole(atlas: Atlas) -> Iterator[Problem]:
    strangers = sorted(unit for unit in atlas.done() if unit not in atlas.plan)
    if strangers:
        yield Problem(None, "unplanned", f"{len(strangers)} pictures are in no plan, the first {strangers[0]}")
    if not atlas.file.model.weights.startswith("sha256:"):
        return
    digest = atlas.file.model.weights.removeprefix("sha256:")
    try:
        if hashlib.sha256(atlas.store.get(keys.weights(digest))).hexdigest() != digest:
            yield Problem(
                None, "weights", f"{keys.weights(digest)} is damaged: remove it and render with --weights FILE"
            )
    except ObjectNotFound:
        yield Problem(None, "weights", f"{keys.weights(digest)} is missing: render again with --weights FILE")


def _check(atlas: Atlas, unit: Unit, marked_dead: bool) -> list[Problem]:
    key = keys.image(unit)
    try:
        data = atlas.store.get(key)
        _, record = manifest.decode_png(data, key)  # compares the pixels with the record
    except ObjectNotFound:
        return [Problem(unit, "missing", f"{key} is missing although it was once finished")]
    except IntegrityError as error:
        return [Problem(unit, "damaged", str(error))]
    if record is None:
        return [Problem(unit, "foreign", f"{key} carries no record: it was not made by feature-atlas")]
    if unit in atlas.plan and (record.job_id != atlas.plan.job(unit).id or record.unit != unit):
        return [Problem(unit, "foreign", f"{key} is the picture of another job ({record.unit}, job {record.job_id})")]
    broken = [
        problem for n in range(1, len(record.pixels_sha256)) for problem in _check_further(atlas, unit, record, n)
    ]
    return broken or [*_check_record(atlas, unit, record, data), *_check_marker(atlas, unit, record, marked_dead)]


def _check_further(atlas: Atlas, unit: Unit, record: Manifest, n: int) -> Iterator[Problem]:
    key = keys.image(unit, n)
    try:
        manifest.check_further(atlas.store.get(key), key, record, n)
    except ObjectNotFound:
        yield Problem(unit, "incomplete", f"{key} is missing: image {n + 1} of {len(record.pixels_sha256)} of {unit}")
    except IntegrityError as error:
        yield Problem(unit, "damaged", str(error))


def _check_record(atlas: Atlas, unit: Unit, record: Manifest, png: bytes) -> Iterator[Problem]:
    key = keys.manifest(unit)
    try:
        found = manifest.load(SideCar, atlas.store.get(key), key)
        if found.manifest == record and found.bytes == len(png) and found.sha256 == hashlib.sha256(png).hexdigest():
            return
        what = "differs from its picture"
    except ObjectNotFound:
        what = "is missing"
    except IntegrityError:
        what = "is damaged"
    atlas.restore(unit, record, png)
    yield Problem(unit, "record", f"{key} {what}: rebuilt")


def _check_marker(atlas: Atlas, unit: Unit, record: Manifest, marked: bool) -> Iterator[Problem]:
    if (record.status == "dead") == marked:
        return
    with contextlib.suppress(StoreError):  # a reader without the right to write
        if marked:
            atlas.store.delete(keys.dead(unit))
        else:
            atlas.store.put(keys.dead(unit), b"")
    yield Problem(unit, "marker", f"{keys.dead(unit)} {'was stale: removed' if marked else 'was missing: rebuilt'}")

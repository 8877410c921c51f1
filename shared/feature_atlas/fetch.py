"""Take an atlas home, whole or in part: resumable, verified, from packs where there are any.

State is what lies in the folder with the right hash; nothing else needs resuming.  What arrives is an atlas again,
with a plan of what was asked for, its own page and a ``metadata.jsonl`` of exactly the pictures that are there.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from feature_atlas import growth, keys, manifest
from feature_atlas.browse import choose
from feature_atlas.errors import IntegrityError, ObjectNotFound, RequestError
from feature_atlas.objects import Store
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.publish.layers import read_old
from feature_atlas.publish.records import LayerFile
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

log = logging.getLogger(__name__)

THREADS = 8
#: Bytes of one request to a pack, and the most that is read in vain between two wanted pictures.
REQUEST, GAP = 16 * 2**20, 64 * 2**10


class Wanted(NamedTuple):
    """One file to have."""

    key: str
    unit: Unit
    size: int
    #: Empty where the atlas was not published: then the file's own record vouches for it.
    sha256: str
    #: Where it begins in which pack; "" without one.
    pack: str = ""
    offset: int = 0
    #: Whether its unit is marked dead.
    dead: bool = False


class Read(NamedTuple):
    """One request: a file, or a stretch of a pack that holds several."""

    files: tuple[Wanted, ...]

    @property
    def span(self) -> tuple[int, int]:
        """(where the stretch begins, its bytes)."""
        start = self.files[0].offset
        return start, self.files[-1].offset + self.files[-1].size - start


@dataclass
class Fetched:
    """What a fetch did, or would do."""

    folder: Path
    pictures: int = 0
    #: Already there with the right hash.
    present: int = 0
    bytes: int = 0
    requests: int = 0
    #: Files that could not be had intact, each with a sentence.
    problems: list[str] = field(default_factory=list)
    page: str = ""


def fetch(
    atlas: Atlas,
    folder: str | Path,
    *,
    layers: str = "*",
    channels: str = ":",
    variants: str = "*",
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Fetched:
    """Copies the chosen pictures into ``folder``; what is there and intact is not read again.

    Args:
        atlas: from where.
        folder: to where; an atlas of the same model may be there already, and grows.
        layers: names or globs, ``layer2.*,fc``.
        channels: numbers and ranges, ``0:64,100``.
        variants: names or globs.
        dry_run: only say what would be read.
        progress: called with (bytes had, bytes in all).

    Raises:
        RequestError: nothing is chosen; or the folder holds an atlas of another model, or other files in its place.
        StoreError: the atlas cannot be read, or the folder not be written.
    """
    target = DirectoryStore(folder)
    if target.url == atlas.store.url:
        raise RequestError(f"{folder} is the atlas itself: fetch into another folder")
    if growth.read_file(target) is None:
        growth.check_free(target)
    groups = choose(atlas.plan, layers, channels, variants)
    wanted = list(_wanted(atlas, groups))
    told = Fetched(target.root, pictures=len(wanted))
    missing = [file for file in wanted if not _intact(target, file)]
    reads = list(_reads(missing))
    told.present, told.requests = len(wanted) - len(missing), len(reads)
    told.bytes = sum(read.span[1] for read in reads)
    if dry_run:
        return told
    _plan(atlas, target, groups)
    _copy(atlas.store, target, reads, told, progress or (lambda done, total: None))
    from feature_atlas.publish import publish

    told.page = publish(target, packs=False).page
    return told


def _wanted(atlas: Atlas, groups: Mapping[tuple[str, str], tuple[int, ...]]) -> Iterator[Wanted]:
    """Every file of the chosen units that the store holds."""
    file: LayerFile | None = None
    for (variant, layer), numbers in groups.items():
        if file is None or file.layer != layer:
            file = read_old(atlas.store, layer)
        group = file.variants.get(variant) if file and file.layer == layer else None
        known = {row.channel: row for row in group.rows} if group else {}
        chosen, dead = set(numbers), atlas.dead(variant, layer)
        for info in atlas.store.list(keys.IMAGES + keys.group(variant, layer)):
            parsed = keys.parse_unit(info.key)
            if parsed is None or parsed[1].channel not in chosen:
                continue
            _, unit, n = parsed
            row = known.get(unit.channel)
            if row is None or n >= len(row.sha256):
                yield Wanted(info.key, unit, info.size, "", dead=unit in dead)
            else:
                pack = keys.pack(variant, layer, unit.channel // 256) if row.offsets else ""
                offset = row.offsets[n] if row.offsets else 0
                yield Wanted(info.key, unit, row.bytes[n], row.sha256[n], pack, offset, unit in dead)


def _intact(target: DirectoryStore, file: Wanted) -> bool:
    try:
        return _right(target.get(file.key), file)
    except ObjectNotFound:
        return False


def _right(data: bytes, file: Wanted) -> bool:
    """Whether these are the bytes that the atlas vouches for."""
    if len(data) != file.size:
        return False
    if file.sha256:
        return hashlib.sha256(data).hexdigest() == file.sha256
    try:
        _, record = manifest.decode_png(data, file.key)
    except IntegrityError:
        return False
    if record is None:  # a further image of a job: its record is in the first one
        return keys.image(file.unit) != file.key
    return record.unit == file.unit


def _reads(files: list[Wanted]) -> Iterator[Read]:
    """Single files, and stretches of packs with little between the files."""
    stretch: list[Wanted] = []
    for file in sorted(files, key=lambda file: (file.pack, file.offset, file.key)):
        if stretch and _joins(stretch, file):
            stretch.append(file)
            continue
        if stretch:
            yield Read(tuple(stretch))
        stretch = [file]
    if stretch:
        yield Read(tuple(stretch))


def _joins(stretch: list[Wanted], file: Wanted) -> bool:
    last = stretch[-1]
    gap = file.offset - last.offset - last.size
    fits = file.offset + file.size - stretch[0].offset <= REQUEST
    return bool(file.pack) and file.pack == last.pack and 0 <= gap <= GAP and fits


def _plan(atlas: Atlas, target: DirectoryStore, groups: Mapping[tuple[str, str], tuple[int, ...]]) -> None:
    """Gives the copy its plan: the atlas's own where all of it was chosen."""
    model = atlas.file.model
    if all(numbers == atlas.plan.channels(*pair) for pair, numbers in groups.items()) and len(groups) == sum(
        1 for _ in atlas.plan.groups()
    ):
        files = list(atlas.plan.files.values())
    else:
        files = [
            PlanFile(
                model=model.digest(), variants={variant: atlas.plan.variants[variant]},
                layers=tuple(_part(atlas, layer, numbers) for (v, layer), numbers in groups.items() if v == variant),
            )
            for variant in dict.fromkeys(variant for variant, _ in groups)
        ]  # fmt: skip
    if growth.read_file(target) is None:
        target.put(keys.ATLAS, manifest.dump(atlas.file), content_type="application/json")
    for file in files:
        growth.add(target, model, file)


def _part(atlas: Atlas, layer: str, numbers: tuple[int, ...]) -> LayerPlan:
    from feature_atlas.channels import spell

    entry = atlas.plan.layers[layer]
    return LayerPlan(name=layer, kind=entry.kind, index=entry.index, total=entry.total, channels=spell(numbers))


def _copy(
    source: Store, target: DirectoryStore, reads: list[Read], told: Fetched, progress: Callable[[int, int], None]
) -> None:
    had = 0
    progress(0, told.bytes)
    with ThreadPoolExecutor(THREADS, "fetch") as pool:
        pending = {pool.submit(_read, source, target, read): read for read in reads}
        try:
            for future in as_completed(pending):
                told.problems += future.result()
                had += pending[future].span[1]
                progress(had, told.bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    told.problems.sort()


def _read(source: Store, target: DirectoryStore, read: Read) -> list[str]:
    """Gets one stretch into the folder; returns a sentence for every file that could not be had intact."""
    oversized = [file for file in read.files if file.size > manifest.MAX_BYTES]
    if oversized:
        return [
            f"{file.key} claims {file.size} bytes: a picture has at most {manifest.MAX_BYTES}" for file in oversized
        ]
    start, length = read.span
    data = b""
    if read.files[0].pack:
        try:
            data = source.get_range(read.files[0].pack, start, length)
        except ObjectNotFound:
            log.warning("%s is gone: its pictures are read one by one", read.files[0].pack)
    problems = []
    for file in read.files:
        piece = data[file.offset - start : file.offset - start + file.size] if data else b""
        if not _right(piece, file):
            piece = _alone(source, file)
        if _right(piece, file):
            if file.dead:
                target.put(keys.dead(file.unit), b"")
            target.put(file.key, piece, content_type="image/png")
            if file.key == keys.image(file.unit) and (record := _record(piece, file)):
                target.put(keys.manifest(file.unit), record)
        else:
            problems.append(f"{file.key} is not what the atlas's record says: verify and publish the atlas again")
    return problems


def _record(png: bytes, file: Wanted) -> bytes | None:
    """The side-car of a picture from the record inside it, without decoding the pixels (their hash was compared)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:  # reads up to the first pixel
            text = str(image.info[manifest.CHUNK])
        record = manifest.load(manifest.Manifest, text.encode(), f"the record in {file.key}")
    except (KeyError, ValueError, OSError, SyntaxError, IntegrityError) as error:
        log.warning("%s carries no readable record: %s", file.key, error)
        return None
    return manifest.dump(manifest.SideCar(manifest=record, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png)))


def _alone(source: Store, file: Wanted) -> bytes:
    try:
        return source.get_range(file.key, 0, file.size + 1)
    except ObjectNotFound:
        return b""

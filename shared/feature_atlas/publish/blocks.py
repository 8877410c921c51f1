"""Blocks of 256 channels: read their masters once, make sheets, rows and a pack of them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feature_atlas import keys
from feature_atlas.errors import IntegrityError, ObjectNotFound
from feature_atlas.manifest import check_further, decode_png
from feature_atlas.publish.likeness import SIDE, describe
from feature_atlas.publish.records import Row, row_of
from feature_atlas.publish.survey import BLOCK, Group
from feature_atlas.spec import Unit
from feature_atlas.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: Cell sizes in pixels.  The largest sheet is 2048 x 2048: what every device decodes.
SIZES = (16, 64, 128)
#: Cell size in pixels of the strips.
STRIP = 96
#: Cells to a side of a sheet.
SIDE_CELLS = 16
WEBP_QUALITY, WEBP_METHOD = 80, 2
#: What surrounds the pictures of a sheet, and what no picture covers.
GREY = 128


class Loaded(NamedTuple):
    """One unit, read, checked and made small."""

    row: Row
    #: cell size -> square picture.  [size, size, 3].
    cells: dict[int, NDArray[np.uint8]]
    #: The PNGs as they lie in the store.
    files: tuple[bytes, ...]


def square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The middle of a picture as a square thumbnail.  [H, W, 3] -> [size, size, 3]."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if (height, width) == (size, size):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def read_unit(store: Store, unit: Unit, images: int) -> Loaded | None:
    """A done unit, or None (with a warning) where its files turn out damaged, misplaced or gone."""
    try:
        files = tuple(store.get(keys.image(unit, n)) for n in range(images))
        pixels, manifest = decode_png(files[0], keys.image(unit))
        if manifest is not None:
            for n in range(1, min(images, len(manifest.pixels_sha256))):
                check_further(files[n], keys.image(unit, n), manifest, n)
    except ObjectNotFound:
        log.warning("%s vanished while it was published", unit)
        return None
    except IntegrityError as error:
        log.warning("%s is left out: %s", unit, error)
        return None
    if manifest is None or manifest.unit != unit:
        log.warning("%s is left out: its picture and its record do not belong together", unit)
        return None
    cells = {size: square(pixels, size) for size in SIZES}
    likeness = describe(cells[SIDE])
    hashes = tuple(hashlib.sha256(data).hexdigest() for data in files)
    return Loaded(row_of(manifest, hashes, tuple(len(data) for data in files), likeness), cells, files)


def read_block(
    store: Store, group: Group, channels: Sequence[int], run: Callable[..., Iterable[Loaded | None]]
) -> list[Loaded]:
    """The readable units of a block, ascending; ``run`` is a pool's ``map``."""
    units = [Unit(group.variant, group.layer, channel) for channel in channels]
    loaded = run(lambda unit: read_unit(store, unit, group.done[unit.channel].images), units)
    return [one for one in loaded if one is not None]


def shape(total: int, block: int) -> tuple[int, int]:
    """(rows, columns) of cells of a block's sheets in a layer of ``total`` channels."""
    cells = min(BLOCK, total - block * BLOCK)
    return -(-cells // SIDE_CELLS), min(SIDE_CELLS, cells)


def encode_webp(pixels: NDArray[np.uint8]) -> bytes:
    """A sheet's bytes.  [H, W, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD)
    return buffer.getvalue()


def sheet(loaded: Iterable[Loaded], total: int, block: int, size: int) -> bytes:
    """The sheet of a block: channel c at column c & 15, row (c >> 4) & 15."""
    rows, columns = shape(total, block)
    pixels = np.full((rows * size, columns * size, 3), GREY, np.uint8)
    for one in loaded:
        place = one.row.channel % BLOCK
        y, x = place // SIDE_CELLS * size, place % SIDE_CELLS * size
        pixels[y : y + size, x : x + size] = one.cells[size]
    return encode_webp(pixels)


def pack(loaded: Iterable[Loaded], group: Group) -> tuple[bytes, dict[int, tuple[int, ...]]]:
    """(tar, channel -> where each of its PNGs begins in it).  The same bytes whenever the pictures are the same.

    WebDataset reads it: ``<layer>/00017.png`` and ``<layer>/00017.json`` are one sample.
    """
    buffer = io.BytesIO()
    offsets: dict[int, tuple[int, ...]] = {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in loaded:
            places = []
            for n, data in enumerate(one.files):
                stem = f"{group.layer}/{one.row.channel:05d}" + (f"-{n}" if n else "")
                places.append(_add(tar, buffer, f"{stem}.png", data))
                _add(tar, buffer, f"{stem}.json", _sample(one.row, group, n))
            offsets[one.row.channel] = tuple(places)
    return buffer.getvalue(), offsets


def _add(tar: tarfile.TarFile, buffer: io.BytesIO, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
    return buffer.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _sample(row: Row, group: Group, n: int) -> bytes:
    sample = {
        "layer": group.layer, "channel": row.channel, "variant": group.variant, "image": n, "status": row.status,
        "activation": row.best, "robust": row.robust, "normalized": row.normalized, "sha256": row.sha256[n],
    }  # fmt: skip
    return json.dumps(sample, separators=(",", ":")).encode()

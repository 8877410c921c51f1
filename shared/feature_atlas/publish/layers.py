"""One layer: rebuild the blocks whose masters changed, keep the others as they are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_atlas import channels, keys
from feature_atlas.errors import IntegrityError, ObjectNotFound
from feature_atlas.manifest import Failure, decode_png, load
from feature_atlas.plan import LayerEntry
from feature_atlas.publish import blocks
from feature_atlas.publish.records import PUBLISHER, Block, GroupFile, LayerFile, Row
from feature_atlas.publish.survey import BLOCK, Group
from feature_atlas.spec import Unit
from feature_atlas.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: Failures of a group whose reasons are published.
ERRORS = 64
#: Pictures in a strip.
STRIP_CELLS = 32


def read_old(store: Store, layer: str) -> LayerFile | None:
    """What was published of a layer, or None where nothing readable by this release was."""
    try:
        file = load(LayerFile, store.get(keys.layer(layer)), keys.layer(layer))
    except ObjectNotFound:
        return None
    except IntegrityError as error:
        log.warning("%s; it is built anew", error)
        return None
    fits = file.publisher == PUBLISHER and all(group.columns == Row._fields for group in file.variants.values())
    return file if fits else None


class LayerBuilder:
    """Brings the derived files of one layer up to date."""

    def __init__(
        self,
        store: Store,
        entry: LayerEntry,
        groups: Iterable[Group],
        present: Iterable[str],
        readers: ThreadPoolExecutor,
        *,
        packs: bool = True,
        live: bool = False,
        fresh: bool = False,
        on_units: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.store, self.entry, self.groups = store, entry, list(groups)
        self.present = set(present)
        self.readers = readers
        self.packs, self.live = packs, live
        self.on_units = on_units
        #: Units whose files could not be read: damaged, misplaced or gone.
        self.left_out: list[Unit] = []
        self.old = None if fresh or keys.layer(entry.name) not in self.present else read_old(store, entry.name)

    def build(self) -> LayerFile:
        """The layer's file as it should be; sheets, strips and packs are in the store when this returns."""
        return LayerFile(
            layer=self.entry.name, kind=self.entry.kind, index=self.entry.index, total=self.entry.total,
            variants={group.variant: self._group(group) for group in self.groups},
        )  # fmt: skip

    def _group(self, group: Group) -> GroupFile:
        old = (self.old.variants.get(group.variant) if self.old else None) or GroupFile(planned="")
        old_rows: dict[int, list[Row]] = {}
        for row in old.rows:
            old_rows.setdefault(row.channel // BLOCK, []).append(row)
        made: dict[str, Block] = {}
        rows: list[Row] = []
        for number, members in group.blocks():
            inputs = group.inputs(number, members, PUBLISHER, self.entry.total)
            known = old.blocks.get(str(number))
            if known and known.inputs == inputs and self._whole(group, number, known):
                made[str(number)], fresh = known, old_rows.get(number, [])
            else:
                made[str(number)], fresh = self._block(group, number, members, inputs)
            rows += fresh
            self.on_units(len(members))
        strip, strip_inputs = self._strip(group, [row for row in rows if row.status == "ok"], old)
        return GroupFile(
            planned=channels.spell(group.planned), failed=channels.spell(group.failed), errors=self._errors(group),
            blocks=made, strip=strip, strip_inputs=strip_inputs, rows=tuple(rows),
        )  # fmt: skip

    def _errors(self, group: Group) -> dict[int, str]:
        def read(channel: int) -> str:
            key = keys.error(Unit(group.variant, group.layer, channel))
            try:
                return load(Failure, self.store.get(key), key).error[:300]
            except (ObjectNotFound, IntegrityError):  # being tried again, or damaged
                return ""

        first = sorted(group.failed)[:ERRORS]
        return {channel: text for channel, text in zip(first, self.readers.map(read, first), strict=True) if text}

    def _whole(self, group: Group, number: int, known: Block) -> bool:
        """Whether everything that a block should have is there."""
        sheets = all(
            keys.sheet(size, group.variant, group.layer, number) in self.present
            for size in blocks.SIZES
            if str(size) in known.sheets
        )
        pack = keys.pack(group.variant, group.layer, number) in self.present and bool(known.pack_sha256)
        return sheets and (pack or not self._packs_now(group, number))

    def _packs_now(self, group: Group, number: int) -> bool:
        # While a run goes on, a pack waits until its block is final: it would be written again and again.
        return self.packs and (not self.live or group.block_complete(number))

    def _block(self, group: Group, number: int, members: list[int], inputs: str) -> tuple[Block, list[Row]]:
        loaded = blocks.read_block(self.store, group, members, self.readers.map)
        rows = [one.row for one in loaded]
        jobs = {
            size: self.readers.submit(self._sheet, loaded, group, number, size) for size in sorted(blocks.SIZES)[::-1]
        }
        pack: dict[str, Any] = {}
        if self._packs_now(group, number):
            data, offsets = blocks.pack(loaded, group)
            key = keys.pack(group.variant, group.layer, number)
            self.store.put(key, data, content_type="application/x-tar")
            pack = {"pack_sha256": hashlib.sha256(data).hexdigest(), "pack_bytes": len(data)}
            rows = [row._replace(offsets=offsets[row.channel]) for row in rows]
        sheets = {str(size): job.result() for size, job in sorted(jobs.items())}
        if len(loaded) < len(members):
            inputs = ""  # something was unreadable: look again next time
            there = {one.row.channel for one in loaded}
            self.left_out += [Unit(group.variant, group.layer, channel) for channel in members if channel not in there]
        return Block(inputs=inputs, sheets=sheets, **pack), rows

    def _sheet(self, loaded: list[blocks.Loaded], group: Group, number: int, size: int) -> str:
        data = blocks.sheet(loaded, self.entry.total, number, size)
        self.store.put(keys.sheet(size, group.variant, group.layer, number), data, content_type="image/webp")
        return hashlib.sha256(data).hexdigest()

    def _strip(self, group: Group, rows: list[Row], old: GroupFile) -> tuple[tuple[int, ...], str]:
        """A sample of the layer's living pictures, spread evenly, side by side."""
        if not rows:
            return (), ""
        count = min(STRIP_CELLS, len(rows))
        chosen = tuple(rows[i * len(rows) // count].channel for i in range(count))
        inputs = group.inputs(0, chosen, PUBLISHER, blocks.STRIP)
        key = keys.strip(group.variant, group.layer)
        if inputs == old.strip_inputs and key in self.present:
            return old.strip, inputs
        cells = self.readers.map(lambda channel: self._cell(group, channel), chosen)
        self.store.put(key, blocks.encode_webp(np.concatenate(list(cells), axis=1)), content_type="image/webp")
        return chosen, inputs

    def _cell(self, group: Group, channel: int) -> NDArray[np.uint8]:
        key = keys.image(Unit(group.variant, group.layer, channel))
        try:
            return blocks.square(decode_png(self.store.get(key), key)[0], blocks.STRIP)
        except (ObjectNotFound, IntegrityError):  # since its block was read
            return np.full((blocks.STRIP, blocks.STRIP, 3), blocks.GREY, np.uint8)


def counts(groups: Mapping[tuple[str, str], Group]) -> dict[str, int]:
    """planned, done, dead and failed units of a survey."""
    members = list(groups.values())
    return {
        "planned": sum(len(group.planned) for group in members),
        "done": sum(len(group.done) for group in members),
        "dead": sum(len(group.dead) for group in members),
        "failed": sum(len(group.failed) for group in members),
    }

"""An atlas as a table: one flat record per picture, from what was published and, for the newest, from the records."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from feature_atlas.errors import AtlasError, RequestError
from feature_atlas.publish.catalogue import lines
from feature_atlas.publish.layers import read_old
from feature_atlas.publish.records import LayerFile, Row, row_of
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

THREADS = 8


def rows(atlas: Atlas, wanted: Mapping[tuple[str, str], set[int]] | None = None) -> list[dict[str, Any]]:
    """The records of the pictures that are there, in plan order.

    Args:
        atlas: of which.
        wanted: (variant, layer) -> channels; everything when not given.
    """
    groups = [pair for pair in atlas.plan.groups() if wanted is None or pair in wanted]
    found: list[dict[str, Any]] = []
    published: dict[str, LayerFile] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for variant, layer in groups:
            if layer not in published:
                published = {layer: _layer_file(atlas, layer)}
            known = published[layer].variants.get(variant)
            by_channel = {row.channel: row for row in known.rows} if known else {}
            there = {unit.channel for unit in atlas.done(variant, layer)}
            chosen = sorted(there if wanted is None else there & wanted[variant, layer])
            unknown = [Unit(variant, layer, channel) for channel in chosen if channel not in by_channel]
            by_channel.update((row.channel, row) for row in pool.map(lambda unit: _row(atlas, unit), unknown) if row)
            for channel in chosen:
                if channel in by_channel:
                    found += lines(Unit(variant, layer, channel), by_channel[channel], published[layer], atlas.plan)
    return found


def frame(records: list[dict[str, Any]]) -> Any:
    """The records as a pandas DataFrame.

    Raises:
        RequestError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise RequestError("a DataFrame needs pandas: pip install pandas, or use .rows()") from None
    return pandas.DataFrame(records)


def _layer_file(atlas: Atlas, layer: str) -> LayerFile:
    entry = atlas.plan.layers[layer]
    empty = LayerFile(layer=layer, kind=entry.kind, index=entry.index, total=entry.total, variants={})
    return read_old(atlas.store, layer) or empty


def _row(atlas: Atlas, unit: Unit) -> Row | None:
    try:
        found = atlas.sidecar(unit)
    except AtlasError:  # damaged or gone: verify tells of it
        return None
    return row_of(found.manifest, (found.sha256,), (found.bytes,), "")

"""How selective pictures are: what a judge with the network found, kept beside the layer, merged into its rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from feature_atlas import keys
from feature_atlas.errors import AtlasError, IntegrityError, ObjectNotFound
from feature_atlas.manifest import decode_png, dump, load
from feature_atlas.publish.records import LayerFile, Row
from feature_atlas.spec import Name, Recipe, Record, Sha256, Unit
from feature_atlas.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: (layer, recipe, (channel, picture [H, W, 3]) ...) -> (channel, rank of its own channel, channel that answers most).
#: The worker has one; this package knows no torch.
Judge = Callable[
    [str, Recipe, "Iterable[tuple[int, NDArray[np.uint8]]]"],
    Iterator[tuple[int, int, int]],
]


class SelectivityFile(Record):
    """``layers/<layer>/selectivity.json``."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    #: variant -> channel -> (hash of the picture, rank, channel that answers most).
    variants: Mapping[Name, Mapping[int, tuple[Sha256, int, int]]]


def merged(store: Store, file: LayerFile, recipes: Mapping[str, Recipe], judge: Judge | None, known: bool) -> LayerFile:
    """The layer with ranks in its rows; with a judge, pictures that nobody has judged are judged now.

    Args:
        store: of the atlas.
        file: the layer.
        recipes: of its variants.
        judge: None only takes over what is on record.
        known: whether there is a record.
    """
    found = _read(store, file.layer) if known else {}
    if judge is not None:
        fresh = {
            variant: _judged(store, file, variant, recipes[variant], found.get(variant, {}), judge)
            for variant in file.variants
            if recipes[variant].objective != "layer"
        }
        if fresh != found:
            found = fresh
            store.put(
                keys.selectivity(file.layer), dump(SelectivityFile(variants=found)), content_type="application/json"
            )
    groups = {
        variant: group.model_copy(update={"rows": tuple(_ranked(row, found.get(variant, {})) for row in group.rows)})
        for variant, group in file.variants.items()
    }
    return file.model_copy(update={"variants": groups})


def _ranked(row: Row, found: Mapping[int, tuple[str, int, int]]) -> Row:
    digest, rank, answers = found.get(row.channel, ("", 0, 0))
    return (
        row._replace(rank=rank, answers=answers) if digest == row.sha256[0] else row._replace(rank=None, answers=None)
    )


def _read(store: Store, layer: str) -> dict[str, dict[int, tuple[str, int, int]]]:
    key = keys.selectivity(layer)
    try:
        file = load(SelectivityFile, store.get(key), key)
    except ObjectNotFound:
        return {}
    except IntegrityError as error:
        log.warning("%s; it is left aside", error)
        return {}
    return {variant: dict(found) for variant, found in file.variants.items()}


def _judged(
    store: Store, file: LayerFile, variant: str, recipe: Recipe, found: Mapping[int, tuple[str, int, int]], judge: Judge
) -> dict[int, tuple[str, int, int]]:
    rows = {row.channel: row for row in file.variants[variant].rows if row.status == "ok"}
    kept = {channel: told for channel, told in found.items() if channel in rows and told[0] == rows[channel].sha256[0]}
    new = [channel for channel in rows if channel not in kept]
    if new:
        for channel, rank, answers in judge(file.layer, recipe, _pictures(store, file.layer, variant, new)):
            kept[channel] = (rows[channel].sha256[0], rank, answers)
    return dict(sorted(kept.items()))


def _pictures(
    store: Store, layer: str, variant: str, numbers: Iterable[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for channel in numbers:
        key = keys.image(Unit(variant, layer, channel))
        try:
            yield channel, decode_png(store.get(key), key)[0]
        except AtlasError as error:
            log.warning("%s is not judged: %s", key, error)

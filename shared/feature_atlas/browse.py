"""What a name means in an atlas: ``atlas["layer2.0.conv3"]``, ``atlas["0.conv3:17@negative"]``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from feature_atlas import channels
from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.plan import Plan, describe_model
from feature_atlas.spec import Unit
from feature_atlas.views import LayerView, UnitView

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

_UNIT = re.compile(r"^(?P<layer>[^:@]+)(?::(?P<channels>[^@]*))?(?:@(?P<variant>.+))?$")


def find_layer(atlas: Atlas, name: str) -> str:
    """The layer of this name or, where only one ends so, of this ending; ``branch4[1]`` is ``branch4.1``.

    Raises:
        RequestError: none, with the nearest names; or several, with all of them.
    """
    layers = list(atlas.plan.layers)
    wanted = re.sub(r"\[(\d+)\]", r".\1", name.strip())
    if wanted in atlas.plan.layers:
        return wanted
    ending = [layer for layer in layers if layer.endswith(f".{wanted}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        shown = ", ".join(ending[:6]) + (", ..." if len(ending) > 6 else "")
        raise RequestError(f"{name!r} could be {len(ending)} layers: {shown}")
    tails = {layer.split(".", k)[-1]: layer for layer in layers for k in range(1, layer.count(".") + 1)}
    raise RequestError(
        f"this atlas has no layer {name!r}{did_you_mean(wanted, [*layers, *tails])} ({len(layers)} layers)"
    )


def select(atlas: Atlas, key: str | Unit) -> LayerView | UnitView:
    """What ``atlas[key]`` means: a layer, or one unit of it (``layer:17``, ``layer:17@variant``, a Unit).

    Raises:
        RequestError: no such layer, variant or channel, with what is possible.
    """
    if isinstance(key, tuple):
        return LayerView(atlas, find_layer(atlas, key[1]), key[0])[int(key[2])]
    match = _UNIT.match(key) if isinstance(key, str) else None
    if match is None:
        raise RequestError(f"{key!r} names nothing: use 'layer', 'layer:17', 'layer:17@variant' or 'layer:0:64'")
    layer = LayerView(atlas, find_layer(atlas, match["layer"]), match["variant"])
    if match["channels"] is None:
        return layer
    if match["channels"].strip().isdecimal():
        return layer[int(match["channels"])]
    total = atlas.plan.layers[layer.name].total
    chosen = set(channels.parse(match["channels"], total, what=layer.name))
    return LayerView(
        atlas, layer.name, layer.variant_name, [channel for channel in layer.channels if channel in chosen]
    )


def html(atlas: Atlas) -> str:
    """What a notebook shows of an atlas."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(entry.kind)}</td><td>{entry.total}</td></tr>"
        for name, entry in atlas.plan.layers.items()
    )
    return (
        f"<b>{escape(describe_model(atlas.file.model))}</b>, {len(atlas.plan):,} pictures planned, variants"
        f" {escape(', '.join(atlas.plan.variants))}"
        f"<table><tr><th>layer</th><th>kind</th><th>channels</th></tr>{rows}</table>"
    )


def choose(plan: Plan, layers: str, numbers: str, variants: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """(variant, layer) -> channels of a selection of a plan, in its order; globs and ranges as on the command line.

    Raises:
        RequestError: nothing is chosen, with the nearest names.
    """
    chosen_layers = _globbed(layers, plan.layers, "layer")
    chosen_variants = _globbed(variants, plan.variants, "variant")
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for variant, layer in plan.groups():
        if layer not in chosen_layers or variant not in chosen_variants:
            continue
        planned = plan.channels(variant, layer)
        if numbers != ":":
            total = plan.layers[layer].total
            asked = set(channels.parse(numbers, total, what=f"layer {layer!r}"))
            planned = tuple(channel for channel in planned if channel in asked)
        if planned:
            found[variant, layer] = planned
    if not found:
        raise RequestError(f"nothing is planned for layers {layers!r}, channels {numbers!r}, variants {variants!r}")
    return found


def _globbed(text: str, names: Iterable[str], what: str) -> set[str]:
    names, found = list(names), set()
    for part in text.split(","):
        glob = part.strip()
        pattern = re.sub(r"\[(\d+)\]", r".\1", glob)  # branch4[1] as people write it
        matching = [name for name in names if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise RequestError(f"no {what} is called {part.strip()!r}{did_you_mean(pattern, names)}")
        found.update(matching)
    return found

"""A request -> one plan file: which layers, which channels, under which recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from feature_atlas import presets
from feature_atlas.errors import RequestError
from feature_atlas.keys import check_name
from feature_atlas.networks import Network
from feature_atlas.plan import PlanFile
from feature_atlas.spec import RENDERER, ModelRef, Recipe
from feature_atlas_producer.select import select

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def request(
    network: Network,
    ref: ModelRef,
    *,
    layers: str = "*",
    channels: str = ":",
    kinds: Sequence[str] = ("conv",),
    variants: Sequence[str] = ("channel",),
    changes: Mapping[str, Any] | None = None,
) -> PlanFile:
    """The plan file of one request; the same request gives the same file.

    Args:
        network: the layers that there are.
        ref: the model that the atlas shows.
        layers: see :func:`feature_atlas_producer.select.select`, also for ``channels`` and ``kinds``.
        channels: which of each layer.
        kinds: which kinds of layers a glob matches.
        variants: ``NAME`` or ``NAME=PRESET`` each.
        changes: recipe fields that every variant gets.

    Raises:
        RequestError: nothing matches, unknown variants, unknown fields or values out of bounds.
    """
    recipes: dict[str, Recipe] = {}
    for text in variants:
        name, recipe = presets.variant(text, changes)
        if recipes.setdefault(check_name(name, "variant"), recipe) != recipe:
            raise RequestError(f"variant {name!r} is given twice with different recipes: give one another name")
    if not recipes:
        raise RequestError(f"no variant is given (known: {', '.join(presets.VARIANTS)})")
    return PlanFile(model=ref.digest(), layers=select(network, layers, channels, kinds), variants=recipes)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Recipe fields from ``key=value`` texts; values are JSON, lists without brackets, or bare words.

    ``["steps=256", "jitter=8,4", "pick=last"]`` gives ``{"steps": 256, "jitter": [8, 4], "pick": "last"}``.

    Raises:
        RequestError: no ``key=value``, a key twice with two values, or the renderer, which is the release's own.
    """
    changes: dict[str, Any] = {}
    for text in settings:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise RequestError(f"--set {text!r} is no setting: write key=value, such as steps=256 or jitter=8,4")
        if key == "renderer":
            raise RequestError(
                f"--set {text}: the renderer is this release's own ({RENDERER}) and cannot be chosen: leave it out"
            )
        parsed = _value(value)
        if changes.setdefault(key, parsed) != parsed:
            raise RequestError(f"--set gives {key} twice: {changes[key]!r} and {parsed!r}")
    return changes


def _value(text: str) -> Any:
    for spelling in (text, f"[{text}]") if "," in text else (text,):
        try:
            return json.loads(spelling)
        except (ValueError, RecursionError):
            continue
    return text


def atlas_names(models: str) -> dict[str, str]:
    """Of a comma list of models, the name of each one's atlas below a common root: ``timm:x`` -> ``timm-x``.

    Raises:
        RequestError: no model, or two whose atlases would have one name.
    """
    names: dict[str, str] = {}
    for model in dict.fromkeys(part.strip() for part in models.split(",")):
        if not model:
            raise RequestError(f"--model {models!r} names no model: write one, or several joined by commas")
        name = check_name(_UNSAFE.sub("-", model).strip(".-"), "model")
        if name in names.values():
            raise RequestError(f"--model {models!r}: two of these would be the atlas {name!r}; make them one by one")
        names[model] = name
    return names

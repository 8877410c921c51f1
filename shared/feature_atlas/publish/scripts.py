"""The data of the page as classic scripts: on ``file://`` a browser lets a page read nothing else.

Every script is one call, ``FEATURE_ATLAS.put(NAME, JSON)``; the JSON is spelled so that it can also lie inside HTML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from feature_atlas import channels
from feature_atlas.plan import Plan, describe_model
from feature_atlas.presets import PRESETS, preset
from feature_atlas.publish.records import GroupFile, LayerFile, Row, short
from feature_atlas.spec import Recipe

#: Columns that the grid sorts and filters by; the others wait until a unit is opened.
_GRID = (
    "best", "start", "robust", "normalized", "best_step", "hue", "saturation", "contrast", "high_frequency", "rank",
    "answers",
)  # fmt: skip
_DETAIL = (
    "sha256", "bytes", "pixels_sha256", "width", "height", "job_id", "seed", "attempts", "reason", "final",
    "robust_std", "noise_mean", "noise_std", "mean_rgb", "clipped", "curve",
)  # fmt: skip
_STATUS = {"ok": "o", "dead": "d", "nan": "n"}


def embed(value: Any) -> str:
    """JSON that may lie in a script and inside HTML alike: ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script(name: str, value: Any) -> bytes:
    """One data script."""
    return f"FEATURE_ATLAS.put({embed(name)},{embed(value)});\n".encode()


def gain(row: Row, sign: int) -> float | None:
    """How far the optimisation went from where it began, in standard deviations over noise."""
    if row.best is None or row.start is None or not row.noise_std:
        return None
    return short(sign * (row.best - row.start) / row.noise_std)


def grid(file: LayerFile, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """What a layer's grid needs: numbers to sort and filter by, in columns, one entry per done unit."""
    groups = {name: group for name, group in file.variants.items() if name in recipes}
    return {"layer": file.layer, "variants": {name: _grid(group, recipes[name].sign) for name, group in groups.items()}}


def _grid(group: GroupFile, sign: int) -> dict[str, Any]:
    rows = group.rows
    columns: dict[str, Any] = {name: [_brief(getattr(row, name)) for row in rows] for name in _GRID}
    columns["gain"] = [_brief(gain(row, sign)) for row in rows]
    if all(value is None for value in columns["rank"]):
        del columns["rank"], columns["answers"]
    return {
        "planned": group.planned, "failed": group.failed, "errors": dict(group.errors),
        "channels": channels.spell(row.channel for row in rows),
        "status": "".join(_STATUS[row.status] for row in rows),
        "likeness": "".join(row.likeness for row in rows),
        "versions": versions(group), **columns,
    }  # fmt: skip


def versions(group: GroupFile) -> dict[str, str]:
    """block -> a few characters that change with its sheets; they keep old sheets of a browser's cache away."""
    return {number: block.sheets["64"][:8] for number, block in group.blocks.items()}


def _brief(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def detail(file: LayerFile) -> dict[str, Any]:
    """What a unit's page needs beyond the grid's numbers."""
    return {
        "layer": file.layer,
        "variants": {
            name: {
                "channels": channels.spell(row.channel for row in group.rows),
                **{column: [getattr(row, column) for row in group.rows] for column in _DETAIL},
                "packs": {
                    number: {"bytes": block.pack_bytes} for number, block in group.blocks.items() if block.pack_sha256
                },
            }
            for name, group in file.variants.items()
        },
    }


def first_variant(plan: Plan) -> str:
    """The variant that is shown first: ``channel`` where there is one."""
    return "channel" if "channel" in plan.variants else next(iter(plan.variants))


def recipe_told(recipe: Recipe) -> dict[str, Any]:
    """A recipe for people: every field, and which preset it comes from."""
    fields = recipe.model_dump(mode="json")
    near = min(PRESETS, key=lambda name: len(_changes(recipe, preset(name))))
    return {"preset": near, "changes": _changes(recipe, preset(near)), "digest": recipe.digest(), "fields": fields}


def _changes(recipe: Recipe, base: Recipe) -> list[str]:
    return [name for name in type(recipe).model_fields if getattr(recipe, name) != getattr(base, name)]


def overview(plan: Plan, layers: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """``atlas.js``: the model, its variants and its layers (each from :func:`layer_told`)."""
    first = first_variant(plan)
    names = [first, *(name for name in plan.variants if name != first)]
    return {
        "schema": 1,
        "first": first,
        "title": describe_model(plan.model),
        "model": plan.model.model_dump(mode="json"),
        **summary,
        "variants": {name: recipe_told(plan.variants[name]) for name in names},
        "layers": layers,
    }


def layer_told(file: LayerFile) -> dict[str, Any]:
    """What the overview says of a layer; ``v`` changes with its data."""
    state = hashlib.sha256(file.model_dump_json().encode()).hexdigest()[:8]
    return {
        "name": file.layer, "kind": file.kind, "total": file.total, "v": state,
        "variants": {name: _counts(group) for name, group in file.variants.items()},
    }  # fmt: skip


def _counts(group: GroupFile) -> dict[str, Any]:
    status = [row.status for row in group.rows]
    return {
        "planned": group.planned, "done": len(status), "dead": sum(word != "ok" for word in status),
        "failed": len(channels.parse(group.failed, 100_000)) if group.failed else 0,
        "strip": list(group.strip), "strip_v": group.strip_inputs[:8], "versions": versions(group),
    }  # fmt: skip

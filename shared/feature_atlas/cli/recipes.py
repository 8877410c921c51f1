"""The command that says what a recipe is made of: every field, its value in a preset, and what is possible."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from feature_atlas.cli import codes
from feature_atlas.cli.progress import table

if TYPE_CHECKING:
    from feature_atlas.spec import Recipe

_WIDTH = 100


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command of this module."""
    recipes = commands.add_parser(
        "recipes", help="what --variant and --set can say: variants, presets, fields",
        description="Without a name: the variants and presets.  With one: every field of its recipe as --set takes it,"
        " what it means, and what is possible.",
    )  # fmt: skip
    recipes.add_argument(
        "name", nargs="?", metavar="NAME", help="a variant or preset: channel, neuron, draft, lucid ..."
    )
    recipes.add_argument("--json", action="store_true", help="print JSON")
    recipes.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints all names, or all fields of one."""
    from feature_atlas.presets import VARIANTS, variant

    if args.name is None:
        found = {name: _changes(preset, own) for name, (preset, own) in VARIANTS.items()}
        print(json.dumps(found, indent=1) if args.json else table(list(found.items()), ("variant", "is the preset")))
        return codes.DONE
    recipe = variant(args.name)[1]
    print(json.dumps(recipe.model_dump(mode="json"), indent=1) if args.json else "\n".join(_fields(recipe)))
    return codes.DONE


def _changes(preset: str, own: dict[str, Any]) -> str:
    return " ".join((preset, *(f"{name}={_spelled(value)}" for name, value in own.items())))


def _fields(recipe: Recipe) -> list[str]:
    """Each field as ``--set`` takes it; below, what it means and what is possible."""
    properties = type(recipe).model_json_schema()["properties"]
    lines = []
    for name, value in recipe.model_dump(mode="json").items():
        if name == "renderer":  # the release's own, not to be chosen
            continue
        possible = recipe.forms.get(name) or _possible(properties[name])
        meaning = (type(recipe).model_fields[name].description or "").replace("``", "")
        text = f"{meaning} [{possible}]" if possible else meaning
        lines += [f"{name}={_spelled(value)}", textwrap.indent(textwrap.fill(text, _WIDTH), "    ")]
    return lines


def _possible(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("type") == "boolean":
        return "true or false"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(f"{word} {schema[bound]:g}" for bound, word in words.items() if bound in schema)


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')

"""JSON Schemas of the records that an atlas stores, for readers in other languages.

``python -m feature_atlas.schemas`` writes them beside this file; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from feature_atlas.manifest import Failure, Manifest, SideCar
from feature_atlas.plan import AtlasFile, PlanFile
from feature_atlas.publish.records import LayerFile, PublishedFile
from feature_atlas.publish.selectivity import SelectivityFile
from feature_atlas.spec import Record

FOLDER = Path(__file__).parent
#: By file name, without ``.v1.json``.
RECORDS: dict[str, type[Record]] = {
    "atlas": AtlasFile,
    "plan": PlanFile,
    "manifest": Manifest,
    "sidecar": SideCar,
    "failure": Failure,
    "layer": LayerFile,
    "selectivity": SelectivityFile,
    "published": PublishedFile,
}


class _Plain(GenerateJsonSchema):
    """Without a title for every field: their names say as much."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def path(name: str) -> Path:
    """Where the committed schema of a record lies."""
    return FOLDER / f"{name}.v1.json"


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record, as its model gives it."""
    made = RECORDS[name].model_json_schema(by_alias=True, schema_generator=_Plain)
    return {"$schema": GenerateJsonSchema.schema_dialect, **made}


def dump(name: str) -> str:
    """The text of the committed file."""
    return json.dumps(schema(name), indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Writes all of them."""
    for name in RECORDS:
        path(name).write_text(dump(name), encoding="utf-8")

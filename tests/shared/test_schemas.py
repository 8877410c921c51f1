"""JSON Schemas: the committed files are the models', and stored records validate against them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from feature_atlas import schemas
from feature_atlas.manifest import decode_png

GOLDEN = Path(__file__).parents[1] / "golden/v1"
#: Which schema a file of an atlas follows.
STORED = {r"atlas\.json": "atlas", r"plans/.*": "plan", r"manifests/.*": "sidecar", r"errors/.*": "failure"}


def committed(name: str) -> Any:
    return json.loads(schemas.path(name).read_text(encoding="utf-8"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(committed(name))


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_the_committed_file_is_what_the_model_gives(name: str) -> None:
    """If not: ``python -m feature_atlas.schemas``, and think about the readers of older records."""
    assert committed(name) == schemas.schema(name)
    assert schemas.path(name).read_text(encoding="utf-8") == schemas.dump(name)


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(committed(name))
    assert committed(name)["properties"]["schema"]["const"] == 1
    assert committed(name)["additionalProperties"] is False


def golden_files() -> list[tuple[str, str]]:
    keys = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*.json"))
    return [(key, next(name for pattern, name in STORED.items() if re.fullmatch(pattern, key))) for key in keys]


@pytest.mark.parametrize(("key", "name"), golden_files())
def test_the_golden_records_validate(key: str, name: str) -> None:
    validator(name).validate(json.loads((GOLDEN / key).read_bytes()))


def test_the_record_inside_a_picture_validates() -> None:
    path = GOLDEN / "images/channel/conv1/00001.png"
    _, record = decode_png(path.read_bytes(), "golden")
    assert record is not None
    validator("manifest").validate(json.loads(record.model_dump_json(by_alias=True)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("sha256",), "xyz"),
        (("bytes",), -1),
        (("surprise",), 1),
        (("manifest", "status"), "fine"),
        (("manifest", "job", "layer"), "../x"),
        (("manifest", "job", "channel"), 100_000),
        (("manifest", "job", "recipe", "steps"), 0),
        (("manifest", "job", "recipe", "stepz"), 1),
        (("manifest", "job", "model", "weights_sha256"), "12"),
        (("manifest", "curve", "steps"), list(range(65))),
    ],
)
def test_a_schema_refuses_what_the_record_refuses(path: tuple[str, ...], value: object) -> None:
    data = json.loads((GOLDEN / "manifests/channel/conv1/00001.json").read_bytes())
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert not validator("sidecar").is_valid(data)
    with pytest.raises(ValueError):
        schemas.RECORDS["sidecar"].model_validate(data)


def test_writing_them_anew_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "FOLDER", tmp_path)
    schemas.write()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.v1.json" for name in schemas.RECORDS}

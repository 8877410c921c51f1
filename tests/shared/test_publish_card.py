"""What other tools read: Hugging Face datasets and Croissant, tested with the real libraries."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.publish import publish
from feature_atlas.publish.card import dataset_card, size_category
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore
from tests import synthetic

LAYERS = (("conv1", 5), ("conv2", 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "atlas"
    dead = [Unit("channel", "conv2", 3)]
    synthetic.write_atlas(DirectoryStore(folder), LAYERS, size=24, dead=dead, missing=[Unit("channel", "conv2", 4)])
    publish(folder)
    return folder


def load(folder: Path, cache: Path) -> list[dict[str, object]]:
    datasets = pytest.importorskip("datasets", reason="the datasets library is in the test extra")
    return list(datasets.load_dataset(str(folder), split="train", cache_dir=str(cache)))


def test_load_dataset_finds_every_picture_with_its_numbers(folder: Path, tmp_path: Path) -> None:
    rows = load(folder, tmp_path)
    assert len(rows) == 16
    atlas = Atlas.open(folder)
    for row in rows:
        unit = Unit(str(row["variant"]), str(row["layer"]), int(row["channel"]))  # type: ignore[call-overload]
        assert row["image"].tobytes() == atlas.image(unit).tobytes()  # type: ignore[attr-defined]
        assert row["seed"] == atlas.manifest(unit).seed
    assert [row["status"] for row in rows].count("dead") == 1


def test_a_fetched_part_loads_as_a_dataset_of_that_part(folder: Path, tmp_path: Path) -> None:
    Atlas.open(folder).fetch(tmp_path / "part", layers="conv2", channels="0:3")
    rows = load(tmp_path / "part", tmp_path / "cache")
    assert [(row["layer"], row["channel"]) for row in rows] == [("conv2", 0), ("conv2", 1), ("conv2", 2)]


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # rdflib, inside mlcroissant
def test_croissant_is_valid_and_reads_the_records(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant is in the test extra")
    with caplog.at_level(logging.WARNING):
        dataset = croissant.Dataset(jsonld=str(folder / keys.CROISSANT))
    assert not dataset.metadata.issues.errors
    assert "not standard" not in caplog.text  # the context is the official one
    records = list(dataset.records("pictures"))
    assert len(records) == 16 and records[0]["pictures/layer"] == b"conv1"


def test_a_name_cannot_break_out_of_the_card() -> None:
    plan = Atlas.open(_hostile()).plan
    told = dataset_card("x\n---\n# <b>x</b> [y](javascript:1)", plan, {"done": 1}, "a: [b]\n---", "0" * 64).decode()
    front, _, body = told.removeprefix("---\n").partition("\n---\n")
    assert json.loads(front.splitlines()[0].removeprefix("license: ")) == "a: [b]\n---"
    assert "<b>" not in body and "](" not in body


def _hostile() -> DirectoryStore:
    from feature_atlas.store import MemoryStore

    store = MemoryStore()
    synthetic.write_plan(store, synthetic.request(LAYERS))
    return store  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("pictures", "word"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (26_560, "10K<n<100K"), (10**7, "1M<n<10M")]
)
def test_size_categories_are_hugging_faces(pictures: int, word: str) -> None:
    assert size_category(pictures) == word

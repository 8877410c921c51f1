"""Version 1, for ever: every release reads the atlas that the first one wrote, and writes what it can read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from feature_atlas import keys, manifest
from feature_atlas.atlas import Atlas
from feature_atlas.errors import RequestError
from feature_atlas.manifest import Failure, SideCar, decode_png
from feature_atlas.plan import AtlasFile, Plan, PlanFile
from feature_atlas.spec import Record, Unit
from feature_atlas.store import DirectoryStore, MemoryStore
from tests.golden import make

GOLDEN = Path(__file__).parent / "v1"
PLANS = ("11f1a9c967381db5", "c1d66309a0535f86")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """A copy: reading an atlas may heal it."""
    shutil.copytree(GOLDEN, tmp_path / "v1")
    return DirectoryStore(tmp_path / "v1")


@pytest.fixture
def plan(store: DirectoryStore) -> Plan:
    file = manifest.load(AtlasFile, store.get(keys.ATLAS), keys.ATLAS)
    files = [manifest.load(PlanFile, store.get(info.key), info.key) for info in store.list(keys.PLANS)]
    return Plan(file.model, {each.digest(): each for each in files})


def test_the_tree_is_the_layout(store: DirectoryStore) -> None:
    names = [info.key for info in store.list()]
    assert len(names) == 24
    assert names[0] == "atlas.json"
    assert [name for name in names if name.startswith("plans/")] == [f"plans/{digest}.json" for digest in PLANS]
    assert [name for name in names if name.startswith(("dead/", "errors/"))] == [
        "dead/channel/block.conv2/00005",
        "errors/diverse/conv1/00002.json",
    ]
    assert "images/diverse/conv1/00000-1.png" in names


def test_the_plan_is_what_it_was(plan: Plan) -> None:
    assert tuple(plan.files) == PLANS  # the digest of what is read is the name under which it was written
    assert plan.digest() == "9c3c8eda125e8508"
    assert [str(unit) for unit in plan.units()] == [
        *("conv1:0", "conv1:1", "conv1:2", "conv1:0@diverse", "conv1:1@diverse", "conv1:2@diverse"),
        *("block.conv2:1", "block.conv2:5", "block.conv2:1@diverse", "block.conv2:5@diverse"),
    ]


def test_every_picture_and_record_is_read(store: DirectoryStore, plan: Plan) -> None:
    done = [found for info in store.list(keys.IMAGES) if (found := keys.parse_unit(info.key)) is not None]
    assert len(done) == 11
    for _, unit, n in done:
        data = store.get(keys.image(unit, n))
        pixels, record = decode_png(data, str(unit))
        assert np.array_equal(pixels, make.picture(unit, n))
        if n:
            assert record is None
            continue
        side = manifest.load(SideCar, store.get(keys.manifest(unit)), str(unit))
        assert side.manifest == record
        assert (side.sha256, side.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        job = plan.job(unit)
        assert record is not None and (record.job, record.job_id, record.seed) == (job, job.id, job.seed)


def test_the_failure_is_read(store: DirectoryStore, plan: Plan) -> None:
    failure = manifest.load(Failure, store.get(keys.error(make.FAILED)), "errors")
    assert (failure.unit, failure.job_id, failure.attempts) == (make.FAILED, plan.job(make.FAILED).id, 3)


def test_some_values_word_for_word(store: DirectoryStore) -> None:
    """As another language would read them, with no help from the records."""
    side = json.loads(store.get("manifests/channel/conv1/00001.json"))
    assert side["schema"] == side["manifest"]["schema"] == 1
    assert side["manifest"]["job"]["layer"] == "conv1"
    assert side["manifest"]["job"]["recipe"]["steps"] == 8
    assert side["manifest"]["activation"]["normalized"] == 14.0
    assert side["manifest"]["job_id"] == "78a6e9c074f4db07"
    assert side["manifest"]["seed"] == 3832020909185889
    assert side["run"]["device"] == "cpu"


def test_the_atlas_is_open_for_all_that_a_reader_does(store: DirectoryStore) -> None:
    atlas = Atlas.open(store)
    assert [(row.layer, row.variant, row.planned, row.done, row.dead, row.failed) for row in atlas.status()] == [
        ("conv1", "channel", 3, 3, 0, 0),
        ("conv1", "diverse", 3, 2, 0, 1),
        ("block.conv2", "channel", 2, 2, 1, 0),
        ("block.conv2", "diverse", 2, 1, 0, 0),
    ]
    assert list(atlas.missing()) == [make.MISSING]
    assert list(atlas.verify()) == []
    assert atlas.manifest(make.DEAD).status == "dead"
    assert atlas.image(Unit("diverse", "conv1", 0), 1).size == (16, 16)


def test_it_grows_by_todays_requests(store: DirectoryStore) -> None:
    """The same request again changes nothing; a new one adds to it."""
    before = [info.key for info in store.list()]
    for request in make.requests():
        Atlas.grow(store, make.MODEL, request)
    assert [info.key for info in store.list()] == before


def test_what_is_written_today_is_the_same() -> None:
    """Not to the byte (zlib differs, fields may be added with neutral defaults), but record by record."""
    today, golden = MemoryStore("golden"), DirectoryStore(GOLDEN)
    make.write(today)
    assert [info.key for info in today.list()] == [info.key for info in golden.list()]
    kinds: dict[str, type[Record]] = {"atlas": AtlasFile, "plans": PlanFile, "manifests": SideCar, "errors": Failure}
    for info in golden.list():
        old, new = golden.get(info.key), today.get(info.key)
        kind = kinds.get(info.key.split("/")[0].removesuffix(".json"))
        if kind is SideCar:
            a, b = manifest.load(SideCar, old, info.key), manifest.load(SideCar, new, info.key)
            assert (a.manifest, a.run) == (b.manifest, b.run)
        elif kind is not None:
            assert manifest.load(kind, old, info.key) == manifest.load(kind, new, info.key)
        elif info.key.endswith(".png"):
            (pixels, record), (pixels_now, record_now) = decode_png(old, info.key), decode_png(new, info.key)
            assert np.array_equal(pixels, pixels_now) and record == record_now
        else:
            assert old == new == b""


def test_it_is_never_written_again() -> None:
    with pytest.raises(RequestError, match="never written again"):
        make.write(DirectoryStore(GOLDEN))

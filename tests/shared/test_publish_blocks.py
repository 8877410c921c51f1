"""Packs and thumbnails."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from feature_atlas import keys
from feature_atlas.publish import blocks, publish
from feature_atlas.publish.layers import read_old
from feature_atlas.spec import Unit
from feature_atlas.store import MemoryStore
from tests import synthetic

LONG = "a" * 150 + ".conv"


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    store = MemoryStore()
    synthetic.write_atlas(store, (("conv1", 6), (LONG, 3)), variants=["channel", "diverse"], size=24)
    publish(store)
    return store


@pytest.mark.parametrize("variant", ["channel", "diverse"])
@pytest.mark.parametrize("layer", ["conv1", LONG])
def test_every_picture_is_a_slice_of_its_pack(store: MemoryStore, variant: str, layer: str) -> None:
    group = read_old(store, layer).variants[variant]  # type: ignore[union-attr]
    key = keys.pack(variant, layer, 0)
    for row in group.rows:
        assert len(row.offsets) == len(row.sha256)
        for n, digest in enumerate(row.sha256):
            piece = store.get_range(key, row.offsets[n], row.bytes[n])
            assert hashlib.sha256(piece).hexdigest() == digest
            assert piece == store.get(keys.image(Unit(variant, layer, row.channel), n))


def test_a_pack_is_a_plain_tar_without_times_or_owners(store: MemoryStore) -> None:
    with tarfile.open(fileobj=io.BytesIO(store.get(keys.pack("channel", "conv1", 0)))) as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:4]] == [
        "conv1/00000.png", "conv1/00000.json", "conv1/00001.png", "conv1/00001.json",
    ]  # fmt: skip
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


def test_the_same_pictures_give_the_same_pack(store: MemoryStore) -> None:
    again = MemoryStore()
    again._objects = {key: value for key, value in store._objects.items() if not key.startswith(keys.PACKS)}
    publish(again, fresh=True)
    key = keys.pack("diverse", "conv1", 0)
    assert again.get(key) == store.get(key)


def test_webdataset_reads_a_pack(store: MemoryStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is in the test extra")
    (tmp_path / "pack.tar").write_bytes(store.get(keys.pack("diverse", "conv1", 0)))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": str(tmp_path / "pack.tar")}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == 6 * 4
    first = loaded[0]
    assert first["png"].size == (24, 24) and first["json"]["layer"] == "conv1" and first["__key__"] == "conv1/00000"


def test_a_thumbnail_is_the_middle_of_the_picture() -> None:
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 30:70] = 200
    assert (blocks.square(picture, 20) > 190).all()

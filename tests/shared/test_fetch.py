"""Fetching: resumable, verified, contained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.errors import PlanConflictError, RequestError, StoreError
from feature_atlas.fetch import fetch
from feature_atlas.plan import describe_model
from feature_atlas.publish import publish
from feature_atlas.publish.layers import read_old
from feature_atlas.spec import ModelRef, Unit
from feature_atlas.store import DirectoryStore, MemoryStore
from tests import synthetic

LAYERS = (("conv1", 20), ("block.0.conv", 300))


class Counting(MemoryStore):
    """A store that counts requests for pictures, and may break off."""

    def __init__(self, other: MemoryStore) -> None:
        super().__init__()
        self._objects = dict(other._objects)
        self.ranges: list[str] = []
        self.left = 10**9

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append(key)
        self.left -= 1
        if self.left < 0:
            raise StoreError("the network went away")
        return super().get_range(key, start, length)


@pytest.fixture(scope="module")
def rendered() -> MemoryStore:
    store = MemoryStore()
    dead = [Unit("channel", "conv1", 3)]
    synthetic.write_atlas(store, LAYERS, size=16, dead=dead)
    four = Atlas.grow(store, synthetic.MODEL, synthetic.request(LAYERS[:1], variants=["diverse"], changes={"size": 16}))
    for channel in range(20):
        synthetic.write_unit(store, four.plan, Unit("diverse", "conv1", channel), size=16)
    return store


@pytest.fixture(scope="module")
def published(rendered: MemoryStore) -> MemoryStore:
    store = MemoryStore()
    store._objects = dict(rendered._objects)
    publish(store)
    return store


@pytest.fixture
def source(published: MemoryStore) -> Counting:
    return Counting(published)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "images").rglob("*.png"))}


def test_the_whole_comes_in_a_few_requests_and_is_the_same(source: Counting, tmp_path: Path) -> None:
    told = fetch(Atlas.open(source), tmp_path / "copy")
    assert (told.pictures, told.present, told.problems) == (320 + 20 * 4, 0, [])
    # one pack per 256 channels and variant, a request each
    assert told.requests == len(source.ranges) == 4
    assert pictures(tmp_path / "copy") == {info.key: source.get(info.key) for info in source.list(keys.IMAGES)}
    copy = Atlas.open(tmp_path / "copy")
    assert copy.status() == Atlas.open(source).status()
    assert copy.dead() == {Unit("channel", "conv1", 3)}
    root = [json.loads(store.get(keys.PUBLISHED))["root_sha256"] for store in (copy.store, source)]
    assert root[0] == root[1]
    assert not list(copy.verify())


def test_a_part_is_an_atlas_of_that_part(source: Counting, tmp_path: Path) -> None:
    fetch(Atlas.open(source), tmp_path, layers="block.*", channels="0:8,290", variants="channel")
    copy = Atlas.open(tmp_path)
    assert list(copy.plan.groups()) == [("channel", "block.0.conv")]
    assert copy.plan.channels("channel", "block.0.conv") == (*range(8), 290)
    assert not list(copy.missing()) and not list(copy.verify())
    names = {json.loads(line)["file_name"] for line in (tmp_path / keys.METADATA).read_text().splitlines()}
    assert names == set(pictures(tmp_path))
    assert read_old(copy.store, "block.0.conv").total == 300  # type: ignore[union-attr]


def test_more_of_the_same_atlas_joins_what_is_there(source: Counting, tmp_path: Path) -> None:
    atlas = Atlas.open(source)
    fetch(atlas, tmp_path, layers="conv1", channels="0:5", variants="channel")
    told = fetch(atlas, tmp_path, layers="conv1", channels="3:9", variants="channel")
    assert (told.pictures, told.present) == (6, 2)
    assert Atlas.open(tmp_path).plan.channels("channel", "conv1") == tuple(range(9))


def test_the_second_time_nothing_is_read(source: Counting, tmp_path: Path) -> None:
    fetch(Atlas.open(source), tmp_path, variants="channel")
    source.ranges.clear()
    told = fetch(Atlas.open(source), tmp_path, variants="channel")
    assert (told.present, told.requests, source.ranges) == (320, 0, [])


def test_broken_off_it_goes_on_where_it_was(source: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas.fetch.REQUEST", 20_000)  # many small requests
    monkeypatch.setattr("feature_atlas.fetch.THREADS", 2)
    source.left = 10
    with pytest.raises(StoreError, match="went away"):
        fetch(Atlas.open(source), tmp_path, variants="channel")
    had = pictures(tmp_path)
    assert 0 < len(had) < 320
    source.left = 10**9
    told = fetch(Atlas.open(source), tmp_path, variants="channel")
    assert told.present == len(had)
    assert len(pictures(tmp_path)) == 320


def test_a_flipped_byte_is_found_and_fetched_again(source: Counting, tmp_path: Path) -> None:
    fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    path = tmp_path / keys.image(Unit("channel", "conv1", 7))
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    told = fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    assert (told.present, told.problems) == (19, []) and path.read_bytes() == good


def test_a_damaged_pack_does_no_harm(source: Counting, tmp_path: Path) -> None:
    key = keys.pack("channel", "conv1", 0)
    source.put(key, b"\0" * len(source.get(key)))
    told = fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    assert told.problems == [] and len(pictures(tmp_path)) == 20


def test_a_lost_pack_does_no_harm(source: Counting, tmp_path: Path) -> None:
    source.delete(keys.pack("channel", "conv1", 0))
    told = fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    assert told.problems == [] and len(pictures(tmp_path)) == 20


def test_what_cannot_be_had_intact_is_told_and_not_kept(source: Counting, tmp_path: Path) -> None:
    unit = Unit("channel", "conv1", 7)
    source.delete(keys.pack("channel", "conv1", 0))
    source.put(keys.image(unit), source.get(keys.image(unit))[:-1] + b"x")
    told = fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    assert len(told.problems) == 1 and keys.image(unit) in told.problems[0]
    assert keys.image(unit) not in pictures(tmp_path) and len(pictures(tmp_path)) == 19


def test_an_atlas_that_was_never_published_is_fetched_file_by_file(rendered: MemoryStore, tmp_path: Path) -> None:
    source = Counting(rendered)
    unit = Unit("channel", "conv1", 2)
    source.put(keys.image(unit), source.get(keys.image(Unit("channel", "conv1", 1))))  # another's picture
    told = fetch(Atlas.open(source), tmp_path, layers="conv1")
    assert told.requests == 20 * 5 and len(told.problems) == 1 and keys.image(unit) in told.problems[0]


def test_a_dry_run_tells_and_touches_nothing(source: Counting, tmp_path: Path) -> None:
    told = fetch(Atlas.open(source), tmp_path / "nothing", dry_run=True)
    assert told.pictures == 400 and told.requests == 4 and told.bytes > 10**6
    assert not (tmp_path / "nothing").exists() and source.ranges == []


def test_progress_ends_at_its_total(source: Counting, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch(Atlas.open(source), tmp_path, layers="conv1", progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] > 0


def test_it_does_not_fetch_into_itself_or_into_another_models_atlas(source: Counting, tmp_path: Path) -> None:
    synthetic.write_plan(DirectoryStore(tmp_path), synthetic.request(LAYERS))
    with pytest.raises(RequestError, match="is the atlas itself"):
        fetch(Atlas.open(tmp_path), tmp_path)
    other = ModelRef(name="other", weights="random:1")
    synthetic.write_plan(DirectoryStore(tmp_path / "o"), synthetic.request(LAYERS, model=other), model=other)
    with pytest.raises(PlanConflictError, match="other"):
        fetch(Atlas.open(source), tmp_path / "o")
    assert describe_model(Atlas.open(tmp_path / "o").file.model).startswith("other")


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"layers": "conv7"}, "no layer is called 'conv7'; did you mean conv1"),
        ({"variants": "chanel"}, "did you mean channel"),
        ({"layers": "conv1", "channels": "30"}, "out of range"),
        ({"layers": "conv1", "channels": "x"}, "neither a number"),
    ],
)
def test_a_wrong_selection_gets_a_sentence(
    source: Counting, tmp_path: Path, selection: dict[str, str], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        fetch(Atlas.open(source), tmp_path, **selection)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def hostile(source: Counting, **changes: object) -> None:
    """Rewrites the layer file as somebody evil would."""
    told = json.loads(source.get(keys.layer("conv1")))
    columns = told["variants"]["channel"]["columns"]
    for row in told["variants"]["channel"]["rows"]:
        for name, value in changes.items():
            row[columns.index(name)] = value
    source.put(keys.layer("conv1"), json.dumps(told).encode())


def test_a_hostile_atlas_cannot_write_elsewhere_or_fill_the_disk(source: Counting, tmp_path: Path) -> None:
    target = tmp_path / "in" / "here"
    before = sorted(tmp_path.rglob("*"))
    source.put("images/channel/conv1/../../../../evil.png".replace("..", "__"), b"x")
    source._objects["images/channel/conv1/../../../../../evil.png"] = (b"evil", 1, 0.0)
    hostile(source, bytes=[2**40], sha256=[hashlib.sha256(b"evil").hexdigest()])
    told = fetch(Atlas.open(source), target, layers="conv1", variants="channel")
    assert len(told.problems) == 20 and "at most" in told.problems[0]
    outside = [path for path in tmp_path.rglob("*") if target not in (path, *path.parents) and path != target.parent]
    assert outside == before == []
    assert not pictures(target)


def test_a_hostile_offset_reads_another_picture_in_vain(source: Counting, tmp_path: Path) -> None:
    hostile(source, offsets=[512])
    told = fetch(Atlas.open(source), tmp_path, layers="conv1", variants="channel")
    assert told.problems == [] and len(pictures(tmp_path)) == 20

"""Publishing as a whole: right on partial atlases, incremental, safe while workers write."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.errors import RequestError
from feature_atlas.publish import publish
from feature_atlas.publish.layers import read_old
from feature_atlas.spec import Unit
from feature_atlas.store import MemoryStore
from tests import synthetic

LAYERS = (("conv1", 20), ("block.0.conv", 300))


class Recorder(MemoryStore):
    """A store that remembers which keys were written and read."""

    def __init__(self, other: MemoryStore | None = None) -> None:
        super().__init__()
        if other is not None:
            self._objects = dict(other._objects)
            self._clock = other._clock
        self.written: list[str] = []
        self.read: list[str] = []

    def put(self, key: str, data: bytes, **how: object) -> None:
        self.written.append(key)
        super().put(key, data)

    def get(self, key: str) -> bytes:
        self.read.append(key)
        return super().get(key)

    def derived(self) -> dict[str, bytes]:
        """Every published file but the clock."""
        kinds = (keys.LAYERS, keys.SHEETS, keys.PACKS)
        return {
            info.key: MemoryStore.get(self, info.key)
            for info in self.list()
            if info.key.startswith(kinds) or ("/" not in info.key and info.key != keys.ATLAS)
        }


@pytest.fixture(scope="module")
def rendered() -> MemoryStore:
    store = MemoryStore()
    synthetic.write_atlas(store, LAYERS, size=24)
    return store


@pytest.fixture(scope="module")
def published(rendered: MemoryStore) -> MemoryStore:
    store = Recorder(rendered)
    publish(store)
    return store


@pytest.fixture
def store(published: MemoryStore) -> Recorder:
    return Recorder(published)


def atlas_js(store: MemoryStore) -> dict[str, object]:
    text = store.get(keys.ATLAS_JS).decode()
    return json.loads(text.removeprefix('FEATURE_ATLAS.put("atlas",').removesuffix(");\n"))  # type: ignore[no-any-return]


def test_every_done_unit_has_a_row_with_the_hash_of_its_file(store: Recorder) -> None:
    for name, total in LAYERS:
        file = read_old(store, name)
        assert file is not None
        rows = file.variants["channel"].rows
        assert [row.channel for row in rows] == list(range(total))
        for row in rows[:5]:
            data = store.get(keys.image(Unit("channel", name, row.channel)))
            assert (row.sha256[0], row.bytes[0]) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("size", [16, 64, 128])
def test_a_channel_lies_at_its_place_on_its_sheet(store: Recorder, size: int) -> None:
    def picture(channel: int) -> np.ndarray:
        image = Atlas.open(store).image(Unit("channel", "block.0.conv", channel))
        return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.float32)

    candidates = {channel: picture(channel) for channel in (0, 1, 16, 17, 18, 100, 255, 256, 299)}
    for channel in (0, 17, 255, 299):
        key = keys.sheet(size, "channel", "block.0.conv", channel // 256)
        sheet = np.asarray(Image.open(io.BytesIO(store.get(key))).convert("RGB"), np.float32)
        y, x = channel % 256 // 16 * size, channel % 16 * size
        cell = sheet[y : y + size, x : x + size]
        far = {other: float(np.abs(cell - pixels).mean()) for other, pixels in candidates.items()}
        assert min(far, key=far.__getitem__) == channel
        assert far[channel] < 12


def test_the_last_sheet_holds_only_the_lines_that_it_needs(store: Recorder) -> None:
    image = Image.open(io.BytesIO(store.get(keys.sheet(64, "channel", "block.0.conv", 1))))
    assert image.size == (16 * 64, 3 * 64)  # channels 256 to 299


def test_the_root_is_what_sha256sum_says(store: Recorder) -> None:
    lines = "".join(
        f"{hashlib.sha256(store.get(info.key)).hexdigest()}  {info.key}\n" for info in store.list(keys.IMAGES)
    )
    root = json.loads(store.get(keys.PUBLISHED))["root_sha256"]
    assert root == hashlib.sha256(lines.encode()).hexdigest()


def test_publishing_again_reads_no_picture_and_writes_only_the_clock(store: Recorder) -> None:
    publish(store)
    assert store.written == [keys.STATUS_JS]
    assert not [key for key in store.read if key.startswith(keys.IMAGES)]


def test_one_new_picture_rebuilds_one_block(store: Recorder) -> None:
    unit = Unit("channel", "block.0.conv", 3)
    plan = Atlas.open(store).plan
    synthetic.write_unit(store, plan, unit, size=24, status="dead")
    store.written.clear()
    store.read.clear()
    publish(store)
    sheets = {key for key in store.written if key.startswith((keys.SHEETS, keys.PACKS))}
    expected = {keys.sheet(size, "channel", "block.0.conv", 0) for size in (16, 64, 128)}
    expected |= {keys.pack("channel", "block.0.conv", 0), keys.strip("channel", "block.0.conv")}
    assert sheets <= expected and len(sheets) >= 4
    assert not [key for key in store.read if key.startswith("images/channel/conv1/")]


@pytest.mark.parametrize(
    "key",
    [keys.sheet(64, "channel", "conv1", 0), keys.pack("channel", "conv1", 0), keys.strip("channel", "conv1"),
     keys.layer("conv1"), keys.layer("conv1", "js"), keys.INDEX, keys.PAGE, keys.PUBLISHED, keys.CONTACT_SHEET],
)  # fmt: skip
def test_whatever_derived_file_is_lost_comes_back_the_same(store: Recorder, key: str) -> None:
    before = store.derived()
    store.delete(key)
    publish(store)
    assert store.derived() == before


def test_a_partial_atlas_tells_done_dead_failed_and_missing_apart() -> None:
    store = Recorder()
    units = [Unit("channel", "conv1", channel) for channel in range(20)]
    synthetic.write_atlas(store, LAYERS[:1], size=24, dead=units[:2], failed=units[2:5], missing=units[5:9])
    told = publish(store)
    assert (told.planned, told.done, told.dead, told.failed) == (20, 13, 2, 3)
    group = read_old(store, "conv1").variants["channel"]  # type: ignore[union-attr]
    assert (group.planned, group.failed) == ("0:20", "2:5")
    assert group.errors == dict.fromkeys((2, 3, 4), "the layer cannot be optimised")
    assert [row.status for row in group.rows[:2]] == ["dead", "dead"]
    lines = store.get(keys.METADATA).decode().splitlines()
    assert {json.loads(line)["file_name"] for line in lines} == {info.key for info in store.list(keys.IMAGES)}


def test_an_atlas_without_a_single_picture_has_a_page() -> None:
    store = Recorder()
    synthetic.write_plan(store, synthetic.request(LAYERS))
    told = publish(store)
    assert told.done == 0 and b"0 of 320" in store.get(keys.PAGE)


def test_there_must_be_an_atlas() -> None:
    with pytest.raises(RequestError, match="there is no atlas"):
        publish(MemoryStore())


def _truncate(data: bytes) -> bytes:
    return data[:200]


def _strip_record(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).copy().save(buffer, "PNG")
    return buffer.getvalue()


def _paint_over(data: bytes) -> bytes:
    from feature_atlas.manifest import decode_png, encode_png

    pixels, record = decode_png(data, "test")
    return encode_png(255 - pixels, record)


@pytest.mark.parametrize("harm", [_truncate, _strip_record, _paint_over])
def test_a_damaged_picture_is_left_out_and_taken_up_once_repaired(
    store: Recorder, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    before = store.derived()
    key = keys.image(Unit("channel", "conv1", 7))
    good = store.get(key)
    store.put(key, harm(good))
    with caplog.at_level(logging.WARNING):
        told = publish(store)
    assert told.done == 319 and told.left_out == (Unit("channel", "conv1", 7),)
    assert "is left out" in caplog.text
    store.put(key, good)
    told = publish(store)
    assert told.done == 320 and told.left_out == ()
    after = store.derived()
    # Versions of the masters differ, and with them what the blocks were made from; nothing that is shown does.
    assert {key for key in after if after[key] != before[key]} <= {
        keys.layer("conv1"), keys.ATLAS_JS, keys.PUBLISHED, keys.PAGE
    }  # fmt: skip


def test_pictures_of_no_plan_are_left_aside(store: Recorder) -> None:
    before = store.derived()
    png = store.get(keys.image(Unit("channel", "conv1", 0)))
    for stranger in ("images/channel/conv9/00000.png", "images/channel/conv1/00020.png", "images/x/conv1/00000.png"):
        store.put(stranger, png)
    assert publish(store).done == 320
    assert store.derived() == before


def test_a_picture_under_another_channels_name_is_left_out(store: Recorder) -> None:
    store.put(keys.image(Unit("channel", "conv1", 1)), store.get(keys.image(Unit("channel", "conv1", 0))))
    assert publish(store).done == 319


def test_publishing_piece_by_piece_while_units_arrive_ends_where_publishing_once_ends(rendered: MemoryStore) -> None:
    # Given an atlas whose pictures arrive while somebody publishes all the time
    target = Recorder(rendered)
    pictures = {info.key: target.get(info.key) for info in target.list(keys.IMAGES)}
    for key in pictures:
        target.delete(key)
    stop = threading.Event()

    def arrive() -> None:
        for key, data in pictures.items():
            MemoryStore.put(target, key, data)
        stop.set()

    worker = threading.Thread(target=arrive)
    worker.start()
    while not stop.is_set():
        publish(target, live=True)
    worker.join()
    publish(target)
    # When everything is there, and another publishes it afresh
    once = Recorder(target)
    publish(once, fresh=True)
    # Then both are the same to the byte
    assert target.derived() == once.derived()


def test_a_new_variant_appears_beside_the_old_one(store: Recorder) -> None:
    request = synthetic.request(LAYERS[:1], variants=["negative"], changes={"size": 24})
    atlas = Atlas.grow(store, synthetic.MODEL, request)
    synthetic.write_unit(store, atlas.plan, Unit("negative", "conv1", 4), size=24)
    told = publish(store)
    assert (told.planned, told.done) == (340, 321)
    about = atlas_js(store)
    assert list(about["variants"]) == ["channel", "negative"] and about["first"] == "channel"  # type: ignore[call-overload]


def test_diverse_images_count_only_once_they_are_committed() -> None:
    store = Recorder()
    plan = synthetic.write_atlas(store, LAYERS[:1], variants=["diverse"], size=24)
    store.delete(keys.image(Unit("diverse", "conv1", 2)))  # the further ones are there, the committing one is not
    told = publish(store)
    row = read_old(store, "conv1").variants["diverse"].rows[0]  # type: ignore[union-attr]
    assert told.done == 19 and len(row.sha256) == plan.variants["diverse"].images == 4
    names = [json.loads(line)["file_name"] for line in store.get(keys.METADATA).decode().splitlines()]
    assert len(names) == 4 * 19 and "images/diverse/conv1/00000-3.png" in names
    altered, other = (keys.image(Unit("diverse", "conv1", channel), 1) for channel in (3, 4))
    store.put(altered, store.get(other))
    assert publish(store).left_out == (Unit("diverse", "conv1", 3),)


def test_progress_ends_at_its_total(rendered: MemoryStore) -> None:
    seen: list[tuple[int, int]] = []
    publish(Recorder(rendered), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (320, 320) and seen == sorted(seen)


def test_live_publishing_leaves_packs_of_unfinished_blocks_for_later() -> None:
    store = Recorder()
    units = [Unit("channel", "block.0.conv", 299)]
    plan = synthetic.write_atlas(store, LAYERS, size=24, missing=units)
    publish(store, live=True)
    packs = [info.key for info in store.list(keys.PACKS)]
    assert packs == ["packs/channel/block.0.conv/000.tar", "packs/channel/conv1/000.tar"]
    assert b'"live":true' in store.get(keys.STATUS_JS)
    synthetic.write_unit(store, plan, units[0], size=24)
    publish(store)
    assert len(list(store.list(keys.PACKS))) == 3 and b'"live":false' in store.get(keys.STATUS_JS)

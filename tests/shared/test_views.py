"""Reading by name."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.errors import RequestError
from feature_atlas.publish import publish
from feature_atlas.spec import Unit
from feature_atlas.store import MemoryStore
from feature_atlas.views import LayerView, UnitView, seconds
from tests import synthetic

LAYERS = (("conv1", 6), ("block.0.conv1", 8), ("block.1.conv1", 8), ("block.1.conv2", 10))


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    store = MemoryStore()
    missing = [Unit("channel", "block.1.conv2", 9)]
    failed = [Unit("channel", "block.1.conv2", 8)]
    dead = [Unit("channel", "block.1.conv2", 0)]
    synthetic.write_atlas(
        store, LAYERS, variants=["channel", "negative", "diverse"], size=24, missing=missing, failed=failed, dead=dead
    )
    return Atlas.open(store)


def layer(atlas: Atlas, name: str) -> LayerView:
    found = atlas[name]
    assert isinstance(found, LayerView)
    return found


def test_a_layer_is_a_sequence_of_its_channels(atlas: Atlas) -> None:
    conv1 = layer(atlas, "conv1")
    assert len(conv1) == 6 and [view.unit.channel for view in conv1] == list(range(6))
    assert str(conv1[3]) == "conv1:3" and conv1[3] in conv1 and 6 not in conv1
    assert [view.unit.channel for view in conv1[2:5]] == [2, 3, 4]
    assert [view.unit.channel for view in conv1[::-2]] == [1, 3, 5]  # always in channel order


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("conv1:3", Unit("channel", "conv1", 3)),
        ("block.1.conv2:4@negative", Unit("negative", "block.1.conv2", 4)),
        ("1.conv2:4", Unit("channel", "block.1.conv2", 4)),
        ("conv2:4", Unit("channel", "block.1.conv2", 4)),
        ("block[1].conv2:4", Unit("channel", "block.1.conv2", 4)),
        (Unit("negative", "conv1", 2), Unit("negative", "conv1", 2)),
    ],
)
def test_a_unit_has_many_names(atlas: Atlas, name: str | Unit, unit: Unit) -> None:
    found = atlas[name]
    assert isinstance(found, UnitView) and found.unit == unit
    assert atlas[unit] == found


def test_what_a_unit_prints_is_its_name(atlas: Atlas) -> None:
    for variant in ("channel", "negative"):
        unit = layer(atlas, "conv1").variant(variant)[2]
        assert atlas[str(unit)] == unit


def test_a_range_in_the_name_is_a_part_of_the_layer(atlas: Atlas) -> None:
    assert layer(atlas, "conv1:0:4").channels == (0, 1, 2, 3)
    assert layer(atlas, "conv1:1,3@negative").channels == (1, 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("block.1.conv3", "no layer 'block.1.conv3'; did you mean block.1.conv[12]"),
        ("0.conv", "did you mean"),
        ("conv1:6", "conv1 has no channel 6 in this atlas: it holds 0:6"),
        ("conv1:3@negativ", "did you mean negative"),
        ("conv1:3@", "names nothing"),
        ("", "names nothing"),
        ("conv1:a", "neither a number nor"),
    ],
)
def test_a_wrong_name_gets_a_sentence(atlas: Atlas, name: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        atlas[name]


def test_an_ending_of_several_layers_names_them_all() -> None:
    store = MemoryStore()
    synthetic.write_plan(store, synthetic.request((("a.conv", 2), ("b.conv", 2))))
    with pytest.raises(RequestError, match=r"could be 2 layers: a\.conv, b\.conv"):
        Atlas.open(store)["conv"]


def test_a_unit_gives_its_picture_record_and_status(atlas: Atlas) -> None:
    unit = layer(atlas, "conv1")[2]
    assert unit.image.size == (24, 24)
    assert unit.manifest.unit == unit.unit and unit.status == "ok"
    assert len(layer(atlas, "conv1").variant("diverse")[2].images) == 4
    assert [layer(atlas, "block.1.conv2")[c].status for c in (0, 8, 9)] == ["dead", "failed", "missing"]


def test_pictures_are_read_once_and_cannot_be_spoilt(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = layer(atlas, "conv1")[4]
    first = unit.image
    monkeypatch.setattr(atlas.store, "get", lambda key: pytest.fail("read again"))
    first.putpixel((0, 0), (1, 2, 3))
    assert layer(atlas, "conv1")[4].image.getpixel((0, 0)) != (1, 2, 3)


def test_threads_may_share_an_atlas(atlas: Atlas) -> None:
    found: list[bytes] = []
    views = [view for _ in range(4) for view in layer(atlas, "block.0.conv1")]
    threads = [threading.Thread(target=lambda view=view: found.append(view.image.tobytes())) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32 and len(set(found)) == 8


def test_a_layers_pictures_are_one_array_and_one_sheet(atlas: Atlas) -> None:
    part = layer(atlas, "block.1.conv2")
    assert part.images().shape == (8, 24, 24, 3)  # of ten, one failed and one is missing
    assert (part.images()[3] == np.asarray(part[3].image)).all()
    assert part.images(16).shape == (8, 16, 16, 3)
    assert part.sheet(columns=4, cell=20, gap=2).size == (4 * 22 - 2, 2 * 22 - 2)
    assert layer(atlas, "conv1")[0:0].sheet().size[0] > 0


def test_rows_are_the_same_before_and_after_publishing() -> None:
    store = MemoryStore()
    synthetic.write_atlas(store, LAYERS[:2], size=24)
    before = Atlas.open(store).rows()
    publish(store)
    after = Atlas.open(store).rows()
    assert len(before) == len(after) == 14
    for old, new in zip(before, after, strict=True):
        assert {name for name in old if old[name] != new[name]} == {"pack", "pack_offset"}
    assert {row["layer"] for row in layer(Atlas.open(store), "conv1").rows()} == {"conv1"}


def test_rows_tell_of_pictures_newer_than_the_last_publish() -> None:
    store = MemoryStore()
    late = Unit("channel", "conv1", 5)
    plan = synthetic.write_atlas(store, LAYERS[:1], size=24, missing=[late])
    publish(store)
    synthetic.write_unit(store, plan, late, size=24)
    assert [row["channel"] for row in Atlas.open(store).rows()] == list(range(6))


def test_a_data_frame_needs_pandas_and_says_so(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(RequestError, match="pip install pandas"):
        _ = atlas.df


def test_a_data_frame_has_a_line_per_picture(atlas: Atlas) -> None:
    pytest.importorskip("pandas", reason="pandas comes with the datasets library of the test extra")
    frame = layer(atlas, "conv1").df
    assert len(frame) == 6 and frame.normalized.gt(0).all()


def test_notebooks_show_pictures_and_tables(atlas: Atlas) -> None:
    png = layer(atlas, "conv1")._repr_png_()
    assert Image.open(io.BytesIO(png)).width > 24
    assert layer(atlas, "block.1.conv2")[9]._repr_png_() is None
    html = atlas._repr_html_()
    assert html.count("<tr>") == 1 + len(LAYERS) and "block.1.conv2" in html


def test_a_link_lasts_as_long_as_it_says(atlas: Atlas) -> None:
    unit = layer(atlas, "conv1")[0]
    assert unit.url().endswith(keys.image(unit.unit))
    assert [seconds(text) for text in (30, "30", "90m", "12h", "7d")] == [30, 30, 5400, 43200, 604800]
    with pytest.raises(RequestError, match="no duration"):
        unit.url(expires="a week")


def test_an_atlas_is_a_sequence_of_layers(atlas: Atlas) -> None:
    assert [view.name for view in atlas] == [name for name, _ in LAYERS]


def test_reading_needs_no_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys; sys.modules.update(torch=None, celery=None, redis=None)\n"
        "import feature_atlas.rows, feature_atlas.fetch, feature_atlas.publish, feature_atlas.serve, feature_atlas.http"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)

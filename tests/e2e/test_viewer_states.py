"""Channels without a picture, or without a number: told apart, in words and to the eye."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.publish import publish
from feature_atlas.publish.single import export
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore
from tests import synthetic
from tests.visitor import Visitor

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
UNITS = [Unit("channel", "conv1", channel) for channel in range(12)]
DEAD, FAILED, MISSING, SILENT = UNITS[1:5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = DirectoryStore(tmp_path_factory.mktemp("atlas"))
    plan = synthetic.write_atlas(
        store, [("conv1", 12)], size=24, variants=["channel", "negative"], dead=[DEAD], failed=[FAILED],
        missing=[MISSING, SILENT],
    )  # fmt: skip
    synthetic.write_unit(store, plan, SILENT, size=24, silent=True)
    publish(store)
    return store.root


@pytest.fixture
def visitor(folder: Path, visit: Callable[..., Visitor]) -> Visitor:
    return visit((folder / keys.PAGE).as_uri())


def test_a_channel_that_noise_leaves_silent_has_no_distance_from_it(visitor: Visitor, folder: Path) -> None:
    page = visitor.go("#/conv1/4")
    assert visitor.texts(".headline b") == ["–"]
    assert "without a spread" in str(page.locator(".headline b").get_attribute("title"))
    page = visitor.go("#/conv1/0")
    assert "of 9 in its layer; 1 have no such distance" in page.locator(".standing").inner_text()
    page = visitor.go("#/compare?u=conv1:0,conv1:4")
    assert "without a spread" in str(page.locator("tbody tr").first.locator("td").nth(1).get_attribute("title"))
    rows = {row["channel"]: row for row in Atlas.open(folder)["conv1"].rows()}  # type: ignore[union-attr]
    assert rows[4]["normalized"] is None and rows[4]["activation"] > 0 and rows[0]["normalized"] > 0
    assert visitor.complaints == []


def test_the_strongest_come_first_then_the_silent_then_those_without_a_picture(visitor: Visitor) -> None:
    page = visitor.go("#/conv1?sort=-normalized")
    page.wait_for_selector(".grid .cell")
    assert visitor.labels()[8:] == [4, 1, 2, 3]
    assert "raw activation" in str(page.locator(".grid .cell[aria-label^='conv1:4,']").get_attribute("aria-label"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("route", "kind"), [("#/conv1", ".cell"), ("#/conv1?w=negative", ".cell.pair")])
def test_what_has_no_picture_looks_like_what_it_is(
    folder: Path, visit: Callable[..., Visitor], route: str, kind: str, scheme: str
) -> None:
    page = visit((folder / keys.PAGE).as_uri(), color_scheme=scheme).go(route)
    page.wait_for_selector(f".grid {kind}")
    looks = [
        page.locator(f".grid {kind}[aria-label^='conv1:{unit.channel},']").evaluate(
            "(node) => getComputedStyle(node.querySelector('span[data-state]') || node).backgroundImage"
        )
        for unit in (UNITS[0], DEAD, FAILED, MISSING)
    ]
    assert [look.partition("(")[0] for look in looks] == ["url", "radial-gradient", "repeating-linear-gradient", "none"]


def test_a_few_huge_values_do_not_flatten_a_histogram(visitor: Visitor) -> None:
    sources = "".join((ROOT / "shared/feature_atlas/viewer" / name).read_text() for name in ("dom.js", "numbers.js"))
    bars, back = visitor.page.evaluate(f"""() => {{ {sources}
      const values = [...Array.from({{length: 99}}, (_, n) => n), 1e6];
      const {{bars, scale}} = histogram(values);
      return [bars, values.map((value) => scale.value(scale.place(value)))];
    }}""")
    assert sum(bars) == 100 and max(bars) < 50
    assert back == pytest.approx([*range(99), 1e6], abs=1e-6)


@pytest.mark.parametrize(("size", "masters", "zooms"), [(16, False, ["16"]), (64, True, ["16", "64", "128", "full"])])
def test_a_single_file_offers_the_sizes_that_it_holds(
    folder: Path, tmp_path: Path, visit: Callable[..., Visitor], size: int, masters: bool, zooms: list[str]
) -> None:
    (tmp_path / "x.html").write_bytes(export(Atlas.open(folder), size=size, masters=masters))
    visitor = visit((tmp_path / "x.html").as_uri())
    page = visitor.go("#/conv1")
    page.wait_for_selector(".grid .cell, .grid canvas")
    assert visitor.texts(".choices[aria-label=zoom] button") == zooms

"""Zooming, sorting by likeness, looking for likenesses, taking home: by key, by finger and by click."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from feature_atlas import keys
from feature_atlas.publish import publish
from feature_atlas.publish.layers import read_old
from feature_atlas.serve import PageServer
from feature_atlas.store import DirectoryStore
from tests import synthetic
from tests.visitor import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LAYERS = (("conv1", 40), ("block.conv", 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = DirectoryStore(tmp_path_factory.mktemp("atlas"))
    synthetic.write_atlas(store, LAYERS, size=24)
    publish(store)
    return store.root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer([DirectoryStore(folder)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def visitor(folder: Path, visit: Callable[..., Visitor]) -> Iterator[Visitor]:
    visitor = visit((folder / keys.PAGE).as_uri())
    yield visitor
    assert visitor.complaints == []


def zoom(page: Page) -> str:
    return page.locator(".choices[aria-label=zoom] [aria-pressed=true]").inner_text()


def shown_size(page: Page, sign: str) -> None:
    """What lies behind the first cell: the sheet of a size, or the picture itself."""
    page.wait_for_function(
        "(sign) => document.querySelector('.grid .cell').style.backgroundImage.includes(sign)", arg=sign
    )


def test_zoom_goes_from_16_pixels_to_the_pictures_themselves(visitor: Visitor) -> None:
    page = visitor.go("#/conv1?z=16")
    page.wait_for_selector(".grid canvas")
    for level, sign in (("64", "sheets/64/"), ("128", "sheets/128/"), ("full", "images/channel/conv1/00000.png")):
        page.keyboard.press("+")
        page.wait_for_selector(f".choices[aria-label=zoom] [aria-pressed=true]:text-is('{level}')")
        page.wait_for_selector(".grid .cell")
        shown_size(page, sign)
    page.keyboard.press("+")  # and no further
    assert zoom(page) == "full"
    page.keyboard.press("-")
    shown_size(page, "sheets/128/")


def test_two_fingers_zoom(folder: Path, visit: Callable[..., Visitor]) -> None:
    visitor = visit((folder / keys.PAGE).as_uri(), viewport={"width": 390, "height": 800}, has_touch=True)
    page = visitor.go("#/conv1?z=64")
    page.wait_for_selector(".grid .cell")
    page.evaluate("""() => {
      const node = document.querySelector(".grid");
      const send = (kind, apart) => {
        const touches = [0, apart].map((x, n) =>
          new Touch({identifier: n, target: node, clientX: 100 + x, clientY: 300}));
        node.dispatchEvent(new TouchEvent(kind, {touches, changedTouches: touches, bubbles: true}));
      };
      send("touchstart", 60); send("touchmove", 70); send("touchmove", 120);
    }""")
    page.wait_for_function("() => location.hash.includes('z=128')")
    assert visitor.complaints == []


def test_a_key_goes_through_the_measures(visitor: Visitor) -> None:
    page = visitor.go("#/conv1")
    page.wait_for_selector(".grid .cell")
    for measure in ("-normalized", "-gain", "-robust", "hue", "-high_frequency", "likeness"):
        page.keyboard.press("s")
        page.wait_for_function("(text) => location.hash.endsWith(`sort=${text}`)", arg=measure)
        page.wait_for_function(
            "(id) => document.querySelector('[aria-label=\"sort by\"]').value === id", arg=measure.removeprefix("-")
        )
    page.keyboard.press("s")
    page.wait_for_function("() => !location.hash.includes('sort')")


def described(folder: Path, layer: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The bytes that describe each picture of a layer.  [channels, 24]."""
    file = read_old(DirectoryStore(folder), layer)
    assert file is not None
    rows = file.variants["channel"].rows
    return np.stack([np.frombuffer(base64.b64decode(row.likeness), np.uint8) for row in rows]).astype(np.int64)


def test_in_the_order_of_likeness_neighbours_look_alike(visitor: Visitor, folder: Path) -> None:
    page = visitor.go("#/conv1?sort=likeness")
    page.wait_for_selector(".grid .cell")
    order, all_of_it = visitor.labels(), described(folder, "conv1")
    assert sorted(order) == list(range(40))
    apart = [float(np.square(np.diff(all_of_it[way], axis=0)).sum(1).mean()) for way in (order, range(40))]
    assert apart[0] < 0.8 * apart[1]


def test_look_alikes_are_the_nearest_in_the_layer_and_across(visitor: Visitor, folder: Path) -> None:
    page = visitor.go("#/conv1/7")
    page.wait_for_selector(".alike .row")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".alike .row >> nth=1")
    mine = described(folder, "conv1")[7]
    for row, layer in ((0, "conv1"), (1, "block.conv")):
        found = page.locator(".alike .row").nth(row).locator("a").evaluate_all("all => all.map((a) => a.unit.channel)")
        far = np.square(described(folder, layer) - mine).sum(1)
        nearest = [int(n) for n in np.argsort(far, kind="stable") if (layer, n) != ("conv1", 7)][: len(found)]
        assert sorted(far[found]) == sorted(far[nearest]) and len(found) == 14


def test_pinned_channels_flip_and_are_a_link(visitor: Visitor) -> None:
    page = visitor.go("#/conv1/3")
    page.keyboard.press("c")
    page.wait_for_selector(".tray .cell")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('conv1:4')")
    page.keyboard.down("f")
    page.wait_for_function("() => document.querySelector('.master').src.endsWith('/00003.png')")
    page.keyboard.up("f")
    page.wait_for_function("() => document.querySelector('.master').src.endsWith('/00004.png')")
    page.get_by_role("link", name="List").click()
    page.wait_for_selector(".list-page .cell")
    assert page.url.endswith("#/list?u=conv1:3") and visitor.texts(".list-page .tag") == ["conv1:3"]
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector(".tray", state="hidden")


def test_everything_can_be_taken_home(server: PageServer, folder: Path, visit: Callable[..., Visitor]) -> None:
    visitor = visit(server.url(), permissions=["clipboard-read", "clipboard-write"])
    page = visitor.go("#/conv1")
    page.locator(".menu summary").click()
    links = page.locator(".menu a").evaluate_all("all => all.map((a) => a.href)")
    assert [link.rpartition("/0/")[2] for link in links] == [keys.pack("channel", "conv1", 0), keys.layer("conv1")]
    page = visitor.go("#/conv1/3")
    links += page.locator(".bar a").evaluate_all("all => all.map((a) => a.href)")
    assert len(links) == 4
    for link in links:
        answer = page.request.get(link)
        assert answer.ok and answer.body() == (folder / link.rpartition("/0/")[2]).read_bytes()
    page.get_by_role("button", name="Address").click()
    assert page.evaluate("navigator.clipboard.readText()") == "conv1:3"
    page.get_by_role("button", name="Link").click()
    page.wait_for_function("() => document.querySelector('.toast').textContent === 'Link copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert json.loads((folder / keys.layer("conv1")).read_bytes())["layer"] == "conv1"

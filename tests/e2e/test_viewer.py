"""The page in a real Chromium, from disk and over http: what people see and do, and what must not happen to them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.publish import publish
from feature_atlas.publish.single import export, share
from feature_atlas.serve import PageServer
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, open_store
from tests import synthetic
from tests.servers import MotoServer
from tests.visitor import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LAYERS = (("conv1", 12), ("block1.0.conv1", 40), ("block1.0.conv2", 300), ("block2.0.conv1", 24))
WIDE = "block1.0.conv2"
UNITS = [Unit("channel", "block2.0.conv1", channel) for channel in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("atlases")
    store = DirectoryStore(root / "one")
    synthetic.write_atlas(store, LAYERS, size=24, dead=UNITS[:2], failed=UNITS[2:5], missing=UNITS[5:9])
    more = synthetic.request(LAYERS, variants=["negative", "diverse"], changes={"size": 24}, channels="0:12")
    atlas = Atlas.grow(store, synthetic.MODEL, more)
    for unit in atlas.plan.units():
        if unit.variant == "negative" or (unit.variant, unit.layer) == ("diverse", "conv1"):
            synthetic.write_unit(store, atlas.plan, unit, size=24)
    publish(store)
    other = DirectoryStore(root / "two")
    synthetic.write_atlas(other, LAYERS[:2], size=24, changes={"seed": 5})
    publish(other)
    return root / "one"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer([DirectoryStore(folder), DirectoryStore(folder.parent / "two")]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


#: From disk unless a test asks for both.
both = pytest.mark.parametrize("visitor", ["file", "http"], indirect=True)


@pytest.fixture
def visitor(request: pytest.FixtureRequest, chromium: Browser, folder: Path, server: PageServer) -> Iterator[Visitor]:
    over_http = getattr(request, "param", "file") == "http"
    address = server.url() if over_http else (folder / keys.PAGE).as_uri()
    with chromium.new_context(viewport={"width": 1200, "height": 800}) as context:
        visitor = Visitor(context.new_page(), address)
        yield visitor
        assert visitor.complaints == []


def painted(page: Page, selector: str) -> bool:
    """Whether what lies behind the first such element is a sheet that decodes."""
    return page.locator(selector).first.evaluate("""async (node) => {
      const url = /url\\("(.*)"\\)/.exec(getComputedStyle(node).backgroundImage);
      if (!url) return false;
      const image = new Image(); image.src = url[1]; await image.decode();
      return image.naturalWidth > 0;
    }""")


@both
def test_the_overview_shows_every_layer_as_a_strip(visitor: Visitor) -> None:
    page = visitor.go()
    assert page.title() == "synthetic (random:0)"
    assert [text.replace("\n", "") for text in visitor.texts(".layer h2")] == [name for name, _ in LAYERS]
    page.wait_for_function("() => document.querySelectorAll('.strips .cell')[3].style.backgroundImage")
    assert painted(page, ".strips .cell")
    assert "3 failed" in visitor.texts(".layer .note")[-1]
    page.locator(".layer h2 a").nth(1).click()
    page.wait_for_selector(".layer-page")
    assert page.url.endswith("#/block1.0.conv1")


def test_the_mosaic_holds_every_channel_and_each_is_a_link(visitor: Visitor) -> None:
    page = visitor.go("#/?m=mosaic")
    page.wait_for_selector(".mosaic canvas")
    page.mouse.move(0, 0)
    canvas = page.locator(".mosaic canvas").first
    box = canvas.bounding_box()
    assert box is not None
    page.locator(".mosaic .spot").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.unit.channel") == 1
    page.mouse.click(box["x"] + 48 * 7 + 5, box["y"] + 5)  # a small network: 48 pixels each
    page.wait_for_selector(".unit-page")
    assert page.url.endswith("#/conv1/7")


@both
def test_all_channels_of_the_network_sort_together(visitor: Visitor) -> None:
    page = visitor.go("#/?m=all&sort=-contrast")
    page.wait_for_selector(".grid .cell")
    values = page.locator(".grid a.cell").evaluate_all(
        "all => all.sort((a, b) => a.index - b.index).map((a) => [a.unit.layer, a.unit.value('contrast')])"
    )
    numbers = [value for _, value in values]
    assert numbers == sorted(numbers, reverse=True) and len({layer for layer, _ in values}) > 1
    assert "376 channels" in visitor.texts(".told")[0]


def test_a_layer_draws_only_what_is_on_the_screen(visitor: Visitor) -> None:
    page = visitor.go(f"#/{WIDE}?z=128")
    page.wait_for_selector(".grid .cell")
    assert 20 < page.locator(".grid .cell").count() < 200
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".grid .cell[aria-label*=':299,']")
    assert page.locator(".grid .cell").count() < 200


@both
def test_cells_show_their_own_part_of_the_sheet(visitor: Visitor) -> None:
    page = visitor.go(f"#/{WIDE}/../".replace("/../", "?z=64"))
    page.wait_for_selector(".grid .cell")
    style = page.locator(".grid .cell[aria-label*=':17,']").evaluate(
        "a => [a.style.backgroundSize, a.style.backgroundPosition]"
    )
    assert style == ["1600% 1600%", "6.66667% 6.66667%"]  # column 1 and row 1 of 16
    page.locator(".grid .cell").first.focus()
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    last = page.locator(".grid .cell[aria-label*=':290,']").evaluate(
        "a => [a.style.backgroundSize, a.style.backgroundPosition]"
    )
    assert last[0] == "1600% 300%"  # 44 channels are three lines


@pytest.mark.parametrize("measure", ["normalized", "gain", "robust", "hue", "high_frequency"])
def test_sorting_by_a_number_sorts(visitor: Visitor, measure: str) -> None:
    page = visitor.go("#/conv1")
    page.get_by_label("sort by").select_option(measure)
    page.wait_for_url(re.compile(f"sort=-?{measure}"))
    page.wait_for_function("() => document.querySelectorAll('.grid .cell').length === 12")
    values = page.locator(".grid a.cell").evaluate_all(
        f"all => all.sort((a, b) => a.index - b.index).map((a) => a.unit.value('{measure}'))"
    )
    assert values == sorted(values, reverse=measure != "hue")
    page.get_by_label("turn the order round").click()
    page.wait_for_function(
        f"() => document.querySelector('.grid a.cell').unit.value('{measure}') === {json.dumps(values[-1])}"
    )


def test_filtering_by_a_range_keeps_what_lies_in_it(visitor: Visitor) -> None:
    page = visitor.go("#/conv1?sort=-normalized")
    page.get_by_label("least activation").evaluate(
        "slider => { slider.value = 400; slider.dispatchEvent(new Event('change')); }"
    )
    page.wait_for_url(re.compile("f=normalized"))
    page.wait_for_function("() => document.querySelectorAll('.grid .cell').length < 12")
    least = float(re.search(r"f=normalized:([\d.]+)\.\.", page.url)[1])  # type: ignore[index]
    values = page.locator(".grid a.cell").evaluate_all("all => all.map((a) => a.unit.value('normalized'))")
    assert values and min(values) >= least
    assert visitor.texts(".told")[0] == f"{len(values)} of 12 channels"


def test_dead_failed_and_missing_channels_are_told_apart(visitor: Visitor) -> None:
    page = visitor.go("#/block2.0.conv1")
    page.wait_for_selector(".grid .cell")
    states = page.locator(".grid .cell").evaluate_all("all => all.map((a) => a.dataset.state)")
    assert [states.count(word) for word in ("ok", "dead", "failed", "missing")] == [15, 2, 3, 4]
    looks = {
        page.locator(f".cell[data-state={word}]").first.evaluate("a => getComputedStyle(a).background")
        for word in ("dead", "failed", "missing")
    }
    assert len(looks) == 3
    assert "the layer cannot be optimised" in str(
        page.locator(".cell[data-state=failed]").first.get_attribute("aria-label")
    )
    page.get_by_role("button", name="failed 3").click()
    page.wait_for_function("() => document.querySelectorAll('.grid .cell').length === 3")
    assert visitor.labels() == [2, 3, 4]


@both
def test_a_unit_shows_its_picture_its_numbers_and_where_it_comes_from(visitor: Visitor, folder: Path) -> None:
    page = visitor.go(f"#/{WIDE}/11")
    page.wait_for_function("() => document.querySelector('.master').naturalWidth === 24")
    page.wait_for_selector(".curve .best")
    text = page.locator(".facts-column").inner_text()
    record = Atlas.open(folder).manifest(Unit("channel", WIDE, 11))
    sidecar = Atlas.open(folder).sidecar(Unit("channel", WIDE, 11))
    for wanted in (
        str(record.seed),
        record.job_id,
        sidecar.sha256[:16],
        "CC-BY-4.0",
        "regularised",
        f"{record.job.recipe.steps} at 24 × 24 pixels",
    ):
        assert wanted in text
    assert f"number {1 + sum(a > b for a, b in _against(folder))} of 300" in text or "strongest" in text
    assert page.locator(".alike .cell").count() >= 14
    assert visitor.texts(".variants figcaption")[1].startswith("negative")


def _against(folder: Path) -> list[tuple[float, float]]:
    rows = [row for row in Atlas.open(folder).rows() if (row["layer"], row["variant"]) == (WIDE, "channel")]
    return [(row["normalized"], rows[11]["normalized"]) for row in rows]


@both
def test_the_run_is_told_over_http(visitor: Visitor) -> None:
    page = visitor.go("#/conv1/3")
    page.wait_for_selector(".curve")
    if visitor.address.startswith("http"):
        page.wait_for_selector("text=batch of 8")
    else:
        assert page.locator("text=batch of 8").count() == 0


def test_diverse_images_of_one_job_are_shown(visitor: Visitor) -> None:
    page = visitor.go("#/conv1/3?v=diverse")
    page.wait_for_selector(".images button")
    assert page.locator(".images img").count() == 4
    page.locator(".images button").nth(2).click()
    assert page.locator(".master").get_attribute("src").endswith("/00003-2.png")  # type: ignore[union-attr]


def test_arrows_walk_the_grid_and_the_units(visitor: Visitor) -> None:
    page = visitor.go("#/conv1?sort=-normalized")
    page.wait_for_selector(".grid .cell")
    order = visitor.labels()
    page.locator(".grid .cell[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.unit.channel") == order[2]
    page.keyboard.press("Enter")
    page.wait_for_selector(".unit-page")
    assert f"/conv1/{order[2]}?" in page.url
    page.keyboard.press("ArrowRight")  # on in the order of the grid, not of the channels
    page.wait_for_url(re.compile(f"/conv1/{order[3]}\\?"))
    page.keyboard.press("Escape")
    page.wait_for_selector(".layer-page")
    assert "sort=-normalized" in page.url
    page.keyboard.press("]")
    page.wait_for_url(re.compile("block1.0.conv1"))
    page.keyboard.press("Escape")
    page.wait_for_selector(".overview")


def test_the_search_takes_addresses_and_endings(visitor: Visitor) -> None:
    page = visitor.go()
    page.keyboard.press("/")
    page.keyboard.type("0.conv2:33")
    assert visitor.texts("#found li span.mono") == [f"{WIDE}:33"]
    page.keyboard.press("Enter")
    page.wait_for_selector(".unit-page")
    assert page.url.endswith(f"#/{WIDE}/33")
    page.locator(".search input").fill("conv1")
    assert visitor.texts("#found li span.mono") == ["conv1", "block1.0.conv1", "block2.0.conv1"]
    page.locator("#found li").nth(1).click()
    page.wait_for_url(re.compile("#/block1.0.conv1$"))


@pytest.mark.parametrize(
    ("text", "address"),
    [("conv1:3@negative", "#/conv1/3?v=negative"), ("block1[0].conv2:33", f"#/{WIDE}/33"), ("conv1 5", "#/conv1/5")],
)
def test_the_search_takes_what_the_page_and_people_write(visitor: Visitor, text: str, address: str) -> None:
    page = visitor.go()
    page.locator(".search input").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".unit-page")
    assert page.url.endswith(address)


def test_arrows_walk_the_strips(visitor: Visitor) -> None:
    page = visitor.go()
    page.locator(".strips a.cell[tabindex='0'], .strips a.cell:not([tabindex])").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("block1.0.conv1:")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_selector(".unit-page")
    assert page.url.endswith("#/conv1/0")


def test_a_colon_in_the_address_is_a_unit(visitor: Visitor) -> None:
    page = visitor.go(f"#/{WIDE}:40")
    page.wait_for_selector(".unit-page")
    assert visitor.texts("h1") == [f"{WIDE}:40"]


@pytest.mark.parametrize(
    ("route", "sentence"), [("#/conv9", "no layer conv9"), ("#/conv1/99", "no channel 99"), ("#/conv1/x", "no channel")]
)
def test_what_is_not_there_is_said(visitor: Visitor, route: str, sentence: str) -> None:
    page = visitor.go(route)
    assert sentence in page.locator("main").inner_text()


@both
def test_pins_compare_and_lists_are_addresses(visitor: Visitor) -> None:
    page = visitor.go("#/conv1/3")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('conv1:4')")
    page.keyboard.press("c")
    page.wait_for_selector(".tray .cell >> nth=1")
    page.get_by_role("link", name="Compare 2").click()
    page.wait_for_selector(".compare-page")
    assert "u=conv1:3,conv1:4" in page.url
    assert visitor.texts(".compare-page thead .mono") == ["conv1:3", "conv1:4"]
    assert "held-out activation" in page.locator("tbody").inner_text()
    page = visitor.go("#/list?u=conv1:3,block1.0.conv1:7@negative,nowhere:1")
    page.wait_for_selector(".list-page .cell")
    assert visitor.texts(".list-page .tag") == ["conv1:3", "block1.0.conv1:7@negative"]


#: What the two halves of a pair show, as far as they can be seen.
HALVES = """(a) => [...a.querySelectorAll("span:not(.tag)")]
  .filter((half) => half.offsetWidth > 20 && half.offsetHeight > 20)
  .map((half) => half.style.backgroundImage)"""


def test_a_layer_beside_its_other_variant(visitor: Visitor) -> None:
    page = visitor.go("#/conv1")
    page.get_by_label("beside").select_option("negative")
    page.wait_for_selector(".cell.pair")
    images = page.locator(".cell.pair").nth(3).evaluate(HALVES)
    assert "/channel/conv1/" in images[0] and "/negative/conv1/" in images[1]


def test_another_atlas_beside_this_one(folder: Path, server: PageServer, visit: Callable[..., Visitor]) -> None:
    for address, other in ((server.url(), "../1/"), ((folder / keys.PAGE).as_uri(), "../two/")):
        visitor = visit(address)
        page = visitor.go(f"#/conv1?b={other}")
        page.wait_for_selector(".cell.pair")
        images = page.locator(".cell.pair").nth(3).evaluate(HALVES)
        assert other in images[1] and other not in images[0]
        page = visitor.go(f"#/compare?u=conv1:3,conv1:4&b={other}")
        page.wait_for_selector(".compare-page th .cell >> nth=3")
        assert visitor.complaints == []


def test_a_channel_beside_the_same_one_of_another_atlas(
    folder: Path, server: PageServer, visit: Callable[..., Visitor]
) -> None:
    visitor = visit(server.url())
    page = visitor.go("#/conv1")
    page.once("dialog", lambda dialog: dialog.accept("../1"))
    page.get_by_label("beside").select_option(label="beside another atlas …")
    page.wait_for_selector(".cell.pair")
    page.locator(".cell.pair").nth(3).click()
    page.wait_for_selector(".variants figure:has-text('../1/')")
    other = page.locator(".variants figure:has-text('../1/') a")
    assert str(other.get_attribute("href")).startswith("../1/index.html#/conv1/3")
    page.keyboard.down("f")
    page.wait_for_function("() => document.querySelector('.master').src.includes('/1/images/')")
    page.keyboard.up("f")
    page.wait_for_function("() => document.querySelector('.master').src.includes('/0/images/')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".cell.pair")  # and back beside each other
    assert visitor.complaints == []


@pytest.mark.parametrize(
    "base", ["https://evil.example/", "//evil.example/", "javascript:alert(1)//", "/etc/", "data:,x"]
)
def test_no_address_brings_in_foreign_scripts(folder: Path, visit: Callable[..., Visitor], base: str) -> None:
    visitor = visit((folder / keys.PAGE).as_uri())
    asked: list[str] = []
    page = visitor.page
    page.on("request", lambda request: asked.append(request.url))
    visitor.go(f"#/conv1?b={base}")
    assert "a folder beside this atlas" in page.locator("main").inner_text()
    assert all(url.startswith(("file:", "data:", "about:")) for url in asked)


def test_variants_change_by_key_and_stay(visitor: Visitor) -> None:
    page = visitor.go("#/conv1")
    page.keyboard.press("v")
    page.wait_for_url(re.compile("v=negative"))
    page.wait_for_function("() => document.querySelector('.grid .cell').unit.variant === 'negative'")
    assert page.get_by_label("variant").input_value() == "negative"


def test_embedded_it_shows_pictures_only(visitor: Visitor) -> None:
    page = visitor.go("#/conv1?embed=1")
    page.wait_for_selector(".grid .cell")
    assert not page.locator(".top").is_visible() and not page.locator(".lead .bar").is_visible()


def test_copying_gives_a_snippet_that_runs(folder: Path, server: PageServer, visit: Callable[..., Visitor]) -> None:
    visitor = visit(server.url() + f"?from={folder}", permissions=["clipboard-read", "clipboard-write"])
    page = visitor.go(f"#/{WIDE}/11?v=negative")
    page.get_by_role("button", name="Python").click()
    program = page.evaluate("navigator.clipboard.readText()")
    place: dict[str, Any] = {}
    exec(program, place)
    assert place["unit"].unit == Unit("negative", WIDE, 11) and place["unit"].image.size == (24, 24)
    page.get_by_role("button", name="Citation").click()
    page.wait_for_function("() => document.querySelector('.toast').textContent.includes('Citation')")
    root = json.loads((folder / keys.PUBLISHED).read_text())["root_sha256"]
    assert root in page.evaluate("navigator.clipboard.readText()")


def test_without_scripts_the_pictures_are_there(folder: Path, visit: Callable[..., Visitor]) -> None:
    visitor = visit((folder / keys.PAGE).as_uri(), java_script_enabled=False)
    visitor.page.goto(visitor.address)
    assert visitor.texts("#plain h2") == [name for name, _ in LAYERS]
    assert visitor.page.locator("#plain img").first.is_visible()


def test_light_and_dark_follow_the_system_and_a_button(folder: Path, visit: Callable[..., Visitor]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = visit((folder / keys.PAGE).as_uri(), color_scheme=scheme).go()
        colours[scheme] = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        page.get_by_label("light or dark").click()
        colours[f"turned {scheme}"] = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert colours["light"] == colours["turned dark"] != colours["dark"] == colours["turned light"]


def test_a_finger_taps_and_swipes(folder: Path, visit: Callable[..., Visitor]) -> None:
    visitor = visit(
        (folder / keys.PAGE).as_uri(), viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    page = visitor.go("#/conv1")
    page.wait_for_selector(".grid .cell")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".grid .cell").nth(2).tap()
    page.wait_for_selector(".unit-page .master")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".picture").evaluate("""node => {
      const touch = (x) => new Touch({identifier: 1, target: node, clientX: x, clientY: 300});
      node.dispatchEvent(new TouchEvent("touchstart", {touches: [touch(300)], changedTouches: [touch(300)]}));
      node.dispatchEvent(new TouchEvent("touchend", {touches: [], changedTouches: [touch(100)]}));
    }""")
    page.wait_for_url(re.compile("/conv1/3"))
    assert visitor.complaints == []


NAMELESS = """() => {
  const named = (node) => node.getAttribute("aria-label") || node.textContent.trim() || node.alt || node.title;
  const all = [...document.querySelectorAll("a, button, input, select, img, [role=img]")];
  return all.filter((node) => node.offsetParent && !named(node)).map((node) => node.outerHTML);
}"""


def test_everything_has_a_name_for_those_who_cannot_see_it(visitor: Visitor) -> None:
    for route in ("#/", "#/conv1", "#/conv1/3"):
        page = visitor.go(route)
        page.wait_for_selector(".cell, .master")
        assert page.evaluate(NAMELESS) == []
        assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "to the pictures"


def test_a_single_file_carries_everything(folder: Path, tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    file = tmp_path / "alone" / "layer.html"
    file.parent.mkdir()
    file.write_bytes(export(Atlas.open(folder), layers="conv1,block1.0.conv1", variants="channel,negative", size=64))
    visitor = visit(file.as_uri())
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url))
    page = visitor.go()
    assert visitor.texts(".layer h2")[0] == "conv1" and painted(page, ".strips .cell")
    page = visitor.go("#/conv1?sort=-normalized")
    page.wait_for_selector(".grid .cell")
    assert painted(page, ".grid .cell")
    page = visitor.go("#/conv1/3")
    page.wait_for_selector(".curve")
    assert page.locator(".alike .cell").count() >= 11 and painted(page, ".master")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "about"}
    assert {url for url in asked if url.startswith("file:")} == {file.as_uri(), *(u for u in asked if "#" in u)}
    assert visitor.complaints == []


def test_a_shared_page_shows_a_private_bucket_through_signed_links(
    moto: MotoServer, tmp_path: Path, visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{moto.new_bucket()}/an/atlas")
    synthetic.write_atlas(store, LAYERS[:1], size=24)
    publish(store)
    (tmp_path / "share.html").write_bytes(share(Atlas.open(store), expires=600))
    visitor = visit((tmp_path / "share.html").as_uri())
    visitor.page.clock.install()
    assert "links last until" in visitor.go("#/").locator(".facts").inner_text()
    visitor.page.clock.set_fixed_time(time.time() + 700)
    assert "its links ended on" in visitor.go("#/").locator(".facts").inner_text()
    page = visitor.go("#/conv1")
    page.wait_for_selector(".grid .cell")
    assert painted(page, ".grid .cell")
    page = visitor.go("#/conv1/3")
    page.wait_for_function("() => document.querySelector('.master').naturalWidth === 24")
    assert visitor.complaints == []


def test_a_random_channel_is_a_living_one(visitor: Visitor) -> None:
    page = visitor.go()
    page.keyboard.press("r")
    page.wait_for_selector(".unit-page .master")
    assert page.evaluate("() => document.querySelector('.unit-page h1').textContent").count(":") == 1


def test_the_benchmark_runs_and_its_figures_are_finite(folder: Path, chromium: Browser) -> None:
    from tests.bench.viewer import measure

    figures = measure(folder, WIDE, latency=0, rounds=1, screens=1, browser=chromium)
    numbers = [value for name, value in figures.items() if name.endswith("_ms") or name.endswith("_images")]
    assert len(numbers) > 12 and all(0 <= value < 60_000 for value in numbers)
    assert figures["layer_images"] == 2  # 300 channels are two sheets

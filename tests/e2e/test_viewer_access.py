"""The page for those who do not see it, or do not see all of it: axe-core on every kind of page, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.publish import publish
from feature_atlas.publish.single import export
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore
from tests import synthetic
from tests.visitor import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LAYERS = (("conv1", 12), ("block.conv", 24))
UNITS = [Unit("channel", "conv1", channel) for channel in range(12)]
SILENT, DEAD, FAILED, MISSING = UNITS[4], UNITS[1], UNITS[2], UNITS[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("atlases")
    for name, live in (("one", True), ("two", False)):
        store = DirectoryStore(root / name)
        plan = synthetic.write_atlas(
            store, LAYERS, size=24, variants=["channel", "negative"], dead=[DEAD], failed=[FAILED],
            missing=[MISSING, SILENT],
        )  # fmt: skip
        synthetic.write_unit(store, plan, SILENT, size=24, silent=True)
        publish(store, live=live)
    (root / "single.html").write_bytes(export(Atlas.open(root / "one"), masters=True))
    return root


@pytest.fixture(scope="module")
def reader(chromium: Browser) -> Iterator[Page]:
    """One page for all: a new one costs more than a look."""
    with chromium.new_context(viewport={"width": 1200, "height": 800}) as context:
        yield context.new_page()


#: Each waits for what its page is made of.
ROUTES = (
    ("#/", ".strips .cell"),
    ("#/?m=mosaic", ".mosaic canvas"),
    ("#/?m=all", ".grid .cell"),
    ("#/conv1?sort=-normalized", ".grid .cell"),
    ("#/conv1?z=16", ".grid canvas"),
    ("#/conv1?w=negative", ".cell.pair"),
    ("#/conv1?b=../two/", ".cell.pair"),
    ("#/conv1/0", ".curve"),
    ("#/conv1/1", ".curve"),
    ("#/conv1/2", ".cell.big"),
    ("#/conv1/4", ".curve"),
    ("#/list?u=conv1:0,conv1:3,block.conv:7@negative", ".list-page .cell"),
    ("#/compare?u=conv1:0,conv1:4&b=../two/", ".compare-page .cell"),
    ("#/nowhere", "h1"),
    ("#/conv1/0?embed=1", ".curve"),
)
#: axe-core leaves this rule out unless it is asked for.
FULL: dict[str, Any] = {"resultTypes": ["violations"], "rules": {"label-content-name-mismatch": {"enabled": True}}}
CONTRAST: dict[str, Any] = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
#: Names of what can be pressed that lack the words which stand on it.
MISNAMED = """() => [...document.querySelectorAll("a[aria-label], button[aria-label]")]
  .map((node) => [node.innerText.trim(), node.getAttribute("aria-label")])
  .filter(([shown, name]) => /\\w/.test(shown) && !name.toLowerCase().includes(shown.toLowerCase()))"""


def violations(page: Page, options: dict[str, Any]) -> list[str]:
    found = page.evaluate("async (options) => (await axe.run(options)).violations", options)
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def inspect(page: Page, where: str) -> None:
    """No violation in light, none in dark, and everything is called what it shows."""
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(Axe().axe_script)
    assert violations(page, FULL) == [], where
    page.emulate_media(color_scheme="dark")
    assert violations(page, CONTRAST) == [], f"{where} in the dark"
    assert page.evaluate(MISNAMED) == [], where


@pytest.mark.parametrize(("route", "made_of"), ROUTES)
def test_axe_finds_nothing(folder: Path, reader: Page, route: str, made_of: str) -> None:
    Visitor(reader, (folder / "one" / keys.PAGE).as_uri()).go(route)
    reader.wait_for_selector(made_of)
    inspect(reader, route)


def test_axe_finds_nothing_in_what_opens(folder: Path, reader: Page) -> None:
    page = Visitor(reader, (folder / "one" / keys.PAGE).as_uri()).go("#/conv1/0")
    page.wait_for_selector(".curve")
    page.locator(".every summary").click()
    page.keyboard.press("c")
    page.wait_for_selector(".tray .cell")
    page.locator(".search input").fill("conv")
    page.wait_for_selector("#found li")
    inspect(page, "the search, the pins, all of the recipe")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    inspect(page, "the help")


@pytest.mark.parametrize("route", ["#/", "#/conv1", "#/conv1/0"])
def test_axe_finds_nothing_in_a_single_file(folder: Path, reader: Page, route: str) -> None:
    Visitor(reader, (folder / "single.html").as_uri()).go(route)
    inspect(reader, f"the single file's {route}")


def test_axe_finds_nothing_where_only_the_plain_page_is_left(folder: Path, reader: Page) -> None:
    reader.route("**/atlas.js*", lambda route: route.abort())
    reader.goto("about:blank")
    reader.goto((folder / "one" / keys.PAGE).as_uri())
    reader.wait_for_selector("#plain [role=alert]")
    inspect(reader, "the plain page")
    reader.unroute("**/atlas.js*")

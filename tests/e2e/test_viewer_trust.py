"""The page while a run goes on, or one has died; and before an atlas that means harm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.plan import PlanFile
from feature_atlas.presets import variant
from feature_atlas.publish import publish
from feature_atlas.publish.single import export
from feature_atlas.spec import ModelRef, Unit
from feature_atlas.store import DirectoryStore
from tests import synthetic
from tests.visitor import Visitor

pytestmark = pytest.mark.browser

LAYERS = (("conv1", 12), ("block1.0.conv1", 40))


def test_while_a_run_goes_on_new_pictures_appear(tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    store = DirectoryStore(tmp_path)
    late = Unit("channel", "conv1", 3)
    plan = synthetic.write_atlas(store, LAYERS[:1], size=24, missing=[late])
    publish(store, live=True)
    visitor = visit((tmp_path / keys.PAGE).as_uri())
    visitor.page.clock.install()
    page = visitor.go("#/")
    assert page.locator(".strips .cell[data-state=missing]").count() == 1
    assert visitor.texts(".live") == ["rendering now, 91 %"]
    page = visitor.go("#/conv1")
    page.wait_for_selector(".cell[data-state=missing]")
    page.locator(".grid .cell").nth(5).focus()
    synthetic.write_unit(store, plan, late, size=24)
    publish(store)
    page.clock.run_for(11_000)
    page.wait_for_selector(".grid .cell[aria-label*=':3,'][data-state=ok]")
    assert page.locator(".cell[data-state=missing]").count() == 0 and visitor.complaints == []
    # And whoever walks the grid by keyboard has not lost the place
    page.wait_for_function("() => document.activeElement.unit && document.activeElement.unit.channel === 5")


def test_a_run_that_was_killed_is_not_called_going_on(tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    store = DirectoryStore(tmp_path)
    synthetic.write_atlas(store, LAYERS[:1], size=24, missing=[Unit("channel", "conv1", 3)])
    publish(store, live=True)
    visitor = visit((tmp_path / keys.PAGE).as_uri())
    visitor.page.clock.install(time=time.time() + 3600)
    page = visitor.go("#/")
    assert page.locator(".live").count() == 0
    # When somebody takes it up again
    visitor.page.clock.set_system_time(time.time())
    page.clock.run_for(11_000)
    page.wait_for_selector(".live")
    assert visitor.complaints == []


EVIL = '</script><img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'


HOSTILE = (
    "#/", "#/?m=all", "#/conv1", "#/conv1/0", "#/conv1/1", "#/compare?u=conv1:0,conv1:1", f"#/{EVIL}",
    f"#/list?u=conv1:0&title={EVIL}", f"#/conv1?sort={EVIL}&f={EVIL}&s={EVIL}&v={EVIL}&z={EVIL}",
)  # fmt: skip


def test_a_hostile_atlas_hurts_nobody(tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    model = ModelRef(name=EVIL[:200], weights=f"random:{EVIL}"[:200], mean=(0.5,), std=(0.5,))
    request = synthetic.request(LAYERS[:2], changes={"size": 24}, model=model)
    layers = tuple(layer.model_copy(update={"kind": EVIL}) for layer in request.layers)
    request = PlanFile(model=model.digest(), layers=layers, variants=dict([variant("channel", {"size": 24})]))
    store = DirectoryStore(tmp_path)
    plan = synthetic.write_plan(store, request, model=model)
    for unit in plan.units():
        synthetic.write_unit(store, plan, unit, size=24, status="dead" if unit.channel == 1 else "ok", words=EVIL)
    atlas = json.loads((tmp_path / keys.ATLAS).read_text())
    (tmp_path / keys.ATLAS).write_text(json.dumps({**atlas, "license": EVIL}))
    publish(store)
    (tmp_path / "single.html").write_bytes(export(Atlas.open(store), masters=True))
    for name in (keys.PAGE, "single.html"):
        visitor = visit((tmp_path / name).as_uri())
        for route in HOSTILE if name == keys.PAGE else HOSTILE[:4]:
            page = visitor.go(route)
            page.wait_for_timeout(60)
            assert page.evaluate("window.hurt") is None
            assert page.locator("img[src=x], script:not([src])").count() <= 3
        assert EVIL in visitor.go("#/").locator("h1").inner_text() or EVIL[:150] in page.content()
        assert visitor.complaints == []

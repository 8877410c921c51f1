"""How fast the page is: a layer of 2,048 channels and a network of 26,560 in a real Chromium.

    python -m tests.bench.viewer [--atlas DIR [--publish]] [--latency 40] [--rounds 5] [--json]

Every answer of the server waits ``--latency`` milliseconds, as if it lay across a continent.  Without ``--atlas`` a
synthetic ResNet-50 atlas is made first (some minutes).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_atlas.publish import publish
from feature_atlas.serve import PageServer
from feature_atlas.store import DirectoryStore
from tests import synthetic
from tests.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Resolves, with the time since navigation, once every sheet behind a cell on the screen is decoded and painted.
FIRST_SCREEN = """async () => {
  const shown = () => [...document.querySelectorAll(".grid .cell, .pictures .cell")].filter((cell) => {
    const box = cell.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  });
  const mosaic = () => document.querySelector(".grid canvas");
  while (!shown().length && !mosaic()) await new Promise(requestAnimationFrame);
  const found = shown().map((cell) => /url\\("(.*)"\\)/.exec(cell.style.backgroundImage)).filter(Boolean);
  const urls = new Set(found.map((match) => match[1]));
  await Promise.all([...urls].map((url) => { const image = new Image(); image.src = url; return image.decode(); }));
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now();
}"""
#: Resolves once so many sheets have come.
ALL_SHEETS = """async (count) => {
  const all = () => performance.getEntriesByType("resource");
  const come = () => all().filter((one) => one.name.includes("/sheets/") && one.responseEnd);
  while (come().length < count) await new Promise((resolve) => setTimeout(resolve, 5));
  return Math.max(...come().map((one) => one.responseEnd));
}"""
LONG_TASKS = """() => {
  window.longest = 0;
  const see = (task) => { window.longest = Math.max(window.longest, task.duration); };
  new PerformanceObserver((list) => list.getEntries().forEach(see)).observe({type: "longtask"});
}"""
#: Scrolls by an eighth of a screen per frame, so many screens or to the end; resolves with the frames' times.
SCROLL = """async (screens) => {
  const times = []; let last = performance.now();
  const end = () => scrollY + innerHeight >= document.documentElement.scrollHeight - 1;
  for (let n = 0; n < screens * 8 && !end(); n++) {
    scrollBy(0, innerHeight / 8);
    await new Promise(requestAnimationFrame);
    const now = performance.now(); times.push(now - last); last = now;
  }
  return times;
}"""


@contextmanager
def slow_server(folder: Path, latency: float) -> Iterator[tuple[PageServer, list[str]]]:
    """A page server whose answers each wait; and the keys that were asked for."""
    asked: list[str] = []

    class Slow(PageServer):
        def read(self, number: int, key: str) -> bytes:
            time.sleep(latency / 1000)
            asked.append(key)
            return super().read(number, key)

    with Slow([DirectoryStore(folder)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, asked
        finally:
            server.shutdown()
            thread.join()


def measure(
    folder: Path,
    layer: str,
    *,
    latency: float = 40.0,
    rounds: int = 5,
    screens: int = 200,
    browser: Browser | None = None,
) -> dict[str, Any]:
    """Milliseconds, requests and long tasks; medians over cold profiles."""
    if browser is None:
        with chromium() as started:
            return measure(folder, layer, latency=latency, rounds=rounds, screens=screens, browser=started)
    told: dict[str, Any] = {"layer": layer, "latency_ms": latency, "rounds": rounds}
    with slow_server(folder, latency) as (server, asked):

        def visit(route: str, sheets: int = 0) -> tuple[float, float, int]:
            asked.clear()
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            page = context.new_page()
            page.goto(f"{server.url()}{route}", wait_until="commit")
            first = page.evaluate(FIRST_SCREEN)
            whole = max(first, page.evaluate(ALL_SHEETS, sheets)) if sheets else first
            if "z=" in route:
                page.evaluate(SCROLL, screens)  # so that all of the layer was on the screen
            page.wait_for_timeout(300)
            images = sum(key.startswith("sheets/") for key in asked)
            context.close()
            return first, whole, images

        blocks = len(list((folder / "sheets" / "64" / "channel" / layer).iterdir()))
        for name, route, sheets in (
            ("overview", "#/", 0), ("layer", f"#/{layer}?z=64", blocks), ("layer_16", f"#/{layer}?z=16", blocks),
            ("layer_128", f"#/{layer}?z=128", 0),
        ):  # fmt: skip
            seen = [visit(route, sheets) for _ in range(rounds)]
            if name != "layer_16":  # on a canvas: it stands when the sheets have come
                told[f"{name}_first_screen_ms"] = round(statistics.median(one[0] for one in seen))
            if sheets:
                told[f"{name}_whole_ms"] = round(statistics.median(one[1] for one in seen))
            told[f"{name}_images"] = max(one[2] for one in seen)
        for name, route in (
            ("overview", "#/"),
            ("mosaic", "#/?m=mosaic"),
            ("all", "#/?m=all&z=64"),
            ("all_16", "#/?m=all&z=16"),
        ):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(f"{server.url()}{route}")
            page.wait_for_selector(".cell, .mosaic")
            page.wait_for_timeout(500)
            page.evaluate(LONG_TASKS)
            times = page.evaluate(SCROLL, screens)
            told[f"scroll_{name}_longest_task_ms"] = round(page.evaluate("window.longest"))
            told[f"scroll_{name}_frame_ms"] = round(statistics.median(times or [0]), 1)
            page.close()
    return told


PUBLISH = """
import json, resource, sys, time
from feature_atlas.publish import publish
told = publish(sys.argv[1], fresh=True)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"publish_units": told.done, "publish_s": round(told.seconds, 1),
                  "publish_cpu_s": round(used.ru_utime + used.ru_stime, 1), "publish_peak_MB": used.ru_maxrss // 1024}))
"""


def measure_publish(folder: Path) -> dict[str, Any]:
    """Seconds and memory of publishing everything anew, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PUBLISH, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, help="a published atlas (a synthetic one)")
    parser.add_argument("--layer", default="layer4.0.conv3", help="of 2,048 channels")
    parser.add_argument("--latency", type=float, default=40.0, help="milliseconds added to each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--publish", action="store_true", help="publish it all anew first, and time that")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.atlas or Path(scratch)
        if options.atlas is None:
            synthetic.write_atlas(DirectoryStore(folder), synthetic.RESNET50, size=64)
            publish(folder, packs=False)
        figures = measure_publish(folder) if options.publish else {}
        figures |= measure(folder, options.layer, latency=options.latency, rounds=options.rounds)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):36} {value}")


if __name__ == "__main__":
    main()

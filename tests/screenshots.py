"""The README's pictures of the viewer: ``python -m tests.screenshots ATLAS LAYER UNIT [OUT]``.

ATLAS is a published folder; LAYER is shown as a grid, UNIT (``layer:channel``) as a page.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from feature_atlas import keys
from tests.browser import chromium

#: Bytes of a picture at most; its JPEG quality gives way.
MOST = 380_000


def shoot(page_url: str, layer: str, unit: str, out: Path) -> None:
    """Writes viewer-overview.jpg, viewer-layer.jpg and viewer-unit.jpg."""
    views = (
        ("overview", "#/", "dark", 980),
        ("layer", f"#/{layer}?sort=-normalized&z=128", "dark", 860),
        ("unit", f"#/{unit}", "light", 980),
    )
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, route, scheme, height in views:
            page = browser.new_page(viewport={"width": 1400, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(page_url + route)
            page.wait_for_selector(".cell, .master")
            page.wait_for_timeout(1500)
            save(page.screenshot(), out / f"viewer-{name}.jpg")
            page.close()


def save(png: bytes, path: Path) -> None:
    """As a JPEG of at most :data:`MOST` bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in (90, 85, 80, 75, 70, 60):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= MOST:
            break
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {buffer.tell() / 1000:.0f} kB at quality {quality}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("layer")
    parser.add_argument("unit")
    parser.add_argument("out", type=Path, nargs="?", default=Path(".github/images"))
    options = parser.parse_args()
    shoot((options.atlas.absolute() / keys.PAGE).as_uri(), options.layer, options.unit, options.out)


if __name__ == "__main__":
    main()

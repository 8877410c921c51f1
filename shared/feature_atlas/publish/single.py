"""An atlas in one HTML file: with signed links into a private bucket (share), or with the pictures inside (export)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feature_atlas import keys
from feature_atlas.browse import choose
from feature_atlas.errors import RequestError
from feature_atlas.publish import page, scripts
from feature_atlas.publish.blocks import SIZES
from feature_atlas.publish.layers import read_old
from feature_atlas.publish.records import LayerFile
from feature_atlas.publish.site import read_published
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

#: Masters are linked to for so many units at most: a signed link is 300 to 600 characters long.
LINKED = 5000


def share(atlas: Atlas, *, layers: str = "*", variants: str = "*", expires: int = 7 * 86400) -> bytes:
    """One page whose pictures are signed links that last ``expires`` seconds.

    Raises:
        RequestError: never published; a store without links; more than seven days.
    """
    files = _layers(atlas, layers, variants)
    units = sum(len(group.rows) for file in files for group in file.variants.values())
    wanted = [*_sheets(files, SIZES), *(_masters(files) if units <= LINKED else ())]
    links = {key: atlas.store.link(key, expires=expires) for key in wanted}
    hosts = {f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, links.values())}
    if not all(host.startswith(("https://", "http://")) for host in hosts):
        raise RequestError(
            f"{atlas.url} has no links to share: 'feature-atlas export --single-file' puts the pictures into the page"
        )
    until = (datetime.now(UTC) + timedelta(seconds=expires)).isoformat(timespec="seconds")
    return _page(atlas, files, links, SIZES, images=" ".join(sorted(hosts)), until=until)


def export(
    atlas: Atlas,
    *,
    layers: str = "*",
    variants: str = "*",
    size: int = 64,
    masters: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """One page that holds its pictures, cells of ``size`` pixels, and the masters too if so asked.

    Raises:
        RequestError: never published.
    """
    files = _layers(atlas, layers, variants)
    wanted = [*_sheets(files, (size,)), *(_masters(files) if masters else ())]
    links = {}
    for n, key in enumerate(wanted):
        kind = "image/png" if key.endswith(".png") else "image/webp"
        links[key] = f"data:{kind};base64,{base64.b64encode(atlas.store.get(key)).decode()}"
        if progress:
            progress(n + 1, len(wanted))
    return _page(atlas, files, links, (size,))


def is_ours(path: Path) -> bool:
    """Whether a file holds nothing, or a page that :func:`share` or :func:`export` made.  Raises OSError."""
    start = page.START.encode()
    with path.open("rb") as file:
        head = file.read(len(start))
        return not head or (head == start and page.EMBEDDED.encode() in file.read())


def _layers(atlas: Atlas, layers: str, variants: str) -> list[LayerFile]:
    """The published layers of a selection, reduced to its variants."""
    if read_published(atlas.store) is None:
        raise RequestError(f"{atlas.url} was never published: feature-atlas publish {atlas.url}")
    groups = choose(atlas.plan, layers, ":", variants)
    files = []
    for name in dict.fromkeys(layer for _, layer in groups):
        file = read_old(atlas.store, name)
        if file is not None:
            kept = {variant: group for variant, group in file.variants.items() if (variant, name) in groups}
            files.append(file.model_copy(update={"variants": kept}))
    return files


def _sheets(files: list[LayerFile], sizes: tuple[int, ...]) -> list[str]:
    found = []
    for file in files:
        for variant, group in file.variants.items():
            found += [keys.sheet(size, variant, file.layer, int(block)) for size in sizes for block in group.blocks]
            found += [keys.strip(variant, file.layer)] if group.strip else []
    return found


def _masters(files: list[LayerFile]) -> list[str]:
    return [
        keys.image(Unit(variant, file.layer, row.channel), n)
        for file in files
        for variant, group in file.variants.items()
        for row in group.rows
        for n in range(len(row.sha256))
    ]


def _page(
    atlas: Atlas,
    files: list[LayerFile],
    links: Mapping[str, str],
    sizes: tuple[int, ...],
    *,
    images: str = "",
    until: str = "",
) -> bytes:
    told = [scripts.layer_told(file) for file in files]
    groups = [group for layer in told for group in layer["variants"].values()]
    count = {word: sum(group[word] for group in groups) for word in ("done", "dead", "failed")}
    published = read_published(atlas.store)
    summary = {
        "license": atlas.file.license, "counts": {"planned": count["done"], **count}, "plan": atlas.plan.digest(),
        "root_sha256": published.root_sha256 if published else "", "from": atlas.url, "until": until,
    }  # fmt: skip
    overview = scripts.overview(atlas.plan, told, summary)
    shown = {variant for file in files for variant in file.variants}
    overview["variants"] = {name: recipe for name, recipe in overview["variants"].items() if name in shown}
    overview["first"] = overview["first"] if overview["first"] in shown else next(iter(overview["variants"]))
    grids = [scripts.grid(file, atlas.plan.variants) for file in files]
    embedded: dict[str, Any] = {"atlas": overview, "network": grids}
    for file, grid in zip(files, grids, strict=True):
        embedded[file.layer] = grid
        embedded[f"{file.layer}/detail"] = scripts.detail(file)
    return page.plain(overview, embedded=embedded, links=links, sizes=sizes, images=images)

"""The whole of a publish: survey, layers, then the files at the top that point to them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from feature_atlas import __version__, keys
from feature_atlas.atlas import Atlas
from feature_atlas.errors import IntegrityError, ObjectNotFound
from feature_atlas.manifest import dump, load
from feature_atlas.plan import describe_model
from feature_atlas.publish import card, contact, page, scripts
from feature_atlas.publish.catalogue import Catalogue
from feature_atlas.publish.layers import LayerBuilder
from feature_atlas.publish.records import LayerFile, PublishedFile
from feature_atlas.publish.selectivity import Judge, merged
from feature_atlas.publish.shelf import Shelf
from feature_atlas.publish.survey import survey
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    from feature_atlas.store import Store

log = logging.getLogger(__name__)

#: Threads that read, decode and encode; Pillow does both without the interpreter's lock.
READERS = 8
JSON, SCRIPT = "application/json", "text/javascript; charset=utf-8"


@dataclass(frozen=True)
class Published:
    """What a publish left."""

    url: str
    #: What to open in a browser.
    page: str
    root_sha256: str
    planned: int
    done: int
    dead: int
    failed: int
    #: Changes with whatever the page shows.
    version: str
    #: Files written this time, sheets and packs aside.
    written: int
    seconds: float
    #: Units that are not shown, because their files are damaged, misplaced or gone.
    left_out: tuple[Unit, ...] = ()


def publish(
    target: Atlas | Store | str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    packs: bool = True,
    live: bool = False,
    fresh: bool = False,
    judge: Judge | None = None,
) -> Published:
    """Brings everything derived of an atlas up to date; what to open is in the result's ``page``.

    Args:
        target: the atlas, its store or its URL.
        progress: called with (units looked at, units to look at) as the work goes on.
        packs: also write one tar per 256 channels, for bulk downloads.
        live: a run goes on: the page will look for news, packs of unfinished blocks wait.
        fresh: build everything anew, whatever was published before.
        judge: shows pictures to the network and says which channel answers most; the worker package has one.

    Raises:
        RequestError: there is no atlas.
        StoreError: it could not be read or written.
    """
    atlas = target if isinstance(target, Atlas) else Atlas.open(target)
    atlas.reload()
    site = Site(atlas, progress or (lambda done, total: None), packs=packs, live=live, fresh=fresh)
    site.judge = judge
    return site.publish()


class Site:
    """One publish of one atlas."""

    def __init__(
        self, atlas: Atlas, progress: Callable[[int, int], None], *, packs: bool, live: bool, fresh: bool
    ) -> None:
        self.store, self.plan, self.file = atlas.store, atlas.plan, atlas.file
        self.progress, self.packs, self.live, self.fresh = progress, packs, live, fresh
        self.judge: Judge | None = None
        self.version = ""
        self.started = time.monotonic()
        self.groups = survey(self.store, self.plan)
        self.left_out: list[Unit] = []
        self.seen, self.expected = 0, sum(len(group.done) for group in self.groups.values())
        prefixes = (keys.LAYERS, keys.SHEETS, keys.PACKS)
        self.present = {info.key for prefix in prefixes for info in self.store.list(prefix)}
        self.previous = None if fresh else read_published(self.store)
        self.shelf = Shelf(self.store, self._known())

    def _known(self) -> dict[str, str]:
        """key -> digest of every file that an earlier publish left and that is still there."""
        if self.previous is None:
            return {}
        listed = [*self.previous.layers, *self.previous.files]
        there = {entry.key: entry.sha256 for entry in listed if entry.key in self.present or self._is_there(entry.key)}
        return {keys.PUBLISHED: hashlib.sha256(dump(self.previous)).hexdigest(), **there}

    def _is_there(self, key: str) -> bool:
        return "/" not in key and any(info.key == key for info in self.store.list(key))

    def publish(self) -> Published:
        """Writes layers first and what points to them afterwards, so that a reader never meets a dangling link."""
        catalogue = Catalogue(self.plan)
        with ThreadPoolExecutor(READERS, "publish") as readers:
            for name in self.plan.layers:
                catalogue.add(self._layer(name, readers))
        self._indexes(catalogue)
        title = self._page(catalogue)
        self._root(catalogue, self._contact_sheet(catalogue, title))
        return Published(
            self.store.url, page_of(self.store), catalogue.root_sha256(), **catalogue.counts, version=self.version,
            written=self.shelf.written, seconds=time.monotonic() - self.started,
            left_out=tuple(self.left_out),
        )  # fmt: skip

    def _layer(self, name: str, readers: ThreadPoolExecutor) -> LayerFile:
        mine = [group for (_, layer), group in self.groups.items() if layer == name]
        builder = LayerBuilder(
            self.store, self.plan.layers[name], mine, self.present, readers,
            packs=self.packs, live=self.live, fresh=self.fresh, on_units=self._advance,
        )  # fmt: skip
        known = keys.selectivity(name) in self.present
        built = builder.build()
        self.left_out += builder.left_out
        file = merged(self.store, built, self.plan.variants, self.judge, known)
        self.shelf.put(keys.layer(name), file.model_dump_json(by_alias=True).encode() + b"\n", JSON)
        self.shelf.put(keys.layer(name, "js"), scripts.script(name, scripts.grid(file, self.plan.variants)), SCRIPT)
        self.shelf.put(keys.detail(name), scripts.script(f"{name}/detail", scripts.detail(file)), SCRIPT)
        return file

    def _advance(self, units: int) -> None:
        self.seen += units
        self.progress(self.seen, self.expected)

    def _indexes(self, catalogue: Catalogue) -> None:
        self.shelf.put(keys.INDEX, catalogue.index(), "application/gzip")
        self.shelf.put(keys.METADATA, catalogue.metadata(), "application/jsonl")
        title, root = describe_model(self.plan.model), catalogue.root_sha256()
        told = card.dataset_card(title, self.plan, catalogue.counts, self.file.license, root)
        self.shelf.put(keys.CARD, told, "text/markdown; charset=utf-8")
        self.shelf.put(keys.CROISSANT, card.croissant(title, self.file.license, root, self.shelf.entries), JSON)
        self.shelf.put(keys.NETWORK_JS, scripts.script("network", catalogue.grids), SCRIPT)

    def _page(self, catalogue: Catalogue) -> str:
        summary = {
            "license": self.file.license, "counts": catalogue.counts, "root_sha256": catalogue.root_sha256(),
            "plan": self.plan.digest(), "release": __version__,
        }  # fmt: skip
        overview = scripts.overview(self.plan, catalogue.layers, summary)
        entry = self.shelf.put(keys.ATLAS_JS, scripts.script("atlas", overview), SCRIPT)
        self.shelf.put(keys.PAGE, page.plain(overview), "text/html; charset=utf-8")
        self.version = entry.sha256[:8]
        tell_status(self.store, live=self.live, version=self.version)
        return str(overview["title"])

    def _contact_sheet(self, catalogue: Catalogue, title: str) -> str:
        """Returns what it was made from; drawn again only if that is not the same as last time."""
        variant = scripts.first_variant(self.plan)
        told = [(layer, layer["variants"].get(variant)) for layer in catalogue.layers]
        shown = [(layer["name"], layer["total"], group) for layer, group in told if group and group["strip"]]
        inputs = hashlib.sha256(json.dumps([title, variant, catalogue.counts, shown]).encode()).hexdigest()
        if self.previous and self.previous.contact_inputs == inputs and keys.CONTACT_SHEET in self.shelf.known:
            self.shelf.keep(keys.CONTACT_SHEET, self.previous.files)
            return inputs
        strips = [
            contact.StripImage(
                name, f"{total:,} channels", self.store.get(keys.strip(variant, name)), len(group["strip"])
            )
            for name, total, group in contact.sample(shown)
        ]  # fmt: skip
        note = f"{catalogue.counts['done']:,} feature visualisations in {len(catalogue.layers)} layers"
        self.shelf.put(keys.CONTACT_SHEET, contact.draw(title, note, strips), "image/png")
        return inputs

    def _root(self, catalogue: Catalogue, contact_inputs: str) -> None:
        entries = self.shelf.entries
        layer_keys = [keys.layer(name) for name in self.plan.layers]
        file = PublishedFile(
            root_sha256=catalogue.root_sha256(), plan=self.plan.digest(), plans=tuple(self.plan.files),
            counts=catalogue.counts, contact_inputs=contact_inputs,
            layers=tuple(entries[key] for key in layer_keys),
            files=tuple(entry for key, entry in sorted(entries.items()) if key not in set(layer_keys)),
            software={"feature-atlas": __version__},
        )  # fmt: skip
        self.shelf.put(keys.PUBLISHED, dump(file), JSON)


def page_of(store: Store) -> str:
    """What to open in a browser."""
    return store.link(keys.PAGE) if "://" in store.url else f"{store.url}/{keys.PAGE}"


def tell_status(store: Store, *, live: bool, version: str) -> None:
    """Tells open pages whether a run goes on, and which state is the newest."""
    status = {"live": live, "v": version, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(keys.STATUS_JS, scripts.script("status", status), content_type=SCRIPT)


def read_published(store: Store) -> PublishedFile | None:
    """What an earlier publish left, or None where nothing readable by this release is."""
    try:
        return load(PublishedFile, store.get(keys.PUBLISHED), keys.PUBLISHED)
    except ObjectNotFound:
        return None
    except IntegrityError as error:
        log.warning("%s; everything is published anew", error)
        return None

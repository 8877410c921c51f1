"""An atlas in a store: what it will contain, what is there, and how it grows.  The store is the only truth."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_atlas import growth, keys, manifest
from feature_atlas.errors import IntegrityError, ObjectNotFound, RequestError, StoreError
from feature_atlas.manifest import Manifest, SideCar
from feature_atlas.plan import AtlasFile, Plan, PlanFile, describe_model
from feature_atlas.spec import ModelRef, Unit
from feature_atlas.store import Store, open_store
from feature_atlas.views import Cache

if TYPE_CHECKING:
    from PIL.Image import Image

    from feature_atlas.fetch import Fetched
    from feature_atlas.verify import Problem
    from feature_atlas.views import LayerView, UnitView

log = logging.getLogger(__name__)


class GroupStatus(NamedTuple):
    """How far one layer of one variant is; planned = done + missing + failed, and dead ones are done."""

    variant: str
    layer: str
    planned: int
    done: int
    dead: int
    failed: int

    @property
    def missing(self) -> int:
        """Units that are neither done nor failed."""
        return self.planned - self.done - self.failed


class Atlas:
    """One model's atlas at one URL.  Made by :meth:`open` or :meth:`grow`; reading it needs no torch."""

    def __init__(self, store: Store, file: AtlasFile, plan: Plan) -> None:
        self.store = store
        self.file = file
        self.plan = plan
        self.cache = Cache()

    def __repr__(self) -> str:
        return f"Atlas({self.url!r}, {describe_model(self.file.model)}, {len(self.plan)} units)"

    @property
    def url(self) -> str:
        """Where the atlas lives."""
        return self.store.url

    @classmethod
    def open(cls, url: str | Path | Store) -> Atlas:
        """The atlas that lives at ``url``.

        Raises:
            RequestError: there is none.
            IntegrityError: its ``atlas.json`` or a plan is damaged, or of a newer release.
        """
        store = open_store(url) if isinstance(url, str | Path) else url
        file = growth.read_file(store)
        if file is None:
            raise RequestError(
                f"there is no atlas at {store.url} (no {keys.ATLAS}): make one with 'feature-atlas render'"
            )
        return cls(store, file, growth.union(file.model, growth.read_plans(store, {})))

    @classmethod
    def grow(cls, url: str | Path | Store, model: ModelRef, file: PlanFile) -> Atlas:
        """Creates the atlas or adds one request to it; the same request again changes nothing.

        Safe from several processes at once; see :mod:`feature_atlas.growth`.

        Raises:
            PlanConflictError: another model, or another recipe under a variant's name; the text names the difference.
        """
        store = open_store(url) if isinstance(url, str | Path) else url
        growth.add(store, model, file)
        return cls.open(store)

    def reload(self) -> None:
        """Reads the plan again: others may have added to it."""
        self.plan = growth.union(self.file.model, growth.read_plans(self.store, self.plan.files))

    # -- what is there, by listing alone

    def done(self, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        """Every unit whose picture is there, dead ones included."""
        return self._listed(keys.IMAGES, variant, layer)

    def dead(self, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        """Every unit that is marked dead.  The marker is written just before the picture."""
        return self._listed(keys.DEAD, variant, layer)

    def failed(self, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        """Every unit with an error on record and no picture."""
        failed = self.recorded_failures(variant, layer)
        return failed - self.done(variant, layer) if failed else failed

    def recorded_failures(self, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        """Every unit with an error on record, whether it was overcome since or not."""
        return self._listed(keys.ERRORS, variant, layer)

    def recorded(self, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        """Every unit that has a side-car; it is written after the picture."""
        return self._listed(keys.MANIFESTS, variant, layer)

    def missing(self) -> Iterator[Unit]:
        """Planned units that are neither done nor failed, in plan order."""
        there = self.done() | self._listed(keys.ERRORS)
        return (unit for unit in self.plan.units() if unit not in there)

    def status(self) -> list[GroupStatus]:
        """Counts of every planned group, in plan order, from three listings."""
        done, dead, errors = self.done(), self.dead(), self._listed(keys.ERRORS)
        rows = []
        for variant, layer in self.plan.groups():
            units = {Unit(variant, layer, channel) for channel in self.plan.channels(variant, layer)}
            here = units & done
            rows.append(
                GroupStatus(variant, layer, len(units), len(here), len(here & dead), len((units & errors) - here))
            )
        return rows

    def _listed(self, prefix: str, variant: str | None = None, layer: str | None = None) -> set[Unit]:
        if layer is not None:
            variants = [variant] if variant is not None else list(self.plan.variants)
            prefixes = [prefix + keys.group(name, layer) for name in variants]
        else:
            prefixes = [prefix if variant is None else prefix + keys.check_name(variant, "variant") + "/"]
        parsed = (keys.parse_unit(info.key) for start in prefixes for info in self.store.list(start))
        return {found[1] for found in parsed if found is not None and found[2] == 0}

    def verify(
        self, units: Iterable[Unit] | None = None, *, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Problem]:
        """Every problem of these units, or of the whole atlas: see :func:`feature_atlas.verify.verify`."""
        from feature_atlas.verify import verify

        return verify(self, units, progress=progress)

    def repair(self, problems: Iterable[Problem]) -> list[Unit]:
        """Removes what is broken, so that it is rendered again: see :func:`feature_atlas.verify.repair`."""
        from feature_atlas.verify import repair

        return repair(self, problems)

    # -- one unit

    def sidecar(self, unit: Unit, size: int | None = None) -> SideCar:
        """The record beside a picture; a missing, damaged or differing one is rebuilt from the picture, which wins.

        Args:
            unit: whose.
            size: the picture's bytes as listed, where known: tells a stale record without reading the picture.

        Raises:
            ObjectNotFound: there is no picture.
            IntegrityError: the picture is damaged or carries no record.
        """
        try:
            found = manifest.load(SideCar, self.store.get(keys.manifest(unit)), keys.manifest(unit))
            if found.manifest.unit == unit and size in (None, found.bytes):
                return found
        except (ObjectNotFound, IntegrityError):
            pass
        key = keys.image(unit)
        data = self.store.get(key)
        _, record = manifest.decode_png(data, key)
        if record is None:
            raise IntegrityError(f"{key} carries no record: it was not made by feature-atlas")
        return self.restore(unit, record, data)

    def restore(self, unit: Unit, record: Manifest, png: bytes) -> SideCar:
        """The side-car that belongs to a picture, written back where the store allows it (run facts are lost)."""
        rebuilt = SideCar(manifest=record, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png))
        try:
            self.store.put(keys.manifest(unit), manifest.dump(rebuilt), content_type="application/json")
        except StoreError as error:  # a reader without the right to write
            log.info("the record of %s was not rebuilt: %s", unit, error)
        return rebuilt

    def manifest(self, unit: Unit) -> Manifest:
        """The record of a finished unit.  Raises as :meth:`sidecar`."""
        return self.sidecar(unit).manifest

    def image(self, unit: Unit, n: int = 0) -> Image:
        """The picture of a finished unit; ``n`` > 0 is a further one of a job with several images.

        Raises:
            ObjectNotFound: there is none.
            IntegrityError: it is not a whole PNG.
        """
        from PIL import Image

        key = keys.image(unit, n)
        pixels, _ = manifest.decode_png(self.store.get(key), key)
        return Image.fromarray(pixels)

    # -- for people: see views.py

    def __getitem__(self, name: str | Unit) -> LayerView | UnitView:
        """``atlas["layer2.0.conv3"]``, ``atlas["0.conv3:17"]``, ``atlas["fc:0:64@negative"]``.

        Raises:
            RequestError: no such layer, channel or variant, with the nearest names.
        """
        from feature_atlas.browse import select

        return select(self, name)

    def __iter__(self) -> Iterator[LayerView]:
        from feature_atlas.views import LayerView

        return (LayerView(self, name) for name in self.plan.layers)

    def rows(self) -> list[dict[str, Any]]:
        """One flat record per picture that is there, in plan order: every number."""
        from feature_atlas.rows import rows

        return rows(self)

    @property
    def df(self) -> Any:
        """The rows as a pandas DataFrame.  Raises RequestError where pandas is not installed."""
        from feature_atlas.rows import frame

        return frame(self.rows())

    def fetch(self, folder: str | Path, **selection: Any) -> Fetched:
        """Copies pictures into a folder that is an atlas again: see :func:`feature_atlas.fetch.fetch`."""
        from feature_atlas.fetch import fetch

        return fetch(self, folder, **selection)

    def _repr_html_(self) -> str:
        from feature_atlas.browse import html

        return html(self)

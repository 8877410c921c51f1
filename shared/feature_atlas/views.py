"""Reading by name: ``atlas["layer2.0.conv3"][17].image``.  Lazy, cached, safe from several threads, without torch."""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, overload

from feature_atlas import channels, keys, manifest
from feature_atlas.errors import IntegrityError, ObjectNotFound, RequestError, did_you_mean
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from feature_atlas.atlas import Atlas
    from feature_atlas.manifest import Manifest, SideCar

T = TypeVar("T")
#: Pictures that stay decoded, and threads that read many at once.
KEPT, THREADS = 256, 8


class Cache:
    """The values of the last few keys; each is made once, whoever asks."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[object, Any] = OrderedDict()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The value of ``key``, made now if need be; two threads may both make it, and one of the values stays."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            value = self._values.setdefault(key, value)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


def first_variant(atlas: Atlas) -> str:
    """The variant that a bare name means: ``channel`` where there is one."""
    return "channel" if "channel" in atlas.plan.variants else next(iter(atlas.plan.variants))


class UnitView:
    """One channel under one variant.  Nothing is read before it is asked for."""

    def __init__(self, atlas: Atlas, unit: Unit) -> None:
        self.atlas = atlas
        self.unit = unit

    def __repr__(self) -> str:
        return f"<{self.unit} of {self.atlas.file.model.name}>"

    def __str__(self) -> str:
        return str(self.unit)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitView) and (self.unit, self.atlas.url) == (other.unit, other.atlas.url)

    def __hash__(self) -> int:
        return hash((self.unit, self.atlas.url))

    @property
    def image(self) -> Image:
        """The picture.  Raises ObjectNotFound where it is not rendered, IntegrityError where it is damaged."""
        return self._image(0)

    @property
    def images(self) -> list[Image]:
        """All diverse pictures of the job, the first being :attr:`image`."""
        return [self._image(n) for n in range(self.atlas.plan.variants[self.unit.variant].images)]

    def _image(self, n: int) -> Image:
        return self.atlas.cache.get((self.unit, n), lambda: self.atlas.image(self.unit, n)).copy()

    @property
    def sidecar(self) -> SideCar:
        """The record, its file's hash, and the facts of the run."""
        return self.atlas.cache.get((self.unit, "record"), lambda: self.atlas.sidecar(self.unit))

    @property
    def manifest(self) -> Manifest:
        """The record: numbers, recipe, seed, provenance."""
        return self.sidecar.manifest

    @property
    def status(self) -> str:
        """``ok``, ``dead`` or ``nan``; ``failed`` or ``missing`` where there is no picture."""
        try:
            return self.manifest.status
        except ObjectNotFound:
            return "failed" if self.unit in self.atlas.failed(self.unit.variant, self.unit.layer) else "missing"

    def url(self, expires: int | str = 3600) -> str:
        """A link to the picture; where it must be signed it lasts ``expires``: seconds, or ``"12h"``, ``"7d"``.

        Raises:
            RequestError: more than seven days, or no duration.
        """
        return self.atlas.store.link(keys.image(self.unit), expires=seconds(expires))

    def variant(self, name: str) -> UnitView:
        """The same channel under another variant."""
        return LayerView(self.atlas, self.unit.layer, name)[self.unit.channel]

    def _repr_png_(self) -> bytes | None:
        try:
            return _png(self.image)
        except (ObjectNotFound, IntegrityError):
            return None


class LayerView(Sequence[UnitView]):
    """The planned channels of a layer under one variant, in order; indexed by *channel number*, sliced alike."""

    def __init__(
        self, atlas: Atlas, name: str, variant: str | None = None, chosen: Sequence[int] | None = None
    ) -> None:
        planned = [each for each in atlas.plan.variants if atlas.plan.channels(each, name)]
        variant = variant or (first if (first := first_variant(atlas)) in planned else planned[0])
        if variant not in planned:
            raise RequestError(
                f"{name} has no variant {variant!r}{did_you_mean(variant, planned)} (variants: {', '.join(planned)})"
            )
        self.atlas, self.name, self.variant_name = atlas, name, variant
        self.channels = tuple(atlas.plan.channels(variant, name) if chosen is None else chosen)

    def __repr__(self) -> str:
        at = "" if self.variant_name == "channel" else f"@{self.variant_name}"
        return f"<{self.name}{at} of {self.atlas.file.model.name}: {len(self)} channels>"

    def __len__(self) -> int:
        return len(self.channels)

    def __iter__(self) -> Iterator[UnitView]:
        return (self._view(channel) for channel in self.channels)

    def __contains__(self, item: object) -> bool:
        return (item.unit.channel if isinstance(item, UnitView) else item) in self.channels

    @overload
    def __getitem__(self, index: int) -> UnitView: ...
    @overload
    def __getitem__(self, index: slice) -> LayerView: ...
    def __getitem__(self, index: int | slice) -> UnitView | LayerView:
        if isinstance(index, slice):
            total = self.atlas.plan.layers[self.name].total
            wanted = set(range(*index.indices(total)))
            return self._part([channel for channel in self.channels if channel in wanted])
        if index not in self.channels:
            held = channels.spell(self.channels)
            held = held if len(held) < 60 else f"{len(self)} channels from {self.channels[0]} to {self.channels[-1]}"
            raise RequestError(f"{self.name} has no channel {index} in this atlas: it holds {held or 'nothing'}")
        return self._view(index)

    def _view(self, channel: int) -> UnitView:
        return UnitView(self.atlas, Unit(self.variant_name, self.name, channel))

    def _part(self, chosen: Sequence[int]) -> LayerView:
        return LayerView(self.atlas, self.name, self.variant_name, chosen)

    def variant(self, name: str) -> LayerView:
        """The same layer under another variant."""
        return LayerView(self.atlas, self.name, name)

    def done(self) -> LayerView:
        """The channels whose pictures are there."""
        there = {unit.channel for unit in self.atlas.done(self.variant_name, self.name)}
        return self._part([channel for channel in self.channels if channel in there])

    def images(self, size: int | None = None) -> NDArray[np.uint8]:
        """The pictures that are there as one array, squares of ``size`` pixels (the pictures' own).  [C, S, S, 3]."""
        import numpy as np

        from feature_atlas.publish.blocks import square

        views = list(self.done())
        if not views:
            return np.zeros((0, size or 0, size or 0, 3), np.uint8)
        side = size or min(views[0].image.size)

        def read(view: UnitView) -> NDArray[np.uint8]:
            key = keys.image(view.unit)
            return square(manifest.decode_png(self.atlas.store.get(key), key)[0], side)

        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(read, views)))

    def sheet(self, columns: int | None = None, cell: int = 64, gap: int = 2) -> Image:
        """A contact sheet of the pictures that are there."""
        import numpy as np
        from PIL import Image

        pictures = self.images(cell)
        columns = columns or max(1, min(16, len(pictures)))
        rows = max(1, -(-len(pictures) // columns))
        page = np.full((rows * (cell + gap) - gap, columns * (cell + gap) - gap, 3), 17, np.uint8)
        for n, picture in enumerate(pictures):
            y, x = n // columns * (cell + gap), n % columns * (cell + gap)
            page[y : y + cell, x : x + cell] = picture
        return Image.fromarray(page)

    def rows(self) -> list[dict[str, Any]]:
        """One flat record per picture that is there: every number."""
        from feature_atlas.rows import rows

        return rows(self.atlas, {(self.variant_name, self.name): set(self.channels)})

    @property
    def df(self) -> Any:
        """The rows as a pandas DataFrame.  Raises RequestError where pandas is not installed."""
        from feature_atlas.rows import frame

        return frame(self.rows())

    def _repr_png_(self) -> bytes:
        return _png(self._part(self.channels[:128]).sheet())


def seconds(duration: int | str) -> int:
    """A number of seconds, or ``"90m"``, ``"12h"``, ``"7d"``, as seconds.  Raises RequestError."""
    match = re.fullmatch(r"\s*(\d+)\s*([smhd]?)\s*", str(duration))
    if match is None:
        raise RequestError(f"{duration!r} is no duration: seconds, or as in 90m, 12h, 7d")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

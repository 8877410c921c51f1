"""What is known about torchvision's classification networks without torch: layers, channels, weights.

The table is made by ``python -m feature_atlas_worker.table`` and committed; a test checks it against torchvision.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.spec import ModelRef

#: Where a layer's output keeps its channels: [B,C,H,W], [B,H,W,C], [B,N,C] or [B,C].
Layout = Literal["NCHW", "NHWC", "tokens", "flat"]
#: The axis of the channels.
CHANNEL_AXIS: dict[Layout, int] = {"NCHW": 1, "NHWC": 3, "tokens": 2, "flat": 1}
#: What a layer is, in the field's words; the order in which they are listed to people.
KINDS = ("conv", "linear", "norm", "activation", "pool", "attention", "block", "other")
#: How the names of those begin that do not take a picture of 128 px as it is; every other of the table does.
ONE_SIZE = ("vit_", "maxvit_")
#: ``random:SEED``.
RANDOM = re.compile(r"^random:(\d{1,15})$")

_TABLE = Path(__file__).with_name("networks.json.gz")
_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer whose output can be optimised."""

    #: ``named_modules`` path.
    name: str
    #: One of :data:`KINDS`.
    kind: str
    channels: int
    #: Position in the order in which the layers finish; a block comes after what it holds.
    index: int
    layout: Layout

    @property
    def channel_axis(self) -> int:
        """The axis of the layer's output that holds its channels."""
        return CHANNEL_AXIS[self.layout]


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """One published set of weights, and what its own metadata say about the network's input."""

    #: Name in torchvision's enum.
    name: str
    #: First 8 digits of the file's SHA-256, as torchvision puts them in the file's name.
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: (height, width) in pixels.
    input_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Network:
    """A network's layers in the order of execution, and its published weights."""

    name: str
    layers: tuple[LayerInfo, ...]
    weights: Mapping[str, WeightsInfo] = field(default_factory=dict)
    #: The weights that ``DEFAULT`` means.
    default: str = ""

    def reference(self, weights: str | None = None) -> ModelRef:
        """The reference to this network with published (default) or ``random:SEED`` weights.

        Random weights take mean, std and input size of the default ones.

        Raises:
            RequestError: no such weights, with the possible ones.
        """
        if weights is None or weights == "DEFAULT":
            weights = self.default
        info = self.weights.get(weights)
        if info is None and not RANDOM.match(weights):
            raise RequestError(
                f"{self.name} has no weights {weights!r}{did_you_mean(weights, self.weights)}"
                f" (possible: {', '.join(self.weights)}, random:SEED, a .safetensors or .pth file, or its URL)"
            )
        fed = info or self.weights[self.default]
        return ModelRef(
            name=self.name, weights=weights, weights_sha256=info.sha256 if info else "",
            mean=fed.mean, std=fed.std, input_size=fed.input_size,
        )  # fmt: skip


def names() -> tuple[str, ...]:
    """The networks of the table, sorted."""
    return tuple(_table())


@functools.cache
def find(name: str) -> Network | None:
    """The network of that name, or None where the table has none."""
    entry = _table().get(name)
    return None if entry is None else unpack(name, entry)


def unknown(name: str) -> RequestError:
    """The error that says which models there are."""
    if own := _own(name):
        return RequestError(f"no model {name!r}: for a network of your own write {own}")
    schemes = "timm:NAME, python:module:factory, builtin:NAME"
    return RequestError(
        f"no model {name!r}{did_you_mean(name, names())}"
        f" (known: {len(names())} torchvision classification networks, {schemes})"
    )


def _own(name: str) -> str:
    """How to spell what looks like a Python file (``mynets.py``) or factory (``mynets:plain``); else nothing."""
    module, _, factory = name.partition(":")
    path, is_file = module.removesuffix(".py"), module.endswith(".py")
    own = path.replace("\\", "/").rpartition("/")[2] if is_file else path
    if not (own and all(part.isidentifier() for part in own.split(".")) and (is_file or factory.isidentifier())):
        return ""
    folder = ", with its folder on PYTHONPATH" if own != path else ""
    return f"python:{own}:{factory or 'FACTORY'} --allow-model {own}{folder}"


def dotted(name: str) -> str:
    """``branch4.1.conv`` for ``branch4[1].conv``; other names as they are."""
    return _INDEX.sub(r".\1", name.strip())


def pack(network: Network) -> dict[str, Any]:
    """A network as columns, the table's compact spelling; ``index`` is the position."""
    return {
        "names": [layer.name for layer in network.layers],
        "kinds": [KINDS.index(layer.kind) for layer in network.layers],
        "channels": [layer.channels for layer in network.layers],
        "layouts": [list(CHANNEL_AXIS).index(layer.layout) for layer in network.layers],
        "default": network.default,
        "weights": [[w.name, w.sha256, w.mean, w.std, w.input_size] for w in network.weights.values()],
    }


def unpack(name: str, entry: Mapping[str, Any]) -> Network:
    """The inverse of :func:`pack`."""
    layouts = list(CHANNEL_AXIS)
    columns = zip(entry["names"], entry["kinds"], entry["channels"], entry["layouts"], strict=True)
    weights = (WeightsInfo(n, sha, tuple(mean), tuple(std), (s[0], s[1])) for n, sha, mean, std, s in entry["weights"])
    return Network(
        name=name,
        layers=tuple(LayerInfo(n, KINDS[k], c, i, layouts[a]) for i, (n, k, c, a) in enumerate(columns)),
        weights={w.name: w for w in weights},
        default=entry["default"],
    )


@functools.cache
def _table() -> dict[str, Any]:
    if not _TABLE.exists():  # while it is being made for the first time
        return {}
    with gzip.open(_TABLE) as file:
        table: dict[str, Any] = json.load(file)
    return table

"""What a network holds: every layer that can be optimised, found by running it on torch's meta device.

No weights are needed and nothing is computed: shapes only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from weakref import WeakKeyDictionary

import torch
from torch import nn

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.keys import check_name
from feature_atlas.networks import LayerInfo, Layout, Network
from feature_atlas_worker import sources
from feature_atlas_worker.trial import PICTURE, Output, input_channels, reason, run_once

log = logging.getLogger(__name__)

#: A plan holds no larger layer.
MAX_CHANNELS = 100_000
_CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_BATCHES = (2, 3)

_described: WeakKeyDictionary[nn.Module, dict[tuple[int, int], tuple[LayerInfo, ...]]] = WeakKeyDictionary()


def network(name: str, *, allowed: Sequence[str] = ()) -> Network:
    """The layers of a model by name, and its published weights where there are some.

    Raises:
        RequestError: unknown model, a factory that is not allowed, or a network that does not run.
        DeviceError: there is not enough memory for a look at it.
    """
    if ":" in name:
        source = sources.build(name, allowed=allowed)
        return Network(name=name, layers=describe(source.module, source.input_size or (224, 224)))
    known = sources.published(name)
    return known if known.layers else torchvision_network(name)


def torchvision_network(name: str) -> Network:
    """As :func:`network`, from torchvision itself and never from the table."""
    known = sources.from_torchvision(name)
    size = known.weights[known.default].input_size if known.default else (224, 224)
    layers = describe(module_of(name, size), size)
    return Network(name=name, layers=layers, weights=known.weights, default=known.default)


def module_of(name: str, input_size: tuple[int, int], allowed: Sequence[str] = ()) -> nn.Module:
    """A network for its shapes only; torchvision's are made without memory, but for RegNets.

    Raises as :func:`sources.build`.
    """
    if ":" not in name:  # who wrote the others may look at values
        with suppress(NotImplementedError), torch.device("meta"):  # as RegNet does for its widths
            return sources.build(name, input_size=input_size).module
    return sources.build(name, allowed=allowed, input_size=input_size).module


def describe(module: nn.Module, input_size: tuple[int, int]) -> tuple[LayerInfo, ...]:
    """Every layer whose output has channels, in the order in which the layers finish.

    A layer that runs several times in one pass is described at its last time; one that never runs is left out, as is
    an output without a place for the batch or without a channel axis.  The channel axis is the one that stays when
    the input grows; networks made for one size (ViT, MaxViT) are judged by the kinds of their layers.

    Raises:
        RequestError: the network does not run at this input size.
        DeviceError: there is not enough memory for a look at it.
    """
    sizes = _described.setdefault(module, {})
    if input_size not in sizes:
        sizes[input_size] = tuple(_describe(module, input_size))
    return sizes[input_size]


def layer_layout(module: nn.Module, name: str, input_size: tuple[int, int]) -> tuple[Layout, int]:
    """(layout, channels) of one layer's output.

    Raises:
        RequestError: no such layer, or none with channels.
    """
    layers = {layer.name: layer for layer in describe(module, input_size)}
    if name in layers:
        return layers[name].layout, layers[name].channels
    if name in dict(module.named_modules()):
        raise RequestError(f"layer {name!r} cannot be shown: it does not run, or its output has no channels")
    raise RequestError(f"no layer {name!r} in this network{did_you_mean(name, layers)}")


def _describe(module: nn.Module, input_size: tuple[int, int]) -> Iterator[LayerInfo]:
    outputs = _run(module, _BATCHES[0], input_size)
    try:
        other = _run(module, _BATCHES[1], grown(input_size))
    except RequestError as error:
        log.debug("one input size only: %s", error)
        other = {}
    seen: dict[tuple[int, ...], Layout] = {}
    index = 0
    for name, output in outputs.items():
        layout = _layout(output, other.get(name), seen)
        if layout is None or not _is_key(name):
            log.debug("layer %s %s is left out", name, output.shape)
            continue
        seen[output.shape] = layout
        channels = output.shape[1] if layout in ("NCHW", "flat") else output.shape[-1]
        if channels <= MAX_CHANNELS:
            yield LayerInfo(name, kind(output.module), channels, index, layout)
            index += 1


def _layout(output: Output, other: Output | None, seen: dict[tuple[int, ...], Layout]) -> Layout | None:
    """Where the channels are, or None where there are none."""
    shape = output.shape
    if len(shape) not in (2, 3, 4) or shape[0] != _BATCHES[0] or 0 in shape:
        return None
    if other is not None and (len(other.shape) != len(shape) or other.shape[0] != _BATCHES[1]):
        return None
    if len(shape) == 2:
        return "flat"
    grew = {axis for axis in range(1, len(shape)) if other is not None and other.shape[axis] != shape[axis]}
    if len(shape) == 3:
        return "tokens" if grew <= {1} else None
    if isinstance(output.module, _CHANNELS_FIRST) or _by_growth(grew) == "NCHW":
        return "NCHW"
    if type(output.module) in _CHANNELS_LAST or _by_growth(grew) == "NHWC":
        return "NHWC"
    if grew:  # every axis grows: no channels
        return None
    # Nothing grew, or only one size was tried: as the layer before it that had this shape; else the square is the map.
    if shape in seen:
        return seen[shape]
    if shape[2] == shape[3]:
        return "NCHW"
    return "NHWC" if shape[1] == shape[2] else None


def _by_growth(grew: set[int]) -> Layout | None:
    if grew and grew <= {2, 3} and grew != {2}:
        return "NCHW"
    return "NHWC" if grew and grew <= {1, 2} else None


def kind(module: nn.Module) -> str:
    """What a module is in the field's words: one of ``networks.KINDS``."""
    name = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if "Attention" in name and "Block" not in name and "Layer" not in name:
        return "attention"
    if isinstance(module, nn.modules.batchnorm._NormBase) or (name.endswith(("Norm", "Norm2d", "Norm1d", "GRN"))):
        return "norm" if not any(True for _ in module.children()) else "block"
    if type(module).__module__ == nn.ReLU.__module__:
        return "activation"
    if "Pool" in name:
        return "pool"
    return "block" if any(True for _ in module.children()) else "other"


def _run(module: nn.Module, batch: int, size: tuple[int, int]) -> dict[str, Output]:
    """The last output of every layer by name, in the order in which they finished."""
    found, error = run_once(module, batch, size)
    if error is not None and (channels := input_channels(module)) != PICTURE:
        found, error = run_once(module, batch, size, channels)
    if error is not None:
        raise RequestError(
            f"the network does not run on an input of {size[0]} x {size[1]} px ({reason(error)[:200]})"
        ) from None
    return found


def grown(size: tuple[int, int]) -> tuple[int, int]:
    """A larger input of another shape, by which the axes of a map tell themselves from its channels."""
    return _larger(size[0], 64), _larger(size[1], 96)


def _larger(pixels: int, by: int) -> int:
    """A larger size that strides and windows of 32 divide."""
    return (pixels + by + 31) // 32 * 32


def _is_key(name: str) -> bool:
    try:
        check_name(name)
    except RequestError:
        log.warning("layer %r is left out: its name cannot be a key", name)
        return False
    return True

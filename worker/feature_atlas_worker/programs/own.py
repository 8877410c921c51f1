"""The target channel alone: each picture's own row of the last convolution instead of all of them.

Of a layer with 512 channels a step looks at one per picture.  What makes the others, and what leads only to them, is
left out; what is left is summed in fp32.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.programs.reading import Reading, ancestors

Values = Mapping[fx.Node, Tensor]


class Own:
    """One channel per picture, out of the values of some nodes."""

    #: How many channels there are; None where that is not known beforehand.
    width: int | None = None

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        """The nodes whose values these channels take."""
        raise NotImplementedError

    def kinds(self) -> list[int]:
        """A channel of every kind."""
        return [0]

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        """[B] -> [B, h, w], fp32; to be called without autocast."""
        raise NotImplementedError


class _Picked(Own):
    def __init__(self, node: fx.Node) -> None:
        self._node = node

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        return [self._node]

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        return values[self._node][torch.arange(len(channels)), channels].float()


class _Convolved(_Picked):
    def __init__(self, node: fx.Node, layer: FrozenConv2d) -> None:
        super().__init__(node)
        self._layer, self.width = layer, layer.out_channels

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        return convolved(values[self._node], self._layer, channels)


class _Rectified(Own):
    def __init__(self, inner: Own, ceiling: float | None) -> None:
        self._inner, self._ceiling, self.width = inner, ceiling, inner.width

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        return self._inner.reads(channels)

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        found = self._inner.answer(values, channels)
        return F.relu(found) if self._ceiling is None else F.relu6(found)


class _Added(Own):
    def __init__(self, parts: Sequence[Own]) -> None:
        self._parts = parts
        self.width = next((part.width for part in parts if part.width), None)

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        return [node for part in self._parts for node in part.reads(channels)]

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        one, other = (part.answer(values, channels) for part in self._parts)
        return one + other


class _Joined(Own):
    def __init__(self, parts: Sequence[Own], widths: Sequence[int]) -> None:
        self._parts, self._widths, self.width = parts, widths, sum(widths)

    def _own(self, channels: Sequence[int]) -> list[tuple[Own, int, int]]:
        """(part, its first channel, its width) for every part with some of these channels."""
        found, first = [], 0
        for part, width in zip(self._parts, self._widths, strict=True):
            if any(first <= channel < first + width for channel in channels):
                found.append((part, first, width))
            first += width
        return found

    def kinds(self) -> list[int]:
        firsts = itertools.accumulate(self._widths, initial=0)
        return [first + kind for part, first in zip(self._parts, firsts, strict=False) for kind in part.kinds()]

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        return [
            node
            for part, first, width in self._own(channels)
            for node in part.reads([c - first for c in channels if first <= c < first + width])
        ]

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        parts = self._own(channels.tolist())
        if len(parts) == 1:
            ((part, first, _),) = parts
            return part.answer(values, channels - first)
        for part, first, width in parts:
            mine = (channels >= first) & (channels < first + width)
            found = part.answer(values, (channels - first).clamp(0, width - 1))
            # Not a product with the mask: what is not its own may be infinite.
            total = total + torch.where(mine[:, None, None], found, 0.0)
        assert isinstance(total, Tensor)
        return total


def own_channel(reading: Reading, node: fx.Node) -> Own | None:
    """How one channel of a node's value comes about; None where all must be made for it."""
    needed = ancestors([node])
    return _own(reading, node, reading.readers(needed))


def _own(reading: Reading, node: fx.Node, readers: Counter[fx.Node]) -> Own | None:
    node = reading.origin(node)
    module = reading.module_of(node)
    # What others read is made whole anyway; and a ReLU redirects by the sum of what comes back from all of them.
    if readers[node] > 1:
        return None
    if isinstance(module, FrozenConv2d):
        return _Convolved(reading.origin(node.all_input_nodes[0]), module)
    rectifier, added, joined = reading.relu(node), reading.added(node), reading.joined(node)
    if rectifier is not None:
        inner = _own(reading, rectifier[0], readers)
        return _Rectified(inner, rectifier[1]) if inner is not None else None
    if added is not None:
        return _sum(reading, [reading.origin(part) for part in added], readers)
    if joined is not None:
        found = [part for part in (_own(reading, part, readers) for part in joined) if part is not None and part.width]
        if len(found) == len(joined):
            return _Joined(found, [part.width or 0 for part in found])
    return None


def _sum(reading: Reading, nodes: Sequence[fx.Node], readers: Counter[fx.Node]) -> Own | None:
    """Two maps, at least one of them convolved; a constant is none."""
    parts = [_own(reading, node, readers) for node in nodes]
    maps = all(any(before.op == "placeholder" for before in ancestors([node])) for node in nodes)
    if not maps or not any(part is not None for part in parts):
        return None
    return _Added([part or _Picked(node) for part, node in zip(parts, nodes, strict=True)])


def convolved(x: Tensor, layer: FrozenConv2d, channels: Tensor) -> Tensor:
    """One row of a convolution per picture: [B, C, h, w], [B] -> [B, h', w'], in fp32."""
    found: Tensor = _Row.apply(x, layer.weight.detach()[channels], layer)
    return found if layer.bias is None else found + layer.bias.detach()[channels][:, None, None]


class _Row(torch.autograd.Function):
    """What every place says to every tap of the kernel, a matrix product; then each tap's answers, where they belong.

    Picture by picture, in memory of its own: a batched product gives other last digits in another batch, and one of
    numbers that lie elsewhere may, too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, layer: FrozenConv2d) -> Tensor:
        """[B, C, h, w], [B, C, kh, kw] -> [B, h', w']."""
        ctx.layer, ctx.shape, ctx.precision = layer, x.shape, x.dtype
        ctx.kernels = [kernel.flatten(1).clone() for kernel in kernels]  # [C, kh * kw] each
        maps = x.permute(0, 2, 3, 1).float().flatten(1, 2)  # [B, h * w, C]
        taps = torch.stack([one.clone().mm(kernel) for one, kernel in zip(maps, ctx.kernels, strict=True)])
        taps = taps.view(len(x), *x.shape[2:], -1)  # [B, h, w, kh * kw]
        top, left = (int(p) for p in layer.padding)
        if top or left:
            taps = F.pad(taps, (0, 0, left, left, top, top))
        first, *others = _places(taps, layer)
        total = first.clone()
        for part in others:
            total += part
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        batch, _, height, width = ctx.shape
        top, left = (int(p) for p in ctx.layer.padding)
        taps = torch.zeros(batch, height + 2 * top, width + 2 * left, ctx.kernels[0].shape[1])
        for part in _places(taps, ctx.layer):
            part.copy_(grads[0])
        taps = taps[:, top : top + height, left : left + width].flatten(1, 2)  # [B, h * w, kh * kw]
        maps = torch.stack([one.clone().mm(kernel.T) for one, kernel in zip(taps, ctx.kernels, strict=True)])
        return maps.to(ctx.precision).view(batch, height, width, -1).permute(0, 3, 1, 2), None, None


def _places(taps: Tensor, layer: FrozenConv2d) -> Iterator[Tensor]:
    """The places at which each tap is read.  [B, h, w, kh * kw] -> kh * kw views [B, h', w']."""
    rows, columns = (
        [slice(d * tap, d * tap + (length - d * (k - 1) - 1) // s * s + 1, s) for tap in range(k)]
        for length, k, s, d in zip(taps.shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )
    for number, (row, column) in enumerate(itertools.product(rows, columns)):
        yield taps[:, row, column, number]

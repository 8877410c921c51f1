"""The target channel alone: each picture's own row of the last convolution instead of all of them.

Of a layer with 512 channels a step looks at one per picture.  What makes the others, and what leads only to them, is
left out; what is left is summed in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.programs.compiler import Reading

Values = Mapping[fx.Node, Tensor]


class Own:
    """One channel per picture, out of the values of some nodes."""

    #: How many channels there are; None where that is not known beforehand.
    width: int | None = None

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        """The nodes whose values these channels take."""
        raise NotImplementedError

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        """[B] -> [B, h, w], fp32."""
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

    def reads(self, channels: Sequence[int]) -> list[fx.Node]:
        return [
            node
            for part, first, width in self._own(channels)
            for node in part.reads([c - first for c in channels if first <= c < first + width])
        ]

    def answer(self, values: Values, channels: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for part, first, width in self._own(channels.tolist()):
            mine = (channels >= first) & (channels < first + width)
            found = part.answer(values, (channels - first).clamp(0, width - 1))
            # Not a product with the mask: what is not its own may be infinite.
            total = total + torch.where(mine[:, None, None], found, 0.0)
        assert isinstance(total, Tensor)
        return total


def own_channel(reading: Reading, node: fx.Node) -> Own | None:
    """How one channel of a node's value comes about; None where all must be made for it."""
    node = reading.origin(node)
    module = reading.module_of(node)
    if isinstance(module, FrozenConv2d):
        return _Convolved(reading.origin(node.all_input_nodes[0]), module)
    rectifier, added, joined = reading.relu(node), reading.added(node), reading.joined(node)
    if rectifier is not None:
        inner = own_channel(reading, rectifier[0])
        return _Rectified(inner, rectifier[1]) if inner is not None else None
    if added is not None:
        parts = [own_channel(reading, part) for part in added]
        if any(part is not None and part.width for part in parts):  # a sum with something unlike is no sum of maps
            nodes = [reading.origin(part) for part in added]
            return _Added([part or _Picked(at) for part, at in zip(parts, nodes, strict=True)])
    if joined is not None:
        found = [part for part in (own_channel(reading, part) for part in joined) if part is not None and part.width]
        if len(found) == len(joined):
            return _Joined(found, [part.width or 0 for part in found])
    return None


def convolved(x: Tensor, layer: FrozenConv2d, channels: Tensor) -> Tensor:
    """One row of a convolution per picture: [B, C, h, w], [B] -> [B, h', w'], in fp32."""
    with torch.autocast("cpu", enabled=False):
        batch, _, height, width = x.shape
        kernel = layer.weight.detach()[channels].flatten(2)  # [B, C, kh * kw]
        # What every place says to every tap of the kernel; then each tap's answers, moved to where they belong.
        taps: Tensor = _Products.apply(x.permute(0, 2, 3, 1).reshape(batch, height * width, -1).float(), kernel)
        taps = taps.view(batch, height, width, -1)
        top, left = (int(p) for p in layer.padding)
        if top or left:
            taps = F.pad(taps, (0, 0, left, left, top, top))
        found = _sum_of_taps(taps, layer)
        return found if layer.bias is None else found + layer.bias.detach()[channels][:, None, None]


class _Products(torch.autograd.Function):
    """Matrix products picture by picture: a batched one gives other last digits in another batch."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Tensor) -> Tensor:
        ctx.kernels = kernels
        return torch.stack([one.mm(kernel) for one, kernel in zip(maps, kernels, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.stack([one.mm(kernel.T) for one, kernel in zip(grads[0], ctx.kernels, strict=True)]), None


def _sum_of_taps(taps: Tensor, layer: FrozenConv2d) -> Tensor:
    """[B, h, w, kh * kw] -> [B, h', w']."""
    rows, columns = (
        [slice(d * tap, d * tap + (length - d * (k - 1) - 1) // s * s + 1, s) for tap in range(k)]
        for length, k, s, d in zip(taps.shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )
    parts = [
        taps[:, row, column, i * len(columns) + j] for i, row in enumerate(rows) for j, column in enumerate(columns)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total

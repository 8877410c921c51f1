"""Max pooling as an operation of a program: by our own kernel where there is one, else by PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feature_atlas_worker import kernels
from feature_atlas_worker.programs.operations import Gradient, Operation, Way

_aten = torch.ops.aten


class MaxPool(Operation):
    """Max pooling over space."""

    def __init__(
        self, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, *, rectified: bool, own: bool
    ) -> None:
        """As ``nn.MaxPool2d``.

        ``rectified``: the map is, and only windows with something above zero let a gradient back.  ``own``: our own
        kernel may do it.
        """
        pairs = [_pair(value) for value in (kernel, kernel if stride is None else stride, padding, dilation)]
        self._pairs, self._ceil = pairs, ceil
        #: Of the kernel: window, stride and padding.
        self._geometry = [length for pair in pairs[:3] for length in pair]
        self._rectified, self._own = rectified, own and pairs[3] == [1, 1]

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        (x,) = values
        masking = self._rectified and way.allow is None
        if self._own and kernels.can_pool(x, self._geometry) and min(self._size(x)) > 0:
            out, which = kernels.pool(x, self._geometry, self._size(x), masking)
            return out, (x.shape, which)
        out, which = _aten.max_pool2d_with_indices.default(x, *self._pairs, self._ceil)
        return out, (x, which, out if masking else None)

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        x, which, *rest = kept
        if not rest:
            return (Gradient(kernels.pool_back(gradient.of, which, x, self._geometry)),)
        of = gradient.of if rest[0] is None else _aten.threshold_backward.default(gradient.of, rest[0], 0.0)
        return (Gradient(_aten.max_pool2d_with_indices_backward.default(of, x, *self._pairs, self._ceil, which)),)

    def _size(self, x: Tensor) -> tuple[int, int]:
        kernel, stride, padding, _ = self._pairs
        height, width = (
            _pooled(x.shape[axis + 2], kernel[axis], stride[axis], padding[axis], self._ceil) for axis in range(2)
        )
        return height, width


def _pooled(length: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """As many windows as ``nn.MaxPool2d`` takes: none begins behind the map."""
    found = (length + 2 * padding - kernel + (stride - 1 if ceil else 0)) // stride + 1
    return found - 1 if ceil and (found - 1) * stride >= length + padding else found


def _pair(value: Any) -> list[int]:
    pair = [value] if isinstance(value, int) else [int(v) for v in value]
    return pair * 2 if len(pair) == 1 else pair

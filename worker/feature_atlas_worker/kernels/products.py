"""Convolutions by kernels of our own, where they are faster than oneDNN's.

3 x 3 ones take 16 products for four answers instead of 36 (``winograd.h``): minimal filtering, F(2 x 2, 3 x 3), of
Winograd 1980, Lavin and Gray 2016 (arXiv:1509.09308); their weights are transformed here, once, in fp64.  In bf16, on
processors with instructions for it, 1 x 1 ones are a product of matrices (``pointwise_bf16.c``).  All sum in fp32 and
in one order, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_atlas_worker import devices, kernels

#: Sums in a register beside bf16 numbers, as in ``bf16.h``; of those a product takes pairs.
_GROUP, _PAIR = 16, 2
#: Channels of a map at least: with fewer the transforms cost more than the products that are left out.
_CHANNELS = 12
#: Answers wanted of those that whole tiles give, at least: of a 3 x 3 map's tiles only 9 of 16.
_WANTED = 0.6
#: Pixels or tiles, and multiplications and additions, for which another thread is worth its start.
_LEAST, _WORK = 7, 2_000_000
#: From the kernel's three rows or columns to four points.
_POINTS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def kind(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], precision: torch.dtype,
    winograd: bool,
) -> type[Product] | None:  # fmt: skip
    """The kernel for a convolution of maps in a precision; None where there is none.  ``weight`` [out, in, kh, kw].

    ``winograd``: fewer products will do.
    """
    if not able(precision) or tuple(dilation) != (1, 1):
        return None
    kinds: list[type[Product]] = [Winograd] if winograd else []
    kinds += [Pointwise] if precision == torch.bfloat16 else []
    return next((kind for kind in kinds if kind.suits(weight, padding, stride)), None)


def able(precision: torch.dtype) -> bool:
    """Whether there are kernels for this processor, and nothing better in it.

    In fp32 for x86 with AVX2; in bf16 where it multiplies that in vector registers, and not in tiles of its own.
    """
    if precision == torch.float32:
        return kernels.group() >= 8
    processor = devices.processor()
    vectors = bool(processor.get("avx512_bf16") and not processor.get("amx_bf16"))
    return precision == torch.bfloat16 and vectors and kernels.multiplies_half()


class Product:
    """A convolution of maps in one precision, for which :func:`able` must be true."""

    _name: str

    def __init__(
        self, weight: Tensor, padding: Sequence[int], stride: Sequence[int] = (1, 1), bias: Tensor | None = None, *,
        precision: torch.dtype,
    ) -> None:  # fmt: skip
        """``weight`` [out, in, kh, kw]; ``padding`` and ``stride`` (rows, columns); ``bias`` [out]."""
        half = precision == torch.bfloat16
        self._function = f"{self._name}_{'bf16' if half else 'fp32'}"
        self._group, self._pair = (_GROUP, _PAIR) if half else (kernels.group(), 1)
        self._out, self._precision = len(weight), precision
        self._padding, self._stride = (int(padding[0]), int(padding[1])), (int(stride[0]), int(stride[1]))
        points = self._points(weight)
        self._weights, self._least = self._laid_out(points), max(_LEAST, _WORK // (2 * points.numel()))
        spare = -self._out % self._group
        self._bias = F.pad(bias.float(), (0, spare)) if bias is not None else torch.zeros(self._out + spare)

    def __call__(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w'].

        ``added`` [B, out, h', w'] is added before it is rounded; ``rectified``: then a ReLU.
        """
        raise NotImplementedError

    @classmethod
    def suits(cls, weight: Tensor, padding: Sequence[int], stride: Sequence[int]) -> bool:
        """Whether it can do such a convolution, on most maps faster than oneDNN."""
        raise NotImplementedError

    @classmethod
    def pays(cls, height: int, width: int, padding: Sequence[int]) -> bool:
        """Whether it is faster on a map of this size, in a batch of any: who sums must not depend on the batch."""
        return True

    def _points(self, weight: Tensor) -> Tensor:
        """The weights, transformed.  [out, in, kh, kw] -> [points, out, in]"""
        raise NotImplementedError

    def _laid_out(self, points: Tensor) -> Tensor:
        """[points, out, in] -> one strip of two groups (or the last one) after the other: [points, in, out, pair]."""
        spare = -points.shape[2] % (self._group if len(points) > 1 else self._pair), -self._out % self._group
        padded = F.pad(points, (0, spare[0], 0, spare[1])).to(self._precision)
        pairs = padded.unflatten(2, (-1, self._pair)).transpose(1, 2)
        return torch.cat([strip.reshape(-1) for strip in pairs.split(2 * self._group, 2)])

    def _run(
        self, parts: int, x: Tensor, out: Tensor, geometry: Sequence[int], added: Tensor | None, rectified: bool
    ) -> Tensor:
        if added is not None and (added.shape, added.dtype) != (out.shape, out.dtype):
            raise ValueError(f"{tuple(added.shape)}, {added.dtype} cannot be added to {tuple(out.shape)}, {out.dtype}")
        other = kernels.beside(added) if added is not None else x
        tensors = x, self._weights, self._bias, other, out
        kernels.run(self._function, parts, tensors, *geometry, added is not None, rectified, least=self._least)
        return out


class Pointwise(Product):
    """A 1 x 1 convolution."""

    _name = "fa_pointwise"

    @classmethod
    def suits(cls, weight: Tensor, padding: Sequence[int], stride: Sequence[int]) -> bool:  # noqa: D102
        return weight.shape[2:] == (1, 1) and max(padding) == 0 and weight.shape[1] % 2 == 0

    def _points(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)[None]

    def __call__(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:  # noqa: D102
        x, pixel = _pixels(x)
        (batch, channels, height, width), (down, across) = x.shape, self._stride
        high, wide, line = (height - 1) // down + 1, (width - 1) // across + 1, width * pixel
        out, count = kernels.empty((batch, self._out, high, wide), x), batch * high * wide
        if down == across == 1:
            high, wide = 1, count  # one long row
        geometry = channels, self._out, across * pixel, down * line, height * line, wide, high
        return self._run(count, x, out, geometry, added, rectified)


class Winograd(Product):
    """A 3 x 3 convolution by fewer products."""

    _name = "fa_winograd"

    @classmethod
    def suits(cls, weight: Tensor, padding: Sequence[int], stride: Sequence[int]) -> bool:  # noqa: D102
        plain = (*weight.shape[2:], *stride) == (3, 3, 1, 1) and max(padding) <= 2
        return plain and weight.shape[1] >= _CHANNELS

    @classmethod
    def pays(cls, height: int, width: int, padding: Sequence[int]) -> bool:  # noqa: D102
        high, wide = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
        return min(high, wide) > 0 and high * wide >= _WANTED * 4 * _tiles(high, wide)

    def _points(self, weight: Tensor) -> Tensor:
        return torch.einsum("ai,ocij,bj->aboc", _POINTS, weight.double(), _POINTS).flatten(0, 1)

    def __call__(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:  # noqa: D102
        x, pixel = _pixels(x)
        (batch, channels, height, width), (top, left) = x.shape, self._padding
        out = kernels.empty((batch, self._out, height + 2 * top - 2, width + 2 * left - 2), x)
        geometry = height, width, channels, pixel, self._out, top, left
        return self._run(batch * _tiles(out.shape[2], out.shape[3]), x, out, geometry, added, rectified)


def _tiles(height: int, width: int) -> int:
    """The tiles of 2 x 2 answers in a map."""
    return -(-height // 2) * -(-width // 2)


def _pixels(map: Tensor) -> tuple[Tensor, int]:
    """The map and how far apart its pixels lie: channels out of the middle of a greater map are no copy."""
    _, channels, height, width = map.shape
    step = map.stride(3)
    if step >= channels and map.stride() == (height * width * step, 1, width * step, step):
        return map, step
    return kernels.beside(map), channels

"""Frozen convolutions on a CPU: the same sums, a faster way back, and the same bits in a batch of any size.

oneDNN's convolution (:mod:`feature_atlas_worker.onednn`) is faster than its way back:

- without stride, the way back is a convolution with turned weights;
- with one, it is oneDNN's transposed convolution, with weights laid out beforehand;
- of three channels, a stride of s is a convolution without stride over s * s interleaved pictures.  oneDNN goes back
  through one with a stride at a fifth of its usual speed: in SqueezeNet at 128 px that is 40 % of a step.

Kernels of our own take the place of most of oneDNN's (:mod:`feature_atlas_worker.kernels.products`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas_worker import kernels, onednn
from feature_atlas_worker.kernels import products

#: Above these many input channels oneDNN's own way back through a stride is as fast.
STEM_CHANNELS = 4


class Convolution(onednn.Convolution):
    """oneDNN's, or a kernel of our own where there is one that is faster."""

    def __init__(
        self, weight: Tensor, padding: Sequence[int], stride: Sequence[int] = (1, 1),
        dilation: Sequence[int] = (1, 1), bias: Tensor | None = None, *, kernels: bool = False, winograd: bool = False,
    ) -> None:  # fmt: skip
        """``kernels``: our own may be used; ``winograd``: the one of fewer products, too."""
        super().__init__(weight, padding, stride, dilation, bias)
        shape = weight, padding, stride, dilation
        self._kinds = {p: products.kind(*shape, p, winograd) if kernels else None for p in onednn.PRECISIONS}
        self._own: dict[torch.dtype, products.Product] = {}

    def __call__(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """As oneDNN's."""
        (padding, stride, _), kind = self._geometry, self._kinds[x.dtype]
        if kind is None or not kind.pays(x.shape[2], x.shape[3], padding):
            return super().__call__(x, added, rectified)
        if x.dtype not in self._own:
            self._own[x.dtype] = kind(self._weight, padding, stride, self._biases[torch.float32], precision=x.dtype)
        return self._own[x.dtype](x, added, rectified)


class _Scattered(onednn.Transposed):
    """Back through a convolution of single pixels with a stride: what it skipped gets nothing."""

    def __init__(self, weight: Tensor, padding: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(weight, padding, stride)
        self._turned = _turn(weight, padding, kernels=True)

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        if gradient.dtype != torch.bfloat16:
            return super().__call__(gradient, size)
        found, (_, (down, across), _) = self._turned(gradient), self._geometry
        out = kernels.empty((*found.shape[:2], *size), found).zero_()
        out[:, :, ::down, ::across] = found
        return out


class _Frozen(torch.autograd.Function):
    """A convolution whose gradient goes to its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenConv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[-2:]
        return layer.ahead(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.back(grads[0], ctx.size), None


class FrozenConv2d(nn.Conv2d):
    """A frozen convolution; made out of an ``nn.Conv2d`` by :func:`quicken`."""

    #: Whether to use kernels of our own; and of those the one of fewer products.
    kernels = winograd = False
    _ahead: Convolution
    _back: Any

    def prepare(self) -> None:
        """Lays the weights out, and turned for the way back; to be called whenever they change."""
        bias = self.bias.detach() if self.bias is not None else None
        padding = cast(tuple[int, int], self.padding)
        self._ahead = Convolution(self.weight.detach(), padding, self.stride, self.dilation, bias, **self._own)
        self._back = self._turned()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w'], as ``nn.Conv2d``; under autocast in bf16."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if x.ndim != 4 or x.dtype not in onednn.PRECISIONS:
            return super().forward(x)
        return cast(Tensor, _Frozen.apply(x, self)) if x.requires_grad else self.ahead(x)

    def ahead(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """The convolution itself; see :meth:`onednn.Convolution.__call__`."""
        return self._ahead(x, added, rectified)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """The gradient of the input of ``size`` (h, w), and ``added``.  [B, out, h', w'] -> [B, in, h, w].

        In the precision of ``gradient``, or in fp32.
        """
        raise NotImplementedError

    @property
    def _own(self) -> dict[str, bool]:
        """What :class:`Convolution` may use."""
        return {"kernels": self.kernels, "winograd": self.winograd}

    def _turned(self) -> Any:
        raise NotImplementedError


def _turn(
    kernel: Tensor, padding: Sequence[int], dilation: Sequence[int] = (1, 1), *, kernels: bool, winograd: bool = False
) -> Convolution:
    """The convolution that leads back through one without stride.  ``kernel`` [out, in, kh, kw]."""
    turned = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel.shape[2:], padding, strict=True)]
    return Convolution(turned, reach, dilation=dilation, kernels=kernels, winograd=winograd)


class PlainConv2d(FrozenConv2d):
    """Without stride."""

    def _turned(self) -> Convolution:
        return _turn(self.weight.detach(), cast(tuple[int, int], self.padding), self.dilation, **self._own)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """A convolution with turned weights."""
        return cast(Tensor, self._back(gradient, added))


class StridedConv2d(FrozenConv2d):
    """With stride, of many channels."""

    def _turned(self) -> onednn.Transposed:
        weight, padding = self.weight.detach(), cast(tuple[int, int], self.padding)
        if self.kernels and self.kernel_size == (1, 1) and padding == (0, 0) and products.able(torch.bfloat16):
            return _Scattered(weight, padding, self.stride)
        return onednn.Transposed(weight, padding, self.stride, self.dilation)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """The transposed convolution."""
        found = cast(Tensor, self._back(gradient, size))
        return found if added is None else found.add_(added)


class StemConv2d(FrozenConv2d):
    """With stride, of few channels."""

    _columns: Convolution | None

    def prepare(self) -> None:
        """As every frozen convolution; of three channels also for kernels of our own."""
        own = self.kernels and self.in_channels == 3 and kernels.available()
        self._columns = self._by_columns() if own else None
        super().prepare()

    def ahead(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """The convolution itself; in bf16 its kernel's columns are channels."""
        padding = cast(tuple[int, int], self.padding)
        fits = x.shape[3] + 2 * padding[1] >= self.kernel_size[1]
        if self._columns is None or x.dtype != torch.bfloat16 or not fits:
            return super().ahead(x, added, rectified)
        return self._columns(kernels.columns(x, self.kernel_size[1], self.stride[1], padding[1]), added, rectified)

    def _by_columns(self) -> Convolution:
        weight = self.weight.detach().permute(0, 3, 1, 2).flatten(1, 2)  # [out, columns * 3, rows]
        weight = F.pad(weight, (0, 0, 0, weight.shape[1] % 2))[..., None]
        bias = self.bias.detach() if self.bias is not None else None
        padding = int(self.padding[0]), 0
        laid_out = weight.contiguous(memory_format=torch.channels_last)
        return Convolution(laid_out, padding, (self.stride[0], 1), bias=bias)

    def _turned(self) -> Convolution:
        step = self.stride[0]
        rows, columns = (-(-length // step) for length in self.kernel_size)
        below, right = rows * step - self.kernel_size[0], columns * step - self.kernel_size[1]
        if self._columns is not None:
            kernel = F.pad(self.weight.detach().contiguous(), (0, right))
            kernel = kernel.view(self.out_channels, 3, self.kernel_size[0], columns, step)
            # [out, rows * step * 3, 1, columns]
            return _turn(kernel.permute(0, 2, 4, 1, 3).flatten(1, 3)[:, :, None], (0, 0), (1, 1), **self._own)
        kernel = F.pad(self.weight.detach().contiguous(), (0, right, 0, below))
        kernel = kernel.view(self.out_channels, self.in_channels, rows, step, columns, step)
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # [out, in * s * s, rows, columns]
        return _turn(kernel, (0, 0), (1, 1), **self._own)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """A convolution with turned weights that gives s * s interleaved pictures; or what every row of it gives."""
        padding, maps = cast(tuple[int, int], self.padding), self._back(gradient)
        if self._columns is not None:
            found = kernels.rows(maps, self.kernel_size[0], self.stride[0], padding, (size[0], size[1]))
        else:
            top, left = padding
            found = F.pixel_shuffle(maps, self.stride[0])[..., top : top + size[0], left : left + size[1]]
            # A stride that leaves the last rows out gives them no gradient.
            found = F.pad(found, (0, size[1] - found.shape[3], 0, size[0] - found.shape[2]))
        return found if added is None else found + added


def quicken(module: nn.Module, kernels: bool = False, winograd: bool = False) -> None:
    """Turns what suits in a frozen network into :class:`FrozenConv2d`, in place: hooks and names stay.

    ``kernels``: with kernels of our own where there are some; ``winograd``: the one of fewer products, too.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        kind = _kind(layer) if type(layer) is nn.Conv2d else None
        if kind is not None:
            layer.__class__ = kind
            frozen = cast(FrozenConv2d, layer)
            frozen.kernels, frozen.winograd = kernels, winograd
            frozen.prepare()


def _kind(layer: nn.Conv2d) -> type[FrozenConv2d] | None:
    frozen = not layer.weight.requires_grad and layer.weight.dtype == torch.float32
    if not frozen or layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    square = layer.stride[0] == layer.stride[1] and layer.dilation == (1, 1)
    if layer.stride != (1, 1) and square and layer.in_channels <= STEM_CHANNELS:
        return StemConv2d
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(p > r for p, r in zip(layer.padding, reach, strict=True)):
        return None
    return PlainConv2d if layer.stride == (1, 1) else StridedConv2d

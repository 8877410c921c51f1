"""Frozen convolutions on a CPU: the same sums, a faster way back, and the same bits in a batch of any size.

PyTorch chooses between NNPACK, a plain matrix product and oneDNN by the shape of the batch, and each sums in another
order; the ascent amplifies the difference until the pictures are others.  oneDNN alone gives an image the same bits
whatever lies beside it, and its convolution is faster than its way back:

- without stride, the way back is a convolution with turned weights;
- with one, it is oneDNN's transposed convolution, with weights laid out beforehand;
- of three channels, a stride of s is a convolution without stride over s * s interleaved pictures.  oneDNN goes back
  through one with a stride at a fifth of its usual speed: in SqueezeNet at 128 px that is 40 % of a step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from feature_atlas_worker import kernels

#: Above these many input channels oneDNN's own way back through a stride is as fast.
STEM_CHANNELS = 4
#: Precisions and sizes of the map for which a layer keeps its weights laid out.
LAYOUTS = 4
#: The batch for which they are laid out; any other does as well.
PACKED_BATCH = 8
#: Whether this PyTorch can lay weights out beforehand (torch.compile uses the same operators).
PACKS = all(
    hasattr(torch.ops.mkldnn, f"_reorder_convolution_{way}weight")
    and hasattr(torch.ops.mkldnn, f"_convolution_{way}pointwise")
    for way in ("", "transpose_")
)
_convolve: Any = torch.ops.mkldnn._convolution_pointwise if PACKS else None
_convolve_back: Any = torch.ops.mkldnn._convolution_transpose_pointwise if PACKS else None
#: What such a convolution computes in.
_PRECISIONS = (torch.float32, torch.bfloat16)


class _Weights:
    """Weights in the layout that oneDNN wants.

    Without that it lays them out anew in every call, which in a deep layer takes longer than the sums: 3.1 instead of
    0.34 ms for 2,048 to 512 channels on a 4 x 4 map.  The layout depends on the map's size; a wrong one costs more
    than none.
    """

    def __init__(
        self, weight: Tensor, padding: Sequence[int], stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1)
    ) -> None:
        self._weight = weight
        self._geometry = list(padding), list(stride), list(dilation)
        #: By precision and size of the map.
        self._laid_out: OrderedDict[Hashable, Tensor] = OrderedDict()

    def _lay_out(self, key: Hashable, precision: torch.dtype, lay_out: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            found = self._laid_out[key] = lay_out(self._weight.to(precision))
        if len(self._laid_out) > LAYOUTS:
            self._laid_out.popitem(last=False)
        return found


class Convolution(_Weights):
    """A convolution by oneDNN; the same bits as with weights that are not laid out."""

    def __init__(
        self, weight: Tensor, padding: Sequence[int], stride: Sequence[int] = (1, 1),
        dilation: Sequence[int] = (1, 1), bias: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(weight, padding, stride, dilation)
        self._biases = {p: bias.to(p) if bias is not None else None for p in _PRECISIONS}

    def __call__(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w'] in the precision of ``x``: fp32 or bf16.

        ``added`` [B, out, h', w'] is added to it, all before it is rounded; ``rectified``: then a ReLU.
        """
        padding, stride, dilation = self._geometry
        precision, (_, _, height, width) = x.dtype, x.shape
        bias = self._biases[precision]
        if not PACKS:
            out = torch.mkldnn_convolution(x, self._weight.to(precision), bias, padding, stride, dilation, 1)
            out = out if added is None else out.add_(added)
            return out.relu_() if rectified else out
        key = precision, height, width
        laid_out = self._laid_out.get(key)
        if laid_out is None:
            pack, like = torch.ops.mkldnn._reorder_convolution_weight, [PACKED_BATCH, *x.shape[1:]]
            laid_out = self._lay_out(key, precision, lambda weight: pack(weight, *self._geometry, 1, like))
        last = "relu" if rectified else None
        if added is None:
            return _convolve.default(x, laid_out, bias, padding, stride, dilation, 1, last or "none", [], "")
        return _convolve.binary(x, added, laid_out, bias, padding, stride, dilation, 1, "add", 1.0, last, [], "")


class Transposed(_Weights):
    """The way back through a convolution [out, in, kh, kw] by oneDNN, whatever its stride."""

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """[B, out, h', w'] -> [B, in, *size], in the gradient's precision: fp32 or bf16."""
        padding, stride, dilation = self._geometry
        if not PACKS:
            shape, weight = [len(gradient), self._weight.shape[1], *size], self._weight.to(gradient.dtype)
            return conv2d_input(shape, weight, gradient, stride, padding, dilation)
        # Rows and columns at the end that the stride left out.
        spare = [
            length - ((steps - 1) * s - 2 * p + d * (k - 1) + 1)
            for length, steps, k, p, s, d in zip(
                size, gradient.shape[2:], self._weight.shape[2:], padding, stride, dilation, strict=True
            )
        ]
        key = gradient.dtype, gradient.shape[2:], size
        laid_out = self._laid_out.get(key)
        if laid_out is None:
            pack, like = torch.ops.mkldnn._reorder_convolution_transpose_weight, [PACKED_BATCH, *gradient.shape[1:]]
            laid_out = self._lay_out(
                key, gradient.dtype, lambda weight: pack(weight, padding, spare, stride, dilation, 1, like)
            )
        return _convolve_back.default(gradient, laid_out, None, padding, spare, stride, dilation, 1, "none", [], "")


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

    #: Whether to use kernels of our own.
    kernels = False
    _ahead: Convolution
    _back: Any

    def prepare(self) -> None:
        """Lays the weights out, and turned for the way back; to be called whenever they change."""
        bias = self.bias.detach() if self.bias is not None else None
        padding = cast(tuple[int, int], self.padding)
        self._ahead = Convolution(self.weight.detach(), padding, self.stride, self.dilation, bias)
        self._back = self._turned()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w'], as ``nn.Conv2d``; under autocast in bf16."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if x.ndim != 4 or x.dtype not in _PRECISIONS:
            return super().forward(x)
        return cast(Tensor, _Frozen.apply(x, self)) if x.requires_grad else self.ahead(x)

    def ahead(self, x: Tensor, added: Tensor | None = None, rectified: bool = False) -> Tensor:
        """The convolution itself, by oneDNN; see :meth:`Convolution.__call__`."""
        return self._ahead(x, added, rectified)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """The gradient of the input of ``size`` (h, w), and ``added``.  [B, out, h', w'] -> [B, in, h, w].

        In the precision of ``gradient``, or in fp32.
        """
        raise NotImplementedError

    def _turned(self) -> _Weights:
        raise NotImplementedError


def _turn(kernel: Tensor, padding: Sequence[int], dilation: Sequence[int] = (1, 1)) -> Convolution:
    """The convolution that leads back through one without stride.  ``kernel`` [out, in, kh, kw]."""
    turned = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel.shape[2:], padding, strict=True)]
    return Convolution(turned, reach, dilation=dilation)


class PlainConv2d(FrozenConv2d):
    """Without stride."""

    def _turned(self) -> Convolution:
        return _turn(self.weight.detach(), cast(tuple[int, int], self.padding), self.dilation)

    def back(self, gradient: Tensor, size: torch.Size, added: Tensor | None = None) -> Tensor:
        """A convolution with turned weights."""
        return cast(Tensor, self._back(gradient, added))


class StridedConv2d(FrozenConv2d):
    """With stride, of many channels."""

    def _turned(self) -> Transposed:
        return Transposed(self.weight.detach(), cast(tuple[int, int], self.padding), self.stride, self.dilation)

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
            return _turn(kernel.permute(0, 2, 4, 1, 3).flatten(1, 3)[:, :, None], (0, 0))
        kernel = F.pad(self.weight.detach().contiguous(), (0, right, 0, below))
        kernel = kernel.view(self.out_channels, self.in_channels, rows, step, columns, step)
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # [out, in * s * s, rows, columns]
        return _turn(kernel, (0, 0))

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


def quicken(module: nn.Module, kernels: bool = False) -> None:
    """Turns what suits in a frozen network into :class:`FrozenConv2d`, in place: hooks and names stay.

    ``kernels``: with kernels of our own where there are some.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        kind = _kind(layer) if type(layer) is nn.Conv2d else None
        if kind is not None:
            layer.__class__ = kind
            frozen = cast(FrozenConv2d, layer)
            frozen.kernels = kernels
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

"""A faster way back through a network's first convolution, on a CPU.

oneDNN goes back through a strided convolution of three input channels at a fifth of its usual speed: in SqueezeNet
at 128 px that alone is 40 % of a step.  The same sums are an ordinary convolution: a stride of s is a convolution
without stride over s * s interleaved pictures, and the way back through that one is a convolution, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Above these many input channels oneDNN's own way back is as fast.
MOST_CHANNELS = 4


class _Strided(torch.autograd.Function):
    """A strided convolution, whose gradient goes to its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stem: StemConv2d) -> Tensor:
        ctx.stem, ctx.size = stem, x.shape[-2:]
        return F.conv2d(x, stem.weight, stem.bias, stem.stride, stem.padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.stem.back(grads[0], ctx.size), None


class StemConv2d(nn.Conv2d):
    """A frozen convolution with stride; made out of an ``nn.Conv2d`` by :func:`quicken`."""

    backward_weight: Tensor  # [in * s * s, out, ceil(k / s), ceil(k / s)]

    def prepare(self) -> None:
        """Interleaves and turns the weights for the way back."""
        step = self.stride[0]
        rows, columns = (-(-length // step) for length in self.kernel_size)
        missing = (columns * step - self.kernel_size[1], rows * step - self.kernel_size[0])
        kernel = F.pad(self.weight.detach().contiguous(), (0, missing[0], 0, missing[1]))
        kernel = kernel.view(self.out_channels, self.in_channels, rows, step, columns, step)
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # [out, in * s * s, rows, columns]
        turned = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        self.register_buffer("backward_weight", turned, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w'], as ``nn.Conv2d``; equal to the bit."""
        if x.requires_grad and x.ndim == 4 and x.dtype == self.weight.dtype:
            out: Tensor = _Strided.apply(x, self)
            return out
        return super().forward(x)

    def back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """The gradient of the input of ``size`` (h, w).  [B, out, h', w'] -> [B, in, h, w]."""
        kernel = self.backward_weight
        margin = (kernel.shape[2] - 1, kernel.shape[3] - 1)
        padded = F.pixel_shuffle(F.conv2d(gradient, kernel, padding=margin), self.stride[0])
        top, left = int(self.padding[0]), int(self.padding[1])
        found = padded[..., top : top + size[0], left : left + size[1]]
        # A stride that leaves the last rows out gives them no gradient.
        return F.pad(found, (0, size[1] - found.shape[3], 0, size[0] - found.shape[2]))


def quicken(module: nn.Module) -> None:
    """Turns the strided convolutions of few channels in a frozen network into :class:`StemConv2d`, in place."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _suits(layer):
            # The same object under another class: hooks and names stay.
            layer.__class__ = StemConv2d
            assert isinstance(layer, StemConv2d)
            layer.prepare()


def _suits(layer: nn.Conv2d) -> bool:
    return (
        layer.in_channels <= MOST_CHANNELS
        and layer.groups == 1
        and layer.stride[0] == layer.stride[1] > 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not layer.weight.requires_grad
    )

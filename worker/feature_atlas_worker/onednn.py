"""oneDNN's convolutions with weights that are laid out once; they give an image the same bits in a batch of any size.

PyTorch chooses between NNPACK, a plain matrix product and oneDNN by the shape of the batch, and each sums in another
order; the ascent amplifies the difference until the pictures are others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

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
PRECISIONS = (torch.float32, torch.bfloat16)


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
        self._biases = {p: bias.to(p) if bias is not None else None for p in PRECISIONS}

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

"""How a dead unit is woken: Lucid's redirected ReLU, for any network, per image.

Where a ReLU blocks the *whole* gradient of an image, the gradient is let through at those negative inputs that it
would push up (lucid/misc/redirected_relu_grad.py:90-114).  An image may use it only while its own flag is set, so
its picture does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Values per image.
_GLANCE = 2048


def _may_ask(device: torch.device) -> bool:
    """Whether Python may look at a value: a GPU would have to finish all that it was given."""
    return device.type == "cpu"


class _Redirected(torch.autograd.Function):
    """Clamp to [0, ceiling] whose blocked gradient is redirected for the images in ``allow`` [B]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, allow: Tensor, ceiling: float | None, inplace: bool) -> Tensor:
        ctx.ceiling = ceiling
        if inplace:
            ctx.mark_dirty(x)
        out = x.clamp_(0, ceiling) if inplace else x.clamp(0, ceiling)
        ctx.save_for_backward(out, allow)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, allow = ctx.saved_tensors
        return redirected(grads[0], out, allow, ctx.ceiling), None, None, None


def redirected(grad: Tensor, out: Tensor, allow: Tensor, ceiling: float | None) -> Tensor:
    """The way back through a clamp to [0, ceiling] that gave ``out``, redirected for the images in ``allow`` [B]."""
    normal = torch.ops.aten.threshold_backward(grad, out, 0.0)  # d loss / d output: negative pushes the activation up
    if ceiling is not None:
        normal = normal.masked_fill_(out >= ceiling, 0)
    axes = tuple(range(1, grad.ndim))
    # Hardly ever blocked: what is seen at once says so.  A GPU is not made to wait for the answer.
    if _may_ask(grad.device) and (_passes(normal) or not bool(((normal.sum(axes) == 0) & allow).any())):
        return normal
    whole = (normal.abs().amax(axes) == 0) & allow
    below = out <= 0
    above = out >= ceiling if ceiling is not None else torch.zeros_like(below)
    outward = (below & (grad > 0)) | (above & (grad < 0))
    return torch.where(whole.view(-1, *[1] * (grad.ndim - 1)), grad.masked_fill(outward, 0), normal)


def _passes(gradient: Tensor) -> bool:
    """Whether something of every image's gradient passes, as far as a glance shows.  [B, C, h, w]"""
    if gradient.ndim != 4 or not gradient.is_contiguous(memory_format=torch.channels_last):
        return False
    return bool(gradient.permute(0, 2, 3, 1).flatten(1)[:, :_GLANCE].any(1).all())


_RELU = {F.relu, torch.relu, Tensor.relu}
_RELU_INPLACE = {F.relu_, torch.relu_, Tensor.relu_}
_RELU6 = {F.relu6}


class RedirectedReLU(TorchFunctionMode):
    """While active, every ReLU and ReLU6 (module or functional, in place or not) redirects for ``allow``."""

    def __init__(self, allow: Tensor) -> None:
        super().__init__()
        #: The images that may redirect.  [B], bool
        self.allow = allow

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Replaces the rectifiers, passes everything else on."""
        kwargs = dict(kwargs or {})
        # nn.ReLU6 calls hardtanh.
        clipped = func is F.hardtanh and (kwargs.get("min_val"), kwargs.get("max_val")) == (0, 6)
        ceiling = 6.0 if func in _RELU6 or clipped else None
        if ceiling is None and func not in _RELU and func not in _RELU_INPLACE:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        # Windowed attention and the like fold other axes into the first: only whole images can be told apart.
        if not x.requires_grad or x.shape[0] % len(self.allow):
            return func(*args, **kwargs)
        inplace = func in _RELU_INPLACE or bool(kwargs.get("inplace", args[1] if len(args) > 1 else False))
        allow = self.allow.repeat_interleave(x.shape[0] // len(self.allow))
        return _Redirected.apply(x, allow, ceiling, inplace)


def redirecting(allow: Tensor | None) -> AbstractContextManager[object]:
    """:class:`RedirectedReLU` for these images; nothing where there are none.

    Not for longer than needed: every call of torch takes some microseconds more while it is active.
    """
    return RedirectedReLU(allow) if allow is not None else nullcontext()

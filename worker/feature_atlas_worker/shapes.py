"""Shapes without torch's compiler and sympy: for some functions on the meta device torch would load them, 2 s long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: What changes no shape.
POINTWISE: frozenset[Callable[..., Any]] = frozenset({
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
    functional.mish, functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.dropout,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
})  # fmt: skip


class Shapes(TorchFunctionMode):
    """Answers for convolutions, activations and pooling on the meta device: a shape and no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in POINTWISE:
                return args[0]
            if func in _ANSWERS and (found := _ANSWERS[func](*args, **(kwargs or {}))) is not None:
                return found
        return func(*args, **(kwargs or {}))


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    if isinstance(padding, str) or input.dim() != 4 or weight.shape[1] * groups != input.shape[1]:
        return None
    return _slid(input, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation)


def _averaged(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *_: Any, **__: Any
) -> Tensor | None:
    if ceil_mode or input.dim() != 4 or 2 * max(_pair(padding)) > min(_pair(kernel_size)):
        return None
    return _slid(input, input.shape[1], kernel_size, kernel_size if stride is None else stride, padding, 1)


def _slid(input: Tensor, channels: int, *settings: int | Sequence[int]) -> Tensor | None:
    """What a window (size, stride, padding and dilation) that slides over the map leaves of it; None where nothing."""
    size = [
        (length + 2 * padding - dilation * (window - 1) - 1) // stride + 1
        for length, window, stride, padding, dilation in zip(input.shape[2:], *map(_pair, settings), strict=True)
    ]
    return input.new_empty(input.shape[0], channels, *size) if min(size) > 0 else None


def _pair(given: int | Sequence[int]) -> Sequence[int]:
    return (given, given) if isinstance(given, int) else tuple(given) * (3 - len(given))


def _pooled(picture: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
    there = picture.shape[-2:]
    size = [old if new is None else new for old, new in zip(there, wanted, strict=True)]
    return picture.new_empty(*picture.shape[:-2], *size)


#: Those of them that answer None leave it to torch, which may say what is wrong.
_ANSWERS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv2d: _convolved, functional.avg_pool2d: _averaged, functional.adaptive_avg_pool2d: _pooled,
}  # fmt: skip

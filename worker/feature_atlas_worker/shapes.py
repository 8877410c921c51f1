"""Shapes without torch's compiler: for some functions on the meta device torch would load it, 1.5 s long."""

from __future__ import annotations

from collections.abc import Callable
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
    """Answers for activations and adaptive pooling on the meta device, whose tensors have a shape and no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in POINTWISE:
                return args[0]
            if func is functional.adaptive_avg_pool2d:
                return _pooled(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _pooled(picture: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
    there = picture.shape[-2:]
    size = [old if new is None else new for old, new in zip(there, wanted, strict=True)]
    return picture.new_empty(*picture.shape[:-2], *size)

"""Runs a network up to one layer and no further, and leaves it as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas_worker.shortage import is_shortage


class _Reached(Exception):
    """Raised by the hook: the layer's output is here, nothing after it needs to run."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def find(module: nn.Module, layer: str) -> nn.Module:
    """The submodule under a dotted name.

    Raises:
        RequestError: there is none, with the nearest names.
    """
    modules = dict(module.named_modules())
    if layer not in modules or not layer:
        raise RequestError(f"no layer {layer!r} in this network{did_you_mean(layer, [n for n in modules if n])}")
    return modules[layer]


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode without gradients to its weights; put back as found, exception or not."""
    modes = {m: m.training for m in module.modules()}
    wanted = [p for p in module.parameters() if p.requires_grad]
    try:
        module.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield module
    finally:
        for m, training in modes.items():
            m.training = training
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def tap(module: nn.Module, layer: str, calls: int = 1, cut: bool = True) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function ``input [B, 3, h, w] -> output of the layer`` that stops the network there, unless ``cut`` is off.

    A layer that runs several times in one pass is read at its ``calls``-th time.  No clone is needed where the
    network stops: an in-place operation that would follow never runs.
    """
    count = 0
    passed: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal count
        count += 1
        if count == calls and cut:
            raise _Reached(first_tensor(output))
        if count == calls:
            passed.append(first_tensor(output).clone())

    handle = find(module, layer).register_forward_hook(hook)

    def run(x: Tensor) -> Tensor:
        nonlocal count
        count = 0
        passed.clear()
        try:
            module(x)
        except _Reached as reached:
            return reached.output
        if passed:
            return passed.pop()
        raise RequestError(f"layer {layer!r} does not run in this network's forward pass")

    try:
        yield run
    finally:
        handle.remove()


def count_calls(module: nn.Module, layer: str, x: Tensor) -> int:
    """How often the layer runs in one forward pass of ``x``, as far as that passes the network."""
    count = 0

    def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal count
        count += 1

    handle = find(module, layer).register_forward_hook(hook)
    try:
        with torch.no_grad():
            module(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        # A picture may be too small for what follows the layer: that part never runs.
        if not count or is_shortage(error):
            raise
    finally:
        handle.remove()
    return count


def first_tensor(output: Any) -> Tensor:
    """The tensor in a layer's output; of a tuple or list the first, as attention layers return."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output:
        return first_tensor(output[0])
    if isinstance(output, dict) and output:
        return first_tensor(next(iter(output.values())))
    raise RequestError(f"this layer's output is no tensor but {type(output).__name__}")


def tensors(out: Any) -> Iterator[Tensor]:
    """Every tensor in a layer's or a network's output."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for item in out.values():
            yield from tensors(item)
    elif isinstance(out, (tuple, list)):
        for item in out:
            yield from tensors(item)

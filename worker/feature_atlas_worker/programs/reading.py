"""What the nodes of a captured graph are: ReLUs, sums, concatenations, what writes over its input, who reads whom."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from feature_atlas_worker.fold import FoldedNorm
from feature_atlas_worker.programs.capture import Captured

_RELU: set[Any] = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_ADD: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CAT: set[Any] = {torch.cat, torch.concat, torch.concatenate}
#: What writes over its input and is no ReLU and no sum.
_WRITES: set[Any] = {
    operator.imul, operator.isub, operator.itruediv, operator.setitem, operator.ipow, operator.iand, operator.ior,
}  # fmt: skip
_PASSES = (FoldedNorm, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Reading:
    """A captured graph with the modules that it names."""

    def __init__(self, module: nn.Module, captured: Captured) -> None:
        self.modules = dict(module.named_modules())
        self.graph = captured.graph
        self._module = module

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def constant(self, node: fx.Node) -> Any:
        """The tensor that a node looks up."""
        found: Any = self._module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def origin(self, node: fx.Node) -> fx.Node:
        """The node behind those that give back what they are given."""
        while isinstance(self.module_of(node), _PASSES) and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        return node

    def readers(self, nodes: set[fx.Node]) -> Counter[fx.Node]:
        """How many of these nodes read each."""
        found: Counter[fx.Node] = Counter()
        for node in nodes:
            if self.origin(node) is node:
                found.update(self.origin(read) for read in node.all_input_nodes)
        return found

    def relu(self, node: fx.Node) -> tuple[fx.Node, float | None] | None:
        """(what it reads, its ceiling) of a ReLU or ReLU6."""
        module, inputs = self.module_of(node), node.all_input_nodes
        if len(inputs) != 1:
            return None
        if type(module) is nn.ReLU6 or node.target is F.relu6:
            return inputs[0], 6.0
        known = type(module) is nn.ReLU or (node.op in ("call_function", "call_method") and node.target in _RELU)
        return (inputs[0], None) if known else None

    def added(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """What a sum of two maps reads."""
        plain = node.op in ("call_function", "call_method") and node.target in _ADD and not node.kwargs
        if plain and len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args):
            return node.args  # type: ignore[return-value]
        return None

    def joined(self, node: fx.Node) -> list[fx.Node] | None:
        """What a concatenation along the channels reads."""
        if node.op != "call_function" or node.target not in _CAT:
            return None
        parts, *rest = node.args if node.args else (node.kwargs.get("tensors"),)
        axis = rest[0] if rest else node.kwargs.get("dim", 0)
        if axis not in (1, -3) or not isinstance(parts, (list, tuple)):
            return None
        return [part for part in parts if isinstance(part, fx.Node)] if all(
            isinstance(part, fx.Node) for part in parts
        ) else None  # fmt: skip

    def rescaled(self, node: fx.Node) -> tuple[fx.Node, list[float], list[float]] | None:
        """(map, factors, summands) of a map's channels, each times a number plus a number, put together again.

        torchvision's ``transform_input``.
        """
        channels = [_rescaled_channel(part) for part in self.joined(node) or []]
        maps = {channel[0] for channel in channels if channel is not None}
        if None in channels or len(maps) != 1:
            return None
        _, places, factors, summands = zip(*(channel for channel in channels if channel is not None), strict=True)
        return (maps.pop(), list(factors), list(summands)) if places == tuple(range(len(places))) else None

    def writes(self, node: fx.Node) -> bool:
        """Whether a node writes over what it reads."""
        module = self.module_of(node)
        if module is not None:
            return bool(getattr(module, "inplace", False)) and not isinstance(module, _PASSES)
        named = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
        name = getattr(node.target, "__name__", "")
        called = node.op == "call_function" and (node.target in _WRITES or node.target is operator.iadd or (
            name.endswith("_") and not name.endswith("__")
        ))  # fmt: skip
        return named or called or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _rescaled_channel(node: fx.Node) -> tuple[fx.Node, int, float, float] | None:
    """(map, channel, factor, summand) of ``unsqueeze(map[:, channel], 1) * factor + summand``."""
    factor, summand = 1.0, 0.0
    if node.target is operator.add and isinstance(node.args[1], float):
        node, summand = node.args  # type: ignore[assignment]
    if node.target is operator.mul and isinstance(node.args[1], float):
        node, factor = node.args  # type: ignore[assignment]
    if node.target is not torch.unsqueeze or node.args[1:] != (1,) or not isinstance(node.args[0], fx.Node):
        return None
    picked = node.args[0]
    if picked.target is not operator.getitem or not isinstance(picked.args[0], fx.Node):
        return None
    place = picked.args[1]
    plain = isinstance(place, tuple) and len(place) == 2 and place[0] == slice(None) and type(place[1]) is int
    return (picked.args[0], place[1], factor, summand) if plain else None  # type: ignore[index, return-value]


def ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """These nodes and all that lead to them."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found

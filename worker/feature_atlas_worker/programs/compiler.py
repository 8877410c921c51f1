"""From a captured graph to a program: convolutions joined with their ReLUs, folded norms and the like left out."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.fold import FoldedNorm
from feature_atlas_worker.programs import operations
from feature_atlas_worker.programs.capture import Captured
from feature_atlas_worker.programs.operations import Unsuitable
from feature_atlas_worker.programs.program import Line, Program

_RELU: set[Any] = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_ADD: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CAT: set[Any] = {torch.cat, torch.concat, torch.concatenate}
#: Operations left to autograd for each of ours, at most: each costs a little more here than in one great graph.
_OTHERS = 3
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


def compiled(reading: Reading, results: list[fx.Node]) -> Program:
    """The program that gives these nodes' values.

    Raises:
        Unsuitable: there is none, or it would be no faster.
    """
    return _Compiler(reading, results).program()


class _Compiler:
    def __init__(self, reading: Reading, results: list[fx.Node]) -> None:
        self._reading, self._results = reading, [reading.origin(node) for node in results]
        self._order = list(reading.graph.nodes)
        self._needed = _ancestors(self._results)
        self._readers: Counter[fx.Node] = Counter(self._results)
        for node in self._needed:
            if reading.origin(node) is node:
                self._readers.update(reading.origin(read) for read in node.all_input_nodes)
        self._numbers: dict[fx.Node, int] = {}
        self._makers: dict[int, operations.Operation] = {}
        self._varying: set[int] = {0}
        self._constants: dict[int, Any] = {}
        self._lines: list[Line] = []

    def program(self) -> Program:
        self._check_writes()
        for node in self._order:
            if node in self._needed and self._reading.origin(node) is node:
                self._add(node)
        natives = sum(not isinstance(line.operation, operations.Other) for line in self._lines)
        if not any(isinstance(line.operation, operations.Convolve) for line in self._lines):
            raise Unsuitable("no convolution")
        if len(self._lines) > (1 + _OTHERS) * natives:
            raise Unsuitable("most of it is left to autograd")
        return Program(self._lines, self._constants, [self._number(node) for node in self._results])

    def _number(self, node: fx.Node) -> int:
        return self._numbers[self._reading.origin(node)]

    def _add(self, node: fx.Node) -> None:
        reading = self._reading
        if node.op == "placeholder":
            if 0 in self._numbers.values():
                raise Unsuitable("it takes more than a picture")
            self._numbers[node] = 0
        elif node.op == "get_attr":
            self._numbers[node] = self._fresh()
            self._constants[self._numbers[node]] = reading.constant(node)
        elif not self._join(node):
            self._line(node, *self._operation(node))

    def _check_writes(self) -> None:
        """What is written over must be read by nobody else: a program writes elsewhere."""
        reading, last = self._reading, max(place for place, node in enumerate(self._order) if node in self._needed)
        for node in self._order[: last + 1]:
            if not reading.writes(node) or not node.all_input_nodes:
                continue
            read = reading.origin(node.all_input_nodes[0])
            if read not in self._needed:
                continue
            view = read.op in ("call_function", "call_method") and not (reading.added(read) or reading.joined(read))
            if node not in self._needed or self._readers[read] > 1 or view or "out" in node.kwargs:
                raise Unsuitable(f"{node.name} writes over what others may read")

    def _join(self, node: fx.Node) -> bool:
        """A ReLU joins the convolution whose only reader it is."""
        rectifier = self._reading.relu(node)
        if rectifier is None or rectifier[1] is not None:
            return False
        read = self._reading.origin(rectifier[0])
        maker = self._makers.get(self._number(read))
        if not isinstance(maker, operations.Convolve) or self._readers[read] > 1:
            return False
        maker.rectified = True
        self._numbers[node] = self._number(read)
        return True

    def _operation(self, node: fx.Node) -> tuple[operations.Operation, list[fx.Node]]:
        reading, module = self._reading, self._reading.module_of(node)
        if isinstance(module, FrozenConv2d):
            return operations.Convolve(module), node.all_input_nodes
        rectifier = reading.relu(node)
        if rectifier is not None:
            read = reading.origin(rectifier[0])
            own = isinstance(self._makers.get(self._number(read)), (operations.Add, operations.Concatenate))
            return operations.Rectify(rectifier[1], own and self._readers[read] == 1), [read]
        added = reading.added(node)
        if added is not None and all(self._number(read) in self._varying for read in added):
            return self._sum([reading.origin(read) for read in added])
        joined = reading.joined(node)
        if joined is not None and all(self._number(read) in self._varying for read in joined):
            return operations.Concatenate(), joined
        if type(module) is nn.MaxPool2d and not module.return_indices:
            geometry = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            return operations.MaxPool(*geometry), node.all_input_nodes
        return self._other(node)

    def _sum(self, reads: list[fx.Node]) -> tuple[operations.Operation, list[fx.Node]]:
        """A sum joins the last convolution that nobody else reads."""
        for read in sorted(reads, key=self._number, reverse=True):
            place = next((i for i, line in enumerate(self._lines) if line.gives == self._number(read)), None)
            line = self._lines[place] if place is not None else None
            if line is None or place is None or self._readers[read] > 1 or reads[0] is reads[1]:
                continue
            maker = line.operation
            if type(maker) is operations.Convolve and not maker.added and not maker.rectified:
                del self._lines[place]
                other = reads[0] if read is reads[1] else reads[1]
                return operations.Convolve(maker.layer, added=True), [read.all_input_nodes[0], other]
        return operations.Add(), reads

    def _other(self, node: fx.Node) -> tuple[operations.Operation, list[fx.Node]]:
        reads = node.all_input_nodes
        numbers = [self._number(read) for read in reads]
        call = _caller(node, reads, self._reading.module_of(node))
        if self._reading.writes(node):
            plain = call
            call = lambda *values: plain(*[v.clone() if isinstance(v, Tensor) else v for v in values])  # noqa: E731
        return operations.Other(call, [number in self._varying for number in numbers]), reads

    def _line(self, node: fx.Node, operation: operations.Operation, reads: list[fx.Node]) -> None:
        number = self._numbers[node] = self._fresh()
        line = Line(operation, tuple(self._number(read) for read in reads), number)
        if self._varying.intersection(line.reads):
            self._varying.add(number)
        self._makers[number] = operation
        self._lines.append(line)

    def _fresh(self) -> int:
        return 1 + max(self._numbers.values(), default=0)


def _caller(node: fx.Node, reads: list[fx.Node], module: nn.Module | None) -> Callable[..., Any]:
    """What calls a node with the values of ``reads``."""
    args, kwargs, target = node.args, node.kwargs, node.target

    def call(*values: Any) -> Any:
        known = dict(zip(reads, values, strict=True))
        own = fx.map_arg(args, known.__getitem__)
        named = fx.map_arg(kwargs, known.__getitem__)
        if module is not None:
            return module(*own, **named)
        if node.op == "call_method":
            return getattr(own[0], str(target))(*own[1:], **named)
        return target(*own, **named)  # type: ignore[operator]

    return call


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found

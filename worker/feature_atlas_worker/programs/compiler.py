"""From a captured graph to a program: convolutions joined with their ReLUs, folded norms and the like left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.programs import operations
from feature_atlas_worker.programs.operations import Unsuitable
from feature_atlas_worker.programs.pooling import MaxPool
from feature_atlas_worker.programs.program import Line, Program, needed
from feature_atlas_worker.programs.reading import Reading, ancestors

#: Operations left to autograd for each of ours, at most: each costs a little more here than in one great graph.
_OTHERS = 3


@dataclass(frozen=True)
class Compiled:
    """The operations that give some nodes' values; programs for fewer of them run the same ones."""

    lines: list[Line]
    constants: dict[int, Any]
    numbers: dict[fx.Node, int]

    def program(self, nodes: Sequence[fx.Node]) -> Program:
        """What gives the values of these nodes."""
        return Program(self.lines, self.constants, [self.numbers[node] for node in nodes])

    def check_worth(self) -> None:
        """Raises Unsuitable where autograd would do as well."""
        natives = sum(not isinstance(line.operation, operations.Other) for line in self.lines)
        if not any(isinstance(line.operation, operations.Convolve) for line in self.lines):
            raise Unsuitable("no convolution")
        if len(self.lines) > (1 + _OTHERS) * natives:
            raise Unsuitable("most of it is left to autograd")


def compiled(reading: Reading, results: Sequence[fx.Node], kernels: bool = False) -> Compiled:
    """The operations that give these nodes' values; with our own kernels where there are some and ``kernels`` says so.

    Raises:
        Unsuitable: they cannot be told apart from what they write over.
    """
    return _Compiler(reading, results, kernels).compiled()


class _Compiler:
    def __init__(self, reading: Reading, results: Sequence[fx.Node], kernels: bool) -> None:
        self._kernels = kernels
        self._reading, self._results = reading, [reading.origin(node) for node in results]
        self._order = list(reading.graph.nodes)
        self._needed = ancestors(self._results)
        self._readers = reading.readers(self._needed)
        self._readers.update(self._results)
        self._numbers: dict[fx.Node, int] = {}
        self._makers: dict[int, operations.Operation] = {}
        self._varying: set[int] = {0}
        self._constants: dict[int, Any] = {}
        self._lines: list[Line] = []

    def compiled(self) -> Compiled:
        self._check_writes()
        for node in self._order:
            if node in self._needed and self._reading.origin(node) is node:
                self._add(node)
        numbers = {node: self._number(node) for node in self._results}
        return Compiled(needed(self._lines, numbers.values()), self._constants, numbers)

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
        rescaled = reading.rescaled(node)
        if rescaled is not None:
            return operations.Rescale(*rescaled[1:]), [reading.origin(rescaled[0])]
        joined = reading.joined(node)
        if joined is not None and all(self._number(read) in self._varying for read in joined):
            return operations.Concatenate(), joined
        if type(module) is nn.MaxPool2d and not module.return_indices:
            geometry = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            read = reading.origin(node.all_input_nodes[0])
            return MaxPool(*geometry, rectified=self._rectified(read), own=self._kernels), [read]
        return self._other(node)

    def _rectified(self, node: fx.Node) -> bool:
        """Whether a node that is pooled and read by nobody else is rectified; then only the pooled map is masked.

        What is above zero where it is greatest is all that a ReLU before the pooling would let back, too.
        """
        found: list[operations.Convolve | operations.Rectify] = []
        waiting = [node]
        while waiting:
            read = waiting.pop()
            maker, joined = self._makers.get(self._number(read)), self._reading.joined(read)
            if self._readers[read] > 1:
                return False
            if isinstance(maker, operations.Concatenate) and joined is not None:
                waiting += [self._reading.origin(part) for part in joined]
            elif isinstance(maker, operations.Convolve | operations.Rectify) and maker.rectified:
                found.append(maker)
            else:
                return False
        for each in found:
            each.masked = True
        return True

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

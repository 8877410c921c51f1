"""A network's layer as a short program: the operations that lead to it and no others, without autograd between them.

Autograd and Python's modules cost more than a tenth of a step with one picture, and neither can join a convolution with
its ReLU.  A program is made of a captured graph, and compared with the network before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feature_atlas_worker.programs.operations import Convolve, Gradient, Operation, Way


@dataclass(frozen=True)
class Line:
    """One operation, and the numbers of the values that it reads and gives."""

    operation: Operation
    reads: tuple[int, ...]
    gives: int


def needed(lines: Sequence[Line], results: Iterable[int]) -> list[Line]:
    """The lines that lead to some values."""
    wanted, found = set(results), []
    for line in reversed(lines):
        if line.gives in wanted:
            found.append(line)
            wanted.update(line.reads)
    return found[::-1]


class Program:
    """``picture [B, 3, h, w] -> values``, with a way back to the picture."""

    def __init__(self, lines: Sequence[Line], constants: dict[int, Any], results: Sequence[int]) -> None:
        """Value 0 is the picture; ``constants`` are values that do not depend on it."""
        self.lines, self.results = needed(lines, results), tuple(results)
        self._constants = constants
        varying = {0}
        for line in self.lines:
            if varying.intersection(line.reads):
                varying.add(line.gives)
        #: (operation, varying values that it reads, value that it gives, whether it adds to a gradient that is there).
        self._way_back: list[tuple[Any, list[int], int, bool]] = []
        for line in reversed(self.lines):
            reads = [number for number in line.reads if number in varying]
            onto = isinstance(line.operation, Convolve) and len(reads) == 1
            self._way_back.append((line.operation, reads, line.gives, onto))
        last = {number: place for place, line in enumerate(self.lines) for number in line.reads}
        #: The values that nobody reads after a line.
        self._spent: list[list[int]] = [[] for _ in self.lines]
        for number, place in last.items():
            if number not in self.results and number not in constants:
                self._spent[place].append(number)

    def __call__(self, picture: Tensor, allow: Tensor | None = None) -> tuple[Tensor, ...]:
        """The results; under autocast convolutions are in bf16.  ``allow`` [B]: who may redirect gradients."""
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if torch.is_grad_enabled() and picture.requires_grad:
            found: tuple[Tensor, ...] = _Run.apply(picture, self, Way(half, allow, returns=True))
            return found
        return self.ahead(picture, Way(half))[0]

    def ahead(self, picture: Tensor, way: Way) -> tuple[tuple[Tensor, ...], list[Any]]:
        """(results, what every line keeps for the way back)."""
        values: dict[int, Any] = {0: picture, **self._constants}
        kept = []
        for line, spent in zip(self.lines, self._spent, strict=True):
            values[line.gives], own = line.operation.ahead(way, *[values[number] for number in line.reads])
            kept.append(own if way.returns else None)
            for number in spent:
                del values[number]
        return tuple(values[number] for number in self.results), kept

    def back(self, gradients: Sequence[Tensor | None], way: Way, kept: Sequence[Any]) -> Tensor | None:
        """The picture's gradient, out of the results'; None where nothing leads back."""
        found: dict[int, Gradient] = {}
        for number, given in zip(self.results, gradients, strict=True):
            if given is not None:
                _gather(found, number, Gradient(given, owned=False))
        for (operation, reads, gives, onto), own in zip(self._way_back, reversed(kept), strict=True):
            if gives not in found:
                continue
            gradient = found.pop(gives)
            if onto and reads[0] in found:
                found[reads[0]] = operation.back_onto(way, gradient, own, found[reads[0]])
                continue
            for number, part in zip(reads, operation.back(way, gradient, own), strict=True):
                if part is not None:
                    _gather(found, number, part)
        return found[0].of if 0 in found else None


def _gather(found: dict[int, Gradient], number: int, gradient: Gradient) -> None:
    found[number] = found[number].plus(gradient) if number in found else gradient


class _Run(torch.autograd.Function):
    """A program seen by autograd: one node."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor, program: Program, way: Way) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        results, ctx.kept = program.ahead(picture, way)
        ctx.program, ctx.way = program, way
        # Other objects than those kept: what leads to this node must not be held by it, or only gc would free it.
        return tuple(result.detach() for result in results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        return ctx.program.back(grads, ctx.way, ctx.kept), None, None

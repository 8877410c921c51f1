"""Rows in a process of their own, forked before this one is changed: Lucent runs there as it is shipped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from tests.bench import subjects
from tests.bench.rows import Row, Timed, opened


class Shipped:
    """The other process, seen from this one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, name: str, layer: str, size: int, allowed: Sequence[str]) -> None:
        """The layer whose rows follow."""
        self._ask("open", name, layer, size, list(allowed))

    def prepared(self, row: Row) -> Timed:
        """What times a row there."""
        return _Timed(self, self._ask("prepare", row))

    def _ask(self, *message: Any) -> Any:
        self._connection.send(message)
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Timed(Timed):
    def __init__(self, shipped: Shipped, number: int) -> None:
        self._ask, self._number = shipped._ask, number

    def __call__(self, steps: int) -> float:
        return float(self._ask("time", self._number, steps))

    def peak(self, steps: int) -> float | None:
        found: float | None = self._ask("peak", self._number, steps)
        return found


@contextmanager
def untouched() -> Iterator[Shipped]:
    """A process like this one as it is now."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(there, here), daemon=True)
    process.start()
    there.close()
    try:
        yield Shipped(here)
    finally:
        here.close()
        process.join(10)


def _serve(connection: Connection, other: Connection) -> None:
    other.close()  # the end of the other process is the end of this one
    rows: list[Timed] = []
    with ExitStack() as stack:
        bench: Any = None
        while True:
            try:
                kind, *rest = connection.recv()
            except EOFError:
                return
            try:
                if kind == "open":
                    name, layer, size, allowed = rest
                    stack.close()
                    rows.clear()
                    bench = stack.enter_context(opened(subjects.load(name, allowed), layer, torch.device("cpu"), size))
                    answer: Any = None
                elif kind == "prepare":
                    rows.append(bench.prepared(*rest))
                    answer = len(rows) - 1
                else:
                    number, steps = rest
                    answer = rows[number](steps) if kind == "time" else rows[number].peak(steps)
            except Exception as error:
                answer = error
            connection.send(answer)

"""How far long work is: a bar on a terminal, plain lines every few seconds in a log.  On standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

#: Seconds between two lines in a log.
EVERY = 5.0
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """Counts up to ``total``.  What was there before counts for the share and not for the rate."""

    def __init__(self, what: str, total: int, initial: int = 0, unit: str = "channels") -> None:
        self.what, self.total, self.initial, self.unit = what, total, initial, unit
        self.done = initial
        self.note = ""
        self._started = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.what, total=self.total, initial=self.initial, unit=f" {self.unit}",
                bar_format=_BAR, dynamic_ncols=True, smoothing=0.1, file=sys.stderr,
            )  # fmt: skip
        elif self.total:
            self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done != self.initial:
            self._line()

    def add(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        self._tell()

    def to(self, done: int, total: int) -> None:
        """``done`` of ``total`` are done."""
        if self._bar is not None and total != self.total:
            self._bar.total = total
        self.total = total
        self.add(done - self.done)

    def at(self, note: str) -> None:
        """Where the work is just now, such as a layer and a step."""
        self.note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(0)
        self._tell()

    def _tell(self) -> None:
        if self._bar is None and time.monotonic() - self._told >= EVERY:
            self._line()

    def _line(self) -> None:
        self._told = time.monotonic()
        new, seconds = self.done - self.initial, self._told - self._started
        share = 100 * self.done / self.total if self.total else 100.0
        rate = new / seconds if seconds else 0.0
        pace = f", {per_second(rate)}/s, {duration((self.total - self.done) / rate)} left" if rate else ""
        note = f", {self.note}" if self.note and self.done < self.total else ""
        print(
            f"{self.what}: {self.done}/{self.total} {self.unit} ({share:.0f}%){pace}{note}", file=sys.stderr, flush=True
        )


def per_second(rate: float) -> str:
    """A rate in few digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 10 s``, ``2 h 05 min`` or ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def table(rows: list[tuple[object, ...]], head: tuple[str, ...]) -> str:
    """Columns, numbers to the right."""
    texts = [head, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    right = [bool(rows) and isinstance(rows[0][i], int) for i in range(len(head))]
    lines = []
    for row in texts:
        cells = (
            text.rjust(width) if aligned else text.ljust(width)
            for text, width, aligned in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

"""The table of techniques: rows in turn, round after round, medians; as numbers and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.bench.rows import Bench, Row
from tests.bench.shipped import Shipped

Report = Callable[[str], None]


def measure(
    bench: Bench, rows: Sequence[Row], rounds: int, steps: int, say: Report, shipped: Shipped | None = None
) -> list[dict[str, Any]]:
    """One record per row: milliseconds per step and channel in every round, peak bytes per image."""
    # Lucent as shipped, and whatever changes nothing of its process, has one of its own.
    timed = [(shipped if shipped and row.untouched else bench).prepared(row) for row in rows]
    # What runs several images side by side runs fewer steps: a round is over in seconds.
    counts = [max(2, math.ceil(steps / row.batch)) for row in rows]
    peaks = []
    for row, run in zip(rows, timed, strict=True):  # the warm-up, which is not timed
        run(1)
        bytes_more = run.peak(2)
        peaks.append(bytes_more / row.batch if bytes_more is not None else None)
    found: list[list[float]] = [[] for _ in rows]
    for number in range(rounds):
        say(f"{bench.layer}: round {number + 1} of {rounds}")
        for values, row, run, count in zip(found, rows, timed, counts, strict=True):
            values.append(1000 * run(count) / row.batch)
    return [
        {"layer": bench.layer, "row": row.name, "kind": row.kind, "batch": row.batch, "ms": values, "peak": most}
        for row, values, most in zip(rows, found, peaks, strict=True)
    ]


def compare(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of one layer with their medians: ratios are taken within each round, where both ran in turn."""
    lucent = [record for record in records if record["kind"] == "lucent"]
    bare = {record["batch"]: record for record in records if record["kind"] == "bare"}

    def ratio(top: Mapping[str, Any] | None, bottom: Mapping[str, Any]) -> float | None:
        if top is None:
            return None
        return statistics.median(a / b for a, b in zip(top["ms"], bottom["ms"], strict=True))

    return [
        {
            **record,
            "median": statistics.median(record["ms"]),
            "lucent_a": ratio(lucent[0] if lucent else None, record),
            "lucent_b": ratio(lucent[1] if len(lucent) > 1 else None, record),
            "bare": ratio(record, bare[record["batch"]])
            if record["kind"] == "ours" and record["batch"] in bare
            else None,
        }
        for record in records
    ]


def markdown(layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table for the README: a line per row, a column per layer; what is fastest in a layer is bold."""
    lines = ["| | " + " | ".join(f"`{layer.replace(':', '` `')}`" for layer in layers) + " |"]
    lines.append("|---|" + "---|" * len(layers))
    best = {
        layer: min((r["median"] for r in records if r["kind"] == "ours"), default=0.0)
        for layer, records in layers.items()
    }
    for parts in zip(*layers.values(), strict=True):
        cells = [_cell(record, record["median"] == best[layer]) for layer, record in zip(layers, parts, strict=True)]
        lines.append(f"| {parts[0]['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(record: Mapping[str, Any], best: bool) -> str:
    time = f"{record['median']:.1f}" if record["median"] < 100 else f"{record['median']:.0f}"
    text = f"**{time}**" if best else time
    for key, form in (("lucent_b", "{:.1f}x"), ("lucent_a", "({:.0f}x)")):
        if record[key] is not None and record["kind"] != "lucent":
            text += " " + form.format(record[key])
    if record["bare"] is not None:
        text += f", {record['bare']:.2f}"
    if record["peak"] is not None:
        text += f", {record['peak'] / 2**20:.0f} MB"
    return text


LEGEND = (
    "Each cell: ms of {unit} per step and channel, times faster than Lucent (b) and (a), share of the bare network's"
    " time at the same batch (forward to the layer and back to the input, nothing else), peak memory per image."
)

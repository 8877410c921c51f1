"""What a worker does when: encoding and uploading beside rendering.  ``python -m tests.bench.timeline --chart FILE``.

Renders channels of the built-in network in batches with the executor that every worker uses, into a real S3 gateway
(Ceph) or a folder, and draws one line per thread.  Prints, as JSON, for how long nothing was rendered between the first
batch's begin and the last one's end, and how many seconds of encoding and uploading lay beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from feature_atlas.atlas import Atlas
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.presets import preset
from feature_atlas.spec import ModelRef, Unit
from feature_atlas_worker import phases, resolve
from feature_atlas_worker.execute import Executor
from tests.servers import CephGateway

COLOURS = {"render": "#4c956c", "encode": "#f2a65a", "upload": "#5b8db8", "load": "#c9d3df"}
WIDTH, LEFT, LINE, TOP = 860, 110, 26, 34


class Span(NamedTuple):
    """One phase on one thread, in seconds of one clock."""

    phase: str
    thread: str
    begin: float
    end: float


def record(url: str, channels: int, batch: int, steps: int) -> list[Span]:
    """Renders an atlas and returns all that was timed, in order of its end."""
    reference: ModelRef = resolve.resolve("builtin:demo")[0]
    layer = LayerPlan(name="conv6", kind="conv", index=0, total=channels, channels=f"0:{channels}")
    plan = PlanFile(
        model=reference.digest(), layers=(layer,), variants={"channel": preset("regularised", {"steps": steps})}
    )
    atlas = Atlas.grow(url, reference, plan)
    spans: list[Span] = []

    def told(phase: phases.Phase, seconds: float, _jobs: int) -> None:
        now = time.monotonic()
        spans.append(Span(phase, threading.current_thread().name, now - seconds, now))

    phases.listen(told)
    try:
        with Executor("cpu", batch=batch) as executor:
            jobs = [atlas.plan.job(Unit("channel", "conv6", channel)) for channel in range(channels)]
            executor.run(jobs, atlas.store, lambda _outcome: None)
    finally:
        phases.forget(told)
    return spans


def figures(spans: Sequence[Span]) -> dict[str, Any]:
    """Seconds of the run, of rendering, of pauses between batches, and of what went on beside."""
    renders = [span for span in spans if span.phase == "render"]
    whole = renders[-1].end - renders[0].begin
    rendering = sum(span.end - span.begin for span in renders)
    beside = sum(span.end - span.begin for span in spans if span.phase in ("encode", "upload"))
    return {
        "seconds": round(whole, 2), "rendering": round(rendering, 2), "paused": round(whole - rendering, 3),
        "paused_share": round(1 - rendering / whole, 4), "encoding_and_uploading": round(beside, 2),
    }  # fmt: skip


def chart(spans: Sequence[Span]) -> str:
    """One line per thread as an SVG."""
    begin = min(span.begin for span in spans)
    seconds = max(span.end for span in spans) - begin
    threads = sorted({span.thread for span in spans}, key=lambda name: (name != "MainThread", name))
    height = TOP + LINE * len(threads) + 24

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * at / seconds

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        f' font-size="11" fill="#333"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    ]
    for n, (phase, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{LEFT + 80 * n}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 14 + 80 * n}" y="17">{phase}</text>')
    for row, name in enumerate(threads):
        top = TOP + LINE * row
        label = "rendering" if name == "MainThread" else name.replace("_", " ")
        parts.append(f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>')
        for span in spans:
            if span.thread == name and span.phase in COLOURS:
                wide = max(0.5, x(span.end - begin) - x(span.begin - begin))
                parts.append(
                    f'<rect x="{x(span.begin - begin):.1f}" y="{top}" width="{wide:.1f}" height="{LINE - 6}"'
                    f' fill="{COLOURS[span.phase]}" stroke="#fff" stroke-width=".3"/>'
                )
    for second in range(0, int(seconds) + 1, max(1, int(seconds) // 8)):
        parts.append(f'<text x="{x(second):.1f}" y="{height - 6}" text-anchor="middle">{second} s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["folder", "ceph"], default="ceph")
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--chart", type=Path, help="an SVG to be written")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fa-timeline-") as name, contextlib.ExitStack() as stack:
        url = f"{name}/atlas"
        if args.store == "ceph":
            ceph = CephGateway(Path(name) / "ceph")
            stack.callback(ceph.close)
            ceph.start()
            os.environ.update(ceph.environ)
            url = f"s3://{ceph.new_bucket()}/demo"
        spans = record(url, args.channels, args.batch, args.steps)
    print(json.dumps(figures(spans)))
    if args.chart:
        args.chart.write_text(chart(spans))


if __name__ == "__main__":
    main()

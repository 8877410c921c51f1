"""The watchdog: ends a consumer that takes nothing although jobs wait, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.worker import state

from feature_atlas.broker import open_client
from feature_atlas.messages import QUEUE
from feature_atlas_worker import watchdog
from feature_atlas_worker.pulse import Pulse
from feature_atlas_worker.watchdog import STALLED, Watchdog
from tests.servers import RedisServer


@pytest.fixture
def dog(valkey: RedisServer) -> Iterator[Watchdog]:
    with open_client(valkey.url) as client:
        yield Watchdog(client, Pulse(), patience=0.0, silence=1.0, grace=0.0)


def after_a_first_look(dog: Watchdog) -> bool:
    assert not dog.stalled()
    return dog.stalled()


def test_jobs_wait_and_none_is_taken(dog: Watchdog) -> None:
    dog.client.lpush(QUEUE, "message")
    assert after_a_first_look(dog)


def test_a_broker_that_takes_nothing_is_no_stall(dog: Watchdog, valkey: RedisServer) -> None:
    dog.client.lpush(QUEUE, "message")
    with valkey.taking_nothing("replica"):
        assert not after_a_first_look(dog)


def test_an_empty_queue_is_no_stall(dog: Watchdog) -> None:
    assert not after_a_first_look(dog)


def test_a_worker_at_work_is_no_stall(dog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    dog.client.lpush(QUEUE, "message")
    monkeypatch.setattr(state, "reserved_requests", {object()})
    assert not after_a_first_look(dog)


def test_a_worker_that_takes_jobs_is_no_stall(dog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    dog.client.lpush(QUEUE, "message")
    assert not dog.stalled()
    monkeypatch.setattr(state, "all_total_count", [1])
    assert not dog.stalled()


def test_a_broker_that_is_away_is_no_stall(dog: Watchdog, valkey: RedisServer) -> None:
    dog.client.lpush(QUEUE, "message")
    valkey.kill()
    try:
        assert not after_a_first_look(dog)
    finally:
        valkey.start()


def test_it_asks_first_and_leaves_with_a_status_of_its_own(dog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: done.append(number))
    monkeypatch.setattr(watchdog, "_kill_children", lambda: done.append("children"))
    dog._end(leave=done.append)
    assert done == [signal.SIGTERM, "children", STALLED]


def test_the_child_is_heard_across_a_fork() -> None:
    code = """
import os
from feature_atlas_worker.pulse import Pulse
pulse = Pulse()
assert pulse.silence == 0 and not pulse.busy and not pulse.draining
pid = os.fork()
if pid == 0:
    pulse.busy = True
    pulse.device_failures += 1
    pulse.note = "s3://bucket/föö"
    while not pulse.draining: pass
    os._exit(7)
while not pulse.busy: pass
pulse.drain()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert pulse.note == "s3://bucket/föö"
pulse.note = "x" * 5000  # too long: the old one stays
assert pulse.note == "s3://bucket/föö"
assert pulse.device_failures == 1 and pulse.draining and 0 < pulse.silence < 60
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


def test_a_liveness_file_is_touched(dog: Watchdog, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    dog.alive_file = alive
    dog.look()
    assert alive.exists()

"""The watchdog: ends a consumer that takes nothing although jobs wait, and nothing else."""

from __future__ import annotations

import os
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
from feature_atlas_worker import alive, watchdog
from feature_atlas_worker.alive import AliveFile
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
    file = tmp_path / "alive"
    dog.alive_file = AliveFile(str(file))
    dog.look()
    assert file.exists()


def test_a_liveness_file_is_left_alone_while_something_is_amiss(
    dog: Watchdog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(dog, "_end", lambda: ended.append("worker"))
    monkeypatch.setattr(watchdog, "_kill_children", lambda: ended.append("children"))
    file = tmp_path / "alive"
    dog.alive_file = AliveFile(str(file))
    dog.client.lpush(QUEUE, "message")
    assert not dog.stalled()
    dog.look()
    assert ended == ["worker"] and not file.exists()
    # A worker that was told to end is no less alive
    dog.pulse.drain()
    dog.look()
    assert ended == ["worker"] and file.exists()


def test_the_checks_go_on_where_the_liveness_file_cannot_be_touched_and_it_is_said_once(
    dog: Watchdog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(dog, "_end", lambda: ended.append("worker"))
    dog.alive_file = AliveFile(str(tmp_path / "nowhere/alive"))
    for _ in range(3):
        dog.look()
    assert [record.getMessage() for record in caplog.records if "cannot touch" in record.getMessage()] == [
        f"cannot touch {tmp_path}/nowhere/alive (No such file or directory): probes will take this worker for dead"
    ]
    dog.client.lpush(QUEUE, "message")
    assert not ended
    dog.look()
    assert ended == ["worker"]


def test_a_worker_begins_without_the_liveness_file_of_the_last_one(tmp_path: Path) -> None:
    left = tmp_path / "alive"
    left.touch()
    alive.begin(str(left))
    assert not list(tmp_path.iterdir())
    alive.begin("")


def test_a_worker_whose_liveness_file_cannot_be_touched_does_not_start(valkey: RedisServer, tmp_path: Path) -> None:
    """With its command, and without."""
    environ = {
        **os.environ, "FEATURE_ATLAS_BROKER": valkey.url, "FEATURE_ATLAS_ALLOWED_STORES": str(tmp_path),
        "FEATURE_ATLAS_ALIVE_FILE": "/nonexistent/alive",
    }  # fmt: skip
    for argv in (["feature_atlas", "worker"], ["feature_atlas_worker"]):
        ended = subprocess.run([sys.executable, "-m", *argv], env=environ, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert "FEATURE_ATLAS_ALIVE_FILE=/nonexistent/alive cannot be touched (No such file" in ended.stderr

"""Ways out of a turn: every message is accounted for, and only the job's own faults count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys, manifest
from feature_atlas.errors import DeviceError, RenderError, RequestError, StoreError
from feature_atlas.manifest import Failure
from feature_atlas.messages import QUEUE, UNACKED, attempts_key, parse
from feature_atlas.monitor import read
from feature_atlas.queue import Template, make_app
from feature_atlas.settings import Settings
from feature_atlas.spec import Unit
from feature_atlas_producer.enqueue import enqueue
from feature_atlas_worker import retreat
from feature_atlas_worker.child import Child
from feature_atlas_worker.execute import Outcome
from feature_atlas_worker.pulse import Pulse
from feature_atlas_worker.retreat import Retreat
from feature_atlas_worker.turn import Turn
from tests.e2e.farm import grow
from tests.servers import RedisServer


class Setting:
    """A rendering process without its process, six jobs in the queue, and four of them in hand and counted."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.atlas = grow(folder / "atlas", {"conv": 6})
        enqueue(self.atlas, broker)
        settings = Settings(broker=broker, allowed_stores=(str(folder),), visibility_timeout=3600, patience=0)
        self.child = Child(settings, Template(make_app(broker)), Pulse(), "w0@here")
        self.child.lease.stop()
        self.client, self.hand = self.child.client, self.child.hand
        order = parse(self.client.lindex(QUEUE, -1)).order
        self.messages = self.hand.claim(order.group, 4, 4)
        self.hand.count(self.messages)
        self.retreat = Retreat(self.child, order)

    def queued(self) -> list[int]:
        """Channels in the order in which they will be taken."""
        return [parse(raw).order.channel for raw in reversed(self.client.lrange(QUEUE, 0, -1))]

    def attempts(self) -> dict[int, int]:
        counts = self.client.hgetall(attempts_key(self.atlas.url))
        return {int(name.decode().split("|")[2]): int(count) for name, count in counts.items()}


@pytest.fixture
def setting(valkey: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(retreat, "_LONGEST_WAIT", 0.1)
    setting = Setting(valkey.url, tmp_path)
    yield setting
    assert not setting.client.exists(UNACKED)
    setting.child.close()


def test_a_store_that_fails_is_no_fault_of_the_jobs(setting: Setting) -> None:
    setting.retreat.wait_for_store(StoreError("no route"))
    assert setting.queued() == [0, 1, 2, 3, 4, 5] and not setting.attempts()


def test_every_look_at_a_store_that_still_fails_counts(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert asks what is new: an outage that one worker met once, an hour ago, would not be."""
    counted: list[str] = []
    monkeypatch.setattr(setting.child, "trouble", counted.append)
    lasts, write = iter([True, True, False]), retreat._try_to_write

    def look(atlas: Any, beat: Any) -> None:
        if next(lasts):
            raise StoreError("still no route")
        write(atlas, beat)

    monkeypatch.setattr(retreat, "_try_to_write", look)
    setting.retreat.wait_for_store(StoreError("no route"))
    assert counted == ["store"] * 3


def test_what_is_for_others_goes_behind_everything_uncounted(setting: Setting) -> None:
    setting.client.lpush(QUEUE, *setting.child.template.messages("s3://bucket/other", "channel", "conv", [9]))
    setting.retreat.refuse("paused")
    assert setting.queued() == [9, 0, 1, 2, 3, 4, 5] and not setting.attempts()
    assert setting.child.beat.note.endswith("paused")


def test_what_nobody_expected_counts_and_goes_behind(setting: Setting) -> None:
    setting.retreat.blame(RenderError("what?"))
    assert setting.queued() == [4, 5, 0, 1, 2, 3] and setting.attempts() == dict.fromkeys(range(4), 1)


def test_a_wrong_request_is_never_tried_again(setting: Setting) -> None:
    setting.retreat.blame(RequestError("no such layer"))
    assert setting.queued() == [4, 5] and not setting.attempts()
    assert {why.error for why in read(setting.client, setting.atlas.url).given_up.values()} == {"no such layer"}


def test_a_job_that_ended_its_process_too_often_is_on_record_in_the_store(setting: Setting) -> None:
    unit = Unit("channel", "conv", 0)
    setting.retreat.give_up(setting.messages[0], "the process ended", 4, setting.atlas.plan.job(unit))
    failure = manifest.load(Failure, setting.atlas.store.get(keys.error(unit)), "the record")
    assert (failure.attempts, failure.host, failure.error) == (4, "w0@here", "the process ended")
    setting.retreat.return_rest()


def test_a_device_that_fails_ends_the_process_and_the_third_time_the_worker(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(retreat.os, "_exit", ends.append)
    monkeypatch.setattr(retreat.os, "kill", lambda pid, number: ends.append(number))
    for time in range(3):
        setting.retreat.lose_device(DeviceError("illegal memory access"))
        assert setting.child.pulse.device_failures == time + 1
    assert ends == [70, 70, 15, 70]
    # Everything is in the queue, and the batch that was running counts: it may be to blame.
    assert setting.queued() == [0, 1, 2, 3, 4, 5] and setting.attempts() == dict.fromkeys(range(4), 1)


def test_a_cancelled_atlas_leaves_nothing(setting: Setting) -> None:
    setting.retreat.drop()
    assert setting.queued() == [] and not setting.attempts() and setting.atlas.url not in setting.child.served


def test_what_ends_a_job_is_counted_before_the_broker_forgets_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed in between then leads to a job that is counted twice, never to one that is not counted."""
    known: list[tuple[str, int]] = []

    def tell(outcome: str, jobs: int = 1) -> None:
        known.extend([(outcome, setting.client.hlen(UNACKED))] * jobs)

    monkeypatch.setattr(setting.child, "tell", tell)
    turn = Turn(setting.child, setting.messages[0])
    turn._messages = {message.order.unit: message for message in setting.messages}
    jobs = [setting.atlas.plan.job(message.order.unit) for message in setting.messages]
    turn._settle(Outcome(jobs[0], "ok"))
    turn._attempts = {jobs[1].unit: 0}
    turn._settle(Outcome(jobs[1], "failed", error="no such layer", final=True))
    setting.atlas.store.put(keys.image(jobs[2].unit), b"there")
    assert turn._not_done(jobs[2:]) == jobs[3:]
    assert known == [("ok", 4), ("failed", 3), ("given_up", 3), ("skipped", 2)]
    setting.retreat.return_rest()


def test_a_broker_that_is_away_while_the_worker_ends_is_not_waited_for(setting: Setting, valkey: RedisServer) -> None:
    setting.child.pulse.drain()
    valkey.kill()
    try:
        setting.retreat.return_rest()
    finally:
        valkey.start()
    setting.client.delete(UNACKED)

"""Beside the work: leases, flags, signs of life, and lost jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_atlas import place, steer
from feature_atlas.broker import now
from feature_atlas.cli import main
from feature_atlas.messages import ATLASES, MEMORY, QUEUE, UNACKED_INDEX, parse, rest_key
from feature_atlas.monitor import workers
from feature_atlas.queue import Template, make_app
from feature_atlas.settings import Settings
from feature_atlas_producer.enqueue import enqueue
from feature_atlas_worker import forgotten
from feature_atlas_worker.child import Child
from feature_atlas_worker.pulse import Pulse
from tests.e2e.farm import grow
from tests.servers import CephGateway, RedisServer, wait_until


@pytest.fixture
def child(valkey: RedisServer, tmp_path: Path) -> Iterator[Child]:
    """A rendering process without its process; its lease ticks only when told."""
    settings = Settings(broker=valkey.url, allowed_stores=(str(tmp_path),), visibility_timeout=3600, rest=1)
    child = Child(settings, Template(make_app(valkey.url)), Pulse(), "w0@here")
    child.lease.stop()
    yield child
    child.close()


def test_a_tick_renews_what_is_in_hand(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    messages = child.hand.claim(parse(child.client.lindex(QUEUE, -1)).order.group, 9, 9)
    child.client.zadd(UNACKED_INDEX, dict.fromkeys([m.tag for m in messages], 1.0))
    child.lease.tick()
    assert child.client.zcount(UNACKED_INDEX, time.time() - 60, "+inf") == 3


def test_a_tick_tells_who_lives_and_what_it_does(child: Child) -> None:
    child.note(state="working", layer="conv")
    child.count(done=4)
    child.lease.tick()
    (beat,) = workers(child.client)
    assert (beat.worker, beat.state, beat.layer, beat.done, beat.alive) == ("w0@here", "working", "conv", 4, True)
    assert child.lease.workers == 1


def test_a_tick_learns_of_a_cancelled_atlas(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    steer.cancel(child.client, atlas.url)
    child.lease.tick()
    assert child.lease.flags == {atlas.url: "cancelled"}


def test_a_broker_that_is_away_ends_no_thread(child: Child, valkey: RedisServer) -> None:
    lease = type(child.lease)(child, child.template)
    lease.interval = 0.05
    lease.start()
    valkey.kill()
    try:
        wait_until(lambda: lease._troubled, "the trouble")
        assert lease._thread.is_alive()
    finally:
        valkey.start()
    wait_until(lambda: not lease._troubled, "the end of the trouble")
    lease.stop()


def test_an_idle_worker_sends_again_what_the_queue_lost(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    child.served.add(atlas.url)
    child.lease.search()
    assert child.client.llen(QUEUE) == 3
    # Sent: nobody needs to look again before it is done.
    assert not child.client.exists(rest_key(atlas.url))


def test_an_atlas_is_remembered_by_the_next_child_when_the_broker_forgot_it(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    child.lease.tick()
    child.client.flushall()
    successor = Child(child.settings, child.template, child.pulse, "w0@here")
    successor.lease.stop()
    successor.lease.search()
    assert child.client.llen(QUEUE) == 3
    successor.close()


def test_a_broker_that_forgot_is_reminded_by_the_next_tick(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    child.lease.tick()
    before = child.client.hgetall(ATLASES)
    child.client.flushall()
    child.lease.tick()
    assert child.client.hgetall(ATLASES) == before and list(before) == [atlas.url.encode()]
    # But of nothing that was cancelled or is gone.
    steer.cancel(child.client, atlas.url)
    child.lease.tick()
    assert not child.client.exists(ATLASES)


@pytest.mark.parametrize("below", ["", "atlas", "atlases/resnet50"])
def test_a_worker_that_nobody_told_anything_goes_on_where_it_may_write(
    child: Child, valkey: RedisServer, tmp_path: Path, below: str
) -> None:
    # Given an atlas that was enqueued, another that was not, and a broker that forgot while all workers were replaced
    atlas, _ = grow(tmp_path / below, {"conv": 3}), grow(tmp_path / "mine", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    child.client.flushall()
    child.lease.search()
    assert child.served == {atlas.url} and child.client.llen(QUEUE) == 3
    # When it is cancelled, and the broker forgets that, too
    assert main(["cancel", atlas.url, "--broker", valkey.url]) == 0
    child.client.flushall()
    child.served.clear()
    child.lease.search()
    # Then nobody goes on with it
    assert not child.served and child.client.llen(QUEUE) == 0


def test_a_worker_that_is_allowed_a_bucket_finds_what_the_broker_forgot_in_it(
    child: Child, ceph: CephGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{ceph.new_bucket()}"
    child.settings = child.settings.model_copy(update={"allowed_stores": (f"{bucket}/",)})
    child.lease.atlases.allowed = child.settings.allowed_stores
    # Given an atlas right below the bucket, one below that, one too deep, and one that nobody enqueued
    near, far = grow(f"{bucket}/near", {"conv": 3}), grow(f"{bucket}/atlases/far", {"conv": 4})
    deep, mine = grow(f"{bucket}/a/b/c", {"conv": 5}), grow(f"{bucket}/mine", {"conv": 6})
    for atlas in (near, far, deep):
        enqueue(atlas, child.settings.broker)
    child.client.flushall()
    child.lease.search()
    assert child.served == {near.url, far.url} and child.client.llen(QUEUE) == 7
    # And one look is enough for an hour, whoever else is idle
    place.describe(mine.store)
    child.lease.search()
    assert mine.url not in child.served


def test_not_all_the_world_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgotten, "MOST", 5)
    for name in "abcdefgh":
        place.describe(grow(tmp_path / name, {"conv": 1}).store)
    assert set(forgotten.enqueued(["*", str(tmp_path)])) == {str(tmp_path / name) for name in "abcd"}


def test_a_look_that_failed_is_repeated(child: Child, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    child.client.flushall()
    with monkeypatch.context() as broken:
        broken.setattr(forgotten.os, "scandir", failing)
        child.lease.search()
        assert not child.served
    child.lease.search()
    assert child.served == {atlas.url}


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_an_atlas_that_is_gone_is_forgotten(child: Child, tmp_path: Path) -> None:
    child.served.add(str(tmp_path / "gone"))
    child.lease.search()
    assert not child.served


def test_nobody_looks_through_the_same_atlas_right_after_another(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    child.served.add(atlas.url)
    child.client.set(rest_key(atlas.url), "1")
    child.lease.search()
    assert child.client.llen(QUEUE) == 0


def test_neither_a_cancelled_nor_a_foreign_atlas_is_looked_through(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    enqueue(atlas, child.settings.broker)
    steer.cancel(child.client, atlas.url)
    child.lease.tick()
    child.served.update({atlas.url, "/elsewhere/atlas", "s3://nowhere/atlas"})
    child.lease.search()
    assert child.client.llen(QUEUE) == 0


def test_an_idle_worker_looks_when_all_have_had_the_time_to_say_what_they_hold(child: Child, tmp_path: Path) -> None:
    # Given a broker that has just forgotten everything, and jobs that are nowhere
    atlas = grow(tmp_path / "atlas", {"conv": 3})
    child.served.add(atlas.url)
    child.lease.interval = 0.0
    child.lease.tick()
    child.client.flushall()
    child.lease.tick()
    assert child.lease._search is None and child.client.llen(QUEUE) == 0
    # When it remembers for longer than a lease lasts
    child.client.set(MEMORY, f"{now(child.client) - 3601:.6f} since")
    child.lease.tick()
    wait_until(lambda: child.client.llen(QUEUE) == 3, "the jobs")


def test_a_busy_or_ending_worker_does_not_look(child: Child, tmp_path: Path) -> None:
    child.served.add(grow(tmp_path / "atlas", {"conv": 3}).url)
    child.client.set(MEMORY, "1 long ago")
    child._touched = -1e9
    child.pulse.busy = True
    child.lease._search_if_idle()
    child.pulse.busy = False
    child.pulse.drain()
    child.lease._search_if_idle()
    assert child.lease._search is None

"""One task: what it asks of the broker and of the store, beside its picture."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from feature_atlas import keys
from feature_atlas.errors import AtlasError, ObjectNotFound, WeightsError
from feature_atlas.messages import QUEUE, UNACKED, UNACKED_INDEX, Message, attempts_key, dead_key, field, parse
from feature_atlas.queue import Template, make_app
from feature_atlas.settings import Settings
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore
from feature_atlas_producer.enqueue import enqueue
from feature_atlas_worker import turn as turns
from feature_atlas_worker.child import Child
from feature_atlas_worker.execute import Executor
from feature_atlas_worker.pulse import Pulse
from feature_atlas_worker.turn import Turn
from tests.e2e import cheap_worker
from tests.e2e.farm import grow
from tests.servers import RedisServer


@pytest.fixture
def child(valkey: RedisServer, tmp_path: Path) -> Iterator[Child]:
    """A rendering process without its process, of batch 1, whose pictures cost nothing."""
    settings = Settings(broker=valkey.url, allowed_stores=(str(tmp_path),), visibility_timeout=3600, batch=1)
    child = Child(settings, Template(make_app(valkey.url)), Pulse(), "w0@here")
    child.lease.stop()
    child._executor = Executor("cpu", 1, "w0", settings, render=cheap_worker.render, load=cheap_worker.load)
    yield child
    child.close()


def take(child: Child) -> Message:
    """As kombu does."""
    message = parse(cast(bytes, child.client.rpop(QUEUE)))
    child.client.hset(UNACKED, message.tag, f'[{message.raw},"","{QUEUE}"]')
    child.client.zadd(UNACKED_INDEX, {message.tag: 1.0})
    return message


def turn(child: Child) -> Message:
    message = take(child)
    Turn(child, *child.open(message.tag, message.order)).go()
    return message


def test_a_job_alone_asks_the_broker_three_times_and_lists_nothing(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 5})
    enqueue(atlas, child.settings.broker)
    turn(child)
    # Given a second job of a group, and an eye on what is asked
    asked, listed = Counter[str](), Counter[str]()
    connection = child.client.connection_pool.get_connection()
    send, list_keys = type(connection).send_packed_command, DirectoryStore.list

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked["times"] += 1
        return send(self, *args, **kwargs)

    def listing(self: DirectoryStore, prefix: str = "") -> Any:
        listed[prefix] += 1
        return list_keys(self, prefix)

    child.client.connection_pool.release(connection)
    message = take(child)
    monkeypatch.setattr(type(connection), "send_packed_command", counted)
    monkeypatch.setattr(DirectoryStore, "list", listing)
    Turn(child, *child.open(message.tag, message.order)).go()
    # Then there are no more round trips than these: what is this, it begins, it is done
    assert asked["times"] <= 3 and not listed
    assert len(atlas.done()) == 2 and not child.client.exists(UNACKED, UNACKED_INDEX, attempts_key(atlas.url))


def test_a_success_takes_an_earlier_failure_off_the_record(child: Child, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 1})
    atlas.store.put(keys.error(Unit("channel", "conv", 0)), b"{}")
    child.client.lpush(QUEUE, *child.template.messages(atlas.url, "channel", "conv", [0]))
    turn(child)
    assert len(atlas.done()) == 1 and not atlas.recorded_failures()


def test_a_job_that_was_begun_too_often_is_given_up_by_what_was_known_at_the_beginning(
    child: Child, tmp_path: Path
) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 1})
    enqueue(atlas, child.settings.broker)
    child.client.hset(attempts_key(atlas.url), "channel|conv|0", 4)
    turn(child)
    assert atlas.failed() and not atlas.done() and not child.client.exists(UNACKED, attempts_key(atlas.url))


@pytest.mark.parametrize("batch", [1, 8])
def test_a_job_that_was_sent_twice_is_not_begun_again_when_it_was_given_up(
    batch: int, child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 4})
    enqueue(atlas, child.settings.broker)
    given_up = [Unit("channel", "conv", channel) for channel in (0, 2)]
    child.client.hset(dead_key(atlas.url), mapping={field(unit): "{}" for unit in given_up})
    monkeypatch.setattr(child, "settings", child.settings.model_copy(update={"batch": batch}))
    child.executor.sizes.asked = batch
    while child.client.llen(QUEUE):
        turn(child)
    assert {unit.channel for unit in atlas.done()} == {1, 3}
    assert not child.client.exists(UNACKED, attempts_key(atlas.url)) and child.client.hlen(dead_key(atlas.url)) == 2


def test_a_task_goes_on_though_the_broker_says_nothing_of_it(child: Child, valkey: RedisServer, tmp_path: Path) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 1})
    enqueue(atlas, child.settings.broker)
    message = take(child)
    valkey.kill()
    try:
        opened = child.open(message.tag, message.order)
        assert opened[0].order == message.order and opened[1] is None
    finally:
        valkey.start()
    Turn(child, *opened).go()
    assert len(atlas.done()) == 1


@pytest.mark.parametrize("kind", [WeightsError, ObjectNotFound])
def test_weights_that_cannot_be_had_are_tried_again_after_a_while_and_no_job_is_blamed(
    kind: type[AtlasError], child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 2})
    enqueue(atlas, child.settings.broker)
    tries, troubles = [], list[str]()

    def load(*args: Any, **how: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise kind("cannot download https://host/net.pth (no route): check the network")
        return cheap_worker.load(*args, **how)

    monkeypatch.setattr(child.executor, "_load", load)
    monkeypatch.setattr(child, "trouble", troubles.append)
    for _ in range(3):
        turn(child)
    # Asked once, counted once, kept whole, and said
    assert len(tries) == 1 and troubles == ["weights"] and not atlas.done()
    assert child.client.llen(QUEUE) == 2 and not child.client.exists(UNACKED, attempts_key(atlas.url))
    why = f"{atlas.url}: cannot download https://host/net.pth (no route): check the network"
    assert child.unfit_now() == child.beat.note == why
    # A while later
    until, why = child.unfit[atlas.url]
    assert until - time.monotonic() > 0.8 * turns._UNFIT
    child.unfit[atlas.url] = time.monotonic(), why
    turn(child)
    assert len(tries) == 2 and len(atlas.done()) == 1 and not child.unfit_now()


def test_a_source_of_weights_that_hangs_does_not_take_most_of_the_time(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = grow(tmp_path / "atlas", {"conv": 1})
    enqueue(atlas, child.settings.broker)
    clock = time.monotonic

    def load(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 60)  # a minute later
        raise WeightsError("timed out")

    monkeypatch.setattr(child.executor, "_load", load)
    turn(child)
    assert child.unfit[atlas.url][0] - time.monotonic() > 540

"""Reconcile: plan minus store minus queue, at any time, as often as anybody likes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from feature_atlas import keys, manifest
from feature_atlas.atlas import Atlas
from feature_atlas.errors import BrokerError
from feature_atlas.manifest import Failure
from feature_atlas.messages import QUEUE, UNACKED, attempts_key, dead_key, field, lock_key, parse
from feature_atlas.monitor import GivenUp
from feature_atlas.queue import Template, make_app
from feature_atlas.reconcile import LOCK, MOST_ATTEMPTS, forget, reconcile, where
from feature_atlas.spec import Unit
from feature_atlas.store import MemoryStore
from feature_atlas_producer.enqueue import PATIENCE
from tests.e2e.farm import grow
from tests.servers import RedisServer

TEMPLATE = Template(make_app("redis://localhost"))


class Setting:
    """An atlas of 12 + 5 units in memory, under an S3 name, and a broker."""

    def __init__(self, client: redis.Redis) -> None:
        self.client, self.store = client, MemoryStore()
        self.store.url = "s3://bucket/toy"
        self.atlas: Atlas = grow(self.store, {"conv1": 12, "conv2": 5})  # type: ignore[arg-type]

    def reconcile(self, **options: Any) -> Any:
        return reconcile(self.client, TEMPLATE, self.atlas, **options)

    def queued(self) -> list[Unit]:
        """In the order in which they will be taken."""
        return [parse(raw).order.unit for raw in reversed(self.client.lrange(QUEUE, 0, -1))]

    def take(self, count: int) -> None:
        """As kombu does: from the queue into the hash of those in hand."""
        for _ in range(count):
            message = parse(self.client.rpop(QUEUE))
            self.client.hset(UNACKED, message.tag, f'[{message.raw}, "", "render"]')

    def fail(self, unit: Unit, attempts: int) -> None:
        failure = Failure(unit=unit, job_id="0" * 16, error="no", attempts=attempts)
        self.store.put(keys.error(unit), manifest.dump(failure))

    def give_up(self, unit: Unit, *, recorded: bool) -> None:
        if recorded:
            self.fail(unit, 1)
        self.client.hset(dead_key(self.atlas.url), field(unit), GivenUp(error="no").model_dump_json())


@pytest.fixture
def setting(valkey: RedisServer) -> Any:
    with valkey.client() as client:
        yield Setting(client)


def test_a_fresh_atlas_is_sent_whole_contiguous_by_group_and_in_order(setting: Setting) -> None:
    result = setting.reconcile()
    assert (result.planned, result.sent) == (17, 17) and not result.complete
    assert setting.queued() == list(setting.atlas.plan.units())


def test_the_second_time_sends_nothing(setting: Setting) -> None:
    setting.reconcile()
    result = setting.reconcile()
    assert (result.sent, result.queued) == (0, 17)


def test_every_job_is_counted_where_it_is(setting: Setting) -> None:
    setting.reconcile()
    setting.take(6)
    for channel in range(4):
        setting.client.hdel(UNACKED, setting.client.hkeys(UNACKED)[0])
        setting.store.put(keys.image(Unit("channel", "conv1", channel)), b"")
    result = setting.reconcile()
    assert (result.done, result.in_hand, result.queued, result.sent) == (4, 2, 11, 0)


def test_after_the_broker_lost_everything_only_what_is_not_done_is_sent(setting: Setting) -> None:
    setting.reconcile()
    setting.store.put(keys.image(Unit("channel", "conv2", 3)), b"")
    setting.client.flushall()
    assert setting.reconcile().sent == 16
    assert Unit("channel", "conv2", 3) not in setting.queued()


def test_a_further_image_of_a_job_is_not_its_commit(setting: Setting) -> None:
    setting.store.put(keys.image(Unit("channel", "conv2", 3), 1), b"")
    assert setting.reconcile().sent == 17


def test_failures_that_are_final_are_left_alone_and_others_are_not(setting: Setting) -> None:
    setting.fail(Unit("channel", "conv1", 0), MOST_ATTEMPTS)
    setting.fail(Unit("channel", "conv1", 1), MOST_ATTEMPTS - 1)
    setting.store.put(keys.error(Unit("channel", "conv1", 2)), b"damaged")
    setting.give_up(Unit("channel", "conv1", 3), recorded=True)
    result = setting.reconcile()
    assert (result.failed, result.sent) == (3, 14)
    assert Unit("channel", "conv1", 1) in setting.queued()


def test_the_store_outranks_the_dead_list(setting: Setting) -> None:
    forgotten, overcome = Unit("channel", "conv1", 3), Unit("channel", "conv1", 4)
    setting.give_up(forgotten, recorded=False)
    setting.give_up(overcome, recorded=True)
    setting.store.put(keys.image(overcome), b"")
    result = setting.reconcile()
    assert (result.failed, result.done, result.sent) == (0, 1, 16)
    assert not setting.client.exists(dead_key(setting.atlas.url))


def test_attempts_at_what_is_done_or_given_up_are_forgotten(setting: Setting) -> None:
    done, begun, given_up = (Unit("channel", "conv1", channel) for channel in (3, 4, 5))
    setting.store.put(keys.image(done), b"")
    setting.give_up(given_up, recorded=True)
    setting.client.hset(attempts_key(setting.atlas.url), mapping={field(done): 1, field(begun): 2, field(given_up): 3})
    setting.reconcile()
    assert setting.client.hgetall(attempts_key(setting.atlas.url)) == {field(begun).encode(): b"2"}


def test_a_failure_that_was_overcome_is_done(setting: Setting) -> None:
    setting.fail(Unit("channel", "conv1", 0), MOST_ATTEMPTS)
    setting.store.put(keys.image(Unit("channel", "conv1", 0)), b"")
    result = setting.reconcile()
    assert (result.done, result.failed) == (1, 0)


def test_what_was_given_up_is_sent_again_once_it_is_forgotten(setting: Setting) -> None:
    unit = Unit("channel", "conv1", 3)
    setting.give_up(unit, recorded=True)
    assert setting.reconcile().sent == 16
    setting.store.delete(keys.error(unit))
    forget(setting.client, setting.atlas.url)
    assert setting.reconcile().sent == 1


def test_a_plan_that_grew_meanwhile_is_read_again(setting: Setting) -> None:
    setting.reconcile()
    grow(setting.store, {"conv3": 2})  # type: ignore[arg-type]
    assert setting.reconcile().sent == 2


def test_the_lane_is_shared_and_others_messages_are_not_counted(setting: Setting) -> None:
    setting.client.lpush(QUEUE, *TEMPLATE.messages("s3://bucket/other", "channel", "conv1", range(12)), "rubbish")
    assert setting.reconcile().sent == 17
    assert setting.client.llen(QUEUE) == 17 + 12 + 1
    queued, in_hand = where(setting.client, "s3://bucket/other")
    assert queued == {("channel", "conv1"): set(range(12))} and not in_hand


def test_two_at_once_send_each_job_once(setting: Setting) -> None:
    sent = []

    def send() -> None:
        sent.append(setting.reconcile(wait=20).sent)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [0, 0, 0, 17] and setting.client.llen(QUEUE) == 17


def test_who_does_not_want_to_wait_is_told_of_the_other(setting: Setting) -> None:
    with (
        setting.client.lock(lock_key(setting.atlas.url), timeout=60),
        pytest.raises(BrokerError, match="another process"),
    ):
        setting.reconcile()
    assert setting.reconcile().sent == 17


def test_a_full_broker_says_so_and_the_same_again_completes(setting: Setting) -> None:
    setting.client.config_set("maxmemory", 1)
    try:
        with pytest.raises((BrokerError, redis.OutOfMemoryError)):
            setting.reconcile()
    finally:
        setting.client.config_set("maxmemory", 0)
        setting.client.delete(lock_key(setting.atlas.url))
    assert setting.reconcile().sent == 17


def test_the_lock_of_a_process_that_was_killed_is_waited_out(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    assert PATIENCE > LOCK
    setting.client.set(lock_key(setting.atlas.url), "a dead process", px=3000)
    assert setting.reconcile(wait=PATIENCE).sent == 17
    assert "waiting for it" in caplog.text

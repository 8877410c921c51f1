"""Claims: what the scripts do to the broker, and that kombu agrees."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Connection

from feature_atlas.broker import open_client
from feature_atlas.messages import (
    FLAGS,
    QUEUE,
    UNACKED,
    UNACKED_INDEX,
    UNACKED_KEYS,
    Message,
    attempts_key,
    dead_key,
    field,
    order_of,
    parse,
)
from feature_atlas.monitor import GivenUp
from feature_atlas.queue import Template, make_app
from feature_atlas.reconcile import where
from feature_atlas_worker.claim import Hand
from feature_atlas_worker.opening import look
from tests.servers import RedisServer

TEMPLATE = Template(make_app("redis://localhost"))
ATLAS, GROUP = "s3://bucket/toy", "s3://bucket/toy|channel|conv"


@pytest.fixture
def client(valkey: RedisServer) -> Iterator[redis.Redis]:
    with open_client(valkey.url) as client:
        yield client


@pytest.fixture
def hand(client: redis.Redis) -> Hand:
    return Hand(client)


def send(client: redis.Redis, layer: str, channels: range, atlas: str = ATLAS) -> None:
    client.lpush(QUEUE, *TEMPLATE.messages(atlas, "channel", layer, channels))


def queued(client: redis.Redis) -> list[int]:
    """Channels in the order in which they will be taken."""
    return [parse(raw).order.channel for raw in reversed(client.lrange(QUEUE, 0, -1))]


def channels(messages: list[Message]) -> list[int]:
    return [message.order.channel for message in messages]


def test_siblings_are_taken_from_the_front_in_order_and_no_others(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(5))
    send(client, "conv2", range(5, 8))
    send(client, "conv", range(8, 10))
    assert channels(hand.claim(GROUP, 100, 100)) == [0, 1, 2, 3, 4]
    assert queued(client) == [5, 6, 7, 8, 9]
    assert hand.claim(GROUP, 100, 100) == []
    assert client.hlen(UNACKED) == client.zcard(UNACKED_INDEX) == 5


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(waiting=st.integers(0, 40), least=st.integers(0, 10), more=st.integers(0, 20), shares=st.integers(1, 8))
def test_as_many_as_a_batch_needs_and_more_only_while_there_are_plenty(
    client: redis.Redis, hand: Hand, waiting: int, least: int, more: int, shares: int
) -> None:
    client.flushall()
    if waiting:
        send(client, "conv", range(waiting))
    most = least + more
    expected = min(waiting, max(least, min(most, waiting // shares)))
    assert len(hand.claim(GROUP, least, most, shares)) == expected


@pytest.mark.parametrize(
    "raw", ["rubbish", "[]", "{}", '{"headers": 3}', json.dumps({"headers": {"g": GROUP}}), "[" * 2000, "x" * 9000]
)
def test_a_message_that_is_none_stops_a_claim_and_nothing_else(client: redis.Redis, hand: Hand, raw: str) -> None:
    send(client, "conv", range(2))
    client.lpush(QUEUE, raw)
    send(client, "conv", range(2, 4))
    assert channels(hand.claim(GROUP, 9, 9)) == [0, 1]
    assert client.rpop(QUEUE).decode() == raw


@pytest.mark.parametrize("kind", ["valkey", pytest.param("redis7", marks=pytest.mark.redis)])
def test_a_broker_whose_memory_is_full_can_be_emptied(kind: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer = request.getfixturevalue(kind)
    with open_client(server.url) as client:
        send(client, "conv", range(6))
        with server.taking_nothing("memory"):
            hand = Hand(client)
            done, lost, *rest = hand.claim(GROUP, 4, 4)
            hand.count([done, lost, *rest])
            hand.renew()
            hand.finish([done])
            hand.give_up(lost, GivenUp(error="no"))
            hand.give_back(rest)
            assert queued(client) == [2, 3, 4, 5] and client.hlen(dead_key(ATLAS)) == 1
            assert not client.exists(UNACKED, UNACKED_INDEX, attempts_key(ATLAS))


def test_kombu_delivers_claimed_messages_again_as_they_were(
    client: redis.Redis, hand: Hand, valkey: RedisServer
) -> None:
    send(client, "conv", range(3))
    before = [parse(raw) for raw in client.lrange(QUEUE, 0, -1)]
    hand.claim(GROUP, 9, 9)
    # As after a lease has run out.
    options = {**UNACKED_KEYS, "visibility_timeout": -10, "unacked_restore_throttle": 1}
    with Connection(valkey.url, transport_options=options) as kombu:
        kombu.default_channel.qos.restore_visible(interval=1)
    after = [parse(raw) for raw in client.lrange(QUEUE, 0, -1)]
    assert {(m.tag, m.order) for m in after} == {(m.tag, m.order) for m in before}
    assert all(message.redelivered for message in after)
    assert client.hlen(UNACKED) == client.zcard(UNACKED_INDEX) == 0


def test_what_kombu_took_is_found_under_its_tag_with_what_matters_beside_it(
    client: redis.Redis, hand: Hand, valkey: RedisServer
) -> None:
    send(client, "conv", range(1))
    with Connection(valkey.url, transport_options=UNACKED_KEYS) as kombu:
        message = kombu.default_channel.basic_get(QUEUE)
        order = order_of([ATLAS, "channel", "conv", 0])
        found = look(client, message.delivery_tag, order)
        assert found is not None and found.message is not None and found.message.tag == message.delivery_tag
        assert (found.message.order, found.flag, found.attempts) == (order, None, 0)
        client.hset(FLAGS, ATLAS, "paused")
        hand.count([found.message])
        assert look(client, "another", order) == (None, "paused", 1)
        message.ack()
    valkey.kill()
    try:
        assert look(client, "another", order) is None
    finally:
        valkey.start()


def test_finished_messages_leave_no_trace(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(3))
    messages = hand.claim(GROUP, 9, 9)
    hand.count(messages)
    assert hand.attempts(messages) == [1, 1, 1]
    hand.finish(messages)
    assert client.keys("*") == []
    assert len(hand) == 0


def test_given_back_to_the_front_they_come_out_in_their_order_and_uncounted(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(5))
    messages = hand.claim(GROUP, 3, 3)
    hand.count(messages)
    hand.give_back(messages)
    assert queued(client) == [0, 1, 2, 3, 4]
    assert not client.exists(UNACKED, UNACKED_INDEX, attempts_key(ATLAS))


def test_given_back_after_a_failure_they_go_behind_the_others_and_stay_counted(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(5))
    messages = hand.claim(GROUP, 2, 2)
    hand.count(messages)
    hand.give_back(messages, "back", uncount=False)
    assert queued(client) == [2, 3, 4, 0, 1]
    assert client.hgetall(attempts_key(ATLAS)) == {field(m.order.unit).encode(): b"1" for m in messages}


def test_only_what_was_counted_is_uncounted(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(2))
    messages = hand.claim(GROUP, 9, 9)
    client.hset(attempts_key(ATLAS), mapping={field(m.order.unit): 2 for m in messages})
    hand.count(messages[:1])
    hand.give_back(messages)
    assert client.hvals(attempts_key(ATLAS)) == [b"2", b"2"]


def test_what_another_has_by_now_is_not_given_back_twice(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(2))
    messages = hand.claim(GROUP, 9, 9)
    client.delete(UNACKED)  # restored and taken by another
    hand.give_back(messages)
    assert client.llen(QUEUE) == 0


def test_a_late_acknowledgement_does_not_reach_the_next_owner(client: redis.Redis, hand: Hand) -> None:
    # Given a message that one worker gives back and another takes
    send(client, "conv", range(1))
    (mine,) = hand.claim(GROUP, 1, 1)
    hand.give_back([mine])
    (theirs,) = Hand(client).claim(GROUP, 1, 1)
    # When the first one's Celery acknowledges what it once held
    client.hdel(UNACKED, mine.tag)
    # Then the second one still holds it
    assert client.hexists(UNACKED, theirs.tag)


def test_renewal_keeps_what_is_ours_and_revives_nothing(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(2))
    messages = hand.claim(GROUP, 9, 9)
    client.zadd(UNACKED_INDEX, dict.fromkeys([m.tag for m in messages], 1.0))
    client.zrem(UNACKED_INDEX, messages[0].tag)
    hand.renew()
    assert client.zscore(UNACKED_INDEX, messages[0].tag) is None
    assert float(client.zscore(UNACKED_INDEX, messages[1].tag)) > 1e9


def test_a_broker_that_forgot_what_is_in_hand_is_told_again(client: redis.Redis, hand: Hand) -> None:
    hand.renew()
    send(client, "conv", range(3))
    first, *_ = hand.claim(GROUP, 9, 9)
    before = client.hgetall(UNACKED)
    # When it forgets everything
    client.flushall()
    hand.renew()
    # Then it knows as much as before, and a lease can end
    assert client.hgetall(UNACKED) == before and client.zcard(UNACKED_INDEX) == 3
    assert where(client, ATLAS) == ({}, {("channel", "conv"): {0, 1, 2}})
    # And only then: what another has by now is not taken from it
    client.hdel(UNACKED, first.tag)
    client.zrem(UNACKED_INDEX, first.tag)
    hand.renew()
    assert client.hlen(UNACKED) == client.zcard(UNACKED_INDEX) == 2
    hand.finish(hand.messages())
    hand.renew()
    assert where(client, ATLAS) == ({}, {})


def test_what_the_broker_forgot_can_be_given_back(client: redis.Redis, hand: Hand) -> None:
    hand.renew()
    send(client, "conv", range(3))
    messages = hand.claim(GROUP, 9, 9)
    client.flushall()
    hand.give_back(messages)
    assert queued(client) == [0, 1, 2] and not client.exists(UNACKED, UNACKED_INDEX)


def test_what_is_given_back_after_the_broker_forgot_is_in_one_place(client: redis.Redis, hand: Hand) -> None:
    hand.renew()
    for _ in range(20):
        send(client, "conv", range(30))
        messages = hand.claim(GROUP, 30, 30)
        client.flushall()
        beside = threading.Thread(target=hand.renew)
        beside.start()
        hand.give_back(messages)
        beside.join()
        assert len(queued(client)) == 30 and not client.exists(UNACKED, UNACKED_INDEX)
        client.delete(QUEUE)


def test_what_is_given_up_is_on_record_and_gone(client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(1))
    (message,) = hand.claim(GROUP, 9, 9)
    hand.count([message])
    hand.give_up(message, GivenUp(error="no", attempts=4))
    assert json.loads(client.hget(dead_key(ATLAS), field(message.order.unit)))["error"] == "no"
    assert client.keys("*") == [dead_key(ATLAS).encode()]


def test_a_broker_that_is_away_is_told_later(valkey: RedisServer, client: redis.Redis, hand: Hand) -> None:
    send(client, "conv", range(3))
    messages = hand.claim(GROUP, 9, 9)
    valkey.kill()
    try:
        hand.finish(messages)  # no exception: rendering goes on
        assert hand.claim(GROUP, 9, 9) == []
    finally:
        valkey.start()
    hand._tell_after = 0
    assert hand.tell()
    assert not client.exists(UNACKED)

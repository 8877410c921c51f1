"""The event loop's connections to the broker, when another process still holds their sockets; and what is in hand."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection

from feature_atlas.messages import MALFORMED, QUEUE, UNACKED, UNACKED_INDEX, UNACKED_KEYS, parse
from feature_atlas.queue import Template, make_app
from feature_atlas_worker.transport import Transport
from tests.servers import RedisServer, wait_until


@pytest.fixture
def listening(valkey: RedisServer) -> Iterator[Any]:
    """The poller of a transport that waits for messages, and the connection it waits on."""
    with Connection(valkey.url, transport=Transport, transport_options=UNACKED_KEYS) as connection:
        channel = connection.default_channel
        channel.basic_consume(QUEUE, no_ack=False, callback=lambda message: None, consumer_tag="test")
        cycle = connection.transport.cycle
        cycle.on_poll_start()
        yield cycle.poller, channel.client.connection


def test_a_closed_connection_wakes_nobody_though_another_process_has_its_socket(
    listening: Any, valkey: RedisServer
) -> None:
    poller, connection = listening
    inherited = os.dup(connection._sock.fileno())
    try:
        with valkey.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: bool(poller.poll(0)), "the end of the connection to be seen", 10)
        connection.disconnect()
        assert not poller.poll(0)
    finally:
        os.close(inherited)


def test_what_a_forked_process_closes_the_parent_goes_on_listening_to(listening: Any, valkey: RedisServer) -> None:
    poller, connection = listening
    child = os.fork()
    if not child:
        connection.disconnect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with valkey.client() as client:
        client.lpush(QUEUE, "a message")
    wait_until(lambda: bool(poller.poll(0)), "the message to be seen", 10)


TEMPLATE = Template(make_app("redis://localhost"))
#: What may lie in hand, by the hand of whoever may write there, or of another program.
GARBAGE = (
    b"not json at all", b"\xff\xfe", b"[]", b"null", b'["{\\"a\\":1}","","render"]', b'[{"a":1},"","render"]',
    b'[{"headers":[],"properties":[],"body":"W1tdLHt9LFtdXQ=="},"","render"]',
)  # fmt: skip


def test_what_cannot_be_read_in_hand_is_put_aside_and_the_rest_delivered(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    good = list(TEMPLATE.messages("s3://bucket/toy", "channel", "conv", range(3)))
    with (
        valkey.client() as client,
        Connection(valkey.url, transport=Transport, transport_options=UNACKED_KEYS) as connection,
    ):
        for i, rubbish in enumerate(GARBAGE):
            client.hset(UNACKED, f"bad{i}", rubbish)
            client.zadd(UNACKED_INDEX, {f"bad{i}": 1})
        client.zadd(UNACKED_INDEX, {"nothing is kept of it": 1})
        for text, kept in zip(good, ('","render"]', 'render","render"]', 'elsewhere","nowhere"]'), strict=True):
            client.hset(UNACKED, parse(text).tag, f'[{text},"{kept}')
            client.zadd(UNACKED_INDEX, {parse(text).tag: 1})
        with caplog.at_level(logging.ERROR):
            connection.default_channel.qos.restore_visible(num=None)
        assert not client.exists(UNACKED, UNACKED_INDEX)
        back = [parse(raw) for raw in client.lrange(QUEUE, 0, -1)]
        assert {message.tag for message in back} == {parse(text).tag for text in good}
        assert all(message.redelivered for message in back)
        aside = [json.loads(text) for text in client.hvals(MALFORMED)]
        assert len(aside) == len(GARBAGE) and all(record["error"].startswith("in hand: ") for record in aside)
    assert "put aside" in caplog.text


def test_of_two_that_find_a_message_one_delivers_it(valkey: RedisServer) -> None:
    (text,) = TEMPLATE.messages("s3://bucket/toy", "channel", "conv", [0])
    tag = parse(text).tag
    with (
        valkey.client() as client,
        Connection(valkey.url, transport=Transport, transport_options=UNACKED_KEYS) as connection,
    ):
        qos = connection.default_channel.qos
        client.hset(UNACKED, tag, f'[{text},"","render"]')
        client.zadd(UNACKED_INDEX, {tag: 1})
        qos.restore_by_tag(tag)
        qos.restore_by_tag(tag)
        assert client.llen(QUEUE) == 1 and not client.exists(UNACKED, UNACKED_INDEX)

"""The event loop's connections to the broker, when they end and another process still holds their sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection

from feature_atlas.messages import QUEUE
from feature_atlas_worker.transport import Transport
from tests.servers import RedisServer, wait_until


@pytest.fixture
def listening(valkey: RedisServer) -> Iterator[Any]:
    """The poller of a transport that waits for messages, and the connection it waits on."""
    with Connection(valkey.url, transport=Transport) as connection:
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

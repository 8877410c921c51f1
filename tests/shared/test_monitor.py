"""What the queue says of an atlas and its workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis

from feature_atlas import monitor
from feature_atlas.errors import BrokerError
from feature_atlas.messages import MALFORMED, QUEUE, UNACKED, WORKERS, dead_key, field, parse
from feature_atlas.monitor import FORGOTTEN, GONE, Beat, GivenUp, put_aside, queue_status, read, workers
from feature_atlas.queue import Template, make_app
from feature_atlas.spec import Unit
from tests.servers import RedisServer, free_port

ATLAS = "s3://bucket/toy"
TEMPLATE = Template(make_app("redis://localhost"))


@pytest.fixture
def client(valkey: RedisServer) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


def beat(client: redis.Redis, name: str, age: float, rate: float = 1.0) -> None:
    told = Beat(worker=name, host="here", pid=1, device="cpu", rate=rate, at=time.time() - age)
    client.hset(WORKERS, name, told.model_dump_json())


def test_queued_and_in_hand_are_told_apart_by_group(client: redis.Redis, valkey: RedisServer) -> None:
    client.lpush(QUEUE, *TEMPLATE.messages(ATLAS, "channel", "conv1", range(5)))
    client.lpush(QUEUE, *TEMPLATE.messages(ATLAS, "channel", "conv2", range(3)))
    client.lpush(QUEUE, *TEMPLATE.messages("s3://bucket/other", "channel", "conv1", range(7)))
    for _ in range(2):
        message = parse(client.rpop(QUEUE))
        client.hset(UNACKED, message.tag, f'[{message.raw}, "", "render"]')
    status = queue_status(valkey.url, ATLAS)
    assert (status.queued, status.in_hand) == (6, 2)
    assert status.groups == {("channel", "conv1"): (3, 2), ("channel", "conv2"): (3, 0)}
    assert json.loads(json.dumps(status.to_json()))["queued"] == 6


def test_a_very_long_queue_is_only_counted(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    client.lpush(QUEUE, *TEMPLATE.messages(ATLAS, "channel", "conv1", range(5)))
    monkeypatch.setattr(monitor, "_MOST_READ", 4)
    status = read(client, ATLAS)
    assert (status.queued, status.groups) == (5, {})


def test_what_was_given_up_is_told_with_its_reason(client: redis.Redis) -> None:
    unit = Unit("channel", "conv1", 3)
    client.hset(dead_key(ATLAS), field(unit), GivenUp(error="no", host="w0@here", attempts=4).model_dump_json())
    assert read(client, ATLAS).given_up[unit].host == "w0@here"


def test_the_living_count_and_the_long_gone_are_forgotten(client: redis.Redis) -> None:
    beat(client, "b", 1)
    beat(client, "a", GONE - 10)
    beat(client, "earlier", GONE + 60)
    beat(client, "gone", GONE + 10, rate=100)
    beat(client, "forgotten", FORGOTTEN + 10)
    client.hset(WORKERS, "newer", '{"another": "schema"}')
    assert [each.worker for each in workers(client)] == ["a", "b", "gone", "earlier"]
    assert read(client, ATLAS).rate == 2
    assert not client.hexists(WORKERS, "forgotten")


def test_a_flood_of_rubbish_does_not_fill_the_broker(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MOST_MALFORMED", 3)
    for i in range(10):
        put_aside(client, b"\xff%d" % i + b"x" * 100_000, "rubbish")
    assert client.hlen(MALFORMED) == 3
    assert all(len(kept) < 3000 for kept in client.hvals(MALFORMED))


def test_no_broker_is_one_sentence() -> None:
    with pytest.raises(BrokerError, match="no broker at"):
        queue_status(f"redis://127.0.0.1:{free_port()}/0", ATLAS)

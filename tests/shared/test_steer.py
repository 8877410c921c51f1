"""Cancel, pause and resume, on the broker's side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from feature_atlas.errors import RequestError
from feature_atlas.messages import ATLASES, QUEUE, parse
from feature_atlas.queue import Template, make_app
from feature_atlas.steer import cancel, flag, pause, resume
from tests.servers import RedisServer

TEMPLATE = Template(make_app("redis://localhost"))
OURS, OTHER = "s3://bucket/ours", "s3://bucket/ours2"


@pytest.fixture
def client(valkey: RedisServer) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        client.hset(ATLASES, mapping={OURS: "{}", OTHER: "{}"})
        yield client


def queued(client: redis.Redis) -> list[tuple[str, int]]:
    orders = [parse(raw).order for raw in client.lrange(QUEUE, 0, -1)]
    return [(order.atlas, order.channel) for order in orders]


def test_cancel_takes_out_one_atlas_and_keeps_the_others_in_order(client: redis.Redis) -> None:
    for start in range(0, 5000, 500):
        for atlas in (OURS, OTHER):
            client.lpush(QUEUE, *TEMPLATE.messages(atlas, "channel", "conv", range(start, start + 500)))
    others = [entry for entry in queued(client) if entry[0] == OTHER]
    assert cancel(client, OURS) == 5000
    assert queued(client) == others
    assert flag(client, OURS) == "cancelled" and flag(client, OTHER) is None


def test_pause_is_a_flag_and_resume_takes_it_away(client: redis.Redis) -> None:
    client.lpush(QUEUE, *TEMPLATE.messages(OURS, "channel", "conv", range(5)))
    pause(client, OURS)
    assert flag(client, OURS) == "paused" and client.llen(QUEUE) == 5
    resume(client, OURS)
    assert flag(client, OURS) is None


def test_an_atlas_that_is_not_there_is_refused_with_those_that_are(client: redis.Redis) -> None:
    with pytest.raises(RequestError, match="did you mean s3://bucket/ours"):
        cancel(client, "s3://bucket/our")
    with pytest.raises(RequestError, match="nothing of /tmp/x is known to this broker"):
        pause(client, "/tmp/x")
    with pytest.raises(RequestError, match="not paused"):
        resume(client, OURS)


def test_a_cancelled_atlas_is_not_resumed_but_enqueued_again(client: redis.Redis) -> None:
    cancel(client, OURS)
    with pytest.raises(RequestError, match="enqueue it again"):
        resume(client, OURS)

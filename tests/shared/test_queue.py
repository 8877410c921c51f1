"""Celery's configuration, and that a cloned message is a genuine one."""

from __future__ import annotations

import json
from typing import Any

from celery.worker.request import Request
from kombu import Connection, Consumer

from feature_atlas.messages import QUEUE, TASK, group, parse
from feature_atlas.queue import Template, genuine, make_app
from feature_atlas.spec import Unit
from tests.servers import RedisServer

ATLAS, UNIT = "s3://bucket/toy", Unit("channel", "layer2.0.conv3", 17)


def received(server: RedisServer, count: int) -> list[Any]:
    """What a kombu consumer gets from the broker."""
    found: list[Any] = []
    app = make_app(server.url)
    with Connection(server.url) as connection:
        queue = app.amqp.queues[QUEUE](connection)
        with Consumer(
            connection, [queue], callbacks=[lambda body, message: found.append((body, message))], accept=["json"]
        ):
            while len(found) < count:
                connection.drain_events(timeout=5)
        for _, message in found:
            message.ack()
    return found


def test_a_cloned_message_is_the_same_request_as_one_of_apply_async(valkey: RedisServer) -> None:
    app = make_app(valkey.url)

    @app.task(name=TASK)
    def render(*args: Any) -> None: ...

    headers = {"g": group(ATLAS, *UNIT[:2]), "v": 1}
    render.apply_async([ATLAS, *UNIT], task_id=str(UNIT), headers=headers)
    with valkey.client() as client:
        client.lpush(QUEUE, *Template(app).messages(ATLAS, "channel", "layer2.0.conv3", [17]))
    (body, theirs), (clone, ours) = received(valkey, 2)
    assert clone[:2] == body[:2] == [[ATLAS, *UNIT], {}]
    assert ours.content_type == theirs.content_type and ours.content_encoding == theirs.content_encoding
    requests = [Request(message, app=app, task=render) for message in (theirs, ours)]
    for name in ("id", "name", "args", "kwargs", "eta", "expires", "parent_id", "group"):
        assert getattr(requests[0], name) == getattr(requests[1], name), name
    assert [*requests[0].time_limits] == [*requests[1].time_limits] == [None, None]
    routes = [(info["exchange"], info["routing_key"]) for info in (request.delivery_info for request in requests)]
    assert routes == [("", QUEUE)] * 2
    assert ours.headers["g"] == theirs.headers["g"] and ours.headers["v"] == theirs.headers["v"]
    assert set(ours.headers) <= set(theirs.headers)


def test_our_reader_understands_both() -> None:
    app = make_app("redis://localhost")
    clone = parse(next(Template(app).messages(ATLAS, "channel", "layer2.0.conv3", [17])))
    assert parse(json.dumps(genuine(app, ATLAS, UNIT))).order == clone.order


def test_names_with_anything_unusual_are_spelled_as_json_does() -> None:
    atlas = '/tmp/an "odd" föłder\\x'
    message = parse(next(Template(make_app("redis://localhost")).messages(atlas, "channel", "conv", [0])))
    assert message.order.atlas == atlas


def test_nothing_is_lost_by_configuration() -> None:
    conf = make_app("redis://localhost", visibility_timeout=120, grace=25).conf
    assert conf.task_acks_late and conf.task_reject_on_worker_lost and not conf.task_acks_on_timeout
    assert conf.worker_disable_prefetch and conf.worker_prefetch_multiplier == 1 and conf.worker_concurrency == 1
    assert conf.accept_content == ["json"] and conf.result_backend is None
    options = conf.broker_transport_options
    assert "retry_on_timeout" not in options and options["socket_timeout"] == 5
    # A message is back at most this long after its lease is over.
    assert options["unacked_restore_interval"] * options["unacked_restore_throttle"] <= 5


def test_what_the_workers_of_another_application_hold_is_left_to_them(valkey: RedisServer) -> None:
    """On the same database, with leases longer than ours."""
    with Connection(valkey.url) as theirs, make_app(valkey.url, visibility_timeout=1).connection() as ours:
        held = theirs.default_channel
        theirs.SimpleQueue("celery").put("theirs")
        assert held.basic_get("celery") is not None
        with valkey.client() as client:
            client.zadd("unacked_index", dict.fromkeys(client.hkeys("unacked"), 1.0))  # for years
        for _ in range(20):
            ours.default_channel.qos.restore_visible(interval=1)
        with valkey.client() as client:
            assert (client.hlen("unacked"), client.llen("celery")) == (1, 0)

"""Enqueue: lean, and safe to repeat.  What it sends is tested with reconcile, what becomes of it with the farm."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_atlas import steer
from feature_atlas.errors import BrokerError, RequestError
from feature_atlas.messages import FLAGS, QUEUE
from feature_atlas_producer.enqueue import enqueue
from tests.e2e.farm import grow
from tests.servers import RedisServer, free_port


def test_an_atlas_is_sent_once(valkey: RedisServer, tmp_path: Path) -> None:
    atlas, told = grow(tmp_path, {"conv1": 30, "conv2": 3}), []
    assert enqueue(atlas, valkey.url, told=told.append).sent == 33
    assert told == [30, 33]
    assert enqueue(atlas, valkey.socket_url).sent == 0


def test_a_job_takes_less_than_450_bytes_of_the_broker(valkey: RedisServer, tmp_path: Path) -> None:
    atlas = grow(tmp_path, {f"layer{i}.0.conv1": 2000 for i in range(10)})
    with valkey.client() as client:
        before = client.info("memory")["used_memory"]
        enqueue(atlas, valkey.url)
        assert client.llen(QUEUE) == 20_000
        # The folder of a test has a longer name than a bucket has.
        surplus = 7 / 3 * max(0, len(atlas.url) - len("s3://bucket/resnet50"))
        assert (client.info("memory")["used_memory"] - before) / 20_000 < 450 + surplus


def test_what_was_cancelled_goes_on_and_what_is_paused_stays_paused(valkey: RedisServer, tmp_path: Path) -> None:
    atlas = grow(tmp_path, {"conv1": 3})
    enqueue(atlas, valkey.url)
    with valkey.client() as client:
        steer.cancel(client, atlas.url)
        assert enqueue(atlas, valkey.url).sent == 3
        assert not client.hexists(FLAGS, atlas.url)
        steer.pause(client, atlas.url)
        enqueue(atlas, valkey.url)
        assert steer.flag(client, atlas.url) == "paused"


def test_a_broker_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    atlas = grow(tmp_path, {"conv1": 3})
    with pytest.raises(BrokerError, match="no broker at"):
        enqueue(atlas, f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RequestError, match="not the URL of a broker"):
        enqueue(atlas, "http://localhost")

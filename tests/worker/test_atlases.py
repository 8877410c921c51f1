"""Which atlases a worker serves, and that it never works by an old plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from feature_atlas import keys
from feature_atlas.errors import RequestError
from feature_atlas.messages import ATLASES
from feature_atlas.spec import Unit
from feature_atlas_worker import atlases
from feature_atlas_worker.atlases import Atlases, Refusal, StrangerError, _within
from tests.e2e.farm import grow
from tests.servers import RedisServer


@pytest.fixture
def client(valkey: RedisServer) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


@pytest.mark.parametrize(
    ("url", "prefix", "allowed"),
    [
        ("s3://bucket/a", "s3://bucket/", True),
        ("s3://bucket/a", "s3://bucket", True),
        ("s3://bucket/a", "s3://bucket/a", True),
        ("s3://bucket2/a", "s3://bucket", False),
        ("s3://bucket/ab", "s3://bucket/a", False),
        ("s3://bucket/a", "/data", False),
        ("/data/a", "/data", True),
        ("/data/a", "/data/", True),
        ("/data2/a", "/data", False),
        ("/data/../etc", "/data", False),
        ("/data/a", "s3://bucket", False),
        ("/anything", "*", True),
        ("s3://anything", "*", True),
    ],
)
def test_a_prefix_allows_what_lies_below_it_and_nothing_beside(url: str, prefix: str, allowed: bool) -> None:
    assert _within(url, prefix, url.startswith("/")) is allowed


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/link").symlink_to(tmp_path)
    assert not _within(str(tmp_path / "allowed/link/secret"), str(tmp_path / "allowed"), True)


def test_what_nobody_enqueued_is_hostile_and_what_somebody_did_is_for_others(
    client: redis.Redis, tmp_path: Path
) -> None:
    url = grow(tmp_path / "atlas", {"conv": 2}).url
    with pytest.raises(StrangerError, match="may not write"):
        Atlases(client, ["s3://b"]).open(url)
    client.hset(ATLASES, url, "{}")
    with pytest.raises(Refusal, match="may not write"):
        Atlases(client, ["s3://b"]).open(url)
    assert Atlases(client, [str(tmp_path)]).open(url).url == url


@pytest.mark.parametrize("change", ["{}/", "{}/../atlas", "file://{}", "memory:{}"])
def test_one_atlas_has_one_name(change: str, client: redis.Redis, tmp_path: Path) -> None:
    url = change.format(grow(tmp_path / "atlas", {"conv": 2}).url)
    with pytest.raises(StrangerError, match="not how a producer names"):
        Atlases(client, ["*"]).open(url)


def test_a_damaged_or_newer_plan_is_for_others(client: redis.Redis, tmp_path: Path) -> None:
    atlas = grow(tmp_path, {"conv": 2})
    data = atlas.store.get(keys.ATLAS)
    atlas.store.put(keys.ATLAS, data.replace(b'"schema": 1', b'"schema": 2'))
    with pytest.raises(Refusal, match="update feature-atlas"):
        Atlases(client, ["*"]).open(atlas.url)


def test_the_plan_is_read_again_before_a_job_is_refused(client: redis.Redis, tmp_path: Path) -> None:
    served, url = Atlases(client, ["*"]), grow(tmp_path, {"conv": 2}).url
    served.open(url)
    grow(tmp_path, {"conv2": 2})
    assert served.job(url, Unit("channel", "conv2", 1)).layer == "conv2"
    with pytest.raises(RequestError, match="not planned"):
        served.job(url, Unit("channel", "conv3", 1))


def test_an_atlas_made_anew_under_the_same_name_is_noticed(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlases, "FRESH", 0.0)
    served, atlas = Atlases(client, ["*"]), grow(tmp_path, {"conv": 2})
    served.open(atlas.url)
    for info in [*atlas.store.list()]:
        atlas.store.delete(info.key)
    grow(tmp_path, {"conv": 2}, steps=3)
    assert served.job(atlas.url, Unit("channel", "conv", 0)).recipe.steps == 3


def test_an_atlas_that_is_gone_is_a_wrong_request(client: redis.Redis, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no atlas at"):
        Atlases(client, ["*"]).open(str(tmp_path))


def test_what_is_done_is_listed_once_in_a_while_or_when_it_matters(client: redis.Redis, tmp_path: Path) -> None:
    served, atlas = Atlases(client, ["*"]), grow(tmp_path, {"conv": 5})
    group: tuple[Any, ...] = (atlas.url, "channel", "conv")
    assert served.listed(*group, fresh=False).done == set()
    atlas.store.put(keys.image(Unit("channel", "conv", 3)), b"")
    atlas.store.put(keys.error(Unit("channel", "conv", 3)), b"")
    assert served.listed(*group, fresh=False).done == set()
    listed = served.listed(*group, fresh=True)
    assert (listed.done, listed.failed) == ({3}, {Unit("channel", "conv", 3)})

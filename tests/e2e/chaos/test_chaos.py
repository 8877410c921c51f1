"""Faults upon faults: nothing is lost, nothing is wrong, nobody has to help, and little is rendered in vain.

The short runs belong to every test run.  The long ones run with ``-m chaos`` and print their figures as JSON:
``pytest -m chaos -s tests/e2e/chaos``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.chaos.chaos import LONG, SHORT, suffer
from tests.servers import CephGateway, RedisServer

#: Of the long runs; others by the environment, as in CHAOS_SEEDS=7,8,9.
SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "6").split(",")]


def test_a_hundred_jobs_through_mixed_faults(valkey: RedisServer, tmp_path: Path) -> None:
    # Leases so short that a frozen network may outlast them: a few pictures may be drawn twice.
    suffer(tmp_path, valkey, SHORT, faults=8, pause=(1, 2), limit=150, seed=1, visibility=5)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("broker", ["valkey", "redis7"])
def test_a_thousand_jobs_through_forty_faults(
    broker: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue(broker)
    figures = suffer(
        tmp_path, server, LONG, faults=40, pause=(2, 6), limit=400, workers=3, seconds=0.25, seed=seed
    )  # fmt: skip
    assert figures["in_vain"] <= 0.01 * figures["jobs"]


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_real_bucket_through_its_own_outages(
    redis7: RedisServer, ceph: CephGateway, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    figures = suffer(
        tmp_path, redis7, LONG, faults=30, pause=(2, 6), limit=400, workers=3, seconds=0.25, seed=seed, store=ceph,
        url=f"s3://{ceph.new_bucket()}/toy",
    )  # fmt: skip
    assert figures["in_vain"] <= 0.01 * figures["jobs"]

"""Machines whose clocks are wrong, beside one whose clock is right: nothing is taken from anybody's hands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_atlas.messages import attempts_key
from feature_atlas.monitor import workers
from tests.conftest import needed
from tests.e2e.farm import Farm, grow
from tests.servers import CephGateway, RedisServer, wait_until


def clock(ahead: str) -> dict[str, str]:
    """The variables that make a process believe in another time of day; what it measures by stays as it is."""
    told = subprocess.run(
        [needed("faketime", of="faketime"), "-m", "-f", ahead, "env"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in told.splitlines() if re.match("LD_PRELOAD=|FAKETIME", line))
    return {**found, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.fixture
def farm(valkey: RedisServer, tmp_path: Path) -> Iterator[Farm]:
    environ = {"FEATURE_ATLAS_BATCH": "4", "TEST_SECONDS": "0.4"}
    with Farm(tmp_path, valkey.url, grow(tmp_path / "atlas", {"conv": 64}, steps=20), environ) as farm:
        yield farm


@pytest.mark.parametrize("ahead", ["+10m", "-10m"])
def test_a_worker_whose_clock_is_wrong_takes_nothing_from_others_and_keeps_its_own(farm: Farm, ahead: str) -> None:
    """Each batch takes 1.6 s and the last three wait for it: leases of 4 s must be renewed, by one clock for all."""
    farm.enqueue()
    right, wrong = farm.start("right"), farm.start("wrong", **clock(ahead))
    wait_until(lambda: sum(beat.alive for beat in workers(farm.client)) == 2, "both are seen to live")
    assert all(0 <= beat.at - beat.started < 300 for beat in workers(farm.client)), "hours are paid for"
    farm.wait()
    assert farm.in_vain() == 0, farm.drawings().most_common(5)
    farm.check()
    assert "clock is" in wrong.log.read_text() and "clock is" not in right.log.read_text()
    assert all("done" in worker.log.read_text() for worker in (right, wrong))  # both took part


def test_a_clock_that_the_store_refuses_is_said_and_the_jobs_are_left_to_others(
    ceph: CephGateway, valkey: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    atlas = grow(f"s3://{ceph.new_bucket()}/toy", {"conv": 24})
    with Farm(tmp_path, valkey.url, atlas, {"FEATURE_ATLAS_PATIENCE": "2"}) as farm:
        farm.enqueue()
        refused = farm.start("refused", **clock("-1h"))
        wait_until(lambda: "still: " in refused.log.read_text(), "the worker tries the store again")
        said = refused.log.read_text()
        assert "refuses the request: this machine's clock is wrong by more than 15 minutes" in said
        assert "this machine's clock is -36" in said  # by the broker's: an hour late
        assert farm.waiting() == 24 and not farm.client.exists(attempts_key(atlas.url))
        # Ten minutes are borne by the store, and by the leases
        farm.start("borne", **clock("+10m"))
        farm.wait()
        farm.check()
        assert farm.in_vain() == 0 and refused.process.poll() is None
        assert refused.log.read_text().count("more than 15 minutes") < 15  # with pauses that grow
        assert "Traceback" not in refused.log.read_text()

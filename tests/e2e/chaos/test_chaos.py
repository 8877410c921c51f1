"""Faults upon faults: nothing is lost, nothing is wrong, nobody has to help, and little is rendered in vain.

The short runs belong to every test run.  The long ones run with ``-m chaos`` and print their figures as JSON:
``pytest -m chaos -s tests/e2e/chaos``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chaos.chaos import Chaos
from tests.e2e.chaos.proxy import Proxy
from tests.e2e.farm import Farm, grow
from tests.servers import CephGateway, RedisServer

#: A mixture: many layers, jobs that kill their process, fail twice, fail always.
SHORT = {"conv1": 40, "flaky": 2, "conv2": 30, "poison": 1, "conv3": 27}
LONG = {**{f"conv{i}": 100 for i in range(9)}, "flaky": 5, "poison": 3, "broken": 2, "conv9": 90}


def suffer(
    folder: Path, server: RedisServer, layers: dict[str, int], *, faults: int, pause: tuple[float, float], limit: float,
    workers: int = 2, seconds: float = 0.1, visibility: int = 12, url: str = "", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """One farm through one run; its figures, with the invariants checked."""
    proxy = Proxy(server.port)
    full = folder / "full"
    environ = {
        "TEST_SECONDS": str(seconds), "TEST_FULL": str(full), "FEATURE_ATLAS_WATCHDOG": "15",
        "FEATURE_ATLAS_VISIBILITY_TIMEOUT": str(visibility),
    }  # fmt: skip
    with Farm(folder, server.url, grow(url or folder / "atlas", layers, steps=10), environ) as farm:
        assert farm.enqueue() == sum(layers.values())
        chaos = Chaos(farm, server, proxy, workers=workers, full=None if url else full, **options)
        try:
            figures = chaos.run(faults, pause, limit)
        finally:
            proxy.close()
        farm.check()
    print("\n" + json.dumps(figures))
    assert figures["lost"] == 0
    assert figures["given_up"] == layers.get("poison", 0) + layers.get("broken", 0)
    return figures


def test_a_hundred_jobs_through_mixed_faults(valkey: RedisServer, tmp_path: Path) -> None:
    # Leases so short that a frozen network may outlast them: a few pictures may be drawn twice.
    suffer(tmp_path, valkey, SHORT, faults=8, pause=(1, 2), limit=150, seed=1, visibility=5)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", ["valkey", "redis7"])
def test_a_thousand_jobs_through_forty_faults(broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server = request.getfixturevalue(broker)
    figures = suffer(
        tmp_path, server, LONG, faults=40, pause=(2, 6), limit=400, workers=3, seconds=0.25, seed=6
    )  # fmt: skip
    assert figures["in_vain"] <= 0.01 * figures["jobs"]


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_real_bucket_through_its_own_outages(
    redis7: RedisServer, ceph: CephGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    figures = suffer(
        tmp_path, redis7, LONG, faults=30, pause=(2, 6), limit=400, workers=3, seconds=0.25, seed=3, store=ceph,
        url=f"s3://{ceph.new_bucket()}/toy",
    )  # fmt: skip
    assert figures["in_vain"] <= 0.01 * figures["jobs"]

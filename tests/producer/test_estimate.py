"""Estimates: a stratified sample comes close, and says how close."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from feature_atlas.plan import Plan
from feature_atlas.spec import Job
from feature_atlas_producer.estimate import Measured, estimate
from tests.e2e.farm import grow


def network(tmp_path: Path, layers: int = 30) -> Plan:
    return grow(tmp_path, {f"conv{i}": 8 * (i + 1) for i in range(layers)}).plan


def cost(job: Job) -> float:
    """Later layers take longer: 0.1 s to 3 s."""
    return 0.1 * (int(job.layer.removeprefix("conv")) + 1)


def measure(jobs: Sequence[Job]) -> Measured:
    return Measured(sum(map(cost, jobs)) / len(jobs), 40_000)


def test_the_true_total_lies_within_the_stated_error(tmp_path: Path) -> None:
    plan = network(tmp_path)
    true = sum(cost(plan.job(unit)) for unit in plan.units())
    found = estimate(plan, plan.units(), measure)
    assert abs(found.seconds.total - true) < found.seconds.error < true
    assert found.bytes.total == pytest.approx(40_000 * len(plan)) and found.bytes.error == 0
    assert found.jobs == len(plan) and found.sampled == 6 * 8


def test_noise_shows_in_the_error(tmp_path: Path) -> None:
    plan, draw = network(tmp_path), random.Random(0)

    def noisy(jobs: Sequence[Job]) -> Measured:
        return Measured(measure(jobs).seconds * draw.uniform(0.3, 3), 1)

    assert estimate(plan, plan.units(), noisy).seconds.error > estimate(plan, plan.units(), measure).seconds.error


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_small_network_has_an_estimate_too(layers: int, tmp_path: Path) -> None:
    plan = network(tmp_path, layers)
    found = estimate(plan, plan.units(), measure)
    assert found.jobs == len(plan) and 0 <= found.seconds.error <= found.seconds.total


def test_what_is_done_is_not_counted(tmp_path: Path) -> None:
    plan = network(tmp_path)
    rest = [unit for unit in plan.units() if unit.channel >= 4]
    assert estimate(plan, rest, measure).jobs == len(rest)
    assert estimate(plan, [], measure).jobs == 0

"""What an atlas will take before it is made: time and bytes from a small stratified sample, with their uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from feature_atlas.plan import Plan
from feature_atlas.spec import Job, Unit

#: Student's t for 95% both ways, by degrees of freedom.
_T = {0: 12.7, 1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}


class Measured(NamedTuple):
    """What one job of a sample took, on average."""

    seconds: float
    bytes: float


class Amount(NamedTuple):
    """An estimated total and the half width of its 95% interval."""

    total: float
    error: float

    def __str__(self) -> str:
        return f"{self.total:.3g} ± {self.error:.2g}"

    def times(self, factor: float) -> Amount:
        """In another unit."""
        return Amount(self.total * factor, self.error * factor)


class Estimate(NamedTuple):
    """What the missing jobs of an atlas will take, one worker of the kind measured."""

    jobs: int
    seconds: Amount
    bytes: Amount
    #: How many jobs were tried.
    sampled: int


def estimate(
    plan: Plan, units: Iterable[Unit], measure: Callable[[Sequence[Job]], Measured], *, strata: int = 3, batch: int = 8
) -> Estimate:
    """Tries two layers in each third of the network, since late layers cost several times the first ones.

    Args:
        plan: of the atlas.
        units: what is still to be done, contiguous by group.
        measure: renders the jobs of one batch and says what one of them took.
        strata: parts of the network, each with as many jobs as the others.
        batch: jobs tried at once.
    """
    groups = [list(members) for _, members in groupby(units, key=lambda unit: (unit.variant, unit.layer))]
    weights: list[int] = []
    found: list[list[Measured]] = []
    sampled = 0
    for part in _divide(groups, strata):
        samples = [part[i][:batch] for i in sorted({len(part) // 4, (3 * len(part)) // 4})]
        found.append([measure([plan.job(unit) for unit in sample]) for sample in samples])
        weights.append(sum(map(len, part)))
        sampled += sum(map(len, samples))
    seconds = _total(weights, [[one.seconds for one in row] for row in found])
    size = _total(weights, [[one.bytes for one in row] for row in found])
    return Estimate(sum(map(len, groups)), seconds, size, sampled)


def _divide(groups: list[list[Unit]], parts: int) -> list[list[list[Unit]]]:
    """Runs of groups with about as many jobs each; none is empty."""
    total, done, divided = sum(map(len, groups)), 0, [list[list[Unit]]() for _ in range(parts)]
    for group in groups:
        divided[min(parts - 1, done * parts // max(total, 1))].append(group)
        done += len(group)
    return [part for part in divided if part]


def _total(weights: Sequence[int], rows: Sequence[Sequence[float]]) -> Amount:
    """The sum over strata, and the error of that sum: strata with one sample take the others' relative spread."""
    total = sum(weight * statistics.fmean(row) for weight, row in zip(weights, rows, strict=True))
    spreads = [statistics.stdev(row) / statistics.fmean(row) for row in rows if len(row) > 1 and any(row)]
    usual = statistics.fmean(spreads) if spreads else 0.5
    variance, freedom = 0.0, 0
    for weight, row in zip(weights, rows, strict=True):
        deviation = statistics.stdev(row) if len(row) > 1 else usual * row[0]
        variance += (weight * deviation) ** 2 / len(row)
        freedom += len(row) - 1
    return Amount(total, min(total, _T.get(freedom, 2.0) * math.sqrt(variance)))

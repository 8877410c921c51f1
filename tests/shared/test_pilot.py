"""What a sample says of the whole: its steps count once each, what comes before and after them once in all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from feature_atlas.cli.pilot import Pilot
from feature_atlas.plan import Plan
from feature_atlas.presets import preset
from feature_atlas.spec import Job, Unit
from tests.e2e.farm import grow


class Priced(Pilot):
    """Takes so many seconds to open and to measure, and so many for each step."""

    def __init__(self, fixed: float, step: float) -> None:
        self._fixed, self._step, self._warm = fixed, step, False
        self.steps: list[int] = []

    def _run(self, jobs: Sequence[Job]) -> tuple[float, int]:
        recipe = jobs[0].recipe
        assert recipe.redirect <= recipe.steps and recipe.coarse_steps <= recipe.steps
        self.steps.append(recipe.steps)
        return (self._fixed + self._step * recipe.steps) * len(jobs), 1000 * len(jobs)


def jobs(tmp_path: Path, steps: int) -> list[Job]:
    plan: Plan = grow(tmp_path, {"conv": 8}).plan
    recipe = preset("regularised", {"steps": steps, "redirect": steps, "coarse_steps": steps // 3})
    return [plan.job(Unit("channel", "conv", c)).model_copy(update={"recipe": recipe}) for c in range(4)]


@pytest.mark.parametrize(("fixed", "step"), [(3.0, 0.2), (0.0, 0.2), (0.5, 0.0), (0.001, 0.0001), (20.0, 3.0)])
@pytest.mark.parametrize("steps", [1, 4, 5, 16, 160, 2560])
def test_what_does_not_grow_with_the_steps_is_counted_once(
    fixed: float, step: float, steps: int, tmp_path: Path
) -> None:
    pilot = Priced(fixed, step)
    found = pilot.measure(jobs(tmp_path, steps))
    assert found.seconds == pytest.approx(fixed + step * steps)
    assert found.bytes == 1000
    assert max(pilot.steps) <= steps


def test_a_slow_machine_is_not_kept_busy(tmp_path: Path) -> None:
    pilot = Priced(1.0, 1.0)
    pilot.measure(jobs(tmp_path, 2560))
    assert sum(pilot.steps) <= 1 + 4 + 16

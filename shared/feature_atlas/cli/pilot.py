"""A few real pictures before many: what one takes on this machine's device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from feature_atlas import keys
from feature_atlas.errors import RenderError
from feature_atlas.store import MemoryStore

if TYPE_CHECKING:
    from feature_atlas.cli.selection import Request
    from feature_atlas.settings import Settings
    from feature_atlas.spec import Job
    from feature_atlas_producer.estimate import Measured
    from feature_atlas_worker.execute import Executor, Outcome

#: Seconds that one sample may take: longer optimisations are cut short, and their steps counted up.
_BUDGET = 10.0
#: Steps of the first, short run of a sample, and the fewest of the second.
_FEW, _MORE = 4, 16


class Pilot:
    """Renders samples of one request into memory."""

    def __init__(self, request: Request, settings: Settings) -> None:
        from feature_atlas_worker.execute import Executor

        self.executor: Executor = Executor(settings.device, settings.batch, settings=settings)
        self.store = MemoryStore("pilot")
        if request.weights is not None:
            self.store.put(keys.weights(request.ref.weights.removeprefix("sha256:")), request.weights)
        self._warm = False

    @property
    def device(self) -> str:
        """What it measures."""
        return self.executor.software["device"]

    def batch(self, job: Job) -> int:
        """How many jobs go side by side here."""
        return self.executor.sizes.of(job)

    def measure(self, jobs: Sequence[Job]) -> Measured:
        """What one of these jobs takes.

        Raises:
            RequestError, RenderError: it cannot be rendered.
        """
        from feature_atlas_producer.estimate import Measured

        steps = jobs[0].recipe.steps
        if not self._warm:
            self._run(_shortened(jobs, 1))
            self._warm = True
        few = min(_FEW, steps)
        seconds, size = self._run(_shortened(jobs, few))
        if few < steps:
            # Opening the layer and measuring the pictures take as long as many steps, whatever their number is.
            most = min(steps, max(_MORE, int(_BUDGET / max(seconds, 1e-6) * few)))
            longer, size = self._run(_shortened(jobs, most))
            seconds = longer + (steps - most) * max(0.0, longer - seconds) / (most - few)
        return Measured(seconds / len(jobs), size / len(jobs))

    def _run(self, jobs: Sequence[Job]) -> tuple[float, int]:
        failures = []

        def report(outcome: Outcome) -> None:
            if outcome.error:
                failures.append(outcome.error)

        started = time.monotonic()
        self.executor.run(jobs, self.store, report)
        seconds = time.monotonic() - started
        if failures:
            raise RenderError(f"the pilot failed: {failures[0]}")
        prefix = keys.group(jobs[0].variant, jobs[0].layer)
        return seconds, sum(
            info.size for kind in (keys.IMAGES, keys.MANIFESTS) for info in self.store.list(kind + prefix)
        )

    def close(self) -> None:
        """Frees the model."""
        self.executor.close()


def _shortened(jobs: Sequence[Job], steps: int) -> list[Job]:
    """The same with fewer steps, as many of them unlike the others in proportion."""
    recipe = jobs[0].recipe
    parts = {name: round(getattr(recipe, name) * steps / recipe.steps) for name in ("coarse_steps", "redirect")}
    changed = recipe.model_copy(update={"steps": steps, **parts})
    return [job.model_copy(update={"recipe": changed}) for job in jobs]

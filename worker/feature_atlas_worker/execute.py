"""Jobs in, pictures in the store out: batches, isolation of what fails, uploads beside rendering.

Knows neither queue nor terminal: the same executor serves ``feature-atlas render`` and the queue's worker.
"""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import torch

import feature_atlas
from feature_atlas import spec
from feature_atlas.errors import RequestError
from feature_atlas.plan import describe_model
from feature_atlas.settings import Settings
from feature_atlas.spec import Job, ModelRef, Recipe, Unit
from feature_atlas.store import Store
from feature_atlas_worker import commit, fit, models
from feature_atlas_worker.batches import BatchSizes
from feature_atlas_worker.devices import computes_half, device_of
from feature_atlas_worker.group import GroupRun, Outcome
from feature_atlas_worker.heap import give_memory_back
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.phases import timed
from feature_atlas_worker.render import Visualization, render
from feature_atlas_worker.rewrite import ALL

log = logging.getLogger(__name__)

__all__ = ["Executor", "OtherRendererError", "Outcome", "check_renderer"]

_THREADS = 4


class OtherRendererError(RequestError):
    """The recipe was made for another generation of the renderer: this worker must not touch the job."""


class Executor:
    """Renders jobs on one device.  The model stays loaded between runs, and is freed before another is loaded."""

    def __init__(
        self,
        device: str = "auto",
        batch: int | None = None,
        worker: str = "",
        settings: Settings | None = None,
        *,
        patience: float = 30.0,
        render: Callable[..., list[Visualization]] = render,
        load: Callable[..., VisionModel] = models.load,
    ) -> None:
        """``patience``: seconds for which a failing store is tried again.  ``render``, ``load``: for tests."""
        self.settings = settings or Settings()
        self.device = device_of(device)
        self.worker = worker or socket.gethostname()
        self.sizes = BatchSizes(self.device, batch)
        self.patience = patience
        self.render = render
        exact = self.settings.precision == "float32"
        #: What else ``render`` is told.
        self.how: dict[str, Any] = {"rewrites": replace(ALL, half=False)} if exact else {}
        self._load = load
        self._model: tuple[ModelRef, VisionModel] | None = None
        self.threads = _THREADS
        self.pace = commit.Pace()
        self.pool = ThreadPoolExecutor(self.threads, "upload")
        self.software = {
            "feature-atlas": feature_atlas.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "precision": "bf16" if computes_half(self.device) and not exact else "fp32",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the model and ends the threads."""
        self.pool.shutdown()
        if self.device.type == "cuda":  # what else lives here may need its memory now; Python sees to the rest
            self.release()
        self._model = None
        give_memory_back()

    def release(self) -> None:
        """Frees the model."""
        if self._model is None:
            return
        self._model = None
        gc.collect()
        give_memory_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def model(self, ref: ModelRef, read: models.Read) -> VisionModel:
        """The model of a reference, loaded once; ``read`` gets objects of its atlas by key.

        Raises:
            RequestError, IntegrityError, WeightsError, StoreError: see :func:`feature_atlas_worker.models.load`.
        """
        if self._model is None or self._model[0] != ref:
            self.release()
            log.info("loading %s on %s", describe_model(ref), self.device)
            allowed = self.settings.allowed_models
            with timed("load"):
                self._model = ref, self._load(ref, read=read, device=str(self.device), allowed=allowed)
        return self._model[1]

    def check(self, ref: ModelRef, layers: Sequence[str], recipes: Iterable[Recipe], read: models.Read) -> None:
        """Looks whether pictures of these recipes pass the network up to these layers, before anything is written.

        A neuron's position must lie on every layer's map.

        Raises:
            RequestError: one does not; and as :meth:`model`.
        """
        model = self.model(ref, read)
        fit.check(model.module, model.input_size, layers, recipes)

    def run(
        self,
        jobs: Sequence[Job],
        store: Store,
        on_outcome: Callable[[Outcome], None],
        stop: Callable[[], bool] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_begin: Callable[[Sequence[Job]], None] | None = None,
        *,
        failed_before: Set[Unit] | None = None,
    ) -> None:
        """Renders jobs of one group; each is reported on this thread once it is committed, or on record as failed.

        A job that fails is isolated and recorded; the others finish.  Once ``stop()`` is true the rest is reported as
        unfinished.  ``on_step`` gets (steps done, steps of this batch), ``on_begin`` a batch's jobs before it.
        ``failed_before``: the units whose earlier failure a success takes off the record; listed where it is not said.

        Raises:
            OtherRendererError: the recipe is for another release; nothing was touched.
            RequestError, IntegrityError: the model cannot be loaded; nothing was touched.
            EnvironmentFault: store, device or a source of weights failed; jobs not reported are as before.
        """
        if not jobs:
            return
        check_renderer(jobs[0])
        if failed_before is None:
            failed_before = commit.failures(store, jobs[0].variant, jobs[0].layer)
        model = self.model(jobs[0].model, store.get)
        GroupRun(self, model, jobs, store, on_outcome, stop, on_step, on_begin, failed_before).go()


def check_renderer(job: Job) -> None:
    """Raises OtherRendererError where this release does not make the pictures that the recipe means."""
    if job.recipe.renderer != spec.RENDERER:
        newer = job.recipe.renderer > spec.RENDERER
        raise OtherRendererError(
            f"variant {job.variant!r} was planned for renderer {job.recipe.renderer}, and this release has renderer"
            f" {spec.RENDERER}: {'update feature-atlas' if newer else 'install the older feature-atlas'},"
            " or render it anew under another variant's name"
        )

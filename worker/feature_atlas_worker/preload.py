"""The next model, read into host memory while the last batches of the present one render."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from feature_atlas.spec import ModelRef
from feature_atlas_worker import models
from feature_atlas_worker.models import Read, VisionModel

log = logging.getLogger(__name__)


class Preloader:
    """Loads models as :func:`feature_atlas_worker.models.load` does, one of them beforehand."""

    def __init__(self, load: Callable[..., VisionModel] = models.load) -> None:
        self._load = load
        self._thread: threading.Thread | None = None
        self._ready: VisionModel | None = None

    def begin(self, find: Callable[[], tuple[ModelRef, Read] | None], allowed: Sequence[str] = ()) -> None:
        """Begins to load what ``find`` names, on a thread; a failure is met again, and reported, by the real load."""
        if self._thread is not None and self._thread.is_alive():
            return

        def work() -> None:
            try:
                found = find()
                if found is not None and (self._ready is None or self._ready.ref != found[0]):
                    self._ready = self._load(found[0], read=found[1], device="cpu", allowed=allowed)
            except Exception as error:
                log.info("the next model was not loaded beforehand: %s", error)

        self._thread = threading.Thread(target=work, name="preload", daemon=True)
        self._thread.start()

    def __call__(
        self, ref: ModelRef, *, read: Read, device: str | torch.device, allowed: Sequence[str] = ()
    ) -> VisionModel:
        """The model on the device.  Raises as :func:`feature_atlas_worker.models.load`."""
        if self._thread is not None:
            self._thread.join()
        ready, self._ready = self._ready, None
        if ready is not None and ready.ref == ref:
            return replace(ready, module=ready.module.to(device))
        return self._load(ref, read=read, device=device, allowed=allowed)

"""What a rendering process keeps between tasks: device and model, connections, atlases, and its record."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import cast

import torch

from feature_atlas import __version__
from feature_atlas.broker import open_client
from feature_atlas.errors import DeviceError
from feature_atlas.messages import QUEUE, Message, Order, parse
from feature_atlas.monitor import Beat
from feature_atlas.queue import Template
from feature_atlas.settings import Settings
from feature_atlas.spec import ModelRef
from feature_atlas.store import Store
from feature_atlas_worker.atlases import Atlases
from feature_atlas_worker.claim import Hand
from feature_atlas_worker.execute import Executor
from feature_atlas_worker.lease import Lease
from feature_atlas_worker.opening import Opening, look
from feature_atlas_worker.patience import PatientStore
from feature_atlas_worker.preload import Preloader
from feature_atlas_worker.pulse import Pulse

log = logging.getLogger(__name__)

#: Seconds over which the rate is taken.
_RECENT = 300.0


class Child:
    """The state of one rendering process.  Made after the fork; the device is first touched by the first job."""

    def __init__(self, settings: Settings, template: Template, pulse: Pulse, worker: str) -> None:
        self.settings, self.template, self.pulse = settings, template, pulse
        self.client = open_client(settings.broker)
        self.hand = Hand(self.client)
        self.atlases = Atlases(self.client, settings.allowed_stores)
        self.beat = Beat(
            worker=worker, host=socket.gethostname(), pid=os.getpid(), device=settings.device, release=__version__,
            started=time.time(),
        )  # fmt: skip
        #: Atlases that this worker knows of, whatever the broker forgets.
        self.served = set(filter(None, pulse.note.split("\n")))
        #: Groups refused since something was rendered, and how often all that waited was refused.
        self.refused: set[str] = set()
        self.refusals = 0
        #: URL -> (until when, why) its model cannot be loaded here.
        self.unfit: dict[str, tuple[float, str]] = {}
        #: Since when there is nothing to do.
        self.idle_since = time.monotonic()
        self.metrics = import_module("feature_atlas_worker.metrics") if settings.metrics else None
        if self.metrics is not None:
            self.metrics.begin()
        self.preloader = Preloader()
        self._executor: Executor | None = None
        self._touched = time.monotonic()
        self._recent: deque[float] = deque(maxlen=10_000)
        self.lease = Lease(self, template)
        self.lease.start()

    def close(self) -> None:
        """Ends the thread and frees the model."""
        self.lease.stop()
        if self._executor is not None:
            self._executor.close()
        self.client.close()

    @property
    def executor(self) -> Executor:
        """The executor, made at first use.

        Raises:
            DeviceError: there is no such device, or it does not compute.
        """
        if self._executor is None:
            executor = Executor(
                self.settings.device, self.settings.batch, self.beat.worker, self.settings,
                patience=0.0, load=self.preloader,
            )  # fmt: skip
            _probe(executor.device)
            self._executor = executor
            self.beat = self.beat.model_copy(update={"device": executor.software["device"]})
        return self._executor

    def patient(self, store: Store) -> PatientStore:
        """The store, waiting out its failures for as long as this worker lives."""
        return PatientStore(
            store, self.settings.patience, ending=lambda: self.pulse.draining, touch=self.touch,
            failed=lambda: self.trouble("store"),
        )  # fmt: skip

    def preload(self, atlas: str) -> None:
        """Looks what comes next in the queue, and loads its model if that is another."""

        def find() -> tuple[ModelRef, Callable[[str], bytes]] | None:
            raw = cast("bytes | None", self.client.lindex(QUEUE, -1))
            order = parse(raw).order if raw else None
            if order is None or order.atlas == atlas or self.unfit_for(order.atlas):
                return None
            # Of its own, as those of the work belong to the work's thread.
            found = Atlases(self.client, self.settings.allowed_stores).open(order.atlas)
            return found.file.model, found.store.get

        self.preloader.begin(find, self.settings.allowed_models)

    def unfit_for(self, atlas: str) -> str:
        """Why an atlas's model cannot be loaded here for now; empty where it can, or is to be tried again."""
        until, why = self.unfit.get(atlas, (0.0, ""))
        return why if time.monotonic() < until else ""

    def unfit_now(self) -> str:
        """What to say of an atlas that cannot be served here for now, while others are."""
        return next((f"{atlas}: {why}" for atlas in tuple(self.unfit) if (why := self.unfit_for(atlas))), "")

    def touch(self) -> None:
        """Something moves: a step was done, a turn began or ended."""
        self._touched = time.monotonic()

    @property
    def quiet_for(self) -> float:
        """Seconds since something moved."""
        return time.monotonic() - self._touched

    def note(self, **changes: object) -> None:
        """Changes fields of the record that the next beat tells."""
        self.beat = self.beat.model_copy(update=changes)

    def tell(self, outcome: str, jobs: int = 1) -> None:
        """Counts jobs by what became of them, for whoever scrapes."""
        if self.metrics is not None:
            self.metrics.JOBS.labels(outcome).inc(jobs)

    def trouble(self, what: str) -> None:
        """Counts a failure of the surroundings: one of ``metrics.TROUBLES``."""
        if self.metrics is not None:
            self.metrics.TROUBLE.labels(what).inc()

    def count(self, done: int = 0, failed: int = 0) -> None:
        """Adds to the record."""
        self._recent.extend([time.monotonic()] * done)
        self.note(done=self.beat.done + done, failed=self.beat.failed + failed)

    def beat_now(self) -> Beat:
        """The record of this moment."""
        now = time.monotonic()
        recent = [moment for moment in tuple(self._recent) if now - moment < _RECENT]
        # A full window has forgotten its beginning.
        span = now - recent[0] if len(recent) > 1 else 0.0
        return self.beat.model_copy(update={"rate": round(len(recent) / span, 4) if span else 0.0, "at": time.time()})

    def open(self, tag: str, order: Order) -> tuple[Message, Opening | None]:
        """The message that Celery took for the running task, and what the broker says of it, if it answers."""
        opening = look(self.client, tag, order)
        if opening is not None and opening.message is not None:
            return opening.message, opening
        # The broker has forgotten it.  The job can be done all the same.
        raw = next(self.template.messages(order.atlas, order.variant, order.layer, [order.channel]))
        return parse(raw)._replace(tag=tag), opening


def _probe(device: torch.device) -> None:
    """Raises DeviceError where the device does not compute: then no job is to blame."""
    try:
        if float(torch.ones(8, device=device).sum()) != 8.0:
            raise DeviceError(f"{device} computes wrongly")
    except RuntimeError as error:
        raise DeviceError(f"{device} does not compute ({str(error).splitlines()[0]})") from error

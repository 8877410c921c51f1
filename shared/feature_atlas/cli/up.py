"""``up``: a queue, workers and a publisher on one machine, for as long as the command runs."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from feature_atlas import monitor
from feature_atlas.cli import codes, hints
from feature_atlas.cli.farm import worker_environ
from feature_atlas.cli.progress import Progress, duration
from feature_atlas.cli.publisher import publishers
from feature_atlas.embedded import EmbeddedBroker
from feature_atlas.errors import DeviceError, EnvironmentFault
from feature_atlas.messages import QUEUE, UNACKED, UNACKED_INDEX, dead_key
from feature_atlas.reconcile import reconcile, where

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas
    from feature_atlas.settings import Settings

#: Seconds: between two looks, until a message lost by a killed worker comes back, until refusals are taken for good.
_EVERY, _VISIBILITY, _REFUSED = 1.0, 30.0, 60.0


class Up:
    """Renders atlases with workers of its own."""

    def __init__(
        self, atlases: list[Atlas], settings: Settings, gpus: list[str], *, workers: int | None, publish: bool,
        as_json: bool,
    ) -> None:  # fmt: skip
        self.atlases, self.settings, self.publish, self.as_json = atlases, settings, publish, as_json
        self.gpus = gpus
        self.workers = workers or len(self.gpus) or 2
        self.planned = sum(len(atlas.plan) for atlas in atlases)
        self.started = time.monotonic()
        self.refused_since: float | None = None
        self.looked = 0.0

    def run(self) -> int:
        """Until all is done; the exit code."""
        from tqdm import tqdm

        from feature_atlas.broker import connect
        from feature_atlas.queue import Template, make_app
        from feature_atlas_worker.supervise import Supervisor

        tqdm.monitor_interval = 0  # no thread beside us while workers are forked
        # One queue per set of atlases: the same command again takes up where this one ends, however it ends.
        with EmbeddedBroker("\n".join(sorted(atlas.url for atlas in self.atlases))) as broker:
            self.client, self.template = connect(broker.url), Template(make_app(broker.url))
            # Nobody else uses this broker: what was in hand is in nobody's hands now.
            self.client.delete(QUEUE, UNACKED, UNACKED_INDEX)
            self._send()
            with (
                publishers([atlas.url for atlas in self.atlases], wanted=self.publish),
                Supervisor(self._environs(broker), grace=self.settings.grace, logs=broker.folder) as supervisor,
                Progress(f"{self.workers} workers", self.planned, self._done()) as progress,
            ):
                status = supervisor.run(lambda: self._finished(progress), _EVERY)
                interrupted = bool(supervisor.asked)
            self.given_up = sum(self.client.hlen(dead_key(atlas.url)) for atlas in self.atlases)
            self.client.close()
        if status:
            raise EnvironmentFault(f"no worker could start: see {broker.folder}/w0.log")
        return self._sum_up(interrupted)

    def _environs(self, broker: EmbeddedBroker) -> dict[str, dict[str, str]]:
        settings = self.settings.model_copy(update={"broker": broker.url})
        common = worker_environ(settings, tuple(atlas.url for atlas in self.atlases))
        common["FEATURE_ATLAS_VISIBILITY_TIMEOUT"] = str(_VISIBILITY)
        common.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS") or str(self._threads()))
        environs = {f"w{i}": dict(common) for i in range(self.workers)}
        if self.gpus:
            for i, environ in enumerate(environs.values()):
                environ.update(CUDA_VISIBLE_DEVICES=self.gpus[i % len(self.gpus)], FEATURE_ATLAS_DEVICE="cuda")
        return environs

    def _threads(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.workers)

    def _send(self) -> None:
        for atlas in self.atlases:
            reconcile(self.client, self.template, atlas, wait=5.0)
        self.looked = time.monotonic()

    def _done(self) -> int:
        """How many are done or given up, as the queue sees it: all that is neither waiting nor in hand."""
        return max(0, self.planned - self.client.llen(QUEUE) - self.client.hlen(UNACKED))

    def _finished(self, progress: Progress) -> bool:
        progress.to(max(progress.done, self._done()), self.planned)
        self._check_refusals(progress)
        if self._done() < self.planned or time.monotonic() - self.looked < 2 * _EVERY:
            return False
        # The queue may have lost one; the store knows.
        self._send()
        return not any(map(any, (pair for atlas in self.atlases for pair in [where(self.client, atlas.url)])))

    def _check_refusals(self, progress: Progress) -> None:
        """Raises EnvironmentFault where every worker has refused everything for a while."""
        beats = [beat for beat in monitor.workers(self.client) if beat.alive]
        busy = [beat for beat in beats if not (beat.state == "waiting" and beat.note)]
        if not beats or busy:
            self.refused_since = None
            working = next((beat for beat in busy if beat.state == "working"), None)
            progress.at(working.layer if working else "")
            return
        self.refused_since = self.refused_since or time.monotonic()
        progress.at(beats[0].note)
        if time.monotonic() - self.refused_since > _REFUSED:
            raise EnvironmentFault(f"no worker goes on: {beats[0].note}")

    def _sum_up(self, interrupted: bool) -> int:
        rows = [self._row(atlas, publish=self.publish and not interrupted) for atlas in self.atlases]
        seconds = time.monotonic() - self.started
        if self.as_json:
            print(json.dumps({"atlases": rows, "seconds": round(seconds, 1), "interrupted": interrupted}, indent=1))
        else:
            for atlas, row in zip(self.atlases, rows, strict=True):
                _tell(atlas, row, seconds)
        if interrupted:
            return codes.INTERRUPTED
        return codes.PARTIAL if any(row["missing"] or row["failed"] for row in rows) else codes.DONE

    def _row(self, atlas: Atlas, *, publish: bool) -> dict[str, Any]:
        page = ""
        if publish:
            from feature_atlas.publish import publish as make

            page = make(atlas).page
        groups = atlas.status()
        counts = {name: sum(getattr(group, name) for group in groups) for name in ("done", "dead", "failed", "missing")}
        return {"url": atlas.url, "planned": len(atlas.plan), **counts, "page": page}


def _tell(atlas: Atlas, row: dict[str, Any], seconds: float) -> None:
    dead = f" ({row['dead']} dead)" if row["dead"] else ""
    print(f"{row['done']} of {row['planned']} channels are done{dead}; {duration(seconds)}")
    if row["failed"]:
        print(f"to try {row['failed']} failed ones again: {hints.command('retry', atlas)}, then up again")
    if row["missing"]:
        print(f"{row['missing']} are missing; to go on: {hints.command('up', atlas, runs=True)}")
    if row["page"]:
        print(f"open {row['page']}")


def gpus_of(device: str) -> list[str]:
    """The GPUs to share the workers among; none for the CPU or where one is named.  Raises DeviceError."""
    from feature_atlas_worker.visible import check_device, gpus

    if device not in ("auto", "cuda"):
        check_device(device)
        return []
    try:
        return gpus("all")
    except DeviceError:
        if device == "cuda":
            raise
        return []

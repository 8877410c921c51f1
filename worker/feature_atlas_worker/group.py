"""The jobs of one group: batch after batch, divided where one fails until the culprit is alone."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from feature_atlas.errors import EnvironmentFault, RequestError
from feature_atlas.logs import about
from feature_atlas.manifest import Manifest, Run
from feature_atlas.spec import Job, Unit
from feature_atlas.store import Store
from feature_atlas_worker import commit
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.phases import timed
from feature_atlas_worker.render import Stopped, Target, Visualization
from feature_atlas_worker.shortage import is_shortage

if TYPE_CHECKING:
    from feature_atlas_worker.execute import Executor

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of one job.  ``nan`` and ``failed`` are on record under ``errors/``; ``unfinished`` left no trace."""

    job: Job
    status: Literal["ok", "dead", "nan", "failed", "unfinished"]
    manifest: Manifest | None = None
    error: str = ""
    traceback: str = ""
    #: The request itself was wrong: trying again cannot help.
    final: bool = False


@dataclass
class _Trouble:
    """Why a batch gave nothing; holds text only, so that no traceback keeps tensors alive."""

    kind: Literal["shortage", "request", "job", "stopped"]
    sentence: str
    traceback: str


class GroupRun:
    """One call of :meth:`feature_atlas_worker.execute.Executor.run`."""

    def __init__(
        self,
        executor: Executor,
        model: VisionModel,
        jobs: Sequence[Job],
        store: Store,
        on_outcome: Callable[[Outcome], None],
        stop: Callable[[], bool] | None,
        on_step: Callable[[int, int], None] | None,
        on_begin: Callable[[Sequence[Job]], None] | None,
        failed_before: Set[Unit],
    ) -> None:
        self.executor, self.model, self.jobs, self.store = executor, model, jobs, store
        self.on_outcome, self.on_step, self.on_begin = on_outcome, on_step, on_begin
        self.stop = stop or (lambda: False)
        self.stopped = False
        # One alone has nothing to overlap with, and is spared the way to a thread and back.
        pool, threads = (executor.pool, executor.threads) if len(jobs) > 1 else (commit.Here(), 1)
        self.uploads = commit.Uploads(
            pool, store, executor.patience, self._committed, failed_before, threads=threads,
            pace=executor.pace,
        )  # fmt: skip
        #: The sentence with which two different jobs were refused: the layer is to blame, not the channel.
        self.hopeless: str | None = None
        self.refused: set[str] = set()
        self.seconds = 0.0

    def go(self) -> None:
        """Renders all; returns once everything in hand is committed.  Raises as ``Executor.run``."""
        waiting = deque(self.jobs)
        try:
            while waiting and not self._stopping():
                size = self.executor.sizes.of(waiting[0])
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                with about(batch=secrets.token_hex(4)):
                    self._attempt(batch, self.executor.sizes.shape(batch[0], len(batch)))
        finally:
            self.uploads.settle()
        for job in waiting:
            self.on_outcome(Outcome(job, "unfinished"))

    def _stopping(self) -> bool:
        self.stopped = self.stopped or self.stop()
        return self.stopped

    def _attempt(self, batch: Sequence[Job], shape: int) -> None:
        """Renders a batch, where need be padded to ``shape``; divides it until what fails is alone."""
        if self.hopeless is not None:
            for job in batch:
                self._fail(job, "failed", self.hopeless, "", final=True)
            return
        result = None if self._stopping() else self._begin(batch, shape)
        if isinstance(result, list):
            self._submit(batch, result, shape)
        elif result is None or result.kind == "stopped":
            self.stopped = True
            for job in batch:
                self.on_outcome(Outcome(job, "unfinished"))
        elif result.kind == "shortage" and self.executor.sizes.shrink(batch[0], shape):
            while batch:
                size = self.executor.sizes.of(batch[0])
                self._attempt(batch[:size], size)
                batch = batch[size:]
        elif len(batch) == 1:
            self._blame(batch[0], result)
        else:
            middle = (len(batch) + 1) // 2
            self._attempt(batch[:middle], shape)
            self._attempt(batch[middle:], shape)

    def _begin(self, batch: Sequence[Job], shape: int) -> list[Visualization] | _Trouble:
        if self.on_begin is not None:
            self.on_begin(batch)
        return self._render(batch, shape)

    def _render(self, batch: Sequence[Job], shape: int) -> list[Visualization] | _Trouble:
        started = time.monotonic()
        try:
            with timed("render", len(batch)):
                found = self.executor.render(
                    self.model, [Target(job.layer, job.channel) for job in batch], batch[0].recipe,
                    seeds=[job.seed for job in batch], batch=shape, device=self.executor.device,
                    stop=self._stopping, on_step=self._tick, **self.executor.how,
                )  # fmt: skip
        except Stopped:
            return _Trouble("stopped", "", "")
        except Exception as error:
            if is_shortage(error):
                return _Trouble("shortage", f"one job alone needs more memory than there is ({error})", "")
            if isinstance(error, EnvironmentFault):
                raise
            kind: Literal["request", "job"] = "request" if isinstance(error, RequestError) else "job"
            return _Trouble(kind, str(error) or type(error).__name__, traceback.format_exc())
        seconds = time.monotonic() - started
        log.info("%d of %s in %.2f s", len(batch), batch[0].layer, seconds)
        self.seconds = seconds / len(batch)
        if len(batch) == shape and all(seen.attempts == 1 for seen in found):  # what was tried again took longer
            self.executor.sizes.note(batch[0], shape, seconds)
        return found

    def _tick(self, step: int, steps: int) -> None:
        """Between two steps: reports what was uploaded meanwhile."""
        self.uploads.report()
        if self.on_step is not None:
            self.on_step(step, steps)

    def _submit(self, batch: Sequence[Job], found: Sequence[Visualization], shape: int) -> None:
        executor = self.executor
        for job, seen in zip(batch, found, strict=True):
            if seen.status == "nan":
                self._fail(job, "nan", seen.reason, "")
                continue
            record = commit.record(job, seen, self.model.weights_sha256, executor.software)
            run = Run(
                worker=executor.worker, device=executor.software["device"], batch=shape, seconds=round(self.seconds, 3),
                created=commit.now(),
            )  # fmt: skip
            self.uploads.submit(seen, record, run)
        # The next batch takes as long as this one.  Where the store is slower, it waits: at most one batch is at risk.
        self.uploads.make_room(min(2 * shape, self.uploads.fitting(self.seconds * len(batch))))

    def _committed(self, record: Manifest) -> None:
        status: Literal["dead", "ok"] = "dead" if record.status == "dead" else "ok"
        with about(job=str(record.unit)):
            log.info("%s: %s", record.unit, status)
            self.on_outcome(Outcome(record.job, status, record))

    def _blame(self, job: Job, trouble: _Trouble) -> None:
        if trouble.kind == "request":
            if trouble.sentence in self.refused:
                self.hopeless = trouble.sentence
            self.refused.add(trouble.sentence)
        self._fail(job, "failed", trouble.sentence, trouble.traceback, final=trouble.kind == "request")

    def _fail(self, job: Job, status: Literal["nan", "failed"], error: str, trace: str, *, final: bool = False) -> None:
        with about(job=str(job.unit)):
            # A layer that cannot be rendered is said twice, not once per channel.
            log.log(logging.INFO if error == self.hopeless else logging.WARNING, "%s failed: %s", job.unit, error)
            worker = self.executor.worker
            commit.patiently(lambda: commit.put_failure(self.store, job, error, trace, worker), self.executor.patience)
            self.on_outcome(Outcome(job, status, None, error, trace, final))

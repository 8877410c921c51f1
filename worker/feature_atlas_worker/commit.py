"""From a finished visualisation to objects in the store, in the order that makes the picture the commit."""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Set
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from feature_atlas import keys, manifest
from feature_atlas.errors import IntegrityError, ObjectNotFound, StoreError
from feature_atlas.manifest import Failure, Manifest, Run, SideCar
from feature_atlas.spec import Job, Unit
from feature_atlas.store import Store
from feature_atlas_worker.phases import timed
from feature_atlas_worker.render import Visualization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_LONGEST_WAIT = 60.0


def record(job: Job, seen: Visualization, weights_sha256: str, software: dict[str, str]) -> Manifest:
    """The record of a finished job."""
    return Manifest(
        job=job, job_id=job.id, seed=job.seed, weights_sha256=weights_sha256, status=seen.status, reason=seen.reason,
        attempts=seen.attempts, activation=seen.activation, best_step=seen.best_step, curve=seen.curve,
        picture=seen.picture, pixels_sha256=tuple(manifest.pixels_sha256(image) for image in seen.images),
        software=software,
    )  # fmt: skip


def put(store: Store, seen: Visualization, about: Manifest, run: Run) -> SideCar:
    """Writes a finished job: further images and the dead marker, then the picture, which commits; its side-car to be.

    Raises:
        StoreError: not committed.
    """
    unit = about.unit
    for n in range(1, len(seen.images)):
        _put_picture(store, keys.image(unit, n), _encode(seen.images[n]))
    if seen.initial is not None:
        _put_picture(store, keys.initial(unit), _encode(seen.initial))
    if about.status == "dead":
        store.put(keys.dead(unit), b"")
    png = _encode(seen.images[0], about)
    _put_picture(store, keys.image(unit), png)
    return SideCar(manifest=about, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png), run=run)


def put_side_car(store: Store, car: SideCar) -> None:
    """Writes the record beside a committed picture, or says that it could not: whoever reads rebuilds it."""
    unit = car.manifest.unit
    try:
        with timed("upload"):
            store.put(keys.manifest(unit), manifest.dump(car), content_type="application/json")
    except StoreError as error:
        log.warning("the side-car of %s was not written: %s", unit, error)


def _encode(pixels: NDArray[np.uint8], about: Manifest | None = None) -> bytes:
    with timed("encode"):
        return manifest.encode_png(pixels, about)


def _put_picture(store: Store, key: str, png: bytes) -> None:
    with timed("upload"):
        store.put(key, png, content_type="image/png")


def put_failure(store: Store, job: Job, error: str, traceback: str, host: str) -> None:
    """Records the last failure of a job, counting those before it.  Raises StoreError."""
    key = keys.error(job.unit)
    try:
        before = manifest.load(Failure, store.get(key), key).attempts
    except (ObjectNotFound, IntegrityError):
        before = 0
    failure = Failure(
        unit=job.unit, job_id=job.id, error=error, traceback=traceback, host=host, attempts=before + 1, created=now(),
    )  # fmt: skip
    store.put(key, manifest.dump(failure), content_type="application/json")


def patiently(action: Callable[[], T], patience: float) -> T:
    """The action's result, tried again with full jitter for ``patience`` seconds while the store fails.

    Raises:
        StoreError: it still failed, or in a way that waiting does not heal (no space, no permission).
    """
    end = time.monotonic() + patience
    for attempt in count():
        try:
            return action()
        except StoreError as error:
            left = end - time.monotonic()
            if left <= 0 or getattr(error.__cause__, "errno", None) in _HOPELESS:
                raise
            wait = min(left, random.uniform(0, min(_LONGEST_WAIT, 0.5 * 2**attempt)))
            log.warning("%s; trying again in %.1f s", error, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def failures(store: Store, variant: str, layer: str) -> set[Unit]:
    """Units of a group with a failure on record.  Raises StoreError."""
    listed = (keys.parse_unit(info.key) for info in store.list(keys.ERRORS + keys.group(variant, layer)))
    return {found[1] for found in listed if found is not None}


class Here(Executor):
    """Does everything at once, on the thread that asks."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The result, or the exception, of the call that has just been made."""
        future = Future[T]()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class Pace:
    """How fast a store takes pictures; outlives a group, so that only the very first batch must wait and see."""

    #: Seconds that one job takes one thread: of late, and 0 before the first.
    each: float = 0.0

    def note(self, took: float) -> None:
        """One job more."""
        self.each = 0.8 * self.each + 0.2 * took if self.each else took


class Uploads:
    """Finished jobs on their way to the store, on threads, while the next batch renders.

    What is drawn and not yet written is lost with the process.  So pictures, which commit, go before the side-cars of
    their batch, and the next batch waits for all that could not be written while it is drawn.
    """

    def __init__(
        self,
        pool: Executor,
        store: Store,
        patience: float,
        committed: Callable[[Manifest], None],
        failed_before: Set[Unit] = frozenset(),
        *,
        threads: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """Nothing is on its way yet.

        Args:
            pool: of so many ``threads``.
            store: where to.
            patience: seconds for which a failing store is tried again.
            committed: called by :meth:`report`, on its caller's thread.
            failed_before: units whose earlier failure a success forgets.
            threads: of the pool.
            pace: what earlier uploads on this pool took.
        """
        self.pool, self.store, self.patience, self.committed = pool, store, patience, committed
        self.failed_before, self.threads = failed_before, threads
        self._pending: deque[tuple[Manifest, Future[None], Context]] = deque()
        self._cars: deque[Future[None]] = deque()
        self.pace = pace or Pace()

    def submit(self, seen: Visualization, about: Manifest, run: Run) -> None:
        """Begins to write a finished job."""
        context = copy_context()  # of its batch, for the logs
        self._pending.append((about, self.pool.submit(context.run, self._write, seen, about, run), context))

    def _write(self, seen: Visualization, about: Manifest, run: Run) -> None:
        started = time.monotonic()
        car = patiently(lambda: put(self.store, seen, about, run), self.patience)
        if about.unit in self.failed_before:
            patiently(lambda: self.store.delete(keys.error(about.unit)), self.patience)
        took = time.monotonic() - started
        # At the end of the line: behind all pictures that wait.
        self._cars.append(self.pool.submit(self._finish, car, took))

    def _finish(self, car: SideCar, took: float) -> None:
        started = time.monotonic()
        put_side_car(self.store, car)
        took += time.monotonic() - started
        self.pace.note(took)

    def fitting(self, seconds: float) -> int:
        """How many jobs are written in this time, as things went of late."""
        return int(seconds * self.threads / self.pace.each) if self.pace.each else 0

    def report(self, at_most: int | None = None) -> None:
        """Reports what is committed; waits until ``at_most`` are still on their way, if given.  Raises StoreError."""
        while self._pending:
            about, future, context = self._pending[0]
            if not future.done() and (at_most is None or len(self._pending) <= at_most):
                return
            self._pending.popleft()
            future.result()
            context.run(self.committed, about)

    def make_room(self, at_most: int) -> None:
        """As :meth:`report`, and waits for side-cars as well: the next pictures would stand in line behind them."""
        self.report(at_most)
        while self._cars and len(self._pending) + len(self._cars) > at_most:
            self._cars.popleft().result()

    def settle(self) -> None:
        """Waits for everything in hand and reports what arrived.  Raises the first StoreError."""
        first: StoreError | None = None
        while self._pending:
            try:
                self.report(at_most=0)
            except StoreError as error:
                first = first or error
        while self._cars:
            self._cars.popleft().result()
        if first is not None:
            raise first


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

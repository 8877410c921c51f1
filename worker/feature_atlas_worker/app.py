"""The Celery application of the worker, and its one task: ``celery -A feature_atlas_worker.app worker``.

The task is a shell around :class:`feature_atlas_worker.turn.Turn`.  The parent imports torch, so that a new child
starts at once, and never touches a device: a forked process could not use it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
import warnings
from importlib import import_module
from typing import Any

from celery import Task, signals
from celery.apps import worker as celery_worker
from celery.exceptions import CPendingDeprecationWarning, Reject
from celery.utils.log import get_multiprocessing_logger
from redis import RedisError

from feature_atlas import logs
from feature_atlas.broker import open_client
from feature_atlas.errors import RequestError
from feature_atlas.messages import TASK, WORKERS, order_of
from feature_atlas.queue import Template, make_app
from feature_atlas.settings import Settings
from feature_atlas_worker import alive, transport
from feature_atlas_worker.child import Child
from feature_atlas_worker.pulse import Pulse
from feature_atlas_worker.turn import Turn
from feature_atlas_worker.watchdog import Watchdog

log = logging.getLogger(__name__)

settings = Settings.load()
settings = settings.model_copy(update={"broker": settings.broker or "redis://localhost:6379/0"})
transport.install()
app = make_app(settings.broker, visibility_timeout=settings.visibility_timeout, grace=settings.grace)
pulse = Pulse()
_name = f"worker-{os.getpid()}"
_template: Template | None = None
_child: Child | None = None


class Worker(celery_worker.Worker):  # type: ignore[misc]
    """Celery's worker, whose soft shutdown ends as soon as the batch in hand has ended."""

    #: With what the last one ended; Celery's ``worker_main`` keeps it to itself.
    status = 0

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """Ends, and remembers how."""
        # Asked to end, Celery may stumble over the pool that it has just closed: that is no failure.
        Worker.status = 0 if pulse.draining else exitcode or 0
        super().stop(in_sighandler=in_sighandler, exitcode=exitcode)

    def wait_for_soft_shutdown(self) -> None:
        """Lets the child finish what fits into the grace period.  Celery would sleep all of it."""
        pulse.drain()
        end = time.monotonic() + self.app.conf.worker_soft_shutdown_timeout
        while pulse.busy and time.monotonic() < end:
            time.sleep(0.05)


app.Worker = app.subclass_with_self(Worker)


@app.task(name=TASK, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def render(task: Task, atlas: str, variant: str, layer: str, channel: int) -> None:
    """Renders one job, and the waiting siblings that fit beside it."""
    child, order = _get_child(), order_of((atlas, variant, layer, channel))
    pulse.busy = True
    child.touch()
    try:
        Turn(child, *child.open(task.request.properties["delivery_tag"], order)).go()
    except Exception as error:
        # Never acknowledged by an error of ours.
        raise Reject(str(error), requeue=True) from error
    finally:
        child.touch()
        pulse.busy = False


def _get_child() -> Child:
    global _child, _template
    if _child is None or _child.beat.pid != os.getpid():
        _template = _template or Template(app)
        _child = Child(settings, _template, pulse, _name)
    return _child


@signals.celeryd_after_setup.connect(weak=False)  # type: ignore[untyped-decorator]
def _name_worker(sender: str, **_: Any) -> None:
    global _name, _template
    _name, _template = sender, Template(app)
    if settings.metrics:  # before the fork, so that all children write where the parent reads
        import_module("feature_atlas_worker.metrics")


def _log_as_json(loglevel: int, **_: Any) -> None:
    logs.set_up("json", loglevel, others=logging.INFO, worker=_name)
    pool = get_multiprocessing_logger()  # what it says of a child that died goes past all others
    pool.propagate, pool.level = True, logging.ERROR


if settings.log == "json":  # else Celery's own, with its time and process
    signals.setup_logging.connect(_log_as_json, weak=False)
    # Celery speaks to a terminal when it is told to end.
    celery_worker.safe_say = lambda text, *_: os.write(
        2, (logs.line("info", text.strip(), worker=_name) + "\n").encode()
    )


@signals.worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def _start_child(**_: Any) -> None:
    pulse.busy = False
    died = pulse.follow()  # before the child says that it is there
    child = _get_child()
    if died:
        child.trouble("process")


@signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
def _watch(**_: Any) -> None:
    if strange := Settings.unknown():
        log.warning("%s", "; ".join(strange))
    if not settings.allowed_stores:
        log.error("no place is allowed, so every job is refused: set FEATURE_ATLAS_ALLOWED_STORES, or --store")
    if settings.metrics:
        from feature_atlas_worker import metrics

        metrics.serve(*settings.metrics_address, open_client(settings.broker))
    Watchdog(
        open_client(settings.broker), pulse, patience=settings.watchdog, silence=3 * settings.visibility_timeout + 60,
        grace=settings.grace, alive_file=settings.alive_file,
    ).start()  # fmt: skip


def main(name: str = "") -> None:
    """Runs one worker with the right options until it is told to end; what ends it otherwise is a failure."""
    # Said at every reconnection: tasks in hand go on.  That is what we want.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module="celery")
    global _name
    name = name or f"w{os.getpid()}"
    _name = f"{name}@{socket.gethostname()}"  # as Celery will call it, for the first lines of a log
    if settings.log == "json":
        _log_as_json(logging.INFO)  # also what is said before Celery sets up its logs
    try:
        alive.begin(settings.alive_file)
    except RequestError as error:
        log.critical("%s", error)
        sys.exit(error.exit_code)
    options = ["--pool", "prefork", "--concurrency", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["--quiet", "worker", *options, "--hostname", f"{name}@%h", "--loglevel", "INFO"])
    _sign_off()
    if Worker.status:
        sys.exit(Worker.status)


def _sign_off() -> None:
    """Takes this worker off the list of those that live: it has ended, and nobody need wonder where it is."""
    with contextlib.suppress(RedisError), open_client(settings.broker, timeout=1.0) as client:
        client.hdel(WORKERS, _name)

"""Prometheus metrics of the workers of one machine or container, kept in files that outlive a rendering process.

Parent and children of all workers under one supervisor write to one folder (prometheus_client's multi-process mode,
chosen when it is imported, so this module is imported only where metrics are wanted).  Whichever parent gets the port
serves them all; when it ends, another takes over.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from redis import RedisError

from feature_atlas.broker import now
from feature_atlas.messages import MALFORMED, QUEUE, UNACKED, UNACKED_INDEX
from feature_atlas.monitor import workers
from feature_atlas_worker import phases

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
if FOLDER not in os.environ:  # a worker without a supervisor
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="feature-atlas-metrics-")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess, start_http_server  # noqa: E402
from prometheus_client.core import GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

#: Seconds between two tries to get the port.
_AGAIN = 5.0

JOBS = Counter("feature_atlas_jobs", "Jobs by what became of them; skipped: in the store already", ["outcome"])
OUTCOMES = ("ok", "dead", "nan", "failed", "skipped", "given_up", "given_back")
SECONDS = Counter("feature_atlas_phase_seconds", "Seconds by what they were spent on", ["phase"])
BATCHES = Histogram("feature_atlas_batch_jobs", "Jobs side by side", buckets=[2**i for i in range(11)])
TROUBLE = Counter(
    "feature_atlas_trouble", "What failed outside of the jobs; process: a rendering process that died", ["what"]
)
TROUBLES = ("store", "weights", "broker", "device", "process")
MEMORY = Gauge(
    "feature_atlas_gpu_memory_bytes", "Memory of the GPU held by the rendering process", ["gpu"],
    multiprocess_mode="livemax",
)  # fmt: skip


def begin() -> None:
    """Shows every series at zero, so that the first event of each is a rise, and listens to the phases."""
    for outcome in OUTCOMES:
        JOBS.labels(outcome)
    for phase in phases.PHASES:
        SECONDS.labels(phase)
    for what in TROUBLES:
        TROUBLE.labels(what)
    phases.listen(_spent)


def _spent(phase: phases.Phase, seconds: float, jobs: int) -> None:
    SECONDS.labels(phase).inc(seconds)
    if phase == "render":
        BATCHES.observe(jobs)
        import torch

        if torch.cuda.is_initialized():
            MEMORY.labels(os.environ.get("CUDA_VISIBLE_DEVICES", "0")).set(torch.cuda.memory_reserved())


class QueueCollector(Collector):
    """What the broker knows, asked at every scrape; the same from every worker, so take the maximum."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def collect(self) -> Iterator[Metric]:
        """Depth of the queue, age of the oldest job in hand without a sign of life, workers, and refused messages."""
        try:
            waiting, in_hand = self.client.llen(QUEUE), self.client.hlen(UNACKED)
            oldest = self.client.zrange(UNACKED_INDEX, 0, 0, withscores=True)
            alive = sum(beat.alive for beat in workers(self.client))
            malformed, at = self.client.hlen(MALFORMED), now(self.client)
        except (RedisError, OSError):
            yield _gauge("broker_up", "Whether the broker answers", 0)
            return
        yield _gauge("broker_up", "Whether the broker answers", 1)
        jobs = GaugeMetricFamily("feature_atlas_queue_jobs", "Jobs in the queue and in hand", labels=["state"])
        jobs.add_metric(["waiting"], waiting)
        jobs.add_metric(["in_hand"], in_hand)
        yield jobs
        age = max(0.0, at - float(oldest[0][1])) if oldest else 0.0
        yield _gauge("oldest_lease_seconds", "Since the last sign of life of whoever has the oldest job in hand", age)
        yield _gauge("workers", "Workers heard of lately", alive)
        yield _gauge("malformed_messages", "Messages that nobody could use, put aside", malformed)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"feature_atlas_{name}", text, value)


def serve(host: str, port: int, client: redis.Redis) -> None:
    """Serves the metrics of this folder at an address, from a thread, as soon as nobody else does."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(QueueCollector(client))

    def run() -> None:
        said = False
        while True:
            try:
                start_http_server(port, host, registry)
                break
            except OSError as error:
                if not said:  # once: under one supervisor all but one wait here for as long as they live
                    log.warning("%s", _why_not(host, port, error))
                said = True
            time.sleep(_AGAIN)
        log.info("metrics at http://%s:%d/metrics", host, port)
        while True:
            forget_the_dead()
            time.sleep(_AGAIN)

    threading.Thread(target=run, name="metrics", daemon=True).start()


def _why_not(host: str, port: int, error: OSError) -> str:
    asked = f"no metrics at {host}:{port} ({error.strerror or error})"
    if error.errno == errno.EADDRINUSE:
        return f"{asked}: well if another worker here serves them, else set FEATURE_ATLAS_METRICS to a free port"
    return (
        f"{asked}: set FEATURE_ATLAS_METRICS to an address of this machine, such as 0.0.0.0:{port}; it is tried again"
    )


def forget_the_dead() -> None:
    """Removes what rendering processes that ended said of themselves; what they counted stays."""
    for file in Path(os.environ[FOLDER]).glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            file.unlink(missing_ok=True)

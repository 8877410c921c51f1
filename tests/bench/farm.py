"""What the farm can do: ``python -m tests.bench.farm enqueue|throughput|scaling|redelivery|outage|rehearsal``.

Real servers and workers; pictures cost nothing or a fixed sleep.  Each prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from feature_atlas.broker import connect
from feature_atlas.embedded import EmbeddedBroker
from feature_atlas.messages import QUEUE
from feature_atlas.store import MemoryStore
from feature_atlas_producer.enqueue import enqueue
from tests.e2e.farm import Farm, Worker, grow
from tests.servers import CephGateway, RedisServer, wait_until
from tests.synthetic import RESNET50

Figures = dict[str, Any]


@contextlib.contextmanager
def farm(layers: dict[str, int], *, url: str = "", broker: str = "", **environ: str) -> Iterator[Farm]:
    """A farm of no workers yet, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="fa-bench-") as folder, contextlib.ExitStack() as stack:
        if not broker:
            broker = stack.enter_context(EmbeddedBroker(folder)).url
        atlas = grow(url or f"{folder}/atlas", layers, steps=2)
        with Farm(Path(folder), broker, atlas, environ) as found:
            found.forked = False  # so that each has its own memory, as on machines of their own
            yield found


def ready(farm: Farm, workers: int, **environ: str) -> list[Worker]:
    """Workers that wait for jobs."""
    found = [farm.start(**environ) for _ in range(workers)]
    wait_until(lambda: all(" ready." in worker.log.read_text() for worker in found), "the workers")
    time.sleep(3)  # their children are up as well
    return found


def drain(farm: Farm, workers: int, **environ: str) -> float:
    """Seconds from the first job in hand to an empty queue."""
    ready(farm, workers, **environ)
    started = time.perf_counter()
    farm.enqueue()
    while farm.waiting():
        time.sleep(0.05)  # not oftener: who looks takes the workers' time
    return time.perf_counter() - started


def steady(farm: Farm, workers: int) -> float:
    """Pictures per second once a tenth is drawn: a process's first one includes what it sets up."""
    ready(farm, workers)
    farm.enqueue()
    jobs = len(farm.atlas.plan)
    wait_until(lambda: len(farm.drawings()) >= jobs // 10, "the first tenth", 600)
    first, started = len(farm.drawings()), time.perf_counter()
    while farm.waiting():
        time.sleep(0.05)
    return (jobs - first) / (time.perf_counter() - started)


def bench_enqueue(args: argparse.Namespace) -> Figures:
    """Seconds and bytes for ResNet-50's 26,560 jobs, and for a million."""
    figures: Figures = {}
    million = tuple((f"layer{i // 8}.{i % 8}.conv3", 2000) for i in range(500))
    for name, layers in (("resnet50", RESNET50), ("million", million)):
        store = MemoryStore()
        store.url = "s3://bucket/resnet50"
        atlas = grow(store, dict(layers))  # type: ignore[arg-type]
        with EmbeddedBroker(f"bench-{name}") as broker:
            client = connect(broker.url)
            client.flushall()
            started = time.perf_counter()
            result = enqueue(atlas, broker.url)
            seconds = time.perf_counter() - started
            # Not the server's total: that holds the connection's buffers as well, for some seconds.
            memory = cast(int, client.memory_usage(QUEUE, samples=0))
            again = enqueue(atlas, broker.url)
            client.flushall()
            client.close()
        figures[name] = {
            "jobs": result.sent, "seconds": round(seconds, 2), "sending": round(result.sending, 2),
            "listing": round(result.listing, 4), "bytes_per_job": round(memory / result.sent), "again": again.sent,
        }  # fmt: skip
    return figures


def bench_throughput(args: argparse.Namespace) -> Figures:
    """Jobs per second of one worker whose pictures cost nothing, into a folder."""
    figures: Figures = {}
    for fsync in ("0", "1"):
        with farm({"conv": 2000}, FEATURE_ATLAS_BATCH="64", FEATURE_ATLAS_FSYNC=fsync) as one:
            figures[f"fsync {fsync}"] = round(2000 / drain(one, 1), 1)
    with farm({"conv": 500}, FEATURE_ATLAS_BATCH="1") as one:
        figures["batch 1, fsync 0"] = round(500 / drain(one, 1), 1)
    return figures


def bench_scaling(args: argparse.Namespace) -> Figures:
    """One worker and four, 50 ms per picture."""
    figures: Figures = {}
    for batch in ("1", "8"):
        for workers in (1, 4):
            jobs = {"conv1": 150 * workers, "conv2": 150 * workers}
            # The lease that workers have by default: the tests' short one is renewed all the time.
            environ = {"FEATURE_ATLAS_VISIBILITY_TIMEOUT": "120", "TEST_SECONDS": "0.05"}
            with farm(jobs, FEATURE_ATLAS_BATCH=batch, **environ) as one:
                figures[f"batch {batch}, {workers} workers"] = round(steady(one, workers), 2)
        figures[f"batch {batch}"] = round(
            figures[f"batch {batch}, 4 workers"] / figures[f"batch {batch}, 1 workers"], 2
        )
    return figures


def bench_redelivery(args: argparse.Namespace) -> Figures:
    """Seconds from kill -9 until another worker has the jobs."""
    found = []
    for _ in range(args.repeat):
        with farm({"conv": 8}, FEATURE_ATLAS_VISIBILITY_TIMEOUT="10", TEST_SECONDS="10") as one:
            one.enqueue()
            victim = ready(one, 1)[0]
            log = ready(one, 1)[0].log
            victim.kill()
            killed = time.monotonic()
            while "received" not in log.read_text(errors="replace"):
                time.sleep(0.05)
            found.append(round(time.monotonic() - killed, 1))
    return {"visibility_timeout": 10, "seconds": sorted(found)}


def bench_outage(args: argparse.Namespace) -> Figures:
    """A broker that is away for 30 s: when the worker takes up again, by itself, and what was rendered twice."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(shutil.which("redis-server") or "redis-server", Path(folder) / "redis")
        server.start()
        with farm({"conv": 400}, broker=server.url, TEST_SECONDS="0.1") as one:
            ready(one, 1)
            one.enqueue()
            wait_until(lambda: len(one.drawings()) > 20, "some pictures")
            server.kill()
            down = len(one.drawings())
            time.sleep(30)
            meanwhile = len(one.drawings()) - down
            server.start()
            back, there = time.monotonic(), len(one.drawings())
            wait_until(lambda: len(one.drawings()) > there, "a picture after the outage")
            resumed = time.monotonic() - back
            one.wait(300)
            one.check()
            in_vain = one.in_vain()
        server.stop()
    return {"outage": 30, "resumed_after": round(resumed, 1), "drawn_meanwhile": meanwhile, "in_vain": in_vain}


class Memory(threading.Thread):
    """The greatest resident memory of processes, in MB."""

    def __init__(self, pids: Callable[[], dict[str, int]]) -> None:
        super().__init__(daemon=True)
        self.pids, self.most = pids, dict[str, int]()

    def run(self) -> None:
        while True:
            for name, pid in self.pids().items():
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    used = int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
                    self.most[name] = max(self.most.get(name, 0), used)
            time.sleep(1)


def bench_rehearsal(args: argparse.Namespace) -> Figures:
    """ResNet-50's 26,560 jobs into a real S3 gateway through two workers that are killed on the way."""
    draw = random.Random(5)
    with tempfile.TemporaryDirectory() as folder:
        ceph = CephGateway(Path(folder) / "ceph")
        ceph.start()
        os.environ.update(ceph.environ)
        try:
            layers = dict(RESNET50) if not args.jobs else {name: 64 for name, _ in RESNET50[: args.jobs // 64]}
            url = f"s3://{ceph.new_bucket()}/resnet50"
            with farm(layers, url=url, FEATURE_ATLAS_BATCH="64", FEATURE_ATLAS_VISIBILITY_TIMEOUT="20") as one:
                return rehearse(one, draw, ceph, args)
        finally:
            ceph.close()


def rehearse(one: Farm, draw: random.Random, ceph: CephGateway, args: argparse.Namespace) -> Figures:
    """Enqueue, render, kill, status, fetch."""

    def pids() -> dict[str, int]:
        found = {"gateway": ceph.process.pid if ceph.process else 0, "producer": os.getpid()}
        for i, worker in enumerate(worker for worker in one.workers if worker.process.poll() is None):
            found[f"worker {i} parent"], found[f"worker {i} child"] = worker.process.pid, worker.child or 0
        return found

    memory = Memory(pids)
    memory.start()
    one.environ["TEST_REQUESTS"] = str(one.folder)
    started = time.monotonic()
    sent = one.enqueue()
    enqueued = time.monotonic() - started

    def living() -> list[Worker]:
        """Two workers at least: those that ended are replaced, as a supervisor does."""
        while sum(worker.process.poll() is None for worker in one.workers) < 2:
            one.start()
        return [worker for worker in one.workers if worker.process.poll() is None]

    for faults in range(args.kills):
        # By progress and not by the clock, so that a slow machine is not hurt more often per picture.
        part = sent * (faults + 1) // (args.kills + 1) + draw.randrange(50)
        while living() and one.waiting() and len(one.drawings()) < part:
            time.sleep(0.2)
        # Not right after a batch was drawn, when most is at risk.
        time.sleep(draw.uniform(0, 10))
        victim = living()[0]
        if faults % 3 == 0:
            victim.kill()
        elif faults % 3 == 1:
            victim.kill_child()
        else:
            victim.signal(signal.SIGTERM)
    while living() and one.waiting():
        time.sleep(1)
    rendered = time.monotonic() - started
    one.wait(300)
    broker_memory = one.client.info("memory")["used_memory_peak"] // 2**20
    timed = time.monotonic()
    command = [sys.executable, "-m", "feature_atlas", "status", one.atlas.url, "--json"]
    status = subprocess.run(command, capture_output=True)
    status_seconds, timed = time.monotonic() - timed, time.monotonic()
    target = one.folder / "fetched"
    subprocess.run([sys.executable, "-m", "feature_atlas", "fetch", one.atlas.url, str(target)], check=True)
    fetch_seconds = time.monotonic() - timed
    totals = _requests(one.folder)
    figures = {
        "jobs": sent, "enqueue_seconds": round(enqueued, 1), "seconds": round(rendered, 1),
        "jobs_per_second": round(sent / rendered, 1), "faults": args.kills, "in_vain": one.in_vain(),
        "done": json.loads(status.stdout)["done"], "status_seconds": round(status_seconds, 1),
        "fetch_seconds": round(fetch_seconds, 1), "fetched": sum(1 for _ in target.rglob("*.png")),
        "memory_mb": {**memory.most, "broker": broker_memory}, "requests": totals,
    }  # fmt: skip
    one.check()
    return figures


def _requests(folder: Path) -> dict[str, int]:
    """Calls of the S3 client by all workers, by operation."""
    totals: dict[str, int] = {}
    for path in folder.glob("requests-*.json"):
        for name, count in json.loads(path.read_text()).items():
            totals[name] = totals.get(name, 0) + count
    return totals


def main() -> None:
    benches = {name.removeprefix("bench_"): value for name, value in globals().items() if name.startswith("bench_")}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=benches)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=0, help="rehearsal: fewer jobs")
    parser.add_argument("--kills", type=int, default=13, help="rehearsal: spread over the run")
    args = parser.parse_args()
    print(json.dumps({args.what: benches[args.what](args)}))


if __name__ == "__main__":
    main()

"""A farm for tests: an atlas of any size, worker processes that can be hurt, and what must hold at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from feature_atlas import keys, manifest, spec
from feature_atlas.atlas import Atlas
from feature_atlas.broker import open_client
from feature_atlas.messages import QUEUE, UNACKED, attempts_key, dead_key, peek
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.reconcile import _is_final, unwrap
from feature_atlas.spec import ModelRef, Recipe, Unit
from feature_atlas_producer.enqueue import enqueue
from tests.nursery import Forked
from tests.servers import wait_until

MODEL = ModelRef(name="toy", weights="random:0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ROOT = Path(__file__).parents[2]
#: What a program takes notice of only when it starts.
_NOT_FORKED = {"LD_PRELOAD", "PYTHONPATH"}


def grow(url: str | Path, layers: Mapping[str, int], **recipe: Any) -> Atlas:
    """An atlas of these layers: name -> channels."""
    rows = tuple(
        LayerPlan(name=name, kind="conv", index=i, total=channels, channels=f"0:{channels}")
        for i, (name, channels) in enumerate(layers.items())
    )
    variants = {"channel": Recipe(**{"steps": 2, "size": 8, "renderer": spec.RENDERER, **recipe})}
    return Atlas.grow(url, MODEL, PlanFile(model=MODEL.digest(), layers=rows, variants=variants))


def is_over(pid: int) -> bool:
    """Whether a process has ended, even if nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Worker:
    """One worker: Celery's parent and its rendering child."""

    def __init__(
        self, farm: Farm, name: str, environ: Mapping[str, str], module: str = "tests.e2e.cheap_worker"
    ) -> None:
        self.farm, self.name = farm, name
        self.log = farm.folder / f"{name}.log"
        told = {**os.environ, **farm.environ, **environ}
        self.process: subprocess.Popen[bytes] | Forked
        with self.log.open("ab") as output:
            if farm.forked and not _NOT_FORKED & environ.keys():
                self.process = Forked(module, [name], told, output.fileno())
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, name], cwd=ROOT, env=told,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def child(self) -> int | None:
        """The process that renders, if there is one just now."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return None
        return int(text.split()[0]) if text.split() else None

    def load(self, seconds: float = 2.0) -> float:
        """Of one core, the part that Celery's parent takes while so many ``seconds`` pass."""

        def ticks() -> int:  # user's and system's: fields 14 and 15
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before, since = ticks(), time.monotonic()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - since)

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9 of both, as when the machine goes away."""
        child = self.child
        self.signal(signal.SIGKILL)
        self.process.wait()
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            # Until its sockets are closed the broker may still give it a message.
            wait_until(lambda: is_over(child), "the end of the rendering process")

    def kill_child(self) -> bool:
        """kill -9 of the rendering process only."""
        child = self.child
        if child is None:
            return False
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def stop(self, seconds: float = 120) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)


class Farm:
    """A broker, an atlas and workers; everything ends with the ``with`` block."""

    #: Whether workers are forked from a process that has imported torch: sooner ready, and some memory is shared.
    forked = True

    def __init__(self, folder: Path, broker: str, atlas: Atlas, environ: Mapping[str, str] | None = None) -> None:
        self.folder, self.broker, self.atlas = folder, broker, atlas
        self.drawn = folder / "drawn.log"
        self.drawn.touch()
        self.drawn_before = self.drawn.stat().st_size
        self.client: redis.Redis = open_client(broker)
        self.workers: list[Worker] = []
        self.environ = {
            "FEATURE_ATLAS_BROKER": broker,
            "FEATURE_ATLAS_ALLOWED_STORES": atlas.url,
            "FEATURE_ATLAS_BATCH": "8",
            "FEATURE_ATLAS_DEVICE": "cpu",
            "FEATURE_ATLAS_VISIBILITY_TIMEOUT": "4",
            "FEATURE_ATLAS_GRACE": "5",
            "FEATURE_ATLAS_REST": "2",
            "TEST_LOG": str(self.drawn),
            **(environ or {}),
        }

    def over(self, layers: Mapping[str, int], **recipe: Any) -> Farm:
        """The same workers over a fresh atlas beside this one."""
        url = self.folder / f"atlas-{len(list(self.folder.iterdir()))}"
        farm = Farm(self.folder, self.broker, grow(url, layers, **recipe), self.environ)
        farm.workers = self.workers
        return farm

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        self.client.close()

    def start(self, name: str = "", module: str = "tests.e2e.cheap_worker", **environ: str) -> Worker:
        worker = Worker(self, name or f"w{len(self.workers)}", environ, module)
        self.workers.append(worker)
        return worker

    def enqueue(self) -> int:
        return enqueue(self.atlas, self.broker).sent

    def waiting(self) -> int:
        """Messages queued or in hand, at one moment: read one after the other, a message on its way is in neither."""
        with self.client.pipeline(transaction=True) as both:
            return sum(both.llen(QUEUE).hlen(UNACKED).execute())

    def nowhere(self) -> set[Unit]:
        """Planned jobs that are neither queued nor in hand nor done nor given up: lost, unless on their way just now.

        Queue and hands are read at one moment, the store after them: that is where jobs go.
        Raises AssertionError where there is something that nobody planned.
        """
        with self.client.pipeline(transaction=True) as moment:
            moment.lrange(QUEUE, 0, -1)
            moment.hvals(UNACKED)
            queued, unacked = moment.execute()
        found = [peek(raw) for raw in (*queued, *map(unwrap, unacked))]
        there = {unit for url, unit in filter(None, found) if url == self.atlas.url}
        given_up, done = self.given_up(), self.atlas.done()
        planned = set(self.atlas.plan.units())
        assert not (there | done) - planned, f"nobody planned {(there | done) - planned}"
        return planned - there - given_up - done

    def none_lost(self, seconds: float = 15) -> None:
        """Every planned job is in the queue, in hand, in the store or given up.

        kombu moves a message in two steps, first out of the queue and then into the hands.  So one that is nowhere is
        looked for again for so many ``seconds``.
        """
        wait_until(lambda: not self.nowhere(), "every job in some place", seconds)

    def wait(self, seconds: float = 180, *, left: int = 0) -> None:
        """Until every planned job but ``left`` has its picture, and the queue is empty."""
        goal = len(self.atlas.plan) - left

        def finished() -> bool:
            return self.waiting() == 0 and len(self.atlas.done()) >= goal

        try:
            wait_until(finished, f"{goal} pictures", seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.state()}\n{self.logs()}") from None

    def state(self) -> str:
        return (
            f"done {len(self.atlas.done())} of {len(self.atlas.plan)}, queued {self.client.llen(QUEUE)},"
            f" in hand {self.client.hlen(UNACKED)}, given up {self.client.hlen(dead_key(self.atlas.url))}"
        )

    def logs(self, lines: int = 40) -> str:
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted(self.folder.glob("*.log")) if path != self.drawn
        )  # fmt: skip

    def drawings(self) -> Counter[str]:
        """How often each picture was drawn to its end."""
        lines = self.drawn.read_text()[self.drawn_before :].split()
        return Counter(line for line in lines if not line.startswith("try:"))

    def in_vain(self) -> int:
        """Pictures drawn though they had been drawn before."""
        return sum(count - 1 for count in self.drawings().values())

    def given_up(self) -> set[Unit]:
        """Jobs that are not tried again, by the store's word or the broker's."""
        names = {tuple(name.decode().split("|")) for name in self.client.hkeys(dead_key(self.atlas.url))}
        found = {Unit(variant, layer, int(channel)) for variant, layer, channel in names}
        return found | {unit for unit in self.atlas.failed() if _is_final(self.atlas, unit)}

    def check(self) -> None:
        """What must hold whenever the queue is empty and nobody works: the invariants of the farm."""
        atlas, client = self.atlas, self.client
        planned, done, failed = set(atlas.plan.units()), atlas.done(), self.given_up()
        assert not done - planned, "pictures that nobody planned"
        assert done | failed == planned, f"{len(planned - done - failed)} lost: {self.state()}"
        assert not done & failed
        assert self.enqueue() == 0
        # A job that a broken connection sent twice may still be drawn the second time, in nobody's list; and where the
        # broker failed, a worker tells it a moment later that a job is done.
        try:
            wait_until(lambda: client.hlen(attempts_key(atlas.url)) == 0, "an empty table of attempts")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {client.hgetall(attempts_key(atlas.url))}\n{self.logs()}") from None
        problems = [problem for problem in atlas.verify() if not problem.harmless]
        assert not problems, problems[:3]
        for unit in done:
            self.check_picture(unit)

    def check_picture(self, unit: Unit) -> None:
        """A done job's picture decodes, and what it carries is this job's record and of these pixels."""
        key = keys.image(unit)
        pixels, record = manifest.decode_png(self.atlas.store.get(key), key)
        assert record is not None and record.job == self.atlas.plan.job(unit)
        assert record.pixels_sha256[0] == manifest.pixels_sha256(pixels)

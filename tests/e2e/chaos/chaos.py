"""A farm under faults: a seeded sequence of them, the invariants after each, and figures at the end."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import RedisError

from feature_atlas.errors import AtlasError
from feature_atlas.messages import QUEUE, UNACKED
from feature_atlas.reconcile import where
from feature_atlas.spec import Unit
from tests.e2e.chaos.proxy import Proxy
from tests.e2e.farm import Farm, Worker, grow
from tests.servers import RedisServer, Server, wait_until

#: A mixture: many layers, jobs that kill their process, fail twice, fail always.
SHORT = {"conv1": 40, "flaky": 2, "conv2": 30, "poison": 1, "conv3": 27}
LONG = {**{f"conv{i}": 100 for i in range(9)}, "flaky": 5, "poison": 3, "broken": 2, "conv9": 90}
#: Seconds of a broker's and a store's outage.
OUTAGE = 3.0
#: Seconds until a message that kombu moves in two steps has arrived, and until broker and store are there again.
MOVED, SETTLED = 3.0, 30.0


@dataclass
class Chaos:
    """Hurts a farm, one fault at a time."""

    farm: Farm
    server: RedisServer
    proxy: Proxy
    seed: int
    workers: int
    #: A store that can be paused.
    store: Server | None = None
    full: Path | None = None
    faults: list[tuple[float, str]] = field(default_factory=list)
    #: (seconds, done, queued, in hand)
    timeline: list[tuple[float, int, int, int]] = field(default_factory=list)
    #: Pictures drawn in vain, by the last fault before.
    in_vain_after: dict[str, int] = field(default_factory=dict)
    #: The most jobs at once that only a reconciliation could find again, and after how many faults there was none.
    most_nowhere: int = 0
    none_nowhere: int = 0
    #: How many jobs the faults since then may have taken out of the queue, which no setting of Redis prevents.
    allowed: float = 0
    checked: set[Unit] = field(default_factory=set)
    watchdog: int = 0
    _names: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.started = time.monotonic()
        for _ in range(self.workers):
            self.hire()

    def hire(self) -> Worker:
        """A new worker, through the proxy."""
        self._names += 1
        broker = f"redis://127.0.0.1:{self.proxy.port}/0"
        return self.farm.start(f"w{self._names}", FEATURE_ATLAS_BROKER=broker)

    def living(self) -> list[Worker]:
        return [worker for worker in self.farm.workers if worker.process.poll() is None]

    # -- faults: each adds to ``allowed`` what may be lost with the answer to a worker's BRPOP, a message at a time

    def kill_worker(self) -> None:
        """kill -9 of parent and child; a new one is hired."""
        self.random.choice(self.living()).kill()
        self.allowed += 1
        self.hire()

    def kill_child(self) -> None:
        self.random.choice(self.living()).kill_child()

    def end_worker(self) -> None:
        """SIGTERM; a new one is hired."""
        self.random.choice(self.living()).signal(signal.SIGTERM)
        self.allowed += 1
        self.hire()

    def drop_connections(self) -> None:
        self.farm.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.allowed += self.workers

    def freeze_network(self) -> None:
        self.proxy.freeze()
        self.allowed += self.workers

    def restart_broker(self) -> None:
        self.server.kill()
        self.allowed += self.workers
        time.sleep(OUTAGE)
        self.server.start()

    def flush_broker(self) -> None:
        self.farm.client.flushall()
        self.allowed = math.inf  # until idle workers have looked

    def pause_store(self) -> None:
        assert self.store is not None
        self.store.pause()
        time.sleep(OUTAGE)
        self.store.resume()

    def restart_store(self) -> None:
        assert self.store is not None
        self.store.kill()
        time.sleep(OUTAGE)
        self.store.start()

    def fill_disk(self) -> None:
        assert self.full is not None
        self.full.touch()
        time.sleep(OUTAGE)
        self.full.unlink()

    def kinds(self) -> list[Callable[[], None]]:
        """Every fault that this setting can have."""
        kinds = [
            self.kill_worker, self.kill_child, self.end_worker, self.drop_connections, self.freeze_network,
            self.restart_broker, self.flush_broker,
        ]  # fmt: skip
        if self.store is not None:
            kinds += [self.pause_store, self.restart_store]
        if self.full is not None:
            kinds.append(self.fill_disk)
        return kinds

    # -- the run

    def run(self, faults: int, pause: tuple[float, float], limit: float) -> dict[str, Any]:
        """Hurts until ``faults`` are done (each kind about equally often), then waits for the end.

        Raises:
            AssertionError: an invariant does not hold, or the end does not come within ``limit`` seconds.
        """
        kinds = self.kinds()
        order = [kinds[i % len(kinds)] for i in range(faults)]
        self.random.shuffle(order)
        wait_until(lambda: bool(self.farm.drawings()), "a first picture", limit)
        for fault in order:
            self.wait(self.random.uniform(*pause))
            self.faults.append((time.monotonic() - self.started, fault.__name__))
            fault()
            self.check_meanwhile()
        self.farm.client.ping()
        self.to_the_end(limit)
        return self.figures()

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.observe()
            time.sleep(0.5)

    def observe(self) -> None:
        """Takes a point of the timeline, and replaces workers that ended by themselves, as a supervisor does."""
        client = self.farm.client
        done, in_vain = len(self.farm.drawings()), self.farm.in_vain()
        more = in_vain - sum(self.in_vain_after.values())
        if more:
            after = self.faults[-1][1] if self.faults else "nothing"
            self.in_vain_after[after] = self.in_vain_after.get(after, 0) + more
        self.timeline.append((time.monotonic() - self.started, done, client.llen(QUEUE), client.hlen(UNACKED)))
        while len([w for w in self.living()]) < self.workers:
            self.watchdog += sum(worker.process.returncode == 75 for worker in self.farm.workers[-self.workers :])
            self.hire()

    def check_meanwhile(self) -> None:
        """After each fault: no job is lost, none is there that nobody planned, and new pictures are right.

        done + dead + failed + queued + in hand = planned, but for those that the queue itself may have lost: one for
        each worker that was cut off, and all of them where the broker was emptied, until idle workers have looked.
        """
        found: list[set[Unit]] = []
        # Those on their way arrive at once; for an emptied queue nobody waits here.
        patient_until = time.monotonic() + (MOVED if self.allowed < math.inf else 0.0)

        def settled() -> bool:
            try:
                found.append(self.farm.nowhere())
                self.check_pictures()
            except (AtlasError, RedisError):  # store or broker is only just coming back
                return False
            return not found[-1] or (len(found[-1]) <= self.allowed and time.monotonic() > patient_until)

        try:
            wait_until(settled, "every job in some place", SETTLED)
        except TimeoutError as error:
            lost = found[-1] if found else "nobody knows"
            raise AssertionError(f"{error} after {self.faults[-1]}: {lost}, {self.allowed} allowed") from None
        self.most_nowhere = max(self.most_nowhere, len(found[-1]))
        if not found[-1]:
            self.allowed = 0
            self.none_nowhere += 1

    def check_pictures(self) -> None:
        """Those that are new since the last time."""
        for unit in self.farm.atlas.done() - self.checked:
            self.farm.check_picture(unit)
            self.checked.add(unit)

    def to_the_end(self, limit: float) -> None:
        """Until nothing is missing, with nobody's help."""
        poisoned = sum(unit.layer.startswith(("poison", "broken")) for unit in self.farm.atlas.plan.units())
        goal = len(self.farm.atlas.plan) - poisoned

        def finished() -> bool:
            self.observe()
            if self.farm.waiting() or len(self.farm.atlas.done()) < goal:
                return False
            return len(self.farm.given_up()) == poisoned

        try:
            wait_until(finished, "the end", limit)
        except TimeoutError as error:
            hands = where(self.farm.client, self.farm.atlas.url)
            raise AssertionError(f"{error}: {self.farm.state()} {hands}\n{self.farm.logs()}") from None

    def second_by_second(self) -> list[tuple[int, int, int, int]]:
        """The timeline's first point of each second."""
        firsts: dict[int, tuple[int, int, int, int]] = {}
        for seconds, *counts in self.timeline:
            firsts.setdefault(int(seconds), (int(seconds), *counts))
        return list(firsts.values())

    def figures(self) -> dict[str, Any]:
        """What came of it."""
        drawn = self.farm.drawings()
        planned, done, failed = set(self.farm.atlas.plan.units()), self.farm.atlas.done(), self.farm.given_up()
        kinds: dict[str, int] = {}
        for _, kind in self.faults:
            kinds[kind] = kinds.get(kind, 0) + 1
        return {
            "seed": self.seed, "jobs": len(planned), "workers": self.workers, "faults": len(self.faults),
            "kinds": kinds, "lost": len(planned - done - failed), "given_up": len(failed), "by_hand": 0,
            "in_vain": self.farm.in_vain(), "in_vain_after": self.in_vain_after,
            "most_nowhere": self.most_nowhere, "none_nowhere": self.none_nowhere, "drawn": sum(drawn.values()),
            "seconds": round(time.monotonic() - self.started, 1), "watchdog": self.watchdog,
            "faults_at": [(round(t), kind) for t, kind in self.faults],
            "timeline": self.second_by_second(),
        }  # fmt: skip


def suffer(
    folder: Path, server: RedisServer, layers: dict[str, int], *, faults: int, pause: tuple[float, float], limit: float,
    workers: int = 2, seconds: float = 0.1, visibility: int = 12, url: str = "", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """One farm through one run; its figures, with the invariants checked."""
    proxy = Proxy(server.port)
    full = folder / "full"
    environ = {
        "TEST_SECONDS": str(seconds), "TEST_FULL": str(full), "FEATURE_ATLAS_WATCHDOG": "15",
        "FEATURE_ATLAS_VISIBILITY_TIMEOUT": str(visibility),
    }  # fmt: skip
    with Farm(folder, server.url, grow(url or folder / "atlas", layers, steps=10), environ) as farm:
        assert farm.enqueue() == sum(layers.values())
        chaos = Chaos(farm, server, proxy, workers=workers, full=None if url else full, **options)
        try:
            figures = chaos.run(faults, pause, limit)
        finally:
            proxy.close()
        farm.check()
    print("\n" + json.dumps(figures))
    assert figures["lost"] == 0
    assert figures["given_up"] == layers.get("poison", 0) + layers.get("broken", 0)
    return figures

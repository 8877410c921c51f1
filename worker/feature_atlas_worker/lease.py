"""Beside the work: leases renewed, signs of life, flags read, a hung process ended, lost jobs looked for when idle."""

from __future__ import annotations

import logging
import os
import random
import threading
from typing import TYPE_CHECKING, cast

from redis import RedisError

from feature_atlas import monitor
from feature_atlas.broker import clock_skew, put, wrong_clock
from feature_atlas.broker_errors import refusal
from feature_atlas.errors import AtlasError, BrokerError, RequestError
from feature_atlas.messages import ATLASES, FLAGS, QUEUE, WORKERS, Flag, rest_key
from feature_atlas.queue import Template
from feature_atlas.reconcile import reconcile
from feature_atlas_worker import forgotten
from feature_atlas_worker.atlases import Atlases, Refusal

if TYPE_CHECKING:
    from feature_atlas_worker.child import Child

log = logging.getLogger(__name__)

#: The exit status of a process that ends itself because it hangs or its device failed.
BROKEN = 70
#: Seconds for which a complete atlas is left alone.
_LONG_REST = 3600
#: Seconds by which a clock may be wrong and nobody cares.
_SKEW = 30.0


class Lease:
    """A thread of the rendering process.  As long as it ticks, nobody else gets this process's jobs."""

    def __init__(self, child: Child, template: Template) -> None:
        self.child, self.template = child, template
        self.flags: dict[str, Flag] = {}
        # Of its own: those of the work belong to the work's thread.
        self.atlases = Atlases(child.client, child.settings.allowed_stores)
        #: How many workers were heard of lately.
        self.workers = 1
        self.interval = min(child.settings.visibility_timeout / 4, 5.0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._search: threading.Thread | None = None
        self._troubled = self._skewed = False
        #: What the broker said of the atlases, and those that are gone.
        self._described: dict[str, bytes] = {}
        self._gone: set[str] = set()

    def start(self) -> None:
        """Begins to tick."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._end.set()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            self.child.pulse.beat()
            try:
                self.tick()
                self._troubled = False
            except RedisError as error:
                if not self._troubled:
                    why = refusal(error) or f"does not answer ({error})"
                    log.warning("the broker %s; work in hand goes on", why)
                self._troubled = True
            except Exception:
                log.exception("a tick failed")
            # Spread over the workers.
            if self._end.wait(self.interval * random.uniform(0.8, 1.0)):
                return

    def tick(self) -> None:
        """One round.  Raises RedisError."""
        child = self.child
        if child.pulse.busy and child.quiet_for > child.settings.stall:
            self._break_off()
        flags = cast("dict[bytes, bytes]", child.client.hgetall(FLAGS))
        self.flags = {url.decode(): cast("Flag", value.decode()) for url, value in flags.items()}
        self._learn()  # before the jobs in hand are told again: where they belong must be known by then
        child.hand.renew()
        child.hand.tell()
        ahead = clock_skew(child.client)
        self._say_clock(ahead)
        beat = child.beat_now()
        times = {"at": beat.at - ahead, "started": beat.started - ahead}  # by the broker's clock, as all others
        beat = beat.model_copy(update=times)
        put(child.client, WORKERS, child.beat.worker, beat.model_dump_json())
        child.pulse.note = "\n".join(sorted(child.served))
        self.workers = max(1, sum(beat.alive for beat in monitor.workers(child.client)))
        self._search_if_idle()

    def _say_clock(self, ahead: float) -> None:
        """Says once that this machine's clock is wrong, and once that it is right again."""
        if abs(ahead) > _SKEW and not self._skewed:
            log.warning("%s", wrong_clock(ahead))
        elif self._skewed and abs(ahead) <= _SKEW:
            log.info("this machine's clock is right again")
        self._skewed = abs(ahead) > _SKEW

    def _learn(self) -> None:
        """Takes note of the atlases that the broker knows, and reminds it of those that it has forgotten."""
        child = self.child
        known = {
            url.decode(): about for url, about in cast("dict[bytes, bytes]", child.client.hgetall(ATLASES)).items()
        }
        child.served |= known.keys() - self._gone
        child.served -= {url for url, flag in self.flags.items() if flag == "cancelled"}
        for url, about in self._described.items():
            # Whoever comes next may outlive all who have heard of it.
            if url not in known and url in child.served:
                child.client.hsetnx(ATLASES, url, about)
        self._described |= known

    def _break_off(self) -> None:
        """Ends this process, which hangs; the attempts count, so that a job that hangs every time is given up."""
        log.critical("no step for %.0f s: this process hangs and is ended", self.child.settings.stall)
        try:
            self.child.hand.give_back(self.child.hand.messages(), uncount=False)
        finally:
            os._exit(BROKEN)

    def _search_if_idle(self) -> None:
        child = self.child
        if child.pulse.busy or child.pulse.draining or child.quiet_for < 2 * self.interval:
            return
        if self._search is not None and self._search.is_alive():
            return
        if child.client.llen(QUEUE):
            return
        # Whoever lives has said by then what it holds, also through a network that stood still.
        if child.hand.memory.age() < child.settings.visibility_timeout:
            return
        # Not in this thread: a listing may take longer than a lease.
        self._search = threading.Thread(target=self.search, name="reconcile", daemon=True)
        self._search.start()

    def search(self) -> None:
        """Reconciles the atlases that this worker has heard of, and those that nobody has heard of any more."""
        client, rest = self.child.client, max(1, round(self.child.settings.rest))
        try:
            self._look_for_forgotten()
            for url in sorted(self.child.served):
                if url not in self.flags and client.set(rest_key(url), "1", ex=rest, nx=True):
                    self._reconcile(url)
        except RedisError as error:
            log.warning("the queue was not looked through: %s", error)

    def _look_for_forgotten(self) -> None:
        """Once after the broker has lost its memory, and every hour: one of the workers looks where they may write."""
        allowed = self.child.settings.allowed_stores
        key = rest_key("|" + ",".join(allowed))  # the key of no atlas
        if not self.child.client.set(key, "1", ex=_LONG_REST, nx=True):
            return
        try:
            self.child.served |= set(forgotten.enqueued(allowed)) - self.flags.keys()
        except AtlasError as error:
            log.warning("where atlases may lie was not looked through: %s", error)
            self.child.client.delete(key)

    def _reconcile(self, url: str) -> None:
        try:
            result = reconcile(self.child.client, self.template, self.atlases.open(url))
        except (Refusal, BrokerError) as error:
            log.debug("%s is for others to look through: %s", url, error)
            return
        except RequestError as error:
            log.warning("%s is forgotten: %s", url, error)
            self.child.client.hdel(ATLASES, url)
            self.child.served.discard(url)
            self._gone.add(url)
            return
        except AtlasError as error:
            log.warning("%s was not looked through: %s", url, error)
            return
        if result.sent:
            log.warning("%d jobs of %s had been lost by the queue and were sent again", result.sent, url)
        if result.complete:
            self.child.client.set(rest_key(url), "1", ex=_LONG_REST)

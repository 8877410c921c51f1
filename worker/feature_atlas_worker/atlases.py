"""The atlases that this worker serves: allowed, opened, kept fresh, and what is done in them."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from feature_atlas import growth, place
from feature_atlas.atlas import Atlas
from feature_atlas.errors import AtlasError, IntegrityError, RequestError
from feature_atlas.messages import ATLASES
from feature_atlas.spec import Job, Unit
from feature_atlas.store import DirectoryStore, open_store

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

#: Seconds for which a plan, and a listing of finished jobs, is taken as it was.
FRESH, LISTED = 30.0, 10.0
_MOST = 8


class Refusal(AtlasError):
    """Not by this worker: the job goes back into the queue, for others or for later."""


class StrangerError(RequestError):
    """The message names a place that no producer has named."""


class Listed(NamedTuple):
    """What the store holds of one group."""

    group: tuple[str, str, str]
    #: When it was listed, by the monotonic clock.
    at: float
    #: Finished channels.
    done: set[int]
    #: Units with a failure on record, whether finished since or not.
    failed: frozenset[Unit]


class Atlases:
    """Opens atlases by URL, and remembers a few."""

    def __init__(self, client: redis.Redis, allowed: Sequence[str]) -> None:
        self.client, self.allowed = client, allowed
        self._open: OrderedDict[str, tuple[float, Atlas]] = OrderedDict()
        self._listed: Listed | None = None

    def open(self, url: str) -> Atlas:
        """The atlas, its plan at most :data:`FRESH` seconds old.

        Raises:
            Refusal: not this worker's: not allowed, another machine's folder, or of another release.
            StrangerError: not allowed, and no producer has named it; or not spelled as producers do.
            RequestError: there is no atlas.
            EnvironmentFault: store or broker failed.
        """
        found = self._open.get(url)
        if found is not None and time.monotonic() - found[0] < FRESH:
            self._open.move_to_end(url)
            return found[1]
        described = cast("bytes | None", self.client.hget(ATLASES, url))
        self._check(url, named=described is not None)
        store = found[1].store if found is not None else open_store(url)
        if foreign := place.difference(store, described):
            raise Refusal(foreign)
        try:
            if found is not None and growth.read_file(store) == found[1].file:
                atlas = found[1]
                atlas.reload()
            else:
                atlas = Atlas.open(store)
        except IntegrityError as error:  # damaged, or newer than this worker
            raise Refusal(str(error)) from error
        self._open[url] = time.monotonic(), atlas
        self._open.move_to_end(url)
        if len(self._open) > _MOST:
            self._open.popitem(last=False)
        return atlas

    def job(self, url: str, unit: Unit) -> Job:
        """The job of a unit; the plan is read again before one is refused.

        Raises:
            RequestError: it is not planned.
            EnvironmentFault, Refusal: as :meth:`open`.
        """
        atlas = self.open(url)
        if unit not in atlas.plan:
            self._open.pop(url, None)
            atlas = self.open(url)
        return atlas.plan.job(unit)

    def listed(self, url: str, variant: str, layer: str, *, fresh: bool) -> Listed:
        """What the store holds of a group, as listed at most :data:`LISTED` seconds ago, or just now."""
        group = (url, variant, layer)
        known = self._listed
        if fresh or known is None or known.group != group or time.monotonic() - known.at > LISTED:
            atlas = self.open(url)
            failed = atlas.recorded_failures(variant, layer)
            done = {unit.channel for unit in atlas.done(variant, layer)}
            known = self._listed = Listed(group, time.monotonic(), done, frozenset(failed))
        return known

    def finished(self, url: str, unit: Unit) -> None:
        """Adds to what is known to be done."""
        if self._listed is not None and self._listed.group == (url, unit.variant, unit.layer):
            self._listed.done.add(unit.channel)

    def _check(self, url: str, *, named: bool) -> None:
        store = open_store(url)
        spelled = os.path.normpath(store.url) if isinstance(store, DirectoryStore) else store.url
        if spelled != url or url.startswith("memory:"):
            raise StrangerError(f"{url!r} is not how a producer names an atlas (it would say {spelled!r})")
        if not any(_within(url, prefix, isinstance(store, DirectoryStore)) for prefix in self.allowed):
            sentence = (
                f"this worker may not write to {url}: it allows {', '.join(self.allowed) or 'no place'}"
                " (FEATURE_ATLAS_ALLOWED_STORES, or --store)"
            )
            raise Refusal(sentence) if named else StrangerError(sentence)


def _within(url: str, prefix: str, folder: bool) -> bool:
    if prefix == "*":
        return True
    if folder:
        if "://" in prefix and not prefix.startswith("file://"):
            return False
        root = os.path.realpath(cast(DirectoryStore, open_store(prefix)).root)
        return os.path.commonpath([os.path.realpath(url), root]) == root
    return url == prefix.rstrip("/") or url.startswith(prefix if prefix.endswith("/") else prefix + "/")

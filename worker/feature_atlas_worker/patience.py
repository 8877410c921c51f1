"""A store that waits: a put that fails is tried again, with what was rendered safe in memory."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator

from feature_atlas.errors import StoreError
from feature_atlas.objects import ObjectInfo
from feature_atlas.store import Store

log = logging.getLogger(__name__)

_LONGEST_WAIT = 30.0


class PatientStore:
    """Another store, whose puts are tried again with full jitter, a full disk included: someone may make room."""

    def __init__(
        self, store: Store, patience: float, *, ending: Callable[[], bool], touch: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """``patience`` in seconds; ``ending()`` cuts the waiting short, ``touch`` is called while it lasts.

        ``failed`` is called at every failure that is waited for.
        """
        self.store, self.patience, self.ending, self.touch, self.failed = store, patience, ending, touch, failed
        self.url = store.url

    def put(
        self, key: str, data: bytes, *, content_type: str = "application/octet-stream", immutable: bool = False
    ) -> None:
        """See :class:`~feature_atlas.objects.Store`; StoreError only once patience is at its end."""
        end = time.monotonic() + self.patience
        for attempt in range(1000):
            try:
                self.store.put(key, data, content_type=content_type, immutable=immutable)
                return
            except StoreError as error:
                left = end - time.monotonic()
                if left <= 0 or self.ending():
                    raise
                self.failed()
                wait = random.uniform(0.05, min(_LONGEST_WAIT, 0.5 * 2 ** min(attempt, 10)))
                log.warning("%s; trying again in %.1f s", error, min(wait, left))
                self._wait(min(wait, left))

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.ending():
            self.touch()
            time.sleep(min(left, 0.2))

    def get(self, key: str) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        return self.store.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        return self.store.get_range(key, start, length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`~feature_atlas.objects.Store`."""
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        """See :class:`~feature_atlas.objects.Store`."""
        self.store.delete(key)

    def link(self, key: str, *, expires: int = 3600) -> str:
        """See :class:`~feature_atlas.objects.Store`."""
        return self.store.link(key, expires=expires)

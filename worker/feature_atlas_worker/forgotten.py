"""Atlases where a worker may write, for a broker that has forgotten everything while nobody is left who knew."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from feature_atlas import keys, place
from feature_atlas.errors import StoreError
from feature_atlas.s3 import S3Store
from feature_atlas.store import DirectoryStore, Store, join, open_store

log = logging.getLogger(__name__)

#: How far below an allowed place an atlas may lie (ROOT/MODEL in a bucket), and how many folders are looked into.
DEPTH, MOST = 2, 200
#: Names of one folder that are read: one page of a bucket's listing.
_PAGE = 1000


def enqueued(allowed: Iterable[str]) -> Iterator[str]:
    """The URLs of atlases at or below allowed places that somebody enqueued and nobody cancelled since.

    At most :data:`MOST` listings of one page for each place, and as many gets.  Raises StoreError.
    """
    for prefix in allowed:
        if prefix == "*":
            continue
        for url in _atlases(prefix):
            if place.is_enqueued(open_store(url)):
                yield url


def _atlases(prefix: str) -> Iterator[str]:
    """Atlases at a place and below it, the nearest first."""
    waiting = deque([(open_store(prefix).url, 0)])
    for _ in range(MOST):
        if not waiting:
            return
        url, depth = waiting.popleft()
        files, folders = _look_into(open_store(url))
        if keys.ATLAS in files:
            yield url  # and no further: what lies below is its own
        elif depth < DEPTH:
            waiting.extend((join(url, name), depth + 1) for name in sorted(folders))
    log.info("more than %d folders lie in %s: not all were looked into for atlases", MOST, prefix)


def _look_into(store: Store) -> tuple[set[str], set[str]]:
    """The names of files and folders in a place, of at most a page."""
    if isinstance(store, S3Store):
        return store.look()
    files, folders = set[str](), set[str]()
    if isinstance(store, DirectoryStore):
        try:
            with os.scandir(store.root) as entries:
                for entry in islice(entries, _PAGE):
                    (folders if entry.is_dir() else files).add(entry.name)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass
        except OSError as error:
            raise StoreError(f"cannot look into {store.url} ({error.strerror})") from error
    return files, folders

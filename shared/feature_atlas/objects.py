"""What a store promises: a flat space of objects below one URL, whatever holds them.

A ``put`` is atomic (a reader sees the whole old or the whole new object); an object once put is listed by the next
``list``; the last of two racing puts wins.  Nothing relies on conditional puts: real servers race.  Keys are made of
``[A-Za-z0-9._-]`` segments joined by ``/``; what a stranger stored beside them under another kind of name is not
listed.  Nothing but StoreError, ObjectNotFound and RequestError leaves a store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from feature_atlas.errors import RequestError

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_PREFIX = re.compile(rf"({_KEY.pattern}/?)?")
_KEY_LENGTH = 600


class ObjectInfo(NamedTuple):
    """One row of a listing."""

    key: str
    size: int
    #: Changes whenever the object changes (an ETag, or size and time); empty where unknown.
    version: str
    #: Last change in seconds since 1970.
    modified: float


class Store(Protocol):
    """A flat space of objects below one URL.  Thread-safe."""

    url: str

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            ObjectNotFound: there is none.
            StoreError: it could not be read.
        """
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on, fewer or none at the end.  Raises as ``get``."""
        ...

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        immutable: bool = False,
    ) -> None:
        """Stores the object atomically; ``immutable`` lets caches keep it for ever.

        Raises:
            StoreError: it could not be written; nothing was changed.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with ``prefix``, sorted by key.  Raises StoreError, RequestError."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error.  Raises StoreError."""
        ...

    def link(self, key: str, *, expires: int = 3600) -> str:
        """A URL under which a browser finds the object; presigned for ``expires`` seconds where that applies."""
        ...


def check_key(key: str) -> str:
    """Returns the key if it is one.

    Raises:
        RequestError: it could leave the atlas or is not portable.
    """
    if not is_key(key):
        raise RequestError(f"{key[:200]!r} is not a key: segments of letters, digits, '.', '_' and '-' joined by '/'")
    return key


def is_key(key: str) -> bool:
    """Whether an object may be stored under it."""
    return len(key) <= _KEY_LENGTH and ".." not in key and _KEY.fullmatch(key) is not None


def check_prefix(prefix: str) -> str:
    """Returns the prefix if a key may start with it.

    Raises:
        RequestError: it could lead out of the atlas.
    """
    if ".." in prefix or not _PREFIX.fullmatch(prefix):
        raise RequestError(f"{prefix[:200]!r} cannot begin a key: letters, digits, '.', '_', '-' and '/' only")
    return prefix

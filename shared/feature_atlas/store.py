"""Where an atlas lives: a directory, an S3 bucket or memory, behind one small contract."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from feature_atlas.directory import DirectoryStore
from feature_atlas.errors import ObjectNotFound, RequestError, did_you_mean
from feature_atlas.objects import ObjectInfo, Store, check_key, check_prefix

__all__ = ["DirectoryStore", "MemoryStore", "ObjectInfo", "Store", "check_key", "join", "open_store"]


class MemoryStore:
    """A dictionary, for tests and notebooks.  ``memory:NAME`` is one shared store per name and process."""

    def __init__(self, name: str = "") -> None:
        self.url = f"memory:{name}"
        self._objects: dict[str, tuple[bytes, int, float]] = {}
        self._lock = threading.Lock()
        self._clock = 0

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r}, {len(self._objects)} objects)"

    def get(self, key: str) -> bytes:
        """See :class:`Store`."""
        try:
            return self._objects[check_key(key)][0]
        except KeyError:
            raise ObjectNotFound(f"no object {key!r} in {self.url}") from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :class:`Store`."""
        return self.get(key)[start : start + length]

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        immutable: bool = False,
    ) -> None:
        """See :class:`Store`."""
        with self._lock:
            self._clock += 1
            self._objects[check_key(key)] = (bytes(data), self._clock, time.time())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`Store`."""
        check_prefix(prefix)
        with self._lock:
            found = [(key, *value) for key, value in self._objects.items() if key.startswith(prefix)]
        for key, data, version, modified in sorted(found):
            yield ObjectInfo(key, len(data), str(version), modified)

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def link(self, key: str, *, expires: int = 3600) -> str:
        """The key itself: memory has no URLs."""
        return f"{self.url}/{check_key(key)}"


_memories: dict[str, MemoryStore] = {}


def open_store(url: str | Path, *, fsync: bool | None = None) -> Store:
    """The store behind a URL: a directory, ``file://``, ``s3://bucket/prefix``, ``memory:NAME``; ``https://`` to read.

    Nothing is contacted or created yet.

    Raises:
        RequestError: not a URL of these kinds.
    """
    text = str(url)
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme == "s3":
        from feature_atlas.s3 import S3Store

        return S3Store(text)
    if scheme in ("https", "http"):
        from feature_atlas.http import HttpStore

        return HttpStore(text)
    if text.startswith("memory:"):
        return _memories.setdefault(text, MemoryStore(text.removeprefix("memory:")))
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise RequestError(f"{text!r} names the host {parts.netloc!r}: a folder on this machine is file:///folder")
        text = unquote(parts.path)
    elif scheme:
        raise RequestError(
            f"cannot store under {text!r}: use a folder, s3://bucket/prefix, memory:NAME, or https:// to read"
            f"{did_you_mean(scheme, ('s3', 'file', 'https'))}"
        )
    if not text.strip():
        raise RequestError("no place given: use a folder, s3://bucket/prefix or memory:NAME")
    if "\0" in text:
        raise RequestError(f"{text!r} cannot be a folder: it holds a zero byte")
    if fsync is None:
        fsync = os.environ.get("FEATURE_ATLAS_FSYNC", "") in ("1", "true", "yes")
    try:
        return DirectoryStore(text, fsync=fsync)
    except RuntimeError as error:  # ~somebody
        raise RequestError(f"{text!r} cannot be a folder: {error}") from None


def join(url: str, name: str) -> str:
    """The URL of an atlas ``name`` below a root that may hold many."""
    return f"{url.rstrip('/')}/{name}" if not url.startswith("memory:") else f"{url}/{name}"

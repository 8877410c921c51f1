"""Where an atlas lives: a directory, an S3 bucket or memory, behind one small contract.

Promises of every store: a ``put`` is atomic (a reader sees the whole old or the whole new object); an object once
put is listed by the next ``list``; the last of two racing puts wins.  Nothing relies on conditional puts: real
servers race.  Keys are made of ``[A-Za-z0-9._-]`` segments joined by ``/``.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from feature_atlas.errors import ObjectNotFound, RequestError, StoreError, did_you_mean

log = logging.getLogger(__name__)

_KEY = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
#: A writer's unfinished files; listed by nobody.
_TEMPORARY = ".part-"


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
        """``length`` bytes from ``start`` (fewer at the end).  Raises as ``get``."""
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
        """All objects whose key starts with ``prefix``, sorted by key.  Raises StoreError."""
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
    if not _KEY.match(key) or ".." in key or len(key) > 900:
        raise RequestError(f"{key!r} is not a key: segments of letters, digits, '.', '_' and '-' joined by '/'")
    return key


class DirectoryStore:
    """A directory.  A put is a temporary file and a rename in the same directory.

    fsync policy: with ``fsync=False`` (the default) a power cut may lose the last seconds of puts, never tear one
    (a lost one is rendered again); with ``fsync=True`` file and directory are flushed before a put returns.
    """

    def __init__(self, root: Path | str, *, fsync: bool = False) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)
        self.fsync = fsync
        self._made: set[Path] = set()

    def __repr__(self) -> str:
        return f"DirectoryStore({self.url!r})"

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def get(self, key: str) -> bytes:
        """See :class:`Store`."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectNotFound(f"no object {key!r} in {self.url}") from None
        except OSError as error:
            raise _trouble("read", self._path(key), error) from error

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :class:`Store`."""
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectNotFound(f"no object {key!r} in {self.url}") from None
        except OSError as error:
            raise _trouble("read", self._path(key), error) from error

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        immutable: bool = False,
    ) -> None:
        """See :class:`Store`."""
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")
        try:
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            self._write(temporary, data)
            temporary.replace(path)
            if self.fsync:
                _flush_directory(path.parent)
        except OSError as error:
            self._made.discard(path.parent)
            temporary.unlink(missing_ok=True)
            raise _trouble("write", path, error) from error

    def _write(self, path: Path, data: bytes) -> None:
        try:
            file = path.open("xb")
        except FileNotFoundError:  # the directory was removed behind our back
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with file:
            file.write(data)
            if self.fsync:
                file.flush()
                os.fsync(file.fileno())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`Store`."""
        start = self.root / prefix.rpartition("/")[0] if "/" in prefix else self.root
        try:
            yield from self._walk(start, prefix)
        except OSError as error:
            raise _trouble("list", start, error) from error

    def _walk(self, directory: Path, prefix: str) -> Iterator[ObjectInfo]:
        base = directory.relative_to(self.root).as_posix()
        head = "" if base == "." else base + "/"
        try:
            # A directory sorts as its keys do: with the slash that follows its name.
            entries = sorted(os.scandir(directory), key=lambda e: e.name + "/" * e.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = head + entry.name
            if entry.is_dir():
                if key.startswith(prefix) or prefix.startswith(key + "/"):
                    yield from self._walk(Path(entry.path), prefix)
            elif key.startswith(prefix) and not entry.name.startswith("."):
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue
                yield ObjectInfo(key, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_mtime)

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        try:
            self._path(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise _trouble("delete", self._path(key), error) from error

    def link(self, key: str, *, expires: int = 3600) -> str:
        """A ``file://`` URL; it does not expire."""
        return self._path(key).as_uri()


class MemoryStore:
    """A dictionary, for tests and notebooks.  ``memory:NAME`` is one shared store per name and process."""

    def __init__(self, name: str = "") -> None:
        self.url = f"memory:{name}"
        self._objects: dict[str, tuple[bytes, int]] = {}
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
            self._objects[check_key(key)] = (bytes(data), self._clock)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`Store`."""
        with self._lock:
            found = sorted((key, *value) for key, value in self._objects.items() if key.startswith(prefix))
        for key, data, version in found:
            yield ObjectInfo(key, len(data), str(version), float(version))

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def link(self, key: str, *, expires: int = 3600) -> str:
        """The key itself: memory has no URLs."""
        return f"{self.url}/{check_key(key)}"


_memories: dict[str, MemoryStore] = {}


def open_store(url: str | Path, *, fsync: bool | None = None) -> Store:
    """The store behind a URL: a directory, ``file://``, ``s3://bucket/prefix`` or ``memory:NAME``.

    Nothing is contacted or created yet.

    Raises:
        RequestError: not a URL of these kinds.
    """
    text = str(url)
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme == "s3":
        from feature_atlas.s3 import S3Store

        return S3Store(text)
    if text.startswith("memory:"):
        return _memories.setdefault(text, MemoryStore(text.removeprefix("memory:")))
    if scheme == "file":
        text = urlsplit(text).path
    elif scheme:
        raise RequestError(
            f"cannot store under {text!r}: use a folder, s3://bucket/prefix or memory:NAME"
            f"{did_you_mean(scheme, ('s3', 'file'))}"
        )
    if not text:
        raise RequestError("no place given: use a folder, s3://bucket/prefix or memory:NAME")
    if fsync is None:
        fsync = os.environ.get("FEATURE_ATLAS_FSYNC", "") in ("1", "true", "yes")
    return DirectoryStore(text, fsync=fsync)


def join(url: str, name: str) -> str:
    """The URL of an atlas ``name`` below a root that may hold many."""
    return f"{url.rstrip('/')}/{name}" if not url.startswith("memory:") else f"{url}/{name}"


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _trouble(verb: str, path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left to {verb} {path}: free some and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"no permission to {verb} {path}: check the folder's owner and mode")
    if error.errno == errno.ENAMETOOLONG:
        return StoreError(f"cannot {verb} {path}: the name is too long for this file system")
    return StoreError(f"cannot {verb} {path}: {error.strerror or error}")

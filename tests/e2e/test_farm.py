"""The farm on real servers: whatever dies, the atlas comes out complete, and the same command again is the cure."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys, manifest, spec, steer
from feature_atlas.broker import open_client
from feature_atlas.embedded import EmbeddedBroker
from feature_atlas.manifest import Failure
from feature_atlas.messages import ATLASES, MALFORMED, QUEUE, UNACKED, attempts_key, dead_key, peek
from feature_atlas.monitor import queue_status
from feature_atlas.queue import Template, make_app
from feature_atlas.reconcile import unwrap
from feature_atlas.spec import Unit
from feature_atlas_worker.supervise import Supervisor
from tests.e2e.farm import Farm, grow, is_over
from tests.servers import CephGateway, RedisServer, wait_until

Build = Callable[..., Farm]


def hire(folder: Path, server: RedisServer, workers: int) -> Iterator[Farm]:
    server.start()
    client = open_client(server.url)
    client.flushall()
    environ = {
        "FEATURE_ATLAS_ALLOWED_STORES": str(folder), "FEATURE_ATLAS_VISIBILITY_TIMEOUT": "2",
        "FEATURE_ATLAS_REST": "1", "TEST_FULL": str(folder / "full"),
    }  # fmt: skip
    with Farm(folder, server.url, grow(folder / "atlas", {"conv": 2}), environ) as farm:
        for _ in range(workers):
            farm.start()
        # Celery ends at once, for its supervisor to start it afresh, where its first process dies before it is ready.
        wait_until(lambda: all(" ready." in worker.log.read_text() for worker in farm.workers), "the workers")
        farm.enqueue()
        farm.wait()
        yield farm
    client.flushall()
    client.close()


@pytest.fixture(scope="module")
def crew_on_valkey(tmp_path_factory: pytest.TempPathFactory, valkey_server: RedisServer) -> Iterator[Farm]:
    """Two workers for all tests that do not hurt them: starting one takes longer than most tests."""
    yield from hire(tmp_path_factory.mktemp("crew"), valkey_server, 2)


@pytest.fixture(scope="module")
def crew_on_redis(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Farm]:
    yield from hire(tmp_path_factory.mktemp("crew"), redis_server, 1)


@pytest.fixture
def crew(crew_on_valkey: Farm, valkey: RedisServer) -> Farm:
    return crew_on_valkey


@pytest.fixture(params=["valkey", "redis7"])
def either_crew(request: pytest.FixtureRequest) -> tuple[Farm, RedisServer]:
    server: RedisServer = request.getfixturevalue(request.param)
    return request.getfixturevalue("crew_on_valkey" if request.param == "valkey" else "crew_on_redis"), server


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes a farm with a broker of its own over an atlas of the given layers; ends its workers."""
    with contextlib.ExitStack() as stack:

        def build(layers: dict[str, int], *, url: str | Path = "", **options: Any) -> Farm:
            environ, recipe = options.pop("environ", {}), options
            broker = stack.enter_context(EmbeddedBroker(str(tmp_path)))
            return stack.enter_context(
                Farm(tmp_path, broker.url, grow(url or tmp_path / "atlas", layers, **recipe), environ)
            )

        yield build


def in_hand(farm: Farm) -> int:
    return farm.client.hlen(UNACKED)


def test_a_job_that_is_lost_is_missed(build: Build) -> None:
    farm = build({"conv": 5})
    farm.enqueue()
    assert not farm.nowhere()
    farm.client.rpop(QUEUE)
    assert farm.nowhere() == {Unit("channel", "conv", 0)}
    farm.atlas.store.put(keys.image(Unit("channel", "conv", 0)), b"")
    farm.none_lost()
    farm.atlas.store.put(keys.image(Unit("channel", "conv", 5)), b"")
    with pytest.raises(AssertionError, match="nobody planned"):
        farm.nowhere()


# -- two workers that live through everything


def test_two_workers_make_every_picture_once(crew: Farm) -> None:
    farm = crew.over({"conv1": 40, "conv2": 30, "conv3": 1})
    assert farm.enqueue() == 71
    farm.wait()
    assert set(farm.drawings().values()) == {1}
    farm.check()


def test_a_killed_rendering_process_is_replaced_and_its_jobs_come_back(crew: Farm) -> None:
    farm = crew.over({"slow": 40})
    farm.enqueue()
    wait_until(lambda: in_hand(farm) >= 16, "batches in hand")
    for worker in farm.workers:
        wait_until(worker.kill_child, "a process to kill")
        farm.none_lost()
    farm.wait()
    assert all(worker.process.poll() is None for worker in farm.workers)
    farm.check()


@pytest.mark.chaos
def test_a_device_that_fails_ends_its_process_and_not_the_farm(build: Build, tmp_path: Path) -> None:
    farm = build({"conv1": 8, "device": 1, "conv2": 8})
    farm.enqueue()
    command = [sys.executable, "-m", "tests.e2e.cheap_worker"]
    with Supervisor({"w0": farm.environ}, grace=5, logs=tmp_path, command=command) as supervisor:
        # It computes again in a new process, so that in the end the job is to blame.
        supervisor.run(lambda: len(farm.atlas.done()) == 16 and len(farm.given_up()) == 1, every=0.1)
    assert (tmp_path / "w0.log").read_text().count("the device failed") == 4
    farm.check()


def test_a_job_that_kills_its_process_is_given_up_alone_and_on_record(crew: Farm) -> None:
    farm = crew.over({"conv1": 10, "poison": 1, "conv2": 10})
    farm.enqueue()
    farm.wait(left=1)
    # Between two attempts the message is for a moment nowhere: kombu moves it in two steps.
    wait_until(lambda: bool(farm.given_up()), "the end of the last attempt")
    farm.none_lost()
    failure = manifest.load(Failure, farm.atlas.store.get(keys.error(Unit("channel", "poison", 0))), "the record")
    # Five where an idle worker looked in that very moment and sent the job a second time.
    assert failure.attempts in (4, 5) and "ended" in failure.error and "@" in failure.host
    farm.check()


def test_jobs_that_fail_twice_succeed_and_those_that_always_fail_keep_their_traceback(crew: Farm) -> None:
    farm = crew.over({"flaky": 3, "broken": 2, "conv": 5})
    farm.enqueue()
    farm.wait(left=2)
    status = queue_status(farm.broker, farm.atlas.url)
    assert {unit.layer for unit in status.given_up} == {"broken"}
    assert all(why.attempts == 4 and "does not want to" in why.error for why in status.given_up.values())
    failure = manifest.load(Failure, farm.atlas.store.get(keys.error(Unit("channel", "broken", 1))), "the record")
    assert "Traceback" in failure.traceback
    assert not list(farm.atlas.store.list("errors/channel/flaky"))
    farm.check()


def test_a_broker_that_forgets_everything_is_healed_without_a_person(either_crew: tuple[Farm, RedisServer]) -> None:
    farm = either_crew[0].over({"slow": 40})
    farm.enqueue()
    wait_until(lambda: len(farm.atlas.done()) > 0, "a first picture")
    farm.client.flushall()
    farm.none_lost(60)  # once idle workers have looked
    farm.wait()
    farm.check()


def test_what_was_in_hand_when_the_broker_forgot_survives_its_owner(crew: Farm) -> None:
    # Given a broker that forgot everything and was told again what is in hand
    farm = crew.over({"slow": 40})
    farm.enqueue()
    wait_until(lambda: in_hand(farm) >= 16, "a batch in the hands of each worker")
    farm.client.flushall()
    wait_until(lambda: in_hand(farm) > 0, "what is in hand")
    held = {peek(unwrap(raw)) for raw in farm.client.hvals(UNACKED)}
    # When all who hold something are killed
    for worker in crew.workers:
        worker.kill_child()
    # Then the broker still knows, and sends it to others without anybody's look at the store
    assert held
    assert not {unit for _, unit in filter(None, held)} & farm.nowhere()
    farm.wait()
    farm.check()


def test_a_broker_killed_and_restarted_goes_on(either_crew: tuple[Farm, RedisServer]) -> None:
    crew, broker = either_crew
    farm = crew.over({"slow": 40})
    farm.enqueue()
    wait_until(lambda: len(farm.atlas.done()) > 0, "a first picture")
    broker.kill()
    broker.start()
    farm.none_lost()
    farm.wait()
    farm.check()


def test_a_worker_rests_while_it_renders_whatever_happened_to_child_and_broker(crew: Farm, valkey: RedisServer) -> None:
    farm, (worker, *_) = crew.over({"slow": 80}), crew.workers
    farm.enqueue()
    wait_until(lambda: in_hand(farm) >= 16, "batches in hand")
    for _ in range(2):  # its successor inherits the parent's connections
        before = {worker.child, None}
        worker.kill_child()
        wait_until(lambda before=before: worker.child not in before, "another process")
    drawn = len(farm.atlas.done())
    wait_until(lambda: len(farm.atlas.done()) > drawn and in_hand(farm) >= 16, "batches in hand again")
    valkey.kill()
    valkey.start()
    # Polling a connection that is gone took all of a core.
    assert worker.load() < 0.25
    farm.wait()
    assert worker.load(1) < 0.25
    farm.check()


def test_a_full_disk_is_waited_for_with_the_pictures_in_memory(crew: Farm) -> None:
    farm, full = crew.over({"conv": 40}), crew.folder / "full"
    full.touch()
    try:
        farm.enqueue()
        wait_until(lambda: len(farm.drawings()) > 0, "a picture drawn")
        assert not farm.atlas.done()
        farm.none_lost()
    finally:
        full.unlink()
    farm.wait()
    assert farm.in_vain() == 0 and not farm.client.exists(dead_key(farm.atlas.url))
    farm.check()


def test_an_atlas_can_be_paused_resumed_and_cancelled(crew: Farm) -> None:
    farm = crew.over({"slow": 80}, steps=50)
    farm.enqueue()
    wait_until(lambda: len(farm.atlas.done()) > 0, "a first picture")
    steer.pause(farm.client, farm.atlas.url)
    wait_until(lambda: any("paused" in note for note in notes(farm)), "the pause")
    steer.resume(farm.client, farm.atlas.url)
    wait_until(lambda: in_hand(farm) > 0, "work again")
    steer.cancel(farm.client, farm.atlas.url)
    wait_until(lambda: farm.waiting() == 0, "an empty queue")
    done = len(farm.atlas.done())
    assert 0 < done < 80 and not farm.client.exists(attempts_key(farm.atlas.url))
    # Enqueuing it again goes on with it; what a worker has just let go may be sent a moment later.
    assert 0 < farm.enqueue() <= 80 - done
    farm.wait()
    farm.check()


def test_a_worker_learns_of_a_plan_that_grew(crew: Farm) -> None:
    farm = crew.over({"conv": 3})
    farm.enqueue()
    farm.wait()
    farm.atlas = grow(farm.atlas.url, {"conv2": 3})
    farm.enqueue()
    farm.wait()
    farm.check()


def test_a_job_that_is_not_planned_is_given_up_with_a_sentence(crew: Farm) -> None:
    farm = crew.over({"conv": 1})
    raw = next(Template(make_app(farm.broker)).messages(farm.atlas.url, "channel", "conv", [7]))
    farm.enqueue()
    farm.client.lpush(QUEUE, raw)
    farm.wait()
    assert "not planned" in queue_status(farm.broker, farm.atlas.url).given_up[Unit("channel", "conv", 7)].error


# -- jobs that are not for this worker


def message(farm: Farm, **changes: Any) -> str:
    raw = next(Template(make_app(farm.broker)).messages(farm.atlas.url, "channel", "conv", [0]))
    data = json.loads(raw)
    data["headers"].update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("not json", "not a Celery message"),
        ("[1, 2]", "not a Celery message"),
        ('{"body": "", "headers": {}, "properties": {}}', "not a Celery message"),
        pytest.param("x" * 10_000, "10000 bytes", id="too long"),
        ({"task": "os.system"}, "unknown task"),
        ({"eta": "2030-01-01T00:00:00"}, "more of Celery"),
        ({"g": "s3://elsewhere|channel|conv"}, "the header names the group"),
        (["/etc", "channel", "conv", 0], "may not write to /etc"),
        (["/data/../etc", "channel", "conv", 0], "not how a producer names"),
        (["s3://bucket", "channel", "../../etc", 0], "layer="),
        (["s3://bucket", "channel", "conv", -1], "channel="),
        (["s3://bucket", "channel", "conv", 0, 1], "atlas, variant, layer and channel"),
    ],
)
def test_malformed_and_hostile_messages_are_put_aside(raw: Any, why: str, crew: Farm) -> None:
    if isinstance(raw, dict):
        raw = message(crew, **raw)
    elif isinstance(raw, list):
        data = json.loads(message(crew))
        data["body"] = base64.b64encode(json.dumps([raw, {}, {}]).encode()).decode()
        del data["headers"]["g"]
        raw = json.dumps(data)
    crew.client.delete(MALFORMED)
    crew.client.lpush(QUEUE, raw)
    wait_until(lambda: crew.client.hlen(MALFORMED) == 1, "the message put aside")
    wait_until(lambda: crew.waiting() == 0, "an empty queue")
    (kept,) = crew.client.hgetall(MALFORMED).values()
    assert why in json.loads(kept)["error"]
    assert all(worker.process.poll() is None for worker in crew.workers)


def notes(farm: Farm) -> list[str]:
    return [beat.note for beat in queue_status(farm.broker, farm.atlas.url).workers if beat.note]


def refused(farm: Farm, *, waiting: int) -> str:
    """Waits until a worker has said why it gives this atlas back; what it said."""

    def said() -> list[str]:
        return [note for note in notes(farm) if farm.atlas.url in note]

    wait_until(lambda: bool(said()), "a refusal")
    note = said()[0]
    wait_until(lambda: (farm.client.llen(QUEUE), in_hand(farm)) == (waiting, 0), f"{waiting} messages to be kept")
    assert not farm.client.exists(dead_key(farm.atlas.url))
    # What a worker held of the last test's atlas it has told the emptied broker again, where it is a stranger's by now.
    assert not [kept for kept in farm.client.hvals(MALFORMED) if farm.atlas.url.encode() in kept]
    return note


def test_a_place_that_is_not_allowed_is_left_to_others(crew: Farm, tmp_path: Path) -> None:
    farm = Farm(crew.folder, crew.broker, grow(tmp_path / "elsewhere", {"conv": 5}))
    farm.enqueue()
    assert "may not write" in refused(farm, waiting=5)


def test_another_machines_folder_of_the_same_path_is_not_written_to(crew: Farm) -> None:
    farm = crew.over({"conv": 5})
    steer_clear = {"host": "elsewhere", "machine": "elsewhere/1", "token": "f" * 32}
    # As another machine would have said it, of a folder that this one does not have.
    farm.client.hset(ATLASES, farm.atlas.url, json.dumps(steer_clear))
    farm.client.lpush(QUEUE, *Template(make_app(farm.broker)).messages(farm.atlas.url, "channel", "conv", range(5)))
    assert "is not the folder that elsewhere enqueued" in refused(farm, waiting=5)
    assert not farm.atlas.done()


def test_a_recipe_of_another_release_is_left_to_others(crew: Farm) -> None:
    farm = crew.over({"conv": 5}, renderer=spec.RENDERER + 1)
    farm.enqueue()
    assert "update feature-atlas" in refused(farm, waiting=5)


def test_a_message_of_a_newer_producer_is_left_to_others(crew: Farm) -> None:
    farm = crew.over({"conv": 1})
    farm.client.lpush(QUEUE, message(farm, v=99))
    assert "version 99" in refused(farm, waiting=1)


# -- workers that are hurt


def test_a_worker_killed_in_the_middle_of_a_batch_loses_nothing(build: Build) -> None:
    farm = build({"slow": 40})
    farm.enqueue()
    victim = farm.start()
    wait_until(lambda: in_hand(farm) >= 16, "batches in hand")
    wait_until(lambda: farm.client.hlen(attempts_key(farm.atlas.url)) > 0, "a batch begun")
    # Of all that was claimed only what is drawn, or on its way into the store, counts as tried.
    assert farm.client.hlen(attempts_key(farm.atlas.url)) <= 8
    child = victim.child
    victim.signal(signal.SIGKILL)
    # Its rendering process goes with it, and with that the renewal of the leases.
    wait_until(lambda: child is not None and is_over(child), "the end of its child")
    farm.none_lost()
    farm.start()
    farm.wait()
    farm.check()


def test_sigterm_gives_unfinished_jobs_back_at_once_and_uncounted(build: Build) -> None:
    # Given a batch that takes longer than the grace period
    farm = build(
        {"slow": 24}, steps=100, environ={"FEATURE_ATLAS_GRACE": "1", "FEATURE_ATLAS_VISIBILITY_TIMEOUT": "600"}
    )
    farm.enqueue()
    worker = farm.start()
    wait_until(lambda: in_hand(farm) >= 8, "a batch in hand")
    # When the worker is told to end
    worker.stop()
    # Then everything is in the queue again, though no lease has run out
    assert (farm.client.llen(QUEUE), in_hand(farm)) == (24, 0)
    assert not farm.client.exists(attempts_key(farm.atlas.url))
    assert farm.enqueue() == 0


@pytest.mark.chaos
def test_sigterm_reaches_a_batch_that_hears_nothing(build: Build) -> None:
    farm = build({"deaf": 8}, environ={"FEATURE_ATLAS_GRACE": "1", "FEATURE_ATLAS_VISIBILITY_TIMEOUT": "600"})
    farm.enqueue()
    worker = farm.start()
    wait_until(lambda: farm.client.hlen(attempts_key(farm.atlas.url)) == 8, "a batch begun")
    worker.stop()
    assert (farm.client.llen(QUEUE), in_hand(farm)) == (8, 0)
    assert not farm.client.exists(attempts_key(farm.atlas.url))


@pytest.mark.chaos
def test_sigterm_lets_a_batch_finish_that_fits_into_the_grace_period(build: Build) -> None:
    farm = build({"slow": 40}, steps=20, environ={"FEATURE_ATLAS_GRACE": "20", "FEATURE_ATLAS_BATCH": "4"})
    farm.enqueue()
    worker = farm.start()
    wait_until(lambda: len(farm.atlas.done()) >= 4, "a batch, and another begun")
    worker.stop()
    # Whole batches, but not all that was claimed; what was drawn is in the store.
    done = len(farm.atlas.done())
    assert done in (4, 8) and done == sum(farm.drawings().values())
    assert (farm.client.llen(QUEUE), in_hand(farm)) == (40 - done, 0)


@pytest.mark.chaos
def test_a_disk_that_stays_full_is_no_fault_of_the_jobs(build: Build, tmp_path: Path) -> None:
    full = tmp_path / "full"
    farm = build({"conv": 40}, environ={"TEST_FULL": str(full), "FEATURE_ATLAS_PATIENCE": "1"})
    farm.enqueue()
    full.touch()
    farm.start()
    wait_until(lambda: any("no space left" in note for note in notes(farm)), "the worker's word of it")
    wait_until(lambda: (farm.client.llen(QUEUE), in_hand(farm)) == (40, 0), "everything to be given back")
    assert not farm.client.exists(attempts_key(farm.atlas.url))
    full.unlink()
    farm.wait()
    assert not farm.client.exists(dead_key(farm.atlas.url))
    farm.check()


def test_workers_of_different_batches_share_one_atlas(build: Build) -> None:
    farm = build({"conv1": 60, "conv2": 60}, environ={"TEST_SECONDS": "0.01"})
    farm.start(FEATURE_ATLAS_BATCH="1"), farm.start(FEATURE_ATLAS_BATCH="16")
    farm.enqueue()
    farm.wait()
    farm.check()


@pytest.mark.chaos
def test_a_worker_that_never_consumes_again_is_noticed_and_started_afresh(build: Build, tmp_path: Path) -> None:
    stall = tmp_path / "stall"
    farm = build(
        {"conv": 5}, environ={"TEST_STALL": str(stall), "FEATURE_ATLAS_WATCHDOG": "1", "FEATURE_ATLAS_GRACE": "1"}
    )
    command = [sys.executable, "-m", "tests.e2e.cheap_worker"]
    stall.touch()
    farm.enqueue()
    with Supervisor({"w0": farm.environ}, grace=5, logs=tmp_path, command=command) as supervisor:
        (member,) = supervisor.members
        supervisor.run(lambda: bool(member.exits), every=0.1)
        assert "starts afresh" in (tmp_path / "w0.log").read_text() and len(farm.atlas.done()) == 0
        stall.unlink()
        supervisor.run(lambda: len(farm.atlas.done()) == 5, every=0.1)
    assert len(farm.atlas.done()) == 5


def test_plain_celery_runs_the_same_worker(build: Build) -> None:
    farm = build({"conv": 3})
    farm.environ["FEATURE_ATLAS_ALLOWED_STORES"] = "s3://elsewhere/"  # nothing is to be loaded here
    farm.enqueue()
    command = [sys.executable, "-m", "celery", "-A", "feature_atlas_worker.app", "worker", "--loglevel", "INFO"]
    with (farm.folder / "celery.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **farm.environ}, stdout=log, stderr=log)
    try:
        assert "may not write" in refused(farm, waiting=3)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(240)


def test_a_real_bucket_is_filled_through_an_outage(build: Build, ceph: CephGateway, monkeypatch: Any) -> None:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    farm = build({"slow": 16}, url=f"s3://{ceph.new_bucket()}/toy", environ={"FEATURE_ATLAS_BATCH": "2"})
    farm.enqueue()
    farm.start()
    wait_until(lambda: len(farm.atlas.done()) > 0, "a first picture")
    ceph.kill()
    wait_until(lambda: "trying again" in farm.logs(400), "the worker's word of the outage")
    ceph.start()
    farm.none_lost()
    farm.wait()
    farm.check()

"""The commands of the queue: enqueue, worker, up, status, retry, cancel, pause and resume, with real renders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from feature_atlas import keys, manifest, place
from feature_atlas.atlas import Atlas
from feature_atlas.cli import main
from feature_atlas.manifest import Failure
from feature_atlas.messages import FLAGS, QUEUE, WORKERS, dead_key, field
from feature_atlas.monitor import Beat, GivenUp
from feature_atlas.spec import Unit
from tests.conftest import ROOT
from tests.e2e.farm import is_over
from tests.nursery import Forked
from tests.servers import RedisServer, free_port, wait_until

MODEL = ["--model", "python:tests.networks:toy", "--allow-model", "tests.networks"]
TINY = ["--set", "size=16", "--set", "steps=2"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in this process."""

    def run(*argv: str) -> Ended:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(code, out, err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts a command in a process of its own; what it says goes to ``said``."""
    started: list[Forked] = []

    def run(*argv: str) -> Forked:
        with (tmp_path / "said").open("ab") as said:
            started.append(Forked("feature_atlas", argv, os.environ, said.fileno()))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(240)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def done(url: Path) -> int:
    return len(list((url / "images").rglob("*.png"))) if (url / "images").exists() else 0


#: As the README has them under "A farm in four commands".
FOUR = """\
export FEATURE_ATLAS_BROKER=redis://queue:6379/0
feature-atlas enqueue s3://atlases/resnet50 --model resnet50
feature-atlas worker --store s3://atlases/ --gpus all
feature-atlas status s3://atlases/resnet50 --watch
"""


def four_commands(text: str) -> str:
    """The block of the README's section, without its comments."""
    block = re.search(r"## A farm in four commands\n.*?```sh\n(export .*?)```", text, re.DOTALL)
    return re.sub(r" *#.*", "", block[1]) if block else ""


def test_the_readme_has_the_commands_that_are_tested() -> None:
    text = (ROOT / "README.md").read_text()
    assert "A farm in four commands" not in text or four_commands(text) == FOUR


def test_a_farm_in_four_commands(
    command: Command, start: Any, valkey: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {
        "redis://queue:6379/0": valkey.url, "s3://atlases": str(tmp_path), "--model resnet50": " ".join(MODEL + TINY),
        "--gpus all": "--device cpu " + " ".join(MODEL[2:]),
    }  # fmt: skip
    text = FOUR
    for there, instead in here.items():
        text = text.replace(there, instead)
    export, *lines = (line.split() for line in text.splitlines())
    monkeypatch.setenv(*export[1].split("=", 1))
    enqueue, worker, status = (line[1:] for line in lines)
    sent = command(*enqueue)
    assert (sent.code, sent.out.splitlines()[0]) == (0, "30 of 30 jobs sent")
    running = start(*worker)
    assert command(*status, "--every", "0.5").code == 0  # it watches until all is done
    assert done(tmp_path / "resnet50") == 30

    def drawn() -> int:
        queue = json.loads(command(*status, "--json").out.splitlines()[-1])["queue"]
        return sum(beat["done"] for beat in queue["workers"] if beat["alive"])

    wait_until(lambda: drawn() == 30, "the worker's word of it")
    assert "0 queued, 0 in hand" in command(*status).out
    assert command("verify", status[1]).code == 0
    assert command("enqueue", status[1]).out.startswith("0 of 30 jobs sent; 30 are done")
    running.send_signal(signal.SIGTERM)
    assert running.wait(240) == 0


def test_up_needs_no_service_and_goes_on_after_a_kill(command: Command, start: Any, tmp_path: Path) -> None:
    url = tmp_path / "atlas"
    slow = ["--set", "size=32", "--set", "steps=40", "--batch", "2", "--device", "cpu", "--channels", "0:4"]
    # Given an `up` that is killed in the middle
    first = start("up", str(url), *MODEL, *slow, "--workers", "1")
    wait_until(lambda: done(url) >= 2, "first pictures")
    family = descendants(first.pid)
    assert len(family) >= 3  # broker, worker, and its child
    first.kill()
    first.wait()
    # Then nothing of it stays behind
    wait_until(lambda: all(is_over(pid) for pid in family), "the end of everything that it had started")
    before = {path: path.read_bytes() for path in (url / "images").rglob("*.png")}
    assert 0 < len(before) < 12
    # And the same command again completes the atlas, keeps what there was, and publishes
    again = start("up", str(url), "--workers", "1", "--allow-model", "tests.networks", "--device", "cpu", "--json")
    assert again.wait(240) == 0, (tmp_path / "said").read_text()
    assert done(url) == 12 and all(path.read_bytes() == data for path, data in before.items())
    assert (url / "index.html").exists()
    assert command("verify", str(url)).code == 0


@pytest.mark.chaos
def test_ctrl_c_ends_up_in_order(start: Any, tmp_path: Path) -> None:
    url = tmp_path / "atlas"
    slow = ["--set", "size=32", "--set", "steps=40", "--batch", "2", "--device", "cpu"]
    process = start("up", str(url), *MODEL, *slow, "--workers", "1")
    wait_until(lambda: done(url) >= 2, "first pictures")
    family = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130
    assert all(is_over(pid) for pid in family)
    assert "to go on: feature-atlas up" in (tmp_path / "said").read_text()


# -- without workers


@pytest.fixture
def enqueued(command: Command, valkey: RedisServer, tmp_path: Path) -> tuple[str, list[str]]:
    """An atlas of 30 jobs in the queue; nobody works on it."""
    url, broker = str(tmp_path / "atlas"), ["--broker", valkey.url]
    assert command("enqueue", url, *MODEL, *TINY, *broker, "--json").code == 0
    return url, broker


def test_status_shows_the_queue_and_that_nobody_works(command: Command, enqueued: tuple[str, list[str]]) -> None:
    url, broker = enqueued
    status = command("status", url, *broker)
    assert status.code == 3 and "30 queued, 0 in hand" in status.out
    assert json.loads(command("status", url, "--json").out)["queue"] is None


def test_status_says_what_the_queue_lost(
    command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer
) -> None:
    url, broker = enqueued
    with valkey.client() as client:
        client.ltrim(QUEUE, 0, 19)
    assert "10 are neither" in command("status", url, *broker).out
    assert command("enqueue", url, *broker).out.startswith("10 of 30 jobs sent; 20 were queued")


def test_status_says_what_the_rest_costs_and_what_the_workers_have_cost(
    command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer
) -> None:
    url, broker = enqueued
    atlas, now = Atlas.open(url), time.time()
    # Ten of thirty pictures, one every ten seconds
    for i, unit in enumerate(list(atlas.plan.units())[:10]):
        atlas.store.put(keys.image(unit), b"a picture")
        os.utime(Path(url, keys.image(unit)), (now - 95 + 10 * i,) * 2)
    # Two workers, two hours and one, and one that lived for two and is gone
    with valkey.client() as client:
        for name, started, at in (("a", 2.0, 0.0), ("b", 1.0, 0.0), ("c", 3.0, 1.0)):
            beat = Beat(worker=name, host="h", pid=1, device="cpu", started=now - 3600 * started, at=now - 3600 * at)
            client.hset(WORKERS, name, beat.model_dump_json())
    found = json.loads(command("status", url, *broker, "--price", "3.6", "--json").out)
    assert (found["done"], found["missing"], found["seconds_left"]) == (10, 20, 200)
    # 20 pictures at 0.1 a second by both: 200 s of two workers; and five hours of workers so far
    assert found["cost"] == {"price": 3.6, "workers": 2, "left": 0.4, "hours": 5.0, "spent": 18.0}
    said = command("status", url, *broker, "--price", "3.6").out
    assert "about 0.40 to go, at 3.6 an hour for each of 2 workers" in said
    assert "18.00 for the 5 hours of the workers below" in said
    assert "cost" not in json.loads(command("status", url, *broker, "--json").out)


def test_retry_sends_what_was_given_up(command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer) -> None:
    url, broker = enqueued
    atlas, unit = Atlas.open(url), Unit("channel", "conv1", 2)
    failure = Failure(unit=unit, job_id="0" * 16, error="it does not want to", attempts=4)
    atlas.store.put(keys.error(unit), manifest.dump(failure))
    with valkey.client() as client:
        client.delete(QUEUE)
        client.hset(dead_key(url), field(unit), GivenUp(error=failure.error, attempts=4).model_dump_json())
    assert command("enqueue", url, *broker).out.startswith("29 of 30 jobs sent; 1 failed")
    assert "it does not want to" in command("status", url, *broker, "--json").out
    assert "1 failed units are missing again; 1 jobs sent to the queue" in command("retry", url, *broker).out


def test_steering(command: Command, enqueued: tuple[str, list[str]]) -> None:
    url, broker = enqueued
    assert "paused" in command("pause", url, *broker).out
    assert "30 queued, 0 in hand (paused)" in command("status", url, *broker).out
    assert command("resume", url, *broker).code == 0
    assert command("cancel", url, *broker).out.startswith("30 jobs taken out")
    assert command("enqueue", url, *broker).out.startswith("30 of 30 jobs sent")


def test_a_pause_outlives_the_brokers_memory(
    command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer
) -> None:
    url, broker = enqueued
    assert command("pause", url, *broker).code == 0
    with valkey.client() as client:
        client.flushall()
    assert command("enqueue", url, *broker).out.startswith("30 of 30 jobs sent")  # as an idle worker does
    assert "30 queued, 0 in hand (paused)" in command("status", url, *broker).out
    assert command("resume", url, *broker).code == 0
    with valkey.client() as client:
        client.flushall()
    command("enqueue", url, *broker)
    assert "30 queued, 0 in hand\n" in command("status", url, *broker).out


def test_a_broker_that_has_forgotten_an_atlas_can_be_told(
    command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer
) -> None:
    url, broker = enqueued
    with valkey.client() as client:
        client.flushall()
        assert "paused" in command("pause", url, *broker).out
        assert client.hget(FLAGS, url) == b"paused"
        client.flushall()
        assert command("resume", url, *broker).out == "resumed\n"
        assert command("resume", url, *broker).code == 2
        assert command("cancel", url, *broker).out.startswith("0 jobs taken out")
        assert client.hget(FLAGS, url) == b"cancelled"
    assert not place.is_enqueued(Atlas.open(url).store)
    assert command("cancel", url + "x", *broker).code == 2


def test_a_pause_that_the_atlas_cannot_keep_is_one_all_the_same(
    command: Command, enqueued: tuple[str, list[str]], valkey: RedisServer
) -> None:
    url, broker = enqueued
    Path(url, keys.PAUSED).mkdir(parents=True)  # no file can be written there
    ended = command("pause", url, *broker)
    assert ended.code == 0 and "it ends with the broker's memory" in ended.err
    assert "(paused)" in command("status", url, *broker).out


@pytest.mark.parametrize("name", ["cancel", "pause", "resume"])
def test_an_atlas_that_is_not_there_cannot_be_steered(
    name: str, command: Command, enqueued: tuple[str, list[str]]
) -> None:
    ended = command(name, enqueued[0] + "x", *enqueued[1])
    assert ended.code == 2 and ("did you mean" in ended.err or "not paused" in ended.err)


ALEXNET = ["enqueue", "{atlas}", "--model", "alexnet", "--weights", "random:0", "--broker", "{broker}"]
TOO_SMALL = "a picture of 16 x 16 px does not pass this network up to layer 'features.6'"
BAD = {
    "no broker": (["enqueue", "{atlas}", *MODEL], 2, "FEATURE_ATLAS_BROKER"),
    "not a broker": (["enqueue", "{atlas}", *MODEL, "--broker", "http://localhost"], 2, "not the URL of a broker"),
    "nobody there": (["enqueue", "{atlas}", *MODEL, "--broker", "redis://127.0.0.1:{port}/0"], 5, "no broker at"),
    "no selection": (["enqueue", "{atlas}", "--set", "steps=2", "--broker", "{broker}"], 2, "which network"),
    "no atlas": (["enqueue", "{atlas}", "--broker", "{broker}"], 2, "there is no atlas"),
    "memory": (["enqueue", "memory:x", *MODEL, "--broker", "{broker}"], 2, "workers cannot write to 'memory:x'"),
    "to be read": (["enqueue", "https://host/x", *MODEL, "--broker", "{broker}"], 2, "workers cannot write"),
    "no dry run": (["enqueue", "{atlas}", *MODEL, "--price", "3", "--broker", "{broker}"], 2, "belong to --dry-run"),
    "no scheme": (["worker", "--broker", "{broker}", "--store", "s4://bucket/"], 2, "did you mean s3"),
    "no place to write": (["worker", "--broker", "{broker}", "--store", "https://h/"], 2, "workers cannot write"),
    "no place": (["worker", "--broker", "{broker}"], 2, "where may this worker write"),
    "no gpu": (["worker", "--broker", "{broker}", "--store", "/tmp", "--gpus", "7,9"], 5, "GPUs"),
    "not gpus": (["worker", "--broker", "{broker}", "--store", "/tmp", "--gpus", "x"], 2, "say all"),
    "no such gpu": (
        ["worker", "--broker", "{broker}", "--store", "/tmp", "--device", "cuda:7"],
        5,
        "no device 'cuda:7'",
    ),
    "no such gpu, either": (["up", "{atlas}", *MODEL, "--device", "cuda:7"], 5, "no device 'cuda:7'"),
    "not here, either": (["render", "{atlas}", *MODEL, "--device", "cuda:7"], 5, "no device 'cuda:7'"),
    "no device": (["worker", "--broker", "{broker}", "--store", "/tmp", "--device", "gpu"], 2, "cuda or cuda:N"),
    "worker alone": (["worker", "--broker", "redis://127.0.0.1:{port}/0", "--store", "/tmp"], 5, "no broker at"),
    "too small": ([*ALEXNET, "--set", "size=16"], 2, TOO_SMALL),
    "too small for the network": ([*ALEXNET, "--set", "network_size=16"], 2, TOO_SMALL),
    "too coarse": ([*ALEXNET, "--set", "coarse=0.125", "--set", "coarse_steps=10"], 2, TOO_SMALL),
    "one size only": (
        ["enqueue", "{atlas}", "--model", "vit_b_32", "--broker", "{broker}"],
        2,
        "a picture of 128 x 128 px does not pass this network up to layer 'conv_proj'",
    ),
    "too small, either": (
        ["up", "{atlas}", *MODEL, "--layers", "conv3", "--variant", "neuron", "--set", "position=99,0"],
        2,
        "neuron position 99,0 is not on this layer's map",
    ),
    "no workers": (["up", "{atlas}", *MODEL, "--workers", "0"], 2, "at least 1"),
    "nothing up": (["up", "{atlas}"], 2, "there is no atlas"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence_and_writes_nothing(
    case: str, command: Command, valkey: RedisServer, tmp_path: Path
) -> None:
    argv, code, text = BAD[case]
    places = {"atlas": tmp_path / "atlas", "broker": valkey.url, "port": free_port()}
    ended = command(*(word.format(**places) for word in argv))
    assert (ended.code, ended.err.count("\n")) == (code, 1) and text in ended.err
    assert not (tmp_path / "atlas").exists()
    with valkey.client() as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("missing", [("torchvision",), ("torch", "torchvision", "safetensors")])
def test_what_cannot_be_tried_here_is_left_to_the_workers(
    missing: tuple[str, ...], valkey: RedisServer, tmp_path: Path
) -> None:
    argv = ["enqueue", str(tmp_path), "--model", "alexnet", "--weights", "random:0", "--set", "size=16"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}));"
        f"from feature_atlas.cli import main; sys.exit(main({[*argv, '--broker', valkey.url, '--channels', '0']}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.startswith("5 of 5 jobs sent"), done.stderr


def test_a_dry_run_says_how_much_it_would_be_and_does_nothing(command: Command, tmp_path: Path) -> None:
    atlas = tmp_path / "atlas"
    ended = command("enqueue", str(atlas), *MODEL, *TINY, "--dry-run", "--price", "3600", "--device", "cpu", "--json")
    (row,) = json.loads(ended.out)["atlases"]
    assert (row["jobs"], row["planned"]) == (30, 30) and row["sampled"] >= 8
    assert row["cost"] == pytest.approx(row["seconds"]) and 0 < row["seconds_error"] <= row["seconds"]
    assert 0 < row["bytes"] < 30 * 20_000
    assert not atlas.exists()
    text = command("enqueue", str(atlas), *MODEL, *TINY, "--dry-run", "--no-pilot").out
    assert re.search(r"30 jobs \(0 of 30 are done\)\n  about .* GB", text)


def test_who_asks_for_a_transformer_is_told_how_little_of_it_is_taken(command: Command, tmp_path: Path) -> None:
    def told(model: str, *options: str) -> str:
        look = ("--weights", "random:0", "--dry-run", "--no-pilot", *options)
        return command("enqueue", str(tmp_path / "atlas"), "--model", model, *look).err

    assert "swin_t: 1 of 155 layers are convolutions, and only these are taken; --kinds all" in told("swin_t")
    assert "convolutions" not in told("swin_t", "--kinds", "all") + told("resnet50")

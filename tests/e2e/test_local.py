"""``feature-atlas render`` from the first command to the last picture: resume, growth, interruption, bad input.

Real rendering of a toy network, into a folder and into a real S3 gateway.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.cli import main
from feature_atlas.manifest import decode_png, encode_png
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, open_store
from feature_atlas_worker import execute
from feature_atlas_worker.render import render
from tests.nursery import Heard
from tests.servers import CephGateway, wait_until

MODEL = ["--model", "python:tests.networks:toy", "--allow-model", "tests.networks"]
TINY = ["--set", "size=16", "--set", "steps=3", "--batch", "4"]
#: Four batches of half a second each, so that a process can be hit in the middle.
SLOW = ["--set", "size=48", "--set", "steps=50", "--batch", "2", "--channels", "0:8"]

#: Any user but root.
NOBODY = 65534


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in this process; torch is loaded once."""

    def run(*argv: str) -> Ended:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(code, out, err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., Heard]]:
    """Starts a command in a process of its own, that can be hit by signals."""
    started: list[Heard] = []

    def run(*argv: str) -> Heard:
        started.append(Heard("feature_atlas", argv, os.environ))
        return started[-1]

    yield run
    for child in started:
        child.close()


def rendered(ended: Ended) -> int:
    """How many pictures a render with ``--json`` says that it made."""
    return sum(atlas["rendered"] for atlas in json.loads(ended.out)["atlases"])


def pictures(folder: Path) -> int:
    return sum(1 for _ in (folder / "images").rglob("[0-9]*.png")) if (folder / "images").is_dir() else 0


def sound(url: str | Path) -> bool:
    return not [problem for problem in Atlas.open(url).verify() if not problem.harmless]


# -- from nothing to a whole atlas, and on


def test_the_demo_renders_an_atlas_to_look_at_and_again_nothing(start: Callable[..., Heard], tmp_path: Path) -> None:
    """What `deploy/run demo` runs.  How long it takes depends on what else the machine does, and is not asked here."""
    demo = start("demo", str(tmp_path))
    out, err = demo.communicate(timeout=540)
    assert demo.returncode == 0, err
    atlas = Atlas.open(tmp_path)
    assert len(atlas.plan) >= 64
    assert (atlas.done(), atlas.failed()) == (set(atlas.plan.units()), set())
    assert f"open {tmp_path}/index.html" in out
    page = (tmp_path / keys.PAGE).read_text()
    assert len(atlas.plan.layers) >= 2
    for layer in atlas.plan.layers:
        assert f"<h2>{layer}</h2>" in page
        assert (tmp_path / keys.sheet(64, "channel", layer, 0)).is_file()
    with Image.open(tmp_path / keys.CONTACT_SHEET) as sheet:
        assert min(sheet.size) > 64 * len(atlas.plan.layers), "a row of every layer"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    again = start("demo", str(tmp_path))
    out, _ = again.communicate(timeout=240)
    assert (again.returncode, "; 0 new in" in out) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")} == before


def test_a_render_leaves_a_whole_atlas_to_look_at(command: Command, tmp_path: Path) -> None:
    ended = command("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv*", "--channels", "0:3", "--keep-initial")
    assert ended.code == 0
    assert "9 of 9 channels are done; 9 new in" in ended.out
    assert f"open {tmp_path}/index.html" in ended.out
    assert "python:tests.networks:toy: 9/9 channels (100%)" in ended.err
    assert sound(tmp_path)
    for file in ("index.html", "contact-sheet.png", "index.jsonl.gz", "initial/channel/conv3/00002.png"):
        assert (tmp_path / file).is_file()
    assert command("status", str(tmp_path)).code == 0
    assert command("verify", str(tmp_path)).code == 0


def test_the_same_command_again_renders_nothing_and_changes_no_picture(command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv2", "--channels", "0:4", "--json")
    assert rendered(command(*line)) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    assert rendered(command(*line)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")} == before


def test_an_atlas_grows_by_channels_layers_and_variants(command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--no-publish", "--json")
    assert rendered(command(*line, "--layers", "conv2", "--channels", "0:4")) == 4
    assert rendered(command(*line, "--layers", "conv2", "--channels", "2:7")) == 3
    assert rendered(command(*line, "--layers", "conv3", "--channels", "9")) == 1
    assert (
        rendered(command(*line, "--layers", "conv2", "--channels", "0", "--variant", "negative", "--variant", "raw"))
        == 2
    )
    # A DeepDream variant has one picture per layer.
    assert rendered(command(*line, "--layers", "conv2", "--variant", "layer")) == 1
    atlas = Atlas.open(tmp_path)
    assert len(atlas.plan) == 11
    assert list(atlas.missing()) == []
    assert sound(tmp_path)


def test_without_a_selection_what_is_missing_is_rendered(command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--no-publish", "--json")
    command(*line, "--layers", "conv2", "--channels", "0:4")
    (tmp_path / "images/channel/conv2/00002.png").unlink()
    assert rendered(command("render", str(tmp_path), "--allow-model", "tests.networks", "--json", "--no-publish")) == 1
    ended = command("render", str(tmp_path), "--layers", "conv2")
    assert (ended.code, ended.err) == (
        2, "feature-atlas: which network? say --model M as well; without a selection what is missing is rendered\n",
    )  # fmt: skip


def test_several_models_lie_below_one_root(command: Command, tmp_path: Path) -> None:
    models = "python:tests.networks:toy,python:tests.networks:flat"
    allow = ("--allow-model", "tests.networks")
    ended = command("render", str(tmp_path), "--model", models, *allow, *TINY, "--channels", "0:1", "--json")
    assert [atlas["planned"] for atlas in json.loads(ended.out)["atlases"]] == [3, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "python-tests.networks-flat",
        "python-tests.networks-toy",
    ]


def test_a_local_weights_file_travels_with_the_atlas(command: Command, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from tests.networks import toy

    file = tmp_path / "toy.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in toy()[0].state_dict().items()}, file)
    url = str(tmp_path / "a")
    line = ("render", url, *MODEL, *TINY, "--no-publish", "--json")
    assert rendered(command(*line, "--weights", str(file), "--layers", "conv1", "--channels", "0:2")) == 2
    file.unlink()
    DirectoryStore(url).delete("images/channel/conv1/00000.png")
    assert rendered(command("render", url, "--allow-model", "tests.networks", "--no-publish", "--json")) == 1
    ended = command(*line, "--layers", "conv2")
    assert ended.code == 2
    assert "this place holds an atlas of python:tests.networks:toy (weights" in ended.err


def test_a_truncated_picture_is_found_and_rendered_again_to_the_same_pixels(command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv2", "--channels", "0:4", "--json")
    command(*line)
    picture = tmp_path / "images/channel/conv2/00001.png"
    whole = Atlas.open(tmp_path).manifest(Unit("channel", "conv2", 1)).pixels_sha256
    picture.write_bytes(picture.read_bytes()[:100])
    ended = command("verify", str(tmp_path))
    assert ended.code == 4
    assert "images/channel/conv2/00001.png is not a whole PNG" in ended.out
    assert command("verify", str(tmp_path), "--repair").code == 3
    assert rendered(command(*line)) == 1
    assert command("verify", str(tmp_path)).code == 0
    assert Atlas.open(tmp_path).manifest(Unit("channel", "conv2", 1)).pixels_sha256 == whole


def _cut(data: bytes) -> bytes:
    return data[:100]


def _alter(data: bytes) -> bytes:
    pixels, record = decode_png(data, "test")
    return encode_png(255 - pixels, record)


@pytest.mark.parametrize("harm", [_cut, _alter])
def test_a_render_makes_damaged_pictures_again(
    harm: Callable[[bytes], bytes], command: Command, tmp_path: Path
) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv2", "--channels", "0:2")
    picture = tmp_path / "images/channel/conv2/00001.png"
    command(*line)
    whole = picture.read_bytes()
    for again in (line, ("render", str(tmp_path), "--allow-model", "tests.networks", "--batch", "4")):
        picture.write_bytes(harm(whole))
        ended = command(*again)
        assert ended.code == 0
        assert "2 of 2 channels are done" in ended.out and "damaged, removed and made again: 1" in ended.out
        assert sound(tmp_path)
        assert decode_png(picture.read_bytes(), "")[0].tobytes() == decode_png(whole, "")[0].tobytes()
    assert "again" not in command(*line).out


def test_a_damaged_picture_that_cannot_be_made_again_is_kept_and_told(command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv2", "--channels", "0:2")
    picture = tmp_path / "images/channel/conv2/00001.png"
    command(*line)
    picture.write_bytes(damaged := _cut(picture.read_bytes()))
    assert command(*line, "--no-publish").code == 0
    ended = command("render", str(tmp_path))  # the model's code may not be run
    assert ended.code == 4
    assert f"feature-atlas verify --repair {tmp_path}" in ended.err and "not allowed here" in ended.err
    assert picture.read_bytes() == damaged


# -- interrupted


def test_kill_9_loses_at_most_the_batch_in_hand(start: Callable[..., Any], command: Command, tmp_path: Path) -> None:
    line = ("render", str(tmp_path), *MODEL, *SLOW, "--layers", "conv2", "--json")
    child = start(*line)
    wait_until(lambda: pictures(tmp_path) >= 3, "three pictures")
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = pictures(tmp_path)
    assert 3 <= left < 8
    assert sound(tmp_path), "whatever is there is whole"
    assert rendered(command(*line)) == 8 - left
    assert sound(tmp_path)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    start: Callable[..., Any], command: Command, tmp_path: Path
) -> None:
    child = start("render", str(tmp_path), *MODEL, *SLOW, "--layers", "conv2")
    wait_until(lambda: pictures(tmp_path) >= 2, "two pictures")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=240)
    assert child.returncode == 130
    assert "stopping: uploads in hand are finished" in err and "Traceback" not in err
    left = pictures(tmp_path)
    assert f"{left} of 8 channels are done" in out
    assert f"{8 - left} are missing; to go on: feature-atlas render {tmp_path}" in out
    hint = next(line for line in out.splitlines() if "to go on" in line).partition("feature-atlas ")[2]
    again = command(*shlex.split(hint), "--batch", "2", "--json")
    assert (again.code, rendered(again)) == (0, 8 - left)


def test_two_processes_at_once_lose_nothing(start: Callable[..., Any], command: Command, tmp_path: Path) -> None:
    shared = ("render", str(tmp_path), *MODEL, *TINY, "--json")
    children = [
        start(*shared, "--layers", "conv1,conv2", "--channels", "0:6"),
        start(*shared, "--layers", "conv2,conv3", "--channels", "2:8", "--variant", "channel", "--variant", "raw"),
    ]
    for child in children:
        out, err = child.communicate(timeout=200)
        assert child.returncode == 0, err
        assert json.loads(out)["atlases"][0]["missing"] == 0
    atlas = Atlas.open(tmp_path)
    assert len(atlas.plan) == 6 + 8 + 6 + 6 + 6
    assert atlas.done() == set(atlas.plan.units())
    assert sound(tmp_path)


# -- what goes wrong while rendering


def test_a_shortage_of_memory_halves_the_batch(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []

    def short(*args: Any, batch: int, **kwargs: Any) -> Any:
        shapes.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return render(*args, batch=batch, **kwargs)

    monkeypatch.setattr(execute, "Executor", functools.partial(execute.Executor, render=short))
    tiny = ("--set", "size=16", "--set", "steps=2", "--batch", "8", "--no-publish", "--json")
    ended = command("render", str(tmp_path), *MODEL, *tiny, "--layers", "conv2", "--channels", "0:6")
    assert (ended.code, rendered(ended)) == (0, 6)
    assert shapes == [8, 4, 2, 2, 2]


def test_a_failing_channel_is_recorded_the_rest_is_done_and_retry_heals(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(model: Any, targets: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if any(target.channel == 2 for target in targets):
            raise ArithmeticError("the universe said no")
        return render(model, targets, *args, **kwargs)

    line = ("render", str(tmp_path), *MODEL, *TINY, "--layers", "conv2", "--channels", "0:5", "--no-publish")
    with monkeypatch.context() as patch:
        patch.setattr(execute, "Executor", functools.partial(execute.Executor, render=unlucky))
        ended = command(*line)
    assert ended.code == 3
    assert "4 of 5 channels are done" in ended.out
    assert "1 failed: the universe said no" in ended.out
    assert f"feature-atlas retry {tmp_path}" in ended.out
    assert rendered(command(*line, "--json")) == 0, "a failure is not tried again by itself"
    assert command("retry", str(tmp_path)).code == 0
    ended = command(*line, "--json")
    assert (ended.code, rendered(ended)) == (0, 1)


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="feature-atlas-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Hands ``folder`` and this process to a user without rights, where we are root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_store_without_permission_is_exit_code_5(command: Command, common_folder: Path) -> None:
    line = ("render", str(common_folder / "a"), *MODEL, *TINY, "--layers", "conv2", "--no-publish")
    assert command(*line, "--channels", "0").code == 0
    images = common_folder / "a/images/channel/conv2"
    images.chmod(0o500)
    with as_nobody(common_folder):
        ended = command(*line, "--channels", "0:2")
    assert ended.code == 5
    assert "no permission to write" in ended.err
    assert "the same command goes on from there" in ended.err
    images.chmod(0o700)
    assert command(*line, "--channels", "0:2").code == 0


# -- bad input: one sentence, exit code 2, and nothing written

BAD_INPUT = {
    "model": (["--model", "resnet5O"], "no model 'resnet5O'; did you mean resnet50"),
    "model not allowed": (["--model", "python:os:getcwd"], "--allow-model os"),
    "weights": (["--model", "resnet18", "--weights", "IMAGENET"], "resnet18 has no weights 'IMAGENET'"),
    "weights file": (["--model", "resnet18", "--weights", "./none.pth"], "cannot read the weights file './none.pth'"),
    "layer": ([*MODEL, "--layers", "convv2"], "no layer 'convv2' in python:tests.networks:toy; did you mean conv2"),
    "kind": ([*MODEL, "--kinds", "conf"], "no kind 'conf'; did you mean conv"),
    "channel": ([*MODEL, "--layers", "conv2", "--channels", "12"], "channel 12 is out of range: layer 'conv2' has 12"),
    "channels": ([*MODEL, "--channels", "1-3"], "'1-3' is neither a number nor start:stop:step"),
    "variant": ([*MODEL, "--variant", "chanel"], "no variant or preset 'chanel'; did you mean channel"),
    "recipe field": ([*MODEL, "--set", "step=3"], "unknown field 'step'; did you mean steps"),
    "recipe value": ([*MODEL, "--set", "steps=0"], "steps=0: input should be greater than or equal to 1"),
    "no setting": ([*MODEL, "--set", "steps"], "--set 'steps' is no setting"),
    "renderer": ([*MODEL, "--set", "renderer=1"], "--set renderer=1: the renderer is this release's own"),
    "position": (
        [*MODEL, *TINY, "--variant", "neuron", "--set", "position=40,40"],
        "layer 'conv1': neuron position 40,40 is not on this layer's map of",
    ),
    "position where the picture is coarse": (
        [*MODEL, *TINY, "--layers", "conv1", "--variant", "neuron", "--set", "position=5,5", "--set", "coarse=0.5",
         "--set", "coarse_steps=1"],
        "is not on this layer's map of 4 rows",
    ),
    "diversity": ([*MODEL, "--set", "diversity=1"], "needs at least 2 images per job"),
    "device": ([*MODEL, "--device", "gpu"], "--device gpu: not a device (auto, cpu, cuda or cuda:N"),
    "batch": ([*MODEL, "--batch", "0"], "--batch 0: input"),
    "mean": ([*MODEL, "--mean", "0.5,0.5", "--std", "1"], "mean and std must have one entry per input channel"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_sentence_and_writes_nothing(case: str, command: Command, tmp_path: Path) -> None:
    argv, sentence = BAD_INPUT[case]
    ended = command("render", str(tmp_path / "a"), *argv)
    assert ended.code == 2
    assert ended.err.startswith("feature-atlas: ") and sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_picture_too_small_for_a_layer_is_refused_before_anything_is_written(
    command: Command, tmp_path: Path
) -> None:
    model = ("--model", "alexnet", "--weights", "random:0")
    small = ("--set", "size=16", "--set", "steps=1", "--no-publish")
    ended = command("render", str(tmp_path / "a"), *model, *small, "--channels", "0:1")
    assert ended.code == 2
    assert "a picture of 16 x 16 px does not pass this network up to layer 'features.6'" in ended.err
    assert not (tmp_path / "a").exists()
    ended = command(
        "render", str(tmp_path / "a"), *model, *small, "--channels", "0", "--layers", "features.0,features.3"
    )
    assert ended.code == 0, "what comes after the layer does not matter"


@pytest.mark.parametrize(
    ("model", "steps", "sentence"),
    [
        ("toy", 9, "variant 'channel' already has another recipe here (steps 3 here, 9 asked)"),
        ("dead", 3, "holds an atlas of python:tests.networks:toy (factory), not of python:tests.networks:dead"),
    ],
)
def test_another_recipe_or_model_is_refused_with_the_difference(
    model: str, steps: int, sentence: str, command: Command, tmp_path: Path
) -> None:
    def ask(model: str, steps: int) -> Ended:
        which = ("--model", f"python:tests.networks:{model}", "--allow-model", "tests.networks")
        how = ("--set", "size=16", "--set", f"steps={steps}", "--layers", "conv2", "--channels", "0", "--no-publish")
        return command("render", str(tmp_path), *which, *how)

    assert ask("toy", 3).code == 0
    before = sorted(tmp_path.rglob("*"))
    ended = ask(model, steps)
    assert ended.code == 2
    assert sentence in ended.err
    assert sorted(tmp_path.rglob("*")) == before


# -- the same in a bucket


@pytest.fixture
def bucket(ceph: CephGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{ceph.new_bucket()}"


def test_an_atlas_in_a_bucket_resumes_grows_and_verifies(
    bucket: str, start: Callable[..., Any], command: Command
) -> None:
    url = f"{bucket}/toy"
    line = ("render", url, *MODEL, *SLOW, "--layers", "conv2", "--json")
    store = open_store(url)
    child = start(*line)
    wait_until(lambda: any(store.list(keys.IMAGES)), "a picture")
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = len(Atlas.open(url).done())
    assert 0 < left < 8
    assert rendered(command(*line)) == 8 - left
    assert rendered(command("render", url, *MODEL, *SLOW, "--layers", "conv3", "--channels", "0:2", "--json")) == 2
    assert command("status", url, "--json").code == 0
    store.put(keys.image(Unit("channel", "conv2", 3)), b"\x89PNG\r\n\x1a\nnot much of it")
    assert command("verify", url).code == 4
    assert command("verify", url, "--repair").code == 3
    assert rendered(command("render", url, "--allow-model", "tests.networks", "--batch", "2", "--json")) == 1
    assert command("verify", url).code == 0
    assert command("doctor", url).code == 0


def test_a_bucket_that_is_not_there_and_a_wrong_key(
    bucket: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*MODEL, *TINY, "--layers", "conv2", "--channels", "0", "--no-publish")
    ended = command("render", "s3://no-such-bucket-of-ours/toy", *line)
    assert ended.code == 5 and "no-such-bucket-of-ours" in ended.err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    ended = command("render", f"{bucket}/toy", *line)
    assert ended.code == 5 and ended.err.startswith("feature-atlas: ")

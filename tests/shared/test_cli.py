"""The command line: reading commands, exit codes, sentences instead of tracebacks.  No torch in this module."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys, manifest
from feature_atlas.atlas import Atlas
from feature_atlas.cli import hints, main
from feature_atlas.cli.progress import Progress, duration, table
from feature_atlas.cli.reading import pace
from feature_atlas.errors import StoreError
from feature_atlas.presets import VARIANTS
from feature_atlas.store import DirectoryStore
from tests.shared.test_atlas import MODEL, finish, request, unit


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    """Four units: one done, one dead, one failed, one missing."""
    atlas = Atlas.grow(tmp_path / "a", MODEL, request())
    finish(atlas, unit(0))
    finish(atlas, unit(1), dead=True)
    atlas.store.put(keys.error(unit(2)), b"{}")
    return atlas


def test_help_names_every_command_and_needs_only_the_standard_library() -> None:
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['numpy','pydantic','PIL','boto3','torch','celery','tqdm']));"
    )
    code = f"{blocked} from feature_atlas.cli import main; main(['--help'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    for command in ("demo", "render", "layers", "status", "verify", "retry", "doctor"):
        assert f"\n    {command} " in found.stdout


def test_help_names_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "--help"])
    told = capsys.readouterr().out.rpartition("--variant NAME")[2].partition("--set")[0]
    assert set(VARIANTS) <= set(re.findall(r"\w+", told))


@pytest.mark.parametrize("argv", [[], ["paint"], ["render"], ["status", "a", "--no-such-option"]])
def test_wrong_usage_is_exit_code_2(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: feature-atlas" in capsys.readouterr().err


def test_status_prints_the_counts(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "status", atlas.url)
    assert code == 3
    assert "channel  conv         4     2        1     1       1" in out
    assert "2 of 4 channels are done (50.0%), 1 of them dead; 1 missing, 1 failed" in out
    assert f"feature-atlas retry {atlas.url}" in out


@pytest.mark.parametrize(
    ("path", "cwd", "said"),
    [
        ("out/.venv/bin", ".", "feature-atlas"),
        ("", "out", ".venv/bin/feature-atlas"),
        ("other", "out", ".venv/bin/feature-atlas"),
        ("", "other", "{}/out/.venv/bin/feature-atlas"),
    ],
)
def test_a_sentence_names_a_command_that_works_here(
    path: str, cwd: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("out/.venv/bin", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "feature-atlas").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "out/.venv/bin/feature-atlas")])
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "/nowhere")
    monkeypatch.chdir(tmp_path / cwd)
    assert hints.program() == said.format(tmp_path)


def test_status_as_json(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "status", atlas.url, "--json")
    found = json.loads(out)
    assert code == 3
    assert [found[name] for name in ("planned", "done", "missing", "dead", "failed")] == [4, 2, 1, 1, 1]
    assert found["groups"][0]["layer"] == "conv"
    assert found["rate"] > 0 and found["seconds_left"] is not None, "two pictures were just written"


BATCHES = [20 * batch + 0.01 * place for batch in range(4) for place in range(16)]


@pytest.mark.parametrize(
    ("times", "now", "rate"),
    [
        ([], 0, 0),
        ([5.0], 5, 0),
        ([0.0, 10, 20, 30], 35, 0.1),  # the next is on its way
        (BATCHES, 62, pytest.approx(63 / 60, rel=0.01)),
        (BATCHES, 79, pytest.approx(63 / 60, rel=0.01)),  # a pause like the others
        (BATCHES, 115, pytest.approx(63 / 95, rel=0.02)),  # a long one
        (BATCHES, 125, 0),  # no more come
        (BATCHES[:16], 10, pytest.approx(1.5, rel=0.02)),  # what came at once says nothing of the pace; the pause does
        (BATCHES[:16], 31, 0),
        ([0.0, 0, 0], 0, 2000),
    ],
)
def test_the_pace_is_that_of_batches_and_ends_with_them(times: list[float], now: float, rate: Any) -> None:
    assert pace(times, now) == pace(times[::-1], now) == rate


def test_status_says_when_nobody_draws(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    for picture in Path(atlas.url, "images").rglob("*.png"):
        os.utime(picture, (time.time() - 60,) * 2)
    out = run(capsys, "status", atlas.url)[1]
    assert "nobody draws here now; to go on: " in out and "channels/s" not in out


def test_status_of_a_whole_atlas_is_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas = Atlas.grow(tmp_path, MODEL, request("0"))
    finish(atlas, unit(0))
    assert run(capsys, "status", str(tmp_path))[0] == 0
    assert run(capsys, "status", str(tmp_path), "--watch", "--every", "0.1")[0] == 0


def test_watch_ends_when_nothing_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas.grow(tmp_path, MODEL, request("0:3"))
    looks: list[float] = []

    def meanwhile(seconds: float) -> None:
        finish(atlas, unit(len(looks)))
        looks.append(seconds)

    monkeypatch.setattr("feature_atlas.cli.reading.time.sleep", meanwhile)
    code, out, _ = run(capsys, "status", str(tmp_path), "--watch", "--json")
    assert code == 0
    assert [json.loads(line)["done"] for line in out.splitlines()] == [0, 1, 2, 3]
    assert looks == [5.0] * 3


def test_what_to_type_next_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = MODEL.model_copy(update={"name": "python:my.nets:toy"})
    url = str(tmp_path / "two words; $HOME")
    Atlas.grow(url, model, request(model=model))
    _, out, _ = run(capsys, "retry", url)
    assert shlex.split(out.partition("feature-atlas ")[2]) == ["render", url, "--allow-model", "my.nets"]


def test_retry_makes_failures_missing_again(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "retry", atlas.url)
    assert code == 0 and out.startswith("1 failed units are missing again")
    assert list(atlas.missing()) == [unit(2), unit(3)]
    code, out, _ = run(capsys, "retry", atlas.url, "--dead")
    assert out.startswith("0 failed units and 1 dead ones are missing again")
    assert list(atlas.missing()) == [unit(1), unit(2), unit(3)]
    assert list(atlas.store.list(keys.DEAD)) == []
    code, out, _ = run(capsys, "retry", atlas.url, "--json")
    assert code == 0
    assert json.loads(out) == {"url": atlas.url, "failed": 0, "dead": 0, "sent": None}


def test_verify_of_a_sound_atlas(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", atlas.url)
    assert (code, out) == (0, "2 pictures checked: 0 problems, 0 harmless\n")
    assert "verify: 2/2 pictures (100%)" in err


def test_verify_finds_a_truncated_picture_and_repair_makes_room(
    atlas: Atlas, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas.store.put(keys.image(unit(0)), atlas.store.get(keys.image(unit(0)))[:-40])
    code, out, _ = run(capsys, "verify", atlas.url)
    assert code == 4
    assert "images/channel/conv/00000.png is not a whole PNG" in out and "verify --repair" in out
    code, out, _ = run(capsys, "verify", atlas.url, "--json")
    assert code == 4
    assert json.loads(out)["problems"][0]["unit"] == ["channel", "conv", 0]
    code, out, _ = run(capsys, "verify", atlas.url, "--repair")
    assert code == 3 and "1 removed; to make them again: feature-atlas render" in out
    assert unit(0) in list(atlas.missing())


def test_verify_tells_of_what_it_rebuilt(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    atlas.store.delete(keys.manifest(unit(0)))
    code, out, _ = run(capsys, "verify", atlas.url)
    assert code == 0
    assert "manifests/channel/conv/00000.json is missing: rebuilt" in out


def test_doctor_tries_the_store_and_leaves_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", str(tmp_path))
    assert code == 0
    for line in ("ok    release", "ok    store", "ok    clock", "ok    space", "warn  atlas"):
        assert line in out
    assert list(tmp_path.iterdir()) == []
    code, out, _ = run(capsys, "doctor", "--json")
    assert {row["level"] for row in json.loads(out)} <= {"ok", "warn"}


def test_doctor_tells_what_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATURE_ATLAS_BATCH", "many")
    monkeypatch.setenv("FEATURE_ATLAS_ALOWED_STORES", "/")
    code, out, _ = run(capsys, "doctor", str(tmp_path / "file/atlas"))
    assert code == 5
    assert "fail  settings      FEATURE_ATLAS_BATCH='many'" in out
    assert "warn  settings      the environment variable FEATURE_ATLAS_ALOWED_STORES means nothing" in out
    assert "fail  store" in out


@pytest.mark.parametrize(
    ("data", "sentence"), [(b'{"schema": 2}', "update feature-atlas"), (b'{"schema": 1, "mod', "is damaged")]
)
def test_doctor_takes_a_damaged_or_newer_atlas_for_a_failure(
    data: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DirectoryStore(tmp_path).put(keys.ATLAS, data)
    code, out, _ = run(capsys, "doctor", str(tmp_path))
    line = next(line for line in out.splitlines() if line.startswith("fail"))
    assert code == 5 and line.startswith("fail  atlas") and sentence in line


def test_doctor_names_a_store_that_does_not_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "list", lambda self, prefix="": iter(()))
    code, out, _ = run(capsys, "doctor", str(tmp_path))
    assert code == 5
    assert "does not list what was just written" in out


@pytest.mark.parametrize(
    ("url", "code", "sentence"),
    [
        ("{folder}/nothing", 2, "there is no atlas at {folder}/nothing (no atlas.json)"),
        ("ftp://host/x", 2, "cannot store under 'ftp://host/x': use a folder, s3://bucket/prefix"),
        ("{folder}/newer", 4, "atlas.json of {folder}/newer has schema 2; this release reads 1: update feature-atlas"),
        ("{folder}/damaged", 4, "atlas.json of {folder}/damaged is damaged"),
    ],
)
def test_bad_places_give_one_sentence(
    url: str, code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DirectoryStore(tmp_path / "newer").put(keys.ATLAS, b'{"schema": 2}')
    DirectoryStore(tmp_path / "damaged").put(keys.ATLAS, b'{"schema": 1, "mod')
    for command in ("status", "verify", "retry"):
        found, _, err = run(capsys, command, url.format(folder=tmp_path))
        assert found == code
        assert err.startswith("feature-atlas: " + sentence.format(folder=tmp_path))
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (StoreError("no space left to write /x"), 5, "no space left to write /x"),
        (OSError(28, "No space left on device"), 5, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 5, "not enough memory: try a smaller --batch"),
    ],
)
def test_errors_become_sentences_and_codes(
    error: BaseException, code: int, sentence: str, atlas: Atlas,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Atlas, "status", fail)
    found, _, err = run(capsys, "status", atlas.url)
    assert (found, err) == (code, f"feature-atlas: {sentence}\n")


def test_debug_shows_the_traceback(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["status", "ftp://x", "--debug"]) == 2
    assert "Traceback" in caplog.text and "open_store" in caplog.text


def test_a_reader_that_goes_away_is_no_error(atlas: Atlas) -> None:
    command = f'"{sys.executable}" -m feature_atlas status "{atlas.url}" | true; echo "${{PIPESTATUS[0]}}"'
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240)
    assert "Traceback" not in found.stderr and "Exception" not in found.stderr


def test_a_second_ctrl_c_ends_at_once() -> None:
    code = (
        "import os, signal, time\nfrom feature_atlas.cli.work import Interrupt\n"
        "with Interrupt() as interrupt:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(interrupt.asked, flush=True)\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(100)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (found.returncode, found.stdout) == (130, "True\n")
    assert "Ctrl-C again ends at once" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("missing", "argv", "extra"),
    [
        (("torch", "torchvision"), ["render", "DIR", "--model", "resnet18"], "render"),
        (("torch", "torchvision"), ["demo", "DIR"], "render"),
        (("torch", "torchvision"), ["layers", "--model", "builtin:demo"], "render"),
    ],
)
def test_a_command_without_its_extra_says_which(
    missing: Sequence[str], argv: Sequence[str], extra: str, tmp_path: Path
) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({tuple(missing)}));"
    code = f"{blocked} from feature_atlas.cli import main; sys.exit(main({list(argv)}))".replace("DIR", str(tmp_path))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert found.returncode == 2
    assert found.stderr == (
        f"feature-atlas: 'feature-atlas {argv[0]}' needs more than the reader: pip install 'feature-atlas[{extra}]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_layers_of_known_networks_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from feature_atlas.cli import main;"
        "sys.exit(main(['layers', '--model', 'resnet50,googlenet', '--json', '--kinds', 'conv']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    resnet50, googlenet = json.loads(found.stdout)
    assert (len(resnet50["layers"]), resnet50["channels"]) == (53, 26560)
    assert googlenet["model"] == "googlenet"


def test_layers_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "layers", "--model", "squeezenet1_0", "--layers", "features.12*", "--kinds", "conv")
    assert code == 0
    assert out.splitlines()[0].split() == ["layer", "kind", "channels"]
    assert "features.12.squeeze    conv        64" in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model", "resnet51"], "no model 'resnet51'; did you mean resnet50"),
        (["--model", "resnet50", "--layers", "layer9.*"], "no layer 'layer9.*' in resnet50"),
        (["--model", "resnet50", "--kinds", "convolution"], "no kind 'convolution'; did you mean"),
        (["--model", ","], "names no model"),
    ],
)
def test_layers_refuses_what_is_not_there(
    argv: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "layers", *argv)
    assert code == 2
    assert sentence in err and err.count("\n") == 1


def test_progress_in_a_log_is_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("feature_atlas.cli.progress.time.monotonic", lambda: now[0])
    with Progress("toy", 100, 40) as progress:
        for _ in range(30):
            now[0] += 1
            progress.at("conv1")
            progress.add()
    assert capsys.readouterr().err.splitlines() == [
        "toy: 40/100 channels (40%)",
        "toy: 44/100 channels (44%), 0.8/s, 1 min 10 s left, conv1",
        "toy: 49/100 channels (49%), 0.9/s, 57 s left, conv1",
        "toy: 54/100 channels (54%), 0.93/s, 49 s left, conv1",
        "toy: 59/100 channels (59%), 0.95/s, 43 s left, conv1",
        "toy: 64/100 channels (64%), 0.96/s, 38 s left, conv1",
        "toy: 69/100 channels (69%), 0.97/s, 32 s left, conv1",
        "toy: 70/100 channels (70%), 1/s, 30 s left, conv1",
    ]


def test_progress_on_a_terminal_is_a_bar_with_rate_and_time_left(tmp_path: Path) -> None:
    code = (
        "import time\nfrom feature_atlas.cli.progress import Progress\n"
        "with Progress('toy', 4, 1) as progress:\n"
        "    for _ in range(3):\n        time.sleep(0.2); progress.at('conv1'); progress.add()\n"
    )
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(controller, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, timeout=240)
        os.close(terminal)
        shown = b""
        try:
            while part := screen.read(4096):
                shown += part
        except OSError:  # how Linux says that the terminal is closed
            pass
    text = shown.decode()
    assert "4/4" in text and "channels/s" in text and "left" in text and "conv1" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min"), (90000, "1 d 1 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tables_align_numbers_to_the_right() -> None:
    assert table([("a", 1), ("bb", 22)], ("name", "n")) == "name   n\na      1\nbb    22"


def test_records_of_a_newer_release_are_told_from_damage(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    plan = request("0:9", channel=atlas.plan.variants["channel"])
    text = manifest.dump(plan).replace(b'"schema": 1', b'"schema": 3').replace(b'"schema":1', b'"schema":3')
    atlas.store.put(keys.plan(plan.digest()), text)
    code, _, err = run(capsys, "status", atlas.url)
    assert code == 4
    assert "schema 3; this release reads 1: update feature-atlas" in err

"""How our own kernels are compiled and loaded, how their threads end, and what happens without them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from feature_atlas.presets import preset
from feature_atlas_worker import kernels
from feature_atlas_worker.ascent import Ascent
from feature_atlas_worker.kernels import build, products, team
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.recorded import ascent_of
from feature_atlas_worker.rewrite import Rewrites
from tests import networks

CPU = torch.device("cpu")
EXACT = Rewrites(half=False)
RECIPE = preset("regularised", {"steps": 6, "size": (24, 30), "redirect": 2})


@pytest.fixture(autouse=True)
def loaded_anew() -> Iterator[None]:
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


def test_without_kernels_pytorch_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "library", lambda generation: tmp_path / generation)
    kernels._library.cache_clear()
    assert not kernels.available() and not kernels.suits(torch.rand(1))
    with open_network(VisionModel(*networks.toy()), "relu2", RECIPE, CPU) as network:
        assert type(ascent_of(network, RECIPE, [1], [7])) is Ascent
        assert ascent_of(network, RECIPE, [1], [7]).run().last.isfinite().all()


@pytest.mark.parametrize("kind", ["of other sources", "of something else"])
def test_a_library_that_does_not_fit_is_said_and_not_used(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "of other sources":
        monkeypatch.setattr(kernels, "fingerprint", lambda: "other")
        says = "was made of other sources"
    else:
        (tmp_path / "some.kernels").write_text("no library")
        monkeypatch.setattr(kernels, "library", lambda _generation: tmp_path / "some.kernels")
        says = "cannot be used"
    kernels._library.cache_clear()
    assert not kernels.available()
    assert says in caplog.text and "PyTorch does its work" in caplog.text


def test_there_is_a_sentence_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in build.FOLDER.glob("*.kernels")}
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no C compiler"):
        build.build()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="false fails"):
        build.build()
    command = [sys.executable, "-m", "feature_atlas_worker.kernels"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "false fails" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in build.FOLDER.glob("*.kernels")} == before
    assert not list(build.FOLDER.glob(".new-*")), "nothing half-made stays"


def test_no_memory_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getattr__(self, _name: str) -> Callable[..., int]:
            return lambda *_args: 1

    monkeypatch.setattr(kernels, "_library", Failing)
    with pytest.raises(MemoryError, match="fa_unit_rms"):
        kernels.unit_rms(torch.rand(1, 3, 4, 4))


_FORKED = """
import os, torch
from feature_atlas_worker import kernels
torch.set_num_threads(2)
gradient = torch.ones(4, 3, 8, 8)
kernels.unit_rms(gradient)
child = os.fork()
kernels.unit_rms(gradient)
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    os._exit(7)
"""
_INTERRUPTED = """
import gc, signal, torch
from feature_atlas_worker import kernels
torch.set_num_threads(2)
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
signal.signal(signal.SIGALRM, stop)
pictures, theta, sigma = torch.rand(8, 3, 500, 500), torch.eye(2, 3).expand(8, 2, 3), torch.full((8,), 4.0)
count = 0
for turn in range(4):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        kernels.view(pictures, theta, sigma, (500, 500), 0.5, 4.0)
    except Stop:
        count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    mine = [torch.zeros(8, 3, 500, 500) for _ in range(2)]  # where what was interrupted would write
    assert not any(each.any() for each in mine)
print(count > 0)
"""
_LATE = """
import threading, time, torch
from feature_atlas_worker import kernels
torch.set_num_threads(2)
def work():
    time.sleep(0.5)
    unit, _ = kernels.unit_rms(torch.ones(4, 3, 8, 8))
    print(bool((unit == 1).all()))
threading.Thread(target=work).start()
"""


_NO_OPENMP = "from feature_atlas_worker.kernels import team; team.parallel = lambda: None"


@pytest.mark.parametrize("before", ["", _NO_OPENMP])
@pytest.mark.parametrize(("code", "says"), [(_FORKED, "7"), (_INTERRUPTED, "True"), (_LATE, "True")])
def test_threads_end_well(code: str, says: str, before: str) -> None:
    """After a fork, when the one that waits for them is interrupted, and when Python is about to end."""
    done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (f"{says}\n", 0), done.stderr


@pytest.mark.parametrize("openmp", [True, False])
def test_every_part_is_done_once(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if openmp:
        assert team.parallel() is not None, "PyTorch's OpenMP was not found"
    else:
        monkeypatch.setattr(team, "parallel", lambda: None)
    done: list[tuple[int, int]] = []
    parts = [(first, first + 3) for first in range(0, 21, 3)]
    found = team.share(parts, lambda first, last: done.append((first, last)) or last)
    assert sorted(done) == parts and sorted(found) == [last for _, last in parts]

    def interrupted(first: int, _last: int) -> int:
        if first == 9:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        team.share(parts, interrupted)


def test_a_convolution_without_memory_is_an_error_whoever_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = products.Winograd(torch.ones(16, 16, 3, 3), (1, 1), precision=torch.float32)
    library = kernels._library()
    assert library is not None
    failing = SimpleNamespace(fa_winograd_fp32=library.fa_winograd_fp32, fa_team=lambda *_: 1)
    monkeypatch.setattr(kernels, "_library", lambda: failing)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(MemoryError, match="fa_winograd_fp32"):
        own(torch.ones(8, 16, 64, 64))


def test_another_default_precision_does_without_kernels() -> None:
    recipe = preset("raw", {"steps": 3, "size": 24})
    before = torch.get_default_dtype()
    with open_network(VisionModel(*networks.toy()), "relu2", recipe, CPU, EXACT) as network:
        try:
            torch.set_default_dtype(torch.bfloat16)
            assert type(ascent_of(network, recipe, [1], [7])) is Ascent
        finally:
            torch.set_default_dtype(before)
    with pytest.raises(TypeError, match="fa_unit_rms takes numbers of 16 or 32 bits"):
        kernels.unit_rms(torch.rand(1, 3, 4, 4).double())


def test_a_compiler_may_be_a_command_and_know_older_processors_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if len(build.generations()) == 1:
        pytest.skip("one generation only")
    old = tmp_path / "old"
    old.write_text(
        '#!/bin/sh\n[ "$1" = cc ] && shift\nfor a; do case $a in -march=*-v4) exit 1; esac; done\nexec cc "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", f"{old} cc")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "sources", lambda: sorted(Path(kernels.__file__).parent.glob("*.c")))
    assert build.build() == [build.library(kind) for kind in build.generations()[1:]]
    monkeypatch.setattr(kernels, "fingerprint", build.fingerprint)
    kernels._library.cache_clear()
    found = kernels._library()
    assert found is not None and "v4" not in found._name


def test_every_function_is_declared_with_as_many_arguments_as_it_takes() -> None:
    text = "".join(path.read_text() for path in build.sources())
    for precision in ("bf16", "fp32"):  # one text for both
        name = f"fa_winograd_{precision}"
        assert f"#define WINOGRAD {name}\n" in text
        text += (build.FOLDER / "winograd.h").read_text().replace("WINOGRAD", name)
    library = kernels._library()
    assert library is not None
    for name, takes in kernels._SIGNATURES.items():
        headers = [part.split(")")[0] for part in text.split(f"EXPORT int {name}(")[1:]]
        (header,) = [header for header in headers if header != "void"]  # where the processor cannot do it
        header = header.replace("GEOMETRY", ", ".join(["int64_t _"] * 11 + ["int _"]))
        wanted = [argument.strip() for argument in header.split(",")]
        kinds = {ctypes.c_void_p: "*", ctypes.c_int64: "int64_t ", ctypes.c_int: "int ", ctypes.c_float: "float "}
        assert len(wanted) == len(takes), name
        assert all(kinds[kind] in argument for kind, argument in zip(takes, wanted, strict=True)), name

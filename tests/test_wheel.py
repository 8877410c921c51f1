"""The built wheel, installed away from the repository without any extra: the reader, complete and light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from feature_atlas_worker.kernels import build

ROOT = Path(__file__).parents[1]
PACKAGES = {"feature_atlas", "feature_atlas_producer", "feature_atlas_worker"}


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What a command prints, on either channel, once it ended with `code`."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def version(python: str | Path) -> tuple[int, ...]:
    """(major, minor) of an interpreter; () where it does not start."""
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=240)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()


def newest_python() -> str:
    """The newest CPython from 3.11 on PATH, among uv's and among pyenv's; the running one where there is no newer."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += (Path.home() / ".local/share/uv/python").glob("*/bin")
    folders += Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/*/bin")
    found = [path for minor in range(11, 20) for folder in folders if (path := folder / f"python3.{minor}").exists()]
    return max((str(path) for path in [sys.executable, *found]), key=version)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def install(wheel: Path, python: str, folder: Path) -> Path:
    """The bin folder of a new environment that holds the wheel and its base dependencies, as locked."""
    lock = ROOT / "deploy/constraints.txt"
    if shutil.which("uv"):
        run("uv", "venv", "--quiet", "--python", python, folder, cwd=folder.parent)
        run("uv", "pip", "install", "--python", folder / "bin/python", "-c", lock, wheel, cwd=folder.parent)
    else:
        run(python, "-m", "venv", folder, cwd=folder.parent)
        run(folder / "bin/python", "-m", "pip", "install", "-c", lock, wheel, cwd=folder.parent)
    return folder / "bin"


def test_the_wheel_holds_the_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    shipped = {name for name in names if ".dist-info/" not in name}
    listed = ["git", "ls-files", "--cached", *(f"*/{package}/**" for package in PACKAGES)]
    tracked = {name.partition("/")[2] for name in run(*listed, cwd=ROOT).splitlines() if (ROOT / name).is_file()}
    assert tracked and tracked - shipped == set()


def test_the_wheel_holds_kernels_where_there_is_a_compiler(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".kernels")}
    assert made == {f"feature_atlas_worker/kernels/{build.library(kind).name}" for kind in build.generations()}
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl"), "for this kind of machine"

    source = tmp_path / "source"  # as another machine gets it, without what was compiled here
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.kernels", "__pycache__"))
    monkeypatch.setenv("CC", "no-such-compiler")
    said = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    (pure,) = tmp_path.glob("*.whl")
    assert pure.name.endswith("-py3-none-any.whl") and "no C compiler" in said
    assert not [name for name in zipfile.ZipFile(pure).namelist() if name.endswith(".kernels")]


@pytest.mark.parametrize("which", ["running", "newest"])
def test_the_reader_works_without_extras(
    which: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_COMPILE_BYTECODE", "0")  # most of it is never imported here
    python = sys.executable if which == "running" else newest_python()
    bin_ = install(wheel, python, tmp_path / "venv")
    assert "render" in run(bin_ / "feature-atlas", "--help", cwd=tmp_path)
    code = (
        "import feature_atlas, sys; print(feature_atlas.__file__); assert not {'torch', 'celery'} & sys.modules.keys()"
    )
    assert str(tmp_path) in run(bin_ / "python", "-W", "error", "-c", code, cwd=tmp_path)
    refusal = run(bin_ / "feature-atlas", "render", "atlas", "--model", "resnet18", cwd=tmp_path, code=2)
    assert "pip install 'feature-atlas[" in refusal
    assert not (tmp_path / "atlas").exists()

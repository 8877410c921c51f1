"""The Dockerfiles, as far as they can be checked without building them."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, lines joined."""
    text = re.sub(r"^ *#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]


def test_there_are_two_images() -> None:
    assert [file.name for file in FILES] == ["producer.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
class TestImage:
    def test_the_linter_finds_nothing(self, file: Path) -> None:
        done = subprocess.run([Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_bases_are_pinned(self, file: Path) -> None:
        bases = [words.split()[0] for name, words in instructions(file) if name == "FROM"]
        assert len(bases) == 2 and all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)

    def test_what_is_copied_is_there_and_is_sent_to_the_engine(self, file: Path) -> None:
        ignored = (ROOT / ".dockerignore").read_text().split()
        let_through = [line[1:] for line in ignored if line.startswith("!")]
        copied = [words.split()[:-1] for name, words in instructions(file) if name == "COPY" and "--from" not in words]
        for source in (source for sources in copied for source in sources):
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(let, f"{source}*") for let in let_through), f"{source} is ignored"

    def test_dependencies_come_before_the_code_and_by_the_lock(self, file: Path) -> None:
        found = instructions(file)
        install = next(i for i, (name, words) in enumerate(found) if "-r pyproject.toml" in words)
        code = next(i for i, (name, words) in enumerate(found) if name == "COPY" and words.startswith("shared"))
        assert install < code and "-c constraints.txt" in found[install][1]
        assert any("--no-deps ." in words for _, words in found[code:])

    def test_it_runs_our_command_as_nobody_in_particular(self, file: Path) -> None:
        found = dict(instructions(file))  # the last of each kind
        assert found["USER"] == "10001:10001"
        assert re.findall(r'"([^"]+)"', found["ENTRYPOINT"])[-1] in PROJECT["scripts"]
        assert "HEALTHCHECK" in found

    def test_nothing_in_it_is_secret(self, file: Path) -> None:
        assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY=", file.read_text())


def test_a_wheel_is_made_of_what_is_sent_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")):
        target = tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("*.kernels", "__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    monkeypatch.setenv("CC", "no-such-compiler")  # the wheel's own tests compile
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tmp_path / "context"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.whl"))


def test_the_producer_has_no_torch() -> None:
    (install,) = [
        words for _, words in instructions(ROOT / "deploy/producer.Dockerfile") if "-r pyproject.toml" in words
    ]
    (extra,) = re.findall(r"--extra (\w+)", install)
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    assert not [name for name in wanted if re.match(r"torch|safetensors|timm|feature-atlas", name)]


def test_the_worker_is_made_for_gpus_and_cpus_from_one_file() -> None:
    text = (ROOT / "deploy/worker.Dockerfile").read_text()
    assert re.search(r"^ARG TORCH", text, re.MULTILINE) and '--torch-backend="$TORCH"' in text
    assert ("CMD", '["worker"]') in instructions(ROOT / "deploy/worker.Dockerfile")

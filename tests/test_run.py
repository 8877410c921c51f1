"""`deploy/run`: one environment per checkout, made once, repaired when something changed, refused in one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Stands for uv: makes a real but empty environment and a command that repeats what it is told.
UV = """#!/bin/sh
echo "$*" >> "$UV_LOG"
for last; do :; done
case $1 in
    venv) exec "$FEATURE_ATLAS_PYTHON" -m venv --without-pip "$last" ;;
    pip)
        sleep "${UV_SECONDS:-0}"
        [ -z "${UV_FAILS:-}" ] || exit 1
        command=$(dirname "$5")/feature-atlas # "$5" is the python of: pip install --quiet --python PYTHON ...
        printf '#!/bin/sh\\necho "atlas: $*"\\n' > "$command"
        chmod +x "$command"
        ;;
esac
"""


KERNELS = "worker/feature_atlas_worker/kernels/view.c"


class Checkout:
    """A copy of what `deploy/run` reads, and an uv that writes down what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "check out"
        self.log = folder / "uv.log"
        sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / KERNELS).parent.glob("*.[ch]")]
        sources.append("worker/feature_atlas_worker/kernels/build.py")
        for name in ("deploy/run", "deploy/constraints.txt", "pyproject.toml", "worker/hatch_build.py", *sources):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        uv = folder / "bin/uv"
        uv.parent.mkdir()
        uv.write_text(UV)
        uv.chmod(0o755)
        self.environ = {
            "PATH": f"{uv.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "UV_LOG": str(self.log),
            "FEATURE_ATLAS_PYTHON": sys.executable,
        }

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / "deploy/run", *arguments],
            env={**self.environ, **environ},
            cwd=self.folder.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **environ: str) -> str:
        """What is printed; asserts the exit code, and on failure one sentence."""
        process = self.start(*arguments, **environ)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == code, output + errors
        return output if code == 0 else errors

    def asked(self, word: str) -> int:
        """How often uv was told `word ...`."""
        return sum(line.startswith(word) for line in self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_sets_up_once_and_passes_the_arguments_on(checkout: Checkout) -> None:
    assert checkout.run("render", "a b", "--model", "x") == "atlas: render a b --model x\n"
    assert checkout.run("status", "here") == "atlas: status here\n"
    assert (checkout.asked("venv"), checkout.asked("pip")) == (1, 1)


def test_the_demo_installs_only_what_it_needs(checkout: Checkout) -> None:
    checkout.run("demo")
    assert ".[render,embedded]" in checkout.log.read_text()
    assert ".[all]" not in checkout.log.read_text()


def test_an_interrupted_set_up_is_taken_up_again(checkout: Checkout) -> None:
    checkout.run("status", code=1, UV_FAILS="1")
    assert checkout.run("status") == "atlas: status\n"


@pytest.mark.parametrize("name", ["pyproject.toml", "deploy/constraints.txt", "worker/hatch_build.py", KERNELS])
def test_what_an_environment_is_made_of_is_installed_anew(checkout: Checkout, name: str) -> None:
    checkout.run("status")
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    checkout.run("status")
    assert (checkout.asked("venv"), checkout.asked("pip")) == (1, 2)


def test_a_moved_checkout_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.run("status")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.run("status") == "atlas: status\n"
    assert checkout.asked("venv") == 2
    assert str(checkout.folder) in (checkout.folder / ".venv/bin/activate").read_text()


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.run("status")
    for link in (checkout.folder / ".venv/bin").glob("python*"):
        link.unlink()
    assert checkout.run("status") == "atlas: status\n"
    assert checkout.asked("venv") == 2


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock: only Linux has it")
def test_two_at_once_set_up_once(checkout: Checkout) -> None:
    both = [checkout.start("status", UV_SECONDS="0.5") for _ in range(2)]
    assert [process.communicate(timeout=240)[0] for process in both] == ["atlas: status\n"] * 2
    assert (checkout.asked("venv"), checkout.asked("pip")) == (1, 1)


def test_refuses_an_old_python(checkout: Checkout) -> None:
    assert "needs Python 3.11" in checkout.run("demo", code=5, FEATURE_ATLAS_PYTHON="/bin/false")


def test_names_the_debian_package_that_is_missing(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin/uv").unlink()
    python = tmp_path / "bin/python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    said = checkout.run("demo", code=5, FEATURE_ATLAS_PYTHON=str(python))
    assert "apt-get install python3-venv" in said
    assert len(said.splitlines()) == 1


def test_refuses_a_place_that_it_cannot_write(checkout: Checkout) -> None:
    said = checkout.run("demo", code=5, FEATURE_ATLAS_VENV="/proc/nothing/venv")
    assert "FEATURE_ATLAS_VENV" in said.splitlines()[-1]


def test_never_removes_what_is_no_environment(checkout: Checkout) -> None:
    mine = checkout.folder / ".venv/mine"
    mine.parent.mkdir()
    mine.write_text("precious")
    assert "is in the way" in checkout.run("demo", code=5)
    assert mine.read_text() == "precious"


def test_says_how_it_is_used(checkout: Checkout) -> None:
    said = checkout.run(code=2)
    assert "deploy/run demo" in said and "deploy/run test" in said
    assert checkout.asked("") == 0

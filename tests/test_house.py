"""The house rules: style, types, imports, names, sizes, and a lock that fits."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import NO_WEIGHTS, WEIGHTS_VARIABLE, allowed_skips

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "LICENSE", "docker-compose.yml"),
    *("worker", "producer", "shared", "deploy", "tests"),
}
MOST_LINES = {"tests": 600, "elsewhere": 400}
VAGUE = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
# Where an author's machine would shine through: registries, and one folder (spelled so as not to match).
HOSTS = [f"{name}.org" for name in ("pypi", "pythonhosted", "deb.debian", "npmjs")]
LOCAL = re.compile("|".join([*map(re.escape, HOSTS), r"(?<![\w.-])/work[/]"]))


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file of the repository: tracked, or about to be."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check"], id="ruff"),
        pytest.param(["ruff", "format", "--check"], id="ruff format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["importlinter.cli"], id="import-linter"),
    ],
)
def test_the_tool_finds_nothing(command: list[str]) -> None:
    if command == ["importlinter.cli"]:
        command = ["-c", "import importlinter.cli; importlinter.cli.lint_imports_command()"]
    else:
        command = ["-m", *command]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_top_level_is_the_agreed_one(files: list[Path]) -> None:
    top = {path.relative_to(ROOT).parts[0] for path in files}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_modules_fit_in_the_head(files: list[Path]) -> None:
    too_long = []
    for path in files:
        name = path.relative_to(ROOT)
        most = MOST_LINES.get(name.parts[0], MOST_LINES["elsewhere"])
        if path.suffix in {".py", ".js"} and (count := len(path.read_text().splitlines())) > most:
            too_long.append(f"{name}: {count} lines")
    assert too_long == []


def test_names_say_what_is_inside(files: list[Path]) -> None:
    assert [path for path in files if path.stem in VAGUE] == []


def test_nothing_local_is_committed(files: list[Path]) -> None:
    found = []
    for path in files:
        data = path.read_bytes()
        if b"\0" not in data[:8192] and (match := LOCAL.search(data.decode(errors="replace"))):
            found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []


def test_lock_has_names_and_versions_only() -> None:
    pin = re.compile(r"[a-z0-9._-]+==[A-Za-z0-9.!+-]+( ; .+)?")
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    assert [line for line in lines if not pin.fullmatch(line) or "://" in line] == []


def test_lock_pins_every_direct_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "deploy/constraints.txt").read_text().splitlines():
        name, version = line.split(" ;")[0].split("==")
        pins.setdefault(canonicalize_name(name), []).append(version.strip())
    wanted = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(project["name"]):
            assert name in pins, f"{name} is not in deploy/constraints.txt: compile it again"
            assert all(requirement.specifier.contains(version) for version in pins[name]), requirement


def test_ci_skips_tests_of_imagenet_weights_only_where_nobody_promised_them(tmp_path: Path) -> None:
    nowhere = tmp_path / "weights"
    assert NO_WEIGHTS in allowed_skips({}, nowhere)
    assert NO_WEIGHTS not in allowed_skips({}, tmp_path)
    assert NO_WEIGHTS not in allowed_skips({WEIGHTS_VARIABLE: "a file"}, nowhere)

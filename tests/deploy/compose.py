"""docker-compose.yml as an engine would see it: interpolated by the real tool, with secrets made by deploy/secrets."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, needed

FILE = ROOT / "docker-compose.yml"
PROFILES = ("cpu", "gpu", "produce", "metrics")


@functools.cache
def secrets() -> dict[str, str]:
    """What ``deploy/secrets > .env`` would write."""
    text = subprocess.run([ROOT / "deploy/secrets"], capture_output=True, text=True, check=True).stdout
    return variables(text)


def variables(text: str) -> dict[str, str]:
    """The variables of an .env file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def config(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``docker-compose config`` with these variables, for every profile; needs no engine."""
    tool = needed("docker-compose", of="docker-compose")
    with tempfile.TemporaryDirectory() as folder:
        env = Path(folder, ".env")
        env.write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
        argv = [tool, "-f", FILE, "--env-file", env, *(f"--profile={name}" for name in PROFILES), "config"]
        system = {"PATH": os.environ["PATH"], "HOME": folder}
        return subprocess.run(argv, capture_output=True, text=True, env=system, timeout=120)


def services(**changes: str) -> dict[str, Any]:
    """Every service, interpolated."""
    done = config({**secrets(), **changes})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


def words(value: str | list[str]) -> list[str]:
    """A command as a list."""
    return value.split() if isinstance(value, str) else [str(word) for word in value]


def seconds(text: str | int) -> float:
    """A duration as compose writes it: 60s, 1m0s, 1m30s."""
    total, number = 0.0, ""
    for letter in str(text):
        if letter.isdigit() or letter == ".":
            number += letter
        else:
            total += float(number) * {"h": 3600, "m": 60, "s": 1}[letter]
            number = ""
    return total


def sources(service: dict[str, Any]) -> list[Path]:
    """The files and folders of this repository that a service mounts."""
    mounts = [str(volume).split(":")[0] for volume in service.get("volumes", ()) if not isinstance(volume, dict)]
    return [Path(source) for source in mounts if source.startswith("/")]

"""Every command that the README shows as `<!-- run -->` does what it says: it ends well."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[1] / "README.md"
INTERPRETERS = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}


class Block(NamedTuple):
    """One fenced block of the README, and where it begins."""

    line: int
    language: str
    code: str


def marked_blocks(text: str) -> list[Block]:
    """The fenced blocks that stand right under the comment `<!-- run -->`."""
    fences = re.finditer(r"^<!-- run -->\n+```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(text[: fence.start(2)].count("\n") + 1, fence[1], fence[2]) for fence in fences]


def test_only_marked_blocks_are_run() -> None:
    text = "```sh\nfalse\n```\n\n<!-- run -->\n```sh\ntrue  # well\ntrue\n```\n<!-- run -->\n```python\n1 / 1\n```\n"
    assert marked_blocks(text) == [Block(7, "sh", "true  # well\ntrue\n"), Block(12, "python", "1 / 1\n")]


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """In the order of the page and in one folder, since later ones use what earlier ones made."""
    text = README.read_text()
    blocks = marked_blocks(text)
    assert len(blocks) == text.count("<!-- run -->") > 0, "a marker is not followed by a fenced block"
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks:
        command = [*INTERPRETERS[block.language], block.code]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"README.md:{block.line}\n{block.code}\n{done.stdout}{done.stderr}"


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = README.read_text().splitlines()[:40]
    for command in ("deploy/run demo", "deploy/run test"):
        assert any(line.startswith(command) for line in first_screen), command

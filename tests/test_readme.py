"""Every command that the README shows as `<!-- run -->` does what it says: it ends well.

The text that runs is the README's own, with `INSTEAD` applied: what needs a network from the internet, minutes, or
somebody's bucket gets a small stand-in.  Three blocks have tests of their own: the farm's
(tests/e2e/test_farm_commands.py), that of `Deploy` (tests/deploy), and the first screen's (tests/e2e/test_local.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.servers import MotoServer

README = Path(__file__).parents[1] / "README.md"
INTERPRETERS = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}

#: What of the README's text is replaced for the test, in this order; each must occur.
INSTEAD = {
    # The built-in network, one layer of it, small and quick.
    "--model resnet50": "--model builtin:demo",
    "--layers 'layer3.*' --channels ::8": "--layers conv1 --channels 0:20 --set size=32 --set steps=2 --batch 20",
    "layer2.0.conv3": "conv1",
    "0.conv3:17": "conv1:17",
    "layer2.*": "conv1",
    "0:64": "0:20",
    # The atlas that the first block left, here and in a bucket of the test's gateway.
    "publish atlas ": "publish atlas-resnet50 ",
    "export atlas ": "export atlas-resnet50 ",
    "https://host/atlas": "s3://bucket/resnet50",
    "s3://bucket/": "s3://BUCKET/",
    # It serves until somebody ends it, so it would end no block; tests/shared/test_serve.py serves.
    "feature-atlas view s3://": "true feature-atlas view s3://",
}  # fmt: skip


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


def test_the_commands_of_the_readme_run(tmp_path: Path, moto: MotoServer) -> None:
    """In the order of the page and in one folder, since later ones use what earlier ones made."""
    text = README.read_text()
    blocks = marked_blocks(text)
    assert len(blocks) == text.count("<!-- run -->") > 0, "a marker is not followed by a fenced block"
    bucket, shown = moto.new_bucket(), "".join(block.code for block in blocks)
    environ = {**os.environ, **moto.environ, "OMP_NUM_THREADS": "1"}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        code = block.code
        for there, here in INSTEAD.items():
            assert there in shown, f"the README no longer says {there!r}: {here!r} stands for nothing"
            code = code.replace(there, here.replace("BUCKET", bucket))
        command = [*INTERPRETERS[block.language], code]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"README.md:{block.line}\n{code}\n{done.stdout}{done.stderr}"
        if "feature-atlas render" in code:  # the README's bucket holds the atlas already
            atlas = tmp_path / "atlas-resnet50"
            for path in filter(Path.is_file, atlas.rglob("*")):
                key = f"resnet50/{path.relative_to(atlas).as_posix()}"
                moto.client().put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    made = {"atlas-resnet50", "atlas-mine", "mine", "my_nets.py", "look.html", "layer.html"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == made


def test_the_first_screen_has_two_commands_and_no_more() -> None:
    first_screen = README.read_text().partition("\n## ")[0]
    lines = [
        line
        for code in re.findall(r"^```sh\n(.*?)^```$", first_screen, re.MULTILINE | re.DOTALL)
        for line in code.splitlines()
    ]
    assert [" ".join(line.split()[:2]) for line in lines] == ["deploy/run demo", "deploy/run test"]
    assert len(first_screen.splitlines()) < 40 and "![" in first_screen.partition("```")[0]

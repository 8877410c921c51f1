"""What to type next, told so that it can be pasted into a shell as it stands."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas

NAME = "feature-atlas"


def program() -> str:
    """``feature-atlas`` where PATH finds this very program, otherwise the path that was called, quoted for a shell.

    It is seen from the current folder where it lies below it, as in a bare checkout: ``.venv/bin/feature-atlas``.
    """
    called = Path(sys.argv[0])
    if called.name != NAME or not called.is_file():  # python -m feature_atlas, or a program that imports this one
        return NAME
    found = shutil.which(NAME)
    if found is not None and called.samefile(found):
        return NAME
    absolute, here = called.absolute(), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))


def command(words: str, atlas: Atlas, *, runs: bool = False) -> str:
    """``feature-atlas WORDS URL``; ``runs``: it loads the network, so that its code must be allowed again."""
    scheme, _, path = atlas.file.model.name.partition(":")
    allow = f" --allow-model {shlex.quote(path.partition(':')[0])}" if runs and scheme == "python" else ""
    return f"{program()} {words} {shlex.quote(atlas.url)}{allow}"

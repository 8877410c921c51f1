"""What to type next, told so that it can be pasted into a shell as it stands."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas


def command(words: str, atlas: Atlas, *, runs: bool = False) -> str:
    """``feature-atlas WORDS URL``; ``runs``: it loads the network, so that its code must be allowed again."""
    scheme, _, path = atlas.file.model.name.partition(":")
    allow = f" --allow-model {shlex.quote(path.partition(':')[0])}" if runs and scheme == "python" else ""
    return f"feature-atlas {words} {shlex.quote(atlas.url)}{allow}"

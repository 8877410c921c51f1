"""Sets of channels, written as people do: ``0:64,100,::8``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from feature_atlas.errors import RequestError

_PART = re.compile(r"^\s*(?:(\d+)|(\d*):(\d*)(?::(\d*))?)\s*$")


def parse(text: str, total: int, *, what: str = "this layer") -> tuple[int, ...]:
    """The channels that ``text`` selects out of ``total``, ascending, without repeats.

    ``text`` is a comma list of numbers and Python slices ``start:stop:step``; ``:`` is all.

    Raises:
        RequestError: not a selection, or a channel out of range (with the range).
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = _PART.match(part)
        if match is None or match[4] == "0":
            raise RequestError(f"channels {text!r}: {part.strip()!r} is neither a number nor start:stop:step")
        if match[1] is not None:
            first, stop, step = int(match[1]), int(match[1]) + 1, 1
        else:
            first, stop, step = int(match[2] or 0), int(match[3] or total), int(match[4] or 1)
        if first >= total or stop > total:
            worst = max(first, stop - 1)
            raise RequestError(f"channel {worst} is out of range: {what} has {total} channels, 0 to {total - 1}")
        chosen.update(range(first, stop, step))
    if not chosen:
        raise RequestError(f"channels {text!r} select nothing of {what}, which has {total}")
    return tuple(sorted(chosen))


def spell(channels: Iterable[int]) -> str:
    """The shortest canonical text for a set of channels: runs of one step of at least three are slices."""
    rest, parts = sorted(set(channels)), []
    i = 0
    while i < len(rest):
        j = i + 1
        step = rest[j] - rest[i] if j < len(rest) else 1
        while j + 1 < len(rest) and rest[j + 1] - rest[j] == step:
            j += 1
        count = min(j, len(rest) - 1) - i + 1
        if count >= 3 or (count == 2 and step == 1):
            stop = rest[i + count - 1] + 1
            parts.append(f"{rest[i]}:{stop}" + (f":{step}" if step > 1 else ""))
            i += count
        else:
            parts.append(str(rest[i]))
            i += 1
    return ",".join(parts)

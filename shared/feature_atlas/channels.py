"""Sets of channels, written as people do: ``0:64,100,::8``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import compress

from feature_atlas.errors import RequestError

_N = r"[0-9]{,9}"
_PART = re.compile(rf"\s*(?:([0-9]{{1,9}})|({_N}):({_N})(?::({_N}))?)\s*")


def parse(text: str, total: int, *, what: str = "this layer") -> tuple[int, ...]:
    """The channels that ``text`` selects out of ``total``, ascending, without repeats.

    ``text`` is a comma list of numbers and Python slices ``start:stop:step``; ``:`` is all.

    Raises:
        RequestError: not a selection, or a channel out of range (with the range).
    """
    chosen = bytearray(total)  # a flag per channel: a hostile text of many overlapping slices stays cheap
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[4] and int(match[4]) == 0):
            raise RequestError(f"channels {text!r}: {part.strip()!r} is neither a number nor start:stop:step")
        if match[1] is not None:
            first, stop, step = int(match[1]), int(match[1]) + 1, 1
        else:
            first, stop, step = int(match[2] or 0), int(match[3] or total), int(match[4] or 1)
        if first >= total or stop > total:
            worst = max(first, stop - 1)
            raise RequestError(f"channel {worst} is out of range: {what} has {total} channels, 0 to {total - 1}")
        chosen[first:stop:step] = b"\1" * len(range(first, stop, step))
    if not any(chosen):
        raise RequestError(f"channels {text!r} select nothing of {what}, which has {total}")
    return tuple(compress(range(total), chosen))


def spell(channels: Iterable[int]) -> str:
    """The canonical text for a set of channels, empty for none: neighbours and runs of at least three are slices."""
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

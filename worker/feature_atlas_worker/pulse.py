"""A few bytes that the worker's parent and its child share across the fork."""

from __future__ import annotations

import mmap
import struct
import time

_LAST = struct.Struct("d")
# One byte each, so that neither side overwrites what the other says.
_BUSY, _DRAINING, _FAILURES, _FOLLOWED = 8, 9, 10, 11
#: Where the note to the next child begins: its length, then its bytes.
_NOTE, _SIZE = 64, struct.Struct("I")


class Pulse:
    """The child's last sign of life and whether it works; the parent's wish that it end."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def beat(self) -> None:
        """The child lives."""
        _LAST.pack_into(self._memory, 0, time.monotonic())

    @property
    def silence(self) -> float:
        """Seconds since the last beat; 0 before the first."""
        last: float = _LAST.unpack_from(self._memory)[0]
        return time.monotonic() - last if last else 0.0

    @property
    def busy(self) -> bool:
        """Whether the child works on a task."""
        return bool(self._memory[_BUSY])

    @busy.setter
    def busy(self, value: bool) -> None:
        self.beat()
        self._memory[_BUSY] = int(value)

    @property
    def draining(self) -> bool:
        """Whether the worker is to end: begin nothing new."""
        return bool(self._memory[_DRAINING])

    def drain(self) -> None:
        """Asks the child to end its work soon."""
        self._memory[_DRAINING] = 1

    def follow(self) -> bool:
        """A child begins; whether there was one before it, which then has died: none ends while the worker goes on."""
        followed = bool(self._memory[_FOLLOWED])
        self._memory[_FOLLOWED] = 1
        return followed

    @property
    def device_failures(self) -> int:
        """How often in a row the device failed, whichever child met it."""
        return self._memory[_FAILURES]

    @device_failures.setter
    def device_failures(self, value: int) -> None:
        self._memory[_FAILURES] = min(value, 255)

    @property
    def note(self) -> str:
        """What a child leaves for the one after it."""
        (size,) = _SIZE.unpack_from(self._memory, _NOTE)
        start = _NOTE + _SIZE.size
        return self._memory[start : start + size].decode(errors="replace")

    @note.setter
    def note(self, text: str) -> None:
        data, start = text.encode(), _NOTE + _SIZE.size
        if len(data) <= len(self._memory) - start and text != self.note:
            self._memory[start : start + len(data)] = data
            _SIZE.pack_into(self._memory, _NOTE, len(data))

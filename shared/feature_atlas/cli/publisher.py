"""A process beside a run that publishes what is there, now and then: ``python -m feature_atlas.cli.publisher URL``.

It ends with the run, however that ends: the run holds the other end of its standard input.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

#: Seconds before the first publish (a short run needs none but its last), and until one in hand is given up.
_FIRST, _PATIENCE = 5.0, 20.0


class Publisher(AbstractContextManager["Publisher"]):
    """While this lasts, the page of an atlas follows its run.

    Args:
        url: the atlas; one in this process's memory cannot be followed.
        wanted: whether to follow it at all.
    """

    def __init__(self, url: str, *, wanted: bool = True) -> None:
        self.url = url
        self.wanted = wanted and not url.startswith("memory:")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.wanted:
            # A session of its own: Ctrl-C is for the run, which then lets go of the pipe.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "feature_atlas.cli.publisher", self.url],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("publishing beside the run does not end: killed")
            self._process.kill()
            self._process.wait()


@contextmanager
def publishers(urls: Sequence[str], *, wanted: bool = True) -> Iterator[None]:
    """One for each atlas."""
    with ExitStack() as stack:
        for url in urls:
            stack.enter_context(Publisher(url, wanted=wanted))
        yield


def _ended(seconds: float) -> bool:
    """Waits until the run has ended, at most so long."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready)


def main() -> None:
    """Publishes until the run ends."""
    os.nice(5)  # the run comes first
    if _ended(_FIRST):  # before anything is imported
        return
    from feature_atlas.atlas import Atlas
    from feature_atlas.publish.follow import follow

    follow(Atlas.open(sys.argv[1]), _ended)


if __name__ == "__main__":
    main()

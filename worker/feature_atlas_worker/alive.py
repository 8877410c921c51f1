"""The file that a living worker touches, for probes that can look at files only."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from feature_atlas.errors import RequestError

log = logging.getLogger(__name__)


def begin(path: str) -> None:
    """Removes what an earlier run left, which a probe would take for a sign of this one.

    Raises:
        RequestError: a worker could not touch the file.
    """
    if not path:
        return
    file = Path(path)
    try:
        file.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise RequestError(
            f"FEATURE_ATLAS_ALIVE_FILE={path} cannot be touched ({error.strerror or error}):"
            " name a file in a folder that is there and that the worker may write to"
        ) from None


class AliveFile:
    """Touched while all is well; a disk that fails meanwhile is said once, and once that it is well again."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._failed = False

    def touch(self) -> None:
        """Touches the file."""
        try:
            self.path.touch()
        except OSError as error:
            if not self._failed:
                log.error("cannot touch %s (%s): probes will take this worker for dead", self.path, error.strerror)
            self._failed = True
            return
        if self._failed:
            log.info("%s can be touched again", self.path)
        self._failed = False

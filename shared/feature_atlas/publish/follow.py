"""Publishing again and again while a run goes on, so that the page follows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from feature_atlas.atlas import Atlas
from feature_atlas.errors import AtlasError
from feature_atlas.publish.site import Published, publish, tell_status

log = logging.getLogger(__name__)

#: Seconds between two publishes at least, and the most of the time that they may take.
EVERY, SHARE = 30.0, 0.1
#: Seconds between two signs of life; a page that has seen none for a quarter of an hour takes the run for ended.
BEAT = 60.0


def follow(
    atlas: Atlas,
    ended: Callable[[float], bool],
    *,
    packs: bool = True,
    on_publish: Callable[[Published], None] = lambda told: None,
) -> Published | None:
    """Publishes until the atlas is complete or ``ended``; the page is told at last that nothing more comes.

    Args:
        atlas: what to publish.
        ended: waits for so many seconds at most; whether to stop.
        packs: see :func:`publish`.
        on_publish: called after each one.

    Returns:
        The last publish; None where not one succeeded.
    """
    last: Published | None = None
    try:
        while True:
            started = time.monotonic()
            try:
                last = publish(atlas, live=True, packs=packs)
                on_publish(last)
            except AtlasError as error:  # the next one may
                log.warning("not published this time: %s", error)
            if last and last.done + last.failed >= last.planned:
                last = publish(atlas, packs=packs)
                return last
            if _pause(atlas, ended, max(EVERY, (time.monotonic() - started) / SHARE), last):
                return last
    finally:
        if last is not None:
            tell_status(atlas.store, live=False, version=last.version)


def _pause(atlas: Atlas, ended: Callable[[float], bool], seconds: float, last: Published | None) -> bool:
    """Waits, with signs of life; whether to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if ended(min(left, BEAT)):
            return True
        if last is not None:
            try:
                tell_status(atlas.store, live=True, version=last.version)
            except AtlasError as error:
                log.warning("no sign of life this time: %s", error)
    return False

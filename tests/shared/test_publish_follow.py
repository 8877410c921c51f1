"""Publishing beside a run: the page follows it, and learns how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.cli import main
from feature_atlas.cli.publisher import Publisher
from feature_atlas.errors import StoreError
from feature_atlas.publish import follow as following
from feature_atlas.publish.follow import follow
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, MemoryStore, Store
from tests import synthetic

LATE = [Unit("channel", "conv1", channel) for channel in (1, 2, 3)]


def status(store: Store) -> dict[str, Any]:
    """What ``run/status.js`` tells."""
    text = store.get(keys.STATUS_JS).decode()
    told: dict[str, Any] = json.loads(text.removeprefix('FEATURE_ATLAS.put("status",').rstrip().removesuffix(");"))
    return told


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "EVERY", 0.01)
    monkeypatch.setattr(following, "SHARE", 1000.0)


def unfinished(store: Store) -> Any:
    return synthetic.write_atlas(store, [("conv1", 6)], size=16, missing=LATE)


def test_it_publishes_until_the_last_picture_is_there() -> None:
    # Given a run that finishes one channel after each look
    store = MemoryStore("followed")
    plan, late, seen = unfinished(store), list(LATE), []

    def ended(seconds: float) -> bool:
        seen.append(status(store)["live"])
        if late:
            synthetic.write_unit(store, plan, late.pop(), size=16)
        return False

    # When it is followed
    done: list[int] = []
    told = follow(Atlas.open(store), ended, on_publish=lambda told: done.append(told.done))
    # Then the page saw it grow, and at last that it is whole
    assert done[0] == 3 and done[-1] == 6 and done == sorted(done)
    assert set(seen) == {True} and status(store)["live"] is False
    assert told is not None and told.done == told.planned and status(store)["v"] == told.version
    # And what waits for whole blocks is there, too
    assert any(store.list(keys.PACKS))


def test_between_two_publishes_it_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "EVERY", 60.0)
    store = MemoryStore("alive")
    unfinished(store)
    beats = 0

    def ended(seconds: float) -> bool:
        nonlocal beats
        assert seconds <= following.BEAT
        beats += 1
        if beats > 1:  # the first look was followed by a sign of life
            assert status(store)["live"] is True
        store.delete(keys.STATUS_JS)
        return beats > 3

    follow(Atlas.open(store), ended)
    assert status(store)["live"] is False


def test_a_store_that_fails_for_a_while_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("failing")
    unfinished(store)
    real, tries = following.publish, 0

    def publish(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreError("no route to the store")
        return real(*args, **options)

    monkeypatch.setattr(following, "publish", publish)
    assert follow(Atlas.open(store), lambda seconds: tries > 1) is not None
    assert tries == 2


HOLDER = """
import sys, time
from feature_atlas.cli.publisher import Publisher
with Publisher(sys.argv[1]):
    print("run", flush=True)
    time.sleep(600)
"""


def test_it_ends_with_its_run_and_says_so_even_after_a_kill(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    unfinished(store)
    run = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        until(lambda: (tmp_path / keys.STATUS_JS).exists())
        assert status(store)["live"] is True and (tmp_path / keys.PAGE).exists()
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    until(lambda: not status(store)["live"])


def test_a_short_run_needs_no_publish_beside_it(tmp_path: Path) -> None:
    unfinished(DirectoryStore(tmp_path))
    with Publisher(str(tmp_path)) as publisher:
        process = publisher._process
    assert process is not None and process.returncode == 0
    assert not (tmp_path / keys.PAGE).exists()


def test_publish_watch_ends_when_everything_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_atlas(DirectoryStore(tmp_path), [("conv1", 4)], size=16, failed=LATE[:1])
    assert main(["publish", str(tmp_path), "--watch"]) == 3
    assert "3 pictures published" in capsys.readouterr().out
    assert status(DirectoryStore(tmp_path))["live"] is False

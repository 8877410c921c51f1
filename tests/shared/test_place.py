"""Which machine's folder a URL means."""

from __future__ import annotations

import json
from pathlib import Path

from feature_atlas import keys, place
from feature_atlas.store import DirectoryStore, MemoryStore


def elsewhere(described: str) -> str:
    return json.dumps({**json.loads(described), "machine": "elsewhere/1", "host": "elsewhere"})


def test_the_same_folder_is_recognised_from_everywhere(tmp_path: Path) -> None:
    described = place.describe(DirectoryStore(tmp_path))
    assert place.describe(DirectoryStore(tmp_path)) == described
    assert place.difference(DirectoryStore(tmp_path), described) is None
    # A shared file system: another machine, the same files.
    assert place.difference(DirectoryStore(tmp_path), elsewhere(described)) is None


def test_another_machines_folder_of_the_same_name_is_told_apart(tmp_path: Path) -> None:
    described = elsewhere(place.describe(DirectoryStore(tmp_path / "there")))
    for content in (None, b"another token"):
        here = DirectoryStore(tmp_path / "here")
        if content is not None:
            here.put(keys.PLACE, content)
        sentence = place.difference(here, described)
        assert sentence is not None and "elsewhere" in sentence and "s3://" in sentence


def test_a_folder_removed_on_its_own_machine_is_no_foreign_one(tmp_path: Path) -> None:
    described = place.describe(DirectoryStore(tmp_path / "a"))
    assert place.difference(DirectoryStore(tmp_path / "b"), described) is None


def test_buckets_are_the_same_everywhere_and_rubbish_tells_nothing(tmp_path: Path) -> None:
    assert place.difference(MemoryStore(), elsewhere(place.describe(MemoryStore()))) is None
    assert place.difference(DirectoryStore(tmp_path), None) is None
    assert place.difference(DirectoryStore(tmp_path), "rubbish") is None
    assert place.difference(DirectoryStore(tmp_path), "[]") is None

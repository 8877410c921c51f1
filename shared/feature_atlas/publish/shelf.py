"""Writes of derived files that are skipped where the store already has the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from feature_atlas.publish.records import FileEntry
from feature_atlas.store import Store


class Shelf:
    """Puts a file only if its bytes differ from what was last published under its key."""

    def __init__(self, store: Store, known: Mapping[str, str]) -> None:
        self.store = store
        self.entries: dict[str, FileEntry] = {}
        self.written = 0
        #: key -> digest of what lies there from before.
        self.known = dict(known)

    def put(self, key: str, data: bytes, content_type: str) -> FileEntry:
        """The file's entry; it is in the store when this returns."""
        entry = FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        if self.known.get(key) != entry.sha256:
            self.store.put(key, data, content_type=content_type)
            self.written += 1
        self.entries[key] = entry
        return entry

    def keep(self, key: str, entries: Iterable[FileEntry]) -> None:
        """Takes over an earlier entry of a file that stays as it is."""
        self.entries[key] = next(entry for entry in entries if entry.key == key)

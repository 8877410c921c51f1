"""A store that waits for another."""

from __future__ import annotations

from typing import Any

import pytest

from feature_atlas.errors import StoreError
from feature_atlas.store import MemoryStore
from feature_atlas_worker.patience import PatientStore


class Failing(MemoryStore):
    """Refuses the first puts."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def put(self, key: str, data: bytes, **options: Any) -> None:
        self.times -= 1
        if self.times >= 0:
            raise StoreError("no space left")
        super().put(key, data, **options)


def test_a_put_goes_through_in_the_end_and_signs_of_life_are_given() -> None:
    touched: list[None] = []
    store = PatientStore(Failing(2), 60, ending=lambda: False, touch=lambda: touched.append(None))
    store.put("run/a", b"data")
    assert store.get("run/a") == b"data" and touched


def test_patience_has_an_end() -> None:
    with pytest.raises(StoreError):
        PatientStore(Failing(1), 0, ending=lambda: False, touch=lambda: None).put("run/a", b"")


def test_a_worker_that_ends_does_not_wait() -> None:
    store = Failing(1000)
    with pytest.raises(StoreError):
        PatientStore(store, 600, ending=lambda: True, touch=lambda: None).put("run/a", b"")
    assert store.times == 999


def test_everything_else_is_the_store_behind() -> None:
    behind = MemoryStore("x")
    store = PatientStore(behind, 60, ending=lambda: False, touch=lambda: None)
    store.put("run/a", b"data")
    assert store.url == behind.url and [info.key for info in store.list("run/")] == ["run/a"]
    assert store.get_range("run/a", 1, 2) == b"at" and store.link("run/a") == behind.link("run/a")
    store.delete("run/a")
    assert not [*behind.list()]

"""The next model is there when it is needed, and a failure beforehand changes nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from feature_atlas.errors import RequestError
from feature_atlas.spec import ModelRef
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.preload import Preloader

ONE, TWO = (ModelRef(name=name, weights="random:0", mean=(0.5,), std=(0.5,)) for name in ("one", "two"))


class Loader:
    """Remembers what it loaded, and where."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str, str]] = []

    def __call__(self, ref: ModelRef, *, read: Any, device: Any, allowed: Any) -> VisionModel:
        self.loaded.append((ref.name, str(device), threading.current_thread().name))
        return VisionModel(torch.nn.Linear(1, 1), ref.mean, ref.std, ref.input_size, ref, "0" * 64)


def read(key: str) -> bytes:
    return b""


@pytest.fixture
def loader() -> Loader:
    return Loader()


def test_what_was_begun_is_not_loaded_again(loader: Loader) -> None:
    preloader = Preloader(loader)
    preloader.begin(lambda: (ONE, read))
    assert preloader(ONE, read=read, device="cpu").ref == ONE
    assert loader.loaded == [("one", "cpu", "preload")]


def test_another_one_than_was_expected_is_loaded_as_ever(loader: Loader) -> None:
    preloader = Preloader(loader)
    preloader.begin(lambda: (ONE, read))
    assert preloader(TWO, read=read, device="cpu").ref == TWO
    assert [name for name, _, thread in loader.loaded if thread != "preload"] == ["two"]
    # It is not kept in memory for ever.
    preloader(ONE, read=read, device="cpu")
    assert [name for name, *_ in loader.loaded] == ["one", "two", "one"]


def test_nothing_to_come_and_failures_change_nothing(loader: Loader) -> None:
    preloader = Preloader(loader)

    def fail() -> Any:
        raise RequestError("no such model")

    for find in (fail, lambda: None):
        preloader.begin(find)
        assert preloader(ONE, read=read, device="cpu").ref == ONE
    assert {thread for *_, thread in loader.loaded} == {"MainThread"}

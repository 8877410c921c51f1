"""What is known of a layer serves the next batch of it, and no other layer, size, or weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from feature_atlas.spec import Recipe
from feature_atlas_worker import facts, rewrite
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.render import Target, render
from tests import networks

CPU = torch.device("cpu")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that were looked into."""
    found: list[str] = []
    count: Callable[..., int] = facts.count_calls

    def counted(module: torch.nn.Module, layer: str, probe: torch.Tensor) -> int:
        found.append(layer)
        return count(module, layer, probe)

    monkeypatch.setattr(facts, "count_calls", counted)
    return found


def test_one_look_serves_all_batches_of_a_layer(looked: list[str]) -> None:
    model, recipe = VisionModel(*networks.toy()), Recipe(size=(24, 24), steps=2)
    first, again = (render(model, [Target("conv2", c) for c in range(4)], recipe, batch=2) for _ in range(2))
    assert looked == ["conv2"]
    assert all(np.array_equal(one.images, other.images) for one, other in zip(first, again, strict=True))
    with open_network(model, "conv2", recipe, CPU) as network:
        assert network.facts.program is not None and network.facts.width


def test_another_layer_size_or_weights_are_looked_at_anew(looked: list[str]) -> None:
    model = VisionModel(*networks.toy())

    def maps(layer: str, size: int) -> tuple[int, int]:
        with open_network(model, layer, Recipe(size=(size, size)), CPU) as network:
            return network.map

    small, large = maps("conv2", 24), maps("conv2", 32)
    assert (small, large, maps("conv2", 32), maps("conv1", 32)) == ((12, 12), *[(16, 16)] * 3)
    assert looked == ["conv2", "conv2", "conv1"]
    with torch.no_grad():
        model.module.get_submodule("conv1").weight.mul_(2)  # type: ignore[union-attr,operator]
    maps("conv1", 32)
    assert looked == ["conv2", "conv2", "conv1", "conv1"]


def test_what_is_known_keeps_no_network_alive() -> None:
    model = VisionModel(*networks.toy())
    with open_network(model, "conv2", Recipe(size=(24, 24)), CPU) as network:
        network(torch.zeros(1, 3, 24, 24), climbing=True)
        copy = weakref.ref(network.module)
    del network
    rewrite.forget(model.module)
    gc.collect()
    assert copy() is None

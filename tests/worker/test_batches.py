"""The batch that sets itself: near the best throughput, within memory, and never because of a moment's noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch

from feature_atlas.spec import Job, ModelRef, Recipe
from feature_atlas_worker import batches
from feature_atlas_worker.batches import BatchSizes

CPU = torch.device("cpu")
MODEL = ModelRef(name="toy", weights="random:0", mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(32, 32))


def job(layer: str = "conv", **recipe: object) -> Job:
    return Job(model=MODEL, variant="channel", layer=layer, channel=0, recipe=Recipe(**{"steps": 10, **recipe}))  # type: ignore[arg-type]


def sizes(monkeypatch: pytest.MonkeyPatch, most: int = 256) -> BatchSizes:
    monkeypatch.setattr(batches, "_guess", lambda _device, recipe: most // recipe.images)
    return BatchSizes(CPU)


def settle(found: BatchSizes, one: Job, seconds: Callable[[int], float], rounds: int = 14) -> list[int]:
    """Sizes tried one after the other, where a batch of n takes seconds(n)."""
    tried = []
    for _ in range(rounds):
        tried.append(found.of(one))
        found.note(one, tried[-1], seconds(tried[-1]))
    return tried


@pytest.mark.parametrize(
    "cost",
    [
        lambda n: 1.0 + 0.002 * n,  # the weights' way through memory takes most: the larger, the cheaper
        lambda n: 1.0 + 0.1 * n,
        lambda n: 0.6 * n,  # nothing gained by company
        lambda n: 0.6 + 0.5 * n + 0.002 * n**2,  # the cache is too small for more than a few
        lambda n: 1.0 * max(1, n / 64) ** 1.5,
        lambda n: 0.6 * n * (1 + (n > 2)),  # two at most
    ],
)
def test_the_batch_ends_within_a_tenth_of_the_best_throughput(
    monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float]
) -> None:
    found = sizes(monkeypatch)
    tried = settle(found, job(), cost)
    best = min(cost(n) / n for n in (2**k for k in range(9)))
    assert cost(tried[-1]) / tried[-1] <= 1.1 * best
    assert len(set(tried[-4:])) == 1  # it has made up its mind
    assert max(tried) <= 256


def test_memory_sets_the_end_and_a_refusal_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found, one = sizes(monkeypatch, 64), job()
    assert settle(found, one, lambda n: 1.0)[-1] == 64
    with caplog.at_level(logging.WARNING):
        assert found.shrink(one, 64)
    assert "out of memory at batch 64 of layer conv: going on with 32" in caplog.text
    assert set(settle(found, one, lambda n: 1.0)) == {32}
    assert not found.shrink(one, 1)


def test_the_next_layer_begins_where_this_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizes(monkeypatch)
    end = settle(found, job(), lambda n: 1.0 + 0.002 * n)[-1]
    assert found.of(job("next")) == end > 8
    # ... but not where its pictures do not fit.
    assert found.of(job("next", images=16)) == 256 // 16


def test_what_is_too_short_to_tell_and_what_was_asked_for_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizes(monkeypatch)
    assert set(settle(found, job(), lambda n: 0.01)) == {8}
    asked = BatchSizes(CPU, 6)
    assert set(settle(asked, job(), lambda n: 1.0)) == {6}
    assert asked.shrink(job(), 6) and asked.of(job()) == 3


def test_one_slow_batch_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a layer warms up."""
    found, one = sizes(monkeypatch, 16), job()
    seconds: Sequence[float] = [9.0, 5.0, 4.0, 4.0]
    sized = []
    for number in range(8):
        size = found.of(one)
        sized.append(size)
        found.note(one, size, seconds[number] if number < 4 else 4.0 * size / 8)
    assert sized[0] == 8 and set(sized[-3:]) == {16}


def test_a_recipe_of_more_steps_is_compared_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizes(monkeypatch, 16)
    found.note(job(), 8, 8.0)
    assert found.of(job()) == 16
    found.note(job(steps=100), 16, 100.0)
    assert found.of(job()) == 16

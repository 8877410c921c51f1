"""Selectivity: whose channel a picture excites."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.publish import publish
from feature_atlas.publish.layers import read_old
from feature_atlas.spec import Recipe, Unit
from feature_atlas.store import MemoryStore
from feature_atlas_worker.selectivity import Judge
from tests import synthetic

RECIPE = Recipe(size=(16, 16))


class Colours(nn.Module):
    """Four channels: red, green, blue, and one that is loud whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]])[..., None, None])
            self.conv.bias.copy_(torch.tensor([0.0, 0, 0, 100]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Model:
    module, mean, std, input_size = Colours(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (16, 16)


def flat(*colour: int) -> np.ndarray:
    return np.full((16, 16, 3), colour, np.uint8)


PICTURES = [(0, flat(255, 0, 0)), (1, flat(0, 255, 0)), (2, flat(0, 0, 255))]


@pytest.fixture
def judge() -> Judge:
    return Judge(lambda: Model())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("objective", ["channel", "neuron"])
def test_a_picture_of_its_own_colour_ranks_first(judge: Judge, objective: str) -> None:
    recipe = RECIPE.model_copy(update={"objective": objective})
    assert list(judge("conv", recipe, PICTURES)) == [(0, 1, 0), (1, 1, 1), (2, 1, 2)]


def test_a_picture_of_another_colour_does_not(judge: Judge) -> None:
    ((channel, rank, answers),) = judge("conv", RECIPE, [(0, flat(0, 0, 255))])
    assert (channel, answers) == (0, 2) and rank > 1


def test_a_channel_that_is_always_loud_does_not_win_by_that(judge: Judge) -> None:
    raw = Model.module(torch.full((1, 3, 4, 4), -2.0))
    assert raw[0].mean((1, 2)).argmax() == 3
    assert all(answers != 3 for _, _, answers in judge("conv", RECIPE, PICTURES))


def test_what_is_minimised_answers_least(judge: Judge) -> None:
    recipe = RECIPE.model_copy(update={"sign": -1})
    ((_, rank, answers),) = judge("conv", recipe, [(0, flat(0, 255, 255))])
    assert (rank, answers) == (1, 0)


def test_more_pictures_than_a_batch_are_all_judged(judge: Judge) -> None:
    found = list(judge("conv", RECIPE, [(n % 3, PICTURES[n % 3][1]) for n in range(40)]))
    assert [(channel, rank) for channel, rank, _ in found] == [(n % 3, 1) for n in range(40)]


def test_publishing_with_a_judge_ranks_rows_and_judges_only_what_is_new() -> None:
    store = MemoryStore()
    late = Unit("channel", "conv1", 4)
    plan = synthetic.write_atlas(store, (("conv1", 6),), size=16, missing=[late], dead=[Unit("channel", "conv1", 0)])
    asked: list[int] = []

    def judge(layer: str, recipe: Recipe, pictures):  # type: ignore[no-untyped-def]
        for channel, pixels in pictures:
            assert pixels.shape == (16, 16, 3)
            asked.append(channel)
            yield channel, channel + 1, 0

    publish(store, judge=judge)
    assert asked == [1, 2, 3, 5]  # the dead and the missing are left out
    synthetic.write_unit(store, plan, late, size=16)
    publish(store)  # without a judge, what is known stays
    rows = read_old(store, "conv1").variants["channel"].rows  # type: ignore[union-attr]
    assert [row.rank for row in rows] == [None, 2, 3, 4, None, 6]
    publish(store, judge=judge)
    assert asked == [1, 2, 3, 5, 4]
    assert [row["rank"] for row in Atlas.open(store).rows()] == [None, 2, 3, 4, 5, 6]
    # another picture under the same channel has not been judged
    synthetic.write_unit(store, plan, Unit("channel", "conv1", 1), size=16, words="again")
    publish(store)
    assert read_old(store, "conv1").variants["channel"].rows[1].rank is None  # type: ignore[union-attr]
    assert keys.selectivity("conv1") in {info.key for info in store.list()}

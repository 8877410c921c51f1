"""Scores by hand on small tensors, in every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feature_atlas.errors import RequestError
from feature_atlas.spec import Recipe
from feature_atlas_worker.objectives import canonical, centre, measure, score, values


def maps(*shape: int) -> Tensor:
    """Counts 0, 1, 2... in the given shape."""
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def scored(activations: Tensor, channels: list[int], **recipe: Any) -> list[float]:
    chosen = Recipe(**recipe)
    return score(values(activations, torch.tensor(channels), chosen), chosen).tolist()


def test_channels_first_stay_as_they_are() -> None:
    acts = maps(2, 3, 4, 5)
    assert torch.equal(canonical(acts, "NCHW"), acts)


def test_channels_last_come_to_the_front() -> None:
    acts = maps(2, 4, 5, 3)
    found = canonical(acts, "NHWC")
    assert found.shape == (2, 3, 4, 5)
    assert found[1, 2, 3, 0] == acts[1, 3, 0, 2]


def test_tokens_become_a_map_in_reading_order() -> None:
    acts = maps(2, 9, 4)
    found = canonical(acts, "tokens")
    assert found.shape == (2, 4, 3, 3)
    assert found[1, 2, 1, 0] == acts[1, 3, 2]


def test_the_class_token_is_left_out() -> None:
    acts = maps(2, 10, 4)
    assert torch.equal(canonical(acts, "tokens"), canonical(acts[:, 1:], "tokens"))


def test_tokens_that_fill_no_square_are_one_row() -> None:
    acts = maps(2, 7, 4)
    found = canonical(acts, "tokens")
    assert found.shape == (2, 4, 1, 7)
    assert found[1, 2, 0, 6] == acts[1, 6, 2]


def test_flat_answers_are_maps_of_one_unit() -> None:
    acts = maps(2, 5)
    assert torch.equal(canonical(acts, "flat")[..., 0, 0], acts)
    assert torch.equal(canonical(maps(2, 5, 3), "NCHW")[:, :, 0], maps(2, 5, 3))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_half_precision_is_widened(layout: str) -> None:
    assert canonical(maps(1, 2, 2, 2).bfloat16(), layout).dtype == torch.float32


def test_a_channel_scores_its_mean_over_space() -> None:
    acts = torch.tensor([[[[1.0, 2], [3, 6]], [[0, 0], [0, -4]]], [[[9.0, 9], [9, 9]], [[1, 1], [2, 0]]]])
    assert scored(acts, [0, 1]) == [3.0, 1.0]
    assert scored(acts, [1, 0]) == [-1.0, 9.0]


def test_a_layer_scores_its_mean_square() -> None:
    acts = torch.tensor([[[[1.0, -2]], [[3, 0]]], [[[0.5, 0]], [[0, 0]]]])
    assert scored(acts, [0, 0], objective="layer") == [14 / 4, 0.0625]


def test_every_image_scores_by_itself() -> None:
    acts = torch.rand(3, 4, 2, 2)
    acts.requires_grad_()
    recipe = Recipe()
    total = score(values(acts, torch.tensor([1, 2, 3]), recipe), recipe)
    (gradient,) = torch.autograd.grad(total[1], acts)
    assert not gradient[0].any() and not gradient[2].any()
    assert (gradient[1, 2] == 0.25).all() and not gradient[1, [0, 1, 3]].any()


@pytest.mark.parametrize(("size", "expected"), [((5, 7), (2, 3)), ((4, 6), (2, 3)), ((1, 1), (0, 0)), ((2, 3), (1, 1))])
def test_the_central_neuron(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert centre(*size) == expected
    acts = maps(1, 2, *size)
    assert scored(acts, [1], objective="neuron") == [float(acts[0, 1, expected[0], expected[1]])]


def test_a_neuron_at_a_position_is_row_then_column() -> None:
    acts = maps(1, 2, 3, 5)
    assert scored(acts, [1], objective="neuron", position=(2, 4)) == [29.0]
    assert scored(acts, [0], objective="neuron", position=(0, 3)) == [3.0]


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0)])
def test_a_position_beside_the_map_is_refused_with_its_size(position: tuple[int, int]) -> None:
    recipe = Recipe(objective="neuron", position=position, size=(24, 40))
    with pytest.raises(RequestError, match=r"map of 3 rows and 5 columns at size 24 x 40"):
        values(maps(1, 2, 3, 5), torch.tensor([0]), recipe)


@pytest.mark.parametrize("objective", ["channel", "neuron", "layer"])
def test_the_sign_turns_the_score_and_not_the_measurement(objective: Any) -> None:
    acts = maps(1, 2, 3, 3)
    up, down = Recipe(objective=objective), Recipe(objective=objective, sign=-1)
    chosen = values(acts, torch.tensor([1]), up)
    assert score(chosen, down) == -score(chosen, up)
    assert measure(chosen, down) == measure(chosen, up) == score(chosen, up) > 0

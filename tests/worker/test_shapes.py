"""Shapes on the meta device, answered without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from feature_atlas_worker.shapes import POINTWISE, Shapes

SIZES: list[Any] = [1, 3, (2, 5), (None, 3), (4, None)]


@pytest.mark.parametrize(
    "function", sorted(POINTWISE, key=lambda function: function.__name__), ids=lambda function: function.__name__
)
def test_what_counts_as_pointwise_changes_no_shape(function: Callable[..., torch.Tensor]) -> None:
    assert function(torch.rand(2, 3, 4, 5)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooling_gives_the_shape_that_it_really_gives(size: Any) -> None:
    real, meta = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9, device="meta")
    with Shapes():
        assert functional.adaptive_avg_pool2d(meta, size).shape == functional.adaptive_avg_pool2d(real, size).shape


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"stride": (3,), "padding": "valid"},
    {"padding": "same", "dilation": 2},
    {"groups": 3},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_give_the_shape_that_they_really_give(options: dict[str, Any]) -> None:
    picture, weight, bias = torch.rand(2, 6, 13, 17), torch.rand(9, 6 // options.get("groups", 1), 3, 5), torch.rand(9)
    with Shapes():
        found = functional.conv2d(picture.to("meta"), weight.to("meta"), bias.to("meta"), **options)
    assert found.is_meta and found.shape == functional.conv2d(picture, weight, bias, **options).shape


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1}, {"ceil_mode": True}], ids=str)
def test_averaging_gives_the_shape_that_it_really_gives(options: dict[str, Any]) -> None:
    picture = torch.rand(2, 6, 14, 17)
    with Shapes():
        found = functional.avg_pool2d(picture.to("meta"), (2, 3), **options)
    assert found.is_meta and found.shape == functional.avg_pool2d(picture, (2, 3), **options).shape


@pytest.mark.parametrize("size", [(1, 3, 2, 2), (1, 4, 8, 8)], ids=["too small", "other channels"])
def test_what_cannot_be_is_left_to_torch_to_refuse(size: tuple[int, ...]) -> None:
    for device in ("cpu", "meta"):
        with Shapes(), pytest.raises(RuntimeError):
            functional.conv2d(torch.rand(size, device=device), torch.rand(5, 3, 3, 3, device=device))


def test_a_border_wider_than_half_the_window_is_left_to_torch_to_refuse() -> None:
    for device in ("cpu", "meta"):
        with Shapes(), pytest.raises(RuntimeError, match="pad"):
            functional.avg_pool2d(torch.rand(1, 3, 16, 16, device=device), 5, 1, (3, 1))


def test_tensors_with_values_are_left_alone() -> None:
    with Shapes():
        assert functional.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_describing_a_network_does_not_load_the_compiler() -> None:
    code = "import sys; from feature_atlas_worker.inspect import network; network('builtin:demo'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch._dynamo", "sympy"} & set(done.stdout.split())

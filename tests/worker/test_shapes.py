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


def test_tensors_with_values_are_left_alone() -> None:
    with Shapes():
        assert functional.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_describing_a_network_does_not_load_the_compiler() -> None:
    code = "import sys; from feature_atlas_worker.inspect import network; network('builtin:demo'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "torch._dynamo" not in done.stdout.split()

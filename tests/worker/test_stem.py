"""The quick way back through a strided convolution is the same way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feature_atlas_worker.params import stream
from feature_atlas_worker.stem import StemConv2d, quicken


def gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what the layer answers, gradient of a weighted sum of it)."""
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.randn(out.shape, generator=stream(0, "weights"))
    return out.detach(), torch.autograd.grad((out * weights).sum(), x)[0]


def conv(*args: int, **kwargs: object) -> nn.Conv2d:
    layer = nn.Conv2d(*args, **kwargs)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream(0, "stem")))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (9, 31)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (7, 2, 3), (7, 2, 0), (3, 2, 1), (3, 2, 0), (4, 4, 0), (5, 3, 2), (2, 3, 1), (8, 4, 2), (1, 2, 0),
        ((3, 5), 2, (1, 2)),
    ],
)  # fmt: skip
def test_the_quick_way_back_is_the_same(
    kernel: int | tuple[int, int], stride: int, padding: int | tuple[int, int], size: tuple[int, int]
) -> None:
    layer = conv(3, 6, kernel, stride=stride, padding=padding)  # type: ignore[arg-type]
    x = torch.randn(2, 3, *size, generator=stream(0, "input"))
    out, slow = gradient(layer, x)
    quicken(layer)
    assert isinstance(layer, StemConv2d)
    again, quick = gradient(layer, x)
    assert torch.equal(out, again)
    assert slow.abs().max() > 1
    torch.testing.assert_close(quick, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        conv(3, 6, 3, padding=1),
        conv(8, 6, 3, stride=2),
        conv(4, 4, 3, stride=2, groups=2),
        conv(3, 6, 3, stride=2, dilation=2),
        conv(3, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        conv(3, 6, 3, stride=(2, 1)),
        conv(3, 6, 3, stride=2).requires_grad_(),
        nn.LazyConv2d(6, 3, stride=2),
    ],
)
def test_other_convolutions_are_left_alone(layer: nn.Conv2d) -> None:
    kind = type(layer)
    quicken(layer)
    assert type(layer) is kind


def test_hooks_and_a_picture_without_gradient_pass_through() -> None:
    layer = conv(3, 6, 3, stride=2)
    expected = layer(torch.ones(1, 3, 9, 9))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    quicken(layer)
    assert torch.equal(layer(torch.ones(1, 3, 9, 9)), expected)
    assert torch.equal(layer(torch.ones(3, 9, 9)), expected[0])  # a picture without a batch
    assert len(seen) == 2

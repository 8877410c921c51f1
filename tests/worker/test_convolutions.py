"""The quick way back through a convolution is the same way, and a batch changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_atlas_worker import onednn
from feature_atlas_worker.convolutions import PlainConv2d, StemConv2d, StridedConv2d, quicken
from feature_atlas_worker.onednn import LAYOUTS
from feature_atlas_worker.params import stream


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
        ((3, 5), 2, (1, 2)), (3, 1, 1), (1, 1, 0), ((1, 7), 1, (0, 3)), (4, 1, 2),
    ],
)  # fmt: skip
def test_the_quick_way_back_is_the_same(
    kernel: int | tuple[int, int], stride: int, padding: int | tuple[int, int], size: tuple[int, int]
) -> None:
    layer = conv(3, 6, kernel, stride=stride, padding=padding)  # type: ignore[arg-type]
    x = torch.randn(2, 3, *size, generator=stream(0, "input"))
    out, slow = gradient(layer, x)
    quicken(layer)
    assert type(layer) is (PlainConv2d if stride == 1 else StemConv2d)
    again, quick = gradient(layer, x)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5)
    assert slow.abs().max() > 1
    torch.testing.assert_close(quick, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (9, 31)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (1, 2, 0, 1), (3, 3, 0, 1), (5, (2, 1), 2, 1), (3, 2, 2, 2), ((1, 4), (3, 2), 0, 1), (2, 4, 0, 1)],
)
@pytest.mark.parametrize("packs", [True, False])
def test_the_quick_way_back_through_a_stride_is_the_same(
    kernel: Any, stride: Any, padding: int, dilation: int, size: tuple[int, int], packs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(onednn, "PACKS", packs)
    layer = conv(24, 40, kernel, stride=stride, padding=padding, dilation=dilation)
    x = torch.randn(2, 24, *size, generator=stream(0, "input"))
    out, slow = gradient(layer, x)
    quicken(layer)
    assert type(layer) is StridedConv2d
    again, quick = gradient(layer, x)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(quick, slow, rtol=1e-5, atol=1e-4)
    assert slow.abs().max() > 1


@pytest.mark.parametrize(
    "layer",
    [
        conv(3, 6, 3, padding=3),
        conv(3, 6, 3, padding=1).double(),
        conv(8, 6, 3, stride=2, padding=3),
        conv(4, 4, 3, stride=2, groups=2),
        conv(3, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        conv(3, 6, 3, stride=2).requires_grad_(),
        nn.LazyConv2d(6, 3, stride=2),
    ],
)
def test_other_convolutions_are_left_alone(layer: nn.Conv2d) -> None:
    kind = type(layer)
    quicken(layer)
    assert type(layer) is kind


def test_weights_laid_out_beforehand_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every size of the map, also once more are asked for than are kept."""
    layer = conv(96, 32, 3, padding=1).to(memory_format=torch.channels_last)
    quicken(layer)
    sizes = [*range(4, 4 + LAYOUTS + 2), 4]
    xs = [torch.randn(3, 96, n, n, generator=stream(n, "input")).to(memory_format=torch.channels_last) for n in sizes]
    assert onednn.PACKS
    packed = [gradient(layer, x) for x in xs]
    monkeypatch.setattr(onednn, "PACKS", False)
    for x, (out, way_back) in zip(xs, packed, strict=True):
        plain = gradient(layer, x)
        assert torch.equal(out, plain[0]) and torch.equal(way_back, plain[1])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"), [(16, 3, 1), (48, 3, 1), (96, 1, 1), (256, 1, 1), (48, 3, 2), (256, 1, 2)]
)
@pytest.mark.parametrize("size", [4, 15])
def test_a_batch_of_any_size_changes_no_bit(channels: int, kernel: int, stride: int, size: int, half: bool) -> None:
    layer = conv(channels, 32, kernel, stride=stride, padding=kernel // 2).to(memory_format=torch.channels_last)
    quicken(layer)
    x = torch.randn(17, channels, size, size, generator=stream(0, "input"))
    x = x.contiguous(memory_format=torch.channels_last)

    def seen(count: int) -> tuple[Tensor, Tensor]:
        picture = x[:count].clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = layer(picture)
        assert out.dtype == (torch.bfloat16 if half else torch.float32)
        return out.detach(), torch.autograd.grad((out.float() ** 2).sum(), picture)[0]

    alone = seen(1)
    for count in (2, 3, 8, 17):
        beside = seen(count)
        assert torch.equal(beside[0][:1], alone[0]) and torch.equal(beside[1][:1], alone[1])


@pytest.mark.parametrize(("stride", "channels"), [(1, 24), (2, 3), (2, 24)])
def test_in_bf16_it_rounds_and_no_more(stride: int, channels: int) -> None:
    layer = conv(channels, 6, 3, stride=stride, padding=1)
    x = torch.randn(2, channels, 16, 16, generator=stream(0, "input"))
    exact = gradient(layer, x)
    quicken(layer)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient(layer, x)
    for one, other in zip(rounded, exact, strict=True):
        assert 0 < (one - other).abs().max() < 0.01 * other.abs().max()
    assert all(torch.equal(one, other) for one, other in zip(gradient(layer, x), gradient(layer, x), strict=True))


def test_hooks_and_a_picture_without_gradient_pass_through() -> None:
    layer = conv(3, 6, 3, stride=2)
    expected = layer(torch.ones(1, 3, 9, 9))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    quicken(layer)
    torch.testing.assert_close(layer(torch.ones(1, 3, 9, 9)), expected)
    torch.testing.assert_close(layer(torch.ones(3, 9, 9)), expected[0])  # a picture without a batch
    assert len(seen) == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [True, False])
def test_a_sum_and_a_relu_join_a_convolution(
    packs: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "PACKS", packs and onednn.PACKS)
    layer = conv(5, 8, 3, padding=1)
    quicken(layer)
    assert isinstance(layer, PlainConv2d)
    x = torch.randn(2, 5, 9, 7, generator=stream(0, "input")).to(precision)
    added = 10 * torch.randn(2, 8, 9, 7, generator=stream(0, "added")).to(precision)
    before = added.clone()
    plain = layer.ahead(x).float()
    close = {"rtol": 1e-2, "atol": 0.2} if precision == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for rectified, expected in ((False, plain + added), (True, (plain + added).clamp(min=0))):
        torch.testing.assert_close(layer.ahead(x, added, rectified).float(), expected, **close)
    assert torch.equal(layer.ahead(x, rectified=True).float(), plain.clamp(min=0)), "no bit changes with it"
    gradient = torch.randn(2, 8, 9, 7, generator=stream(0, "gradient")).to(precision)
    onto = torch.randn(2, 5, 9, 7, generator=stream(0, "onto")).to(precision)
    expected = layer.back(gradient, x.shape[2:]).float() + onto
    torch.testing.assert_close(layer.back(gradient, x.shape[2:], onto).float(), expected, **close)
    assert torch.equal(added, before)

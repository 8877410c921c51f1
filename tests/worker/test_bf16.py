"""Convolutions of bf16 by kernels of our own: the convolution, to rounding, and each image's bits in any batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas_worker import kernels, onednn
from feature_atlas_worker.convolutions import quicken
from feature_atlas_worker.kernels import bf16
from feature_atlas_worker.kernels.bf16 import Pointwise, Product, Winograd

pytestmark = pytest.mark.skipif(not bf16.able(), reason="no bf16 instructions in this processor")

#: Of the answers' size: bf16 keeps eight bits, and fewer products are rounded once more.
ROUNDING = {Pointwise: 3e-3, Winograd: 6e-3}
#: No answer is as great.
MARK = 2.0**100
PAIRS = [(12, 3), (16, 16), (24, 40), (30, 17), (64, 48), (128, 130)]
WINOGRAD = [(Winograd, 3, padding, (1, 1)) for padding in ((0, 0), (1, 1), (2, 2), (1, 0), (0, 2))]
POINTWISE = [(Pointwise, 1, (0, 0), stride) for stride in ((1, 1), (2, 2), (3, 1), (1, 2))]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half(map: Tensor) -> Tensor:
    return map.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def apart(found: Tensor, expected: Tensor) -> float:
    """The distance, as a share of the size."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("channels", "out"), PAIRS)
@pytest.mark.parametrize("size", [(3, 4), (7, 5), (15, 16)])
@pytest.mark.parametrize(("kind", "kernel", "padding", "stride"), [*WINOGRAD, *POINTWISE])
def test_it_is_the_convolution(
    kind: type[Product], kernel: int, padding: tuple[int, int], stride: tuple[int, int], size: tuple[int, int],
    channels: int, out: int,
) -> None:  # fmt: skip
    weight, bias = noise(out, channels, kernel, kernel, seed=1) / channels**0.5, noise(out, seed=2)
    x = half(noise(5, channels, *size))
    plain = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    other = half(noise(*plain.shape, seed=3))
    own = kind(weight, padding, stride, bias)
    assert kind.suits(weight, padding, stride)
    assert apart(own(x), plain) < ROUNDING[kind]
    assert apart(own(x, rectified=True), plain.relu()) < ROUNDING[kind]
    assert apart(own(x, other), plain + other.double()) < ROUNDING[kind]
    assert apart(own(x, other, rectified=True), (plain + other.double()).relu()) < ROUNDING[kind]
    assert apart(kind(weight, padding, stride)(x), plain - bias.double()[:, None, None]) < ROUNDING[kind]


@pytest.mark.parametrize(("kind", "kernel", "padding", "stride"), [WINOGRAD[1], *POINTWISE[:2]])
@pytest.mark.parametrize(("channels", "out"), [(24, 40), (2048, 40), (96, 256)])
@pytest.mark.parametrize("size", [4, 15])
def test_a_batch_of_any_size_and_any_number_of_threads_change_no_bit(
    kind: type[Product], kernel: int, padding: tuple[int, int], stride: tuple[int, int], channels: int, out: int,
    size: int,
) -> None:  # fmt: skip
    own = kind(noise(out, channels, kernel, kernel, seed=1) / channels**0.5, padding, stride)
    x, threads = half(noise(17, channels, size, size)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([own(half(image[None])) for image in x])
        for threads_now in (1, 2, 3):
            torch.set_num_threads(threads_now)
            for count in (2, 3, 7, 16, 17):
                assert torch.equal(own(x[:count]), alone[:count])
    finally:
        torch.set_num_threads(threads)
    assert alone.float().std() > 0.5


@pytest.mark.parametrize("own", [Winograd(noise(32, 24, 3, 3), (1, 1)), Pointwise(noise(32, 24, 1, 1), (0, 0))])
def test_channels_of_a_greater_map_and_other_orders_of_memory(own: Product) -> None:
    whole = half(noise(3, 60, 9, 8))
    part = whole[:, 20:44]
    expected = own(half(part))
    assert bf16._pixels(part) == (part, 60), "no copy"
    assert torch.equal(own(part), expected)
    assert torch.equal(own(part.contiguous()), expected), "channel by channel"
    assert torch.equal(own(half(part).flip(3).flip(3)), expected)
    assert torch.equal(own(whole[:, 20:44, :, ::2]), own(half(part[:, :, :, ::2])))
    added = half(noise(3, 64, 9, 8, seed=1))[:, 16:48]
    assert torch.equal(own(part, added), own(part, half(added)))
    with pytest.raises(ValueError, match=r"\(3, 32, 9, 7\) cannot be added to \(3, 32, 9, 8\)"):
        own(part, added[..., :7])


@pytest.mark.parametrize("own", [Winograd(noise(30, 24, 3, 3), (1, 1)), Pointwise(noise(30, 24, 1, 1), (0, 0))])
def test_nothing_else_is_written_to(own: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before nor behind the answers, of which the last channels fill no register."""
    margin = 4096
    made: list[Tensor] = []

    def framed(shape: tuple[int, ...], like: Tensor) -> Tensor:
        batch, channels, height, width = shape
        made.append(torch.full((2 * margin + batch * channels * height * width,), MARK, dtype=like.dtype))
        return made[0][margin:-margin].view(batch, height, width, channels).permute(0, 3, 1, 2)

    monkeypatch.setattr(kernels, "empty", framed)
    own(half(noise(3, 24, 7, 9)))
    assert (made[0][:margin] == MARK).all() and (made[0][-margin:] == MARK).all()
    assert (made[0][margin:-margin] != MARK).all()


@pytest.mark.parametrize("own", [Winograd(noise(16, 16, 3, 3), (1, 1)), Pointwise(noise(16, 16, 1, 1), (0, 0))])
def test_what_is_no_number_stays_none(own: Product) -> None:
    x = half(noise(1, 16, 8, 8))
    x[0, 3, 4, 4] = float("nan")
    assert own(x, rectified=True)[0, :, 4, 4].isnan().all()
    assert own(x)[0, :, 0, 0].isfinite().all()


def gradients(layer: nn.Module, x: Tensor, precision: bool) -> tuple[Tensor, Tensor]:
    """(answers, gradient of a weighted sum of them)."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision):
        out = layer(x)
    (back,) = torch.autograd.grad((out.float() * noise(*out.shape, seed=1)).sum(), x)
    return out.detach(), back


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(kernel_size=3, padding=1), 12),
        (dict(kernel_size=3), 9),
        (dict(kernel_size=3, padding=2), 8),
        (dict(kernel_size=1), 11),
        (dict(kernel_size=1, stride=2), 11),
        (dict(kernel_size=1, stride=(2, 3)), 13),
    ],
)
def test_both_ways_through_a_layer_go_by_them(options: dict[str, Any], size: int, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 40, **options).requires_grad_(False)
    own, x, names = copy.deepcopy(layer), noise(3, 24, size, size), []
    quicken(own, kernels=True, winograd=True)
    run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda name, *a, **k: (names.append(name), run(name, *a, **k)))
    for found, expected in zip(gradients(own, x, True), gradients(layer, x, False), strict=True):
        assert apart(found, expected.double()) < 1e-2
    assert names == ["fa_winograd" if options["kernel_size"] == 3 else "fa_pointwise"] * 2
    exact = zip(gradients(own, x, False), gradients(layer, x, False), strict=True)
    assert all(apart(found, expected.double()) < 1e-5 for found, expected in exact), "fp32 is left to others"
    assert len(names) == 2


def test_what_they_are_not_for_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run", lambda *a, **k: pytest.fail("a kernel of our own ran"))
    for channels, options, size, own in [
        (24, dict(kernel_size=3, padding=1), 3, dict(kernels=True, winograd=True)),  # most of a tile is thrown away
        (24, dict(kernel_size=3, padding=1), 12, dict(kernels=True)),
        (24, dict(kernel_size=3, padding=1), 12, dict(winograd=True)),
        (24, dict(kernel_size=1), 12, dict(winograd=True)),
        (24, dict(kernel_size=3, padding=1, stride=2), 12, dict(kernels=True, winograd=True)),
        (24, dict(kernel_size=3, padding=2, dilation=2), 12, dict(kernels=True, winograd=True)),
        (8, dict(kernel_size=3, padding=1), 12, dict(kernels=True, winograd=True)),
        (25, dict(kernel_size=1), 12, dict(kernels=True, winograd=True)),
    ]:
        layer = nn.Conv2d(channels, 8, **options).requires_grad_(False)  # type: ignore[arg-type]
        quicken(layer, **own)  # type: ignore[arg-type]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(noise(2, channels, size, size))


def test_another_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = noise(16, 16, 1, 1)
    assert bf16.kind(weight, (0, 0), (1, 1), (1, 1), True) is Pointwise
    for able in ({"avx512_bf16": False}, {"avx512_bf16": True, "amx_bf16": True}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert bf16.kind(weight, (0, 0), (1, 1), (1, 1), True) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert bf16.kind(weight, (0, 0), (1, 1), (1, 1), True) is Pointwise
    monkeypatch.setattr(kernels, "_library", lambda: None)
    assert bf16.kind(weight, (0, 0), (1, 1), (1, 1), True) is None


@pytest.mark.parametrize("kernel", [1, 3])
def test_they_sum_as_well_as_onednn(kernel: int) -> None:
    """A sum of 4,608 products, of which fp32 keeps what bf16 would lose."""
    weight, x = noise(64, 512, kernel, kernel, seed=1) / 512**0.5, half(noise(2, 512, 8, 8).relu())
    padding = kernel // 2, kernel // 2
    exact = F.conv2d(x.double(), weight.double(), padding=padding)
    kind = Winograd if kernel == 3 else Pointwise
    theirs = apart(onednn.Convolution(weight, padding)(x), exact)
    assert apart(kind(weight, padding)(x), exact) < (2 if kernel == 3 else 1.1) * theirs

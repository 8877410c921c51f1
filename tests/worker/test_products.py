"""Convolutions by kernels of our own: the convolution, to rounding, and each image's bits in any batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas_worker import kernels, onednn
from feature_atlas_worker.convolutions import quicken
from feature_atlas_worker.kernels import products
from feature_atlas_worker.kernels.products import Pointwise, Product, Winograd

BF16, FP32 = torch.bfloat16, torch.float32
#: No answer is as great.
MARK = 2.0**100


@dataclass(frozen=True)
class Case:
    """One kernel in one precision, with the code for one generation of processors."""

    kind: type[Product]
    precision: torch.dtype
    generation: str

    def __str__(self) -> str:
        return f"{self.kind.__name__}-{self.precision}-{self.generation}"

    @property
    def rounding(self) -> float:
        """As a share of the answers' size: bf16 keeps eight bits, and Winograd rounds once more."""
        if self.precision == FP32:
            return 2e-6
        return 6e-3 if self.kind is Winograd else 3e-3

    def weight(self, out: int, channels: int) -> Tensor:
        kernel = 3 if self.kind is Winograd else 1
        return noise(out, channels, kernel, kernel, seed=1) / channels**0.5

    def product(self, out: int, channels: int) -> Product:
        """As a network's layers are."""
        padding = (1, 1) if self.kind is Winograd else (0, 0)
        return self.kind(self.weight(out, channels), padding, precision=self.precision)

    def noise(self, *shape: int, seed: int = 0) -> Tensor:
        return self.beside(noise(*shape, seed=seed).to(self.precision))

    def beside(self, map: Tensor) -> Tensor:
        """Channels side by side."""
        return map.contiguous(memory_format=torch.channels_last)


_OWN = kernels._CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), "x86-64")
#: Whose code this processor runs.
GENERATIONS = [generation for generation in ("x86-64-v4", "x86-64-v3") if generation <= _OWN]
CASES = [Case(Winograd, FP32, generation) for generation in GENERATIONS]
CASES += [Case(Winograd, BF16, "x86-64-v4"), Case(Pointwise, BF16, "x86-64-v4")]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    found: Case = request.param
    names = {generation: name for name, generation in kernels._CAPABILITIES.items()}
    if found.precision == BF16 and not products.able(BF16):
        pytest.skip("no bf16 instructions in this processor, or better ones")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: names[found.generation])
    kernels._library.cache_clear()
    assert products.able(found.precision), "deploy/run builds them; by hand: python -m feature_atlas_worker.kernels"
    assert kernels.group() == {"x86-64-v4": 16, "x86-64-v3": 8}[found.generation]
    yield found
    monkeypatch.undo()
    kernels._library.cache_clear()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(found: Tensor, expected: Tensor) -> float:
    """The distance, as a share of the size."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("channels", "out"), [(12, 3), (16, 16), (24, 40), (30, 17), (64, 48), (128, 130)])
@pytest.mark.parametrize("size", [(3, 4), (7, 5), (15, 16)])
def test_it_is_the_convolution(case: Case, size: tuple[int, int], channels: int, out: int) -> None:
    weight, bias, x = case.weight(out, channels), noise(out, seed=2), case.noise(5, channels, *size)
    paddings = [(0, 0), (1, 1), (2, 2), (1, 0), (0, 2)] if case.kind is Winograd else [(0, 0)]
    strides = [(1, 1)] if case.kind is Winograd else [(1, 1), (2, 2), (3, 1), (1, 2)]
    for padding, stride in [(padding, stride) for padding in paddings for stride in strides]:
        plain = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
        other = case.noise(*plain.shape, seed=3)
        assert case.kind.suits(weight, padding, stride)
        own = case.kind(weight, padding, stride, bias, precision=case.precision)
        bare = case.kind(weight, padding, stride, precision=case.precision)
        for found, expected in [
            (own(x), plain),
            (own(x, rectified=True), plain.relu()),
            (own(x, other), plain + other.double()),
            (own(x, other, rectified=True), (plain + other.double()).relu()),
            (bare(x), plain - bias.double()[:, None, None]),
        ]:
            assert found.dtype == case.precision
            assert apart(found, expected) < case.rounding


@pytest.mark.parametrize(("channels", "out"), [(24, 40), (2048, 40), (96, 256)])
@pytest.mark.parametrize("size", [4, 15])
def test_neither_the_batch_nor_the_threads_change_a_bit(case: Case, channels: int, out: int, size: int) -> None:
    own, threads = case.product(out, channels), torch.get_num_threads()
    x = case.noise(17, channels, size, size)
    try:
        torch.set_num_threads(1)
        alone = torch.cat([own(case.beside(image[None])) for image in x])
        for threads_now in (1, 2, 3):
            torch.set_num_threads(threads_now)
            for count in (2, 3, 7, 16, 17):
                assert torch.equal(own(x[:count]), alone[:count])
    finally:
        torch.set_num_threads(threads)
    assert alone.float().std() > 0.5


def test_channels_of_a_greater_map_and_other_orders_of_memory(case: Case) -> None:
    own, whole = case.product(32, 24), case.noise(3, 60, 9, 8)
    part = whole[:, 20:44]
    expected = own(case.beside(part))
    assert products._pixels(part) == (part, 60), "no copy"
    assert torch.equal(own(part), expected)
    assert torch.equal(own(part.contiguous()), expected), "channel by channel"
    assert torch.equal(own(whole[:, 20:44, :, ::2]), own(case.beside(part[:, :, :, ::2])))
    added = case.noise(3, 64, 9, 8, seed=1)[:, 16:48]
    assert torch.equal(own(part, added), own(part, case.beside(added)))
    with pytest.raises(ValueError, match=r"\(3, 32, 9, 7\), torch.\w+ cannot be added to \(3, 32, 9, 8\)"):
        own(part, added[..., :7])
    with pytest.raises(ValueError, match=r"torch.float64 cannot be added to"):
        own(part, added.double())


def test_nothing_else_is_written_to(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before nor behind the answers, of which the last channels fill no register."""
    margin, made = 4096, list[Tensor]()

    def framed(shape: tuple[int, ...], like: Tensor) -> Tensor:
        batch, channels, height, width = shape
        made.append(torch.full((2 * margin + batch * channels * height * width,), MARK, dtype=like.dtype))
        return made[0][margin:-margin].view(batch, height, width, channels).permute(0, 3, 1, 2)

    monkeypatch.setattr(kernels, "empty", framed)
    case.product(30, 24)(case.noise(3, 24, 7, 9))
    assert (made[0][:margin] == MARK).all() and (made[0][-margin:] == MARK).all()
    assert (made[0][margin:-margin] != MARK).all()


def test_what_is_no_number_stays_none(case: Case) -> None:
    own, x = case.product(16, 16), case.noise(1, 16, 8, 8)
    x[0, 3, 4, 4] = float("nan")
    assert own(x, rectified=True)[0, :, 4, 4].isnan().all()
    assert own(x)[0, :, 0, 0].isfinite().all()
    assert own(x[:0]).shape == (0, 16, 8, 8)


def test_it_sums_as_well_as_onednn(case: Case) -> None:
    """A sum of 4,608 products, of which fp32 keeps what bf16 would lose."""
    weight, x = case.weight(64, 512), case.noise(2, 512, 8, 8).relu()
    padding = [length // 2 for length in weight.shape[2:]]
    exact = F.conv2d(x.double(), weight.double(), padding=padding)
    theirs = apart(onednn.Convolution(weight, padding)(x), exact)
    more = 2.0 if (case.kind, case.precision) == (Winograd, BF16) else 1.1
    assert apart(case.product(64, 512)(x), exact) < more * theirs


def gradients(layer: nn.Module, x: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """(answers, gradient of a weighted sum of them)."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = layer(x)
    (back,) = torch.autograd.grad((out.float() * noise(*out.shape, seed=1)).sum(), x)
    return out.detach(), back


@pytest.mark.parametrize("half", [True, False])
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
def test_both_ways_through_a_layer(options: dict[str, Any], size: int, half: bool, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 40, **options).requires_grad_(False)
    own, x, names = copy.deepcopy(layer), noise(3, 24, size, size), list[str]()
    quicken(own, kernels=True, winograd=True)
    run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda name, *a, **k: (names.append(name), run(name, *a, **k)))
    for found, expected in zip(gradients(own, x, half), gradients(layer, x, False), strict=True):
        assert apart(found, expected.double()) < (1e-2 if half else 1e-5)
    precision, three = BF16 if half else FP32, options["kernel_size"] == 3
    ours = products.able(precision) and (three or half)
    assert names == ["fa_" + ("winograd_" if three else "pointwise_") + ("bf16" if half else "fp32")] * 2 * ours


def test_what_they_are_not_for_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run", lambda *a, **k: pytest.fail("a kernel of our own ran"))
    both = dict(kernels=True, winograd=True)
    for channels, options, size, own in [
        (24, dict(kernel_size=3, padding=1), 3, both),  # most of a tile is thrown away
        (24, dict(kernel_size=3, padding=1), 12, dict(kernels=True)),
        (24, dict(kernel_size=3, padding=1), 12, dict(winograd=True)),
        (24, dict(kernel_size=1), 12, dict(winograd=True)),
        (24, dict(kernel_size=3, padding=1, stride=2), 12, both),
        (24, dict(kernel_size=3, padding=2, dilation=2), 12, both),
        (8, dict(kernel_size=3, padding=1), 12, both),
        (25, dict(kernel_size=1), 12, both),
    ]:
        layer = nn.Conv2d(channels, 8, **options).requires_grad_(False)  # type: ignore[arg-type]
        quicken(layer, **own)  # type: ignore[arg-type]
        for half in (True, False):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                layer(noise(2, channels, size, size))


def test_another_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds() -> list[type[Product] | None]:
        weights = (noise(16, 16, 1, 1), BF16), (noise(16, 16, 3, 3), BF16), (noise(16, 16, 3, 3), FP32)
        return [products.kind(weight, (0, 0), (1, 1), (1, 1), precision, True) for weight, precision in weights]

    monkeypatch.setattr(kernels, "multiplies_half", lambda: True)
    for able in ({"avx512_bf16": False}, {"avx512_bf16": True, "amx_bf16": True}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert kinds() == [None, None, Winograd]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert kinds() == [Pointwise, Winograd, Winograd]
    for numbers in (4, 0):  # the first generation of x86-64 or another processor; no compiler
        monkeypatch.setattr(kernels, "group", lambda numbers=numbers: numbers)
        assert kinds()[2] is None
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "_library", lambda: None)
    assert kinds() == [None, None, None]

"""Our own kernels give what PyTorch's operations give, image by image, on every kind of processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import ascent, kernels, regularizers, transforms
from feature_atlas_worker.ascent import Ascent, Trace
from feature_atlas_worker.convolutions import StemConv2d, quicken
from feature_atlas_worker.kernels import build
from feature_atlas_worker.kernels.ascent import KernelAscent
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.params import COLOUR, Bands, init
from feature_atlas_worker.recorded import ascent_of
from feature_atlas_worker.rewrite import Rewrites
from tests import networks

CPU = torch.device("cpu")
EXACT = Rewrites(half=False)


#: The kinds in use: those before them run the same sources with shorter registers.
KINDS = build.generations()[:2]


@pytest.fixture(autouse=True, params=KINDS)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test runs with the code for each kind of processor that this one can run."""
    names = {generation: name for name, generation in kernels._CAPABILITIES.items()}
    best = kernels._CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), build.generations()[-1])
    if build.generations().index(request.param) < build.generations().index(best):
        monkeypatch.setattr(kernels, "_CAPABILITIES", {})  # it cannot: the oldest once more
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: names.get(request.param, "DEFAULT"))
    kernels._library.cache_clear()
    assert kernels.available(), "deploy/run builds them; by hand: python -m feature_atlas_worker.kernels"
    yield request.param
    monkeypatch.undo()
    kernels._library.cache_clear()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def beside(map: Tensor) -> Tensor:
    return map.contiguous(memory_format=torch.channels_last)


def close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Alike up to a share of the greatest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


def alone_as_together(run: Callable[[slice], tuple[Tensor, ...]], images: int = 5) -> None:
    """The same bits whatever lies beside an image, by one thread or by several."""
    together = run(slice(images))
    for i in range(images):
        for whole, part in zip(together, run(slice(i, i + 1)), strict=True):
            assert torch.equal(whole[i : i + 1], part)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(one, other) for one, other in zip(run(slice(images)), together, strict=True))
    finally:
        torch.set_num_threads(before)


#: (height and width of the picture, of the view, greatest sigma, what the picture is moved by at most)
VIEWS = [
    ((128, 128), (128, 128), 1.1, 0.2),
    ((40, 57), (44, 61), 0.8, 0.3),
    ((33, 30), (33, 30), 0.0, 0.2),
    ((16, 16), (20, 20), 6.0, 0.1),  # the blur reaches beyond both borders
    ((24, 31), (24, 31), 0.5, 5.0),  # most of it comes from far outside
    ((9, 200), (9, 200), 1.0, 1e9),
]


@pytest.mark.parametrize(("size", "out", "most", "moved"), VIEWS)
def test_a_view_is_a_resampling_and_a_blur(
    size: tuple[int, int], out: tuple[int, int], most: float, moved: float
) -> None:
    pictures, gradient = noise(5, 3, *size).sigmoid(), noise(5, 3, *out, seed=1)
    theta = torch.eye(2, 3) + noise(5, 2, 3, seed=2) * torch.tensor([0.1, 0.1, moved])
    sigma = torch.tensor([1.0, 0.0, 0.3, 0.7, 0.001]) * most

    def ours(part: slice) -> tuple[Tensor, ...]:
        shown = pictures[part].clone().requires_grad_()
        view = kernels.view(shown, theta[part], sigma[part], out, 0.4, most)
        return view.detach(), *torch.autograd.grad(view, shown, gradient[part])

    shown = pictures.clone().requires_grad_()
    expected = transforms.affine(shown, theta, out, 0.4)
    expected = transforms.blur(expected, sigma, most) if most else expected
    view, back = ours(slice(5))
    close(view, expected.detach(), 3e-5)
    close(back, torch.autograd.grad(expected, shown, gradient)[0], 3e-5)
    alone_as_together(ours)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_pictures_are_normalised_in_any_order(order: torch.memory_format) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(1, 3, 1, 1)
    pictures = noise(5, 3, 13, 17).contiguous(memory_format=order).requires_grad_()
    out = kernels.normalised(pictures, mean, std)
    assert torch.equal(out, (pictures - mean) / std) and out.is_contiguous(memory_format=torch.channels_last)
    gradient = noise(5, 3, 13, 17, seed=1).contiguous(memory_format=order)
    assert torch.equal(torch.autograd.grad(out, pictures, gradient)[0], gradient / std)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_gradient_at_unit_rms(scale: float) -> None:
    gradient = noise(5, 3, 31, 37) * scale
    gradient[3] = 0
    unit, peak = kernels.unit_rms(gradient)
    close(unit, ascent.unit_rms(gradient))
    assert torch.equal(peak, ascent.peaks(gradient).flatten()) and not unit[3].any()
    alone_as_together(lambda part: kernels.unit_rms(gradient[part]))
    assert torch.equal(kernels.unit_rms(gradient * 1024)[0], unit), "a power of two changes no bit"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(value: float) -> None:
    gradient = noise(2, 3, 31, 37)
    gradient[1, 2, 3, 4] = value
    unit, peak = kernels.unit_rms(gradient)
    assert unit[0].isfinite().all() and not unit[1].isfinite().all()
    assert peak[0].isfinite() and peak[1] != 0, "it is not blocked"


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("size", [(31, 37), (1, 5), (5, 1)])
def test_back_from_a_picture_to_its_planes(smooth: float, size: tuple[int, int]) -> None:
    planes, gradient = noise(5, 3, *size).requires_grad_(), noise(5, 3, *size, seed=1)
    picture = torch.sigmoid(torch.einsum("ij,bjhw->bihw", COLOUR, planes))
    shown = picture.detach()
    whole = gradient + smooth * regularizers.total_variation_gradient(shown)
    close(
        kernels.picture_back(gradient, shown, COLOUR, smooth),
        torch.autograd.grad(picture, planes, whole)[0],
    )
    alone_as_together(lambda part: (kernels.picture_back(gradient[part], shown[part], COLOUR, smooth),))


#: (kernel, stride, padding, whether the last window may hang over, height and width of the map, channels)
POOLS = [
    (3, 2, 0, True, (61, 61), 96),
    (3, 2, 1, False, (32, 33), 64),
    (3, 1, 1, True, (14, 15), 48),
    (2, 2, 0, False, (9, 8), 32),
    ((3, 2), (2, 3), (1, 0), True, (17, 20), 70),
    (5, 1, 2, False, (6, 5), 33),
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil", "size", "channels"), POOLS)
def test_a_map_is_pooled(
    precision: torch.dtype, kernel: Any, stride: Any, padding: Any, ceil: bool, size: tuple[int, int], channels: int
) -> None:
    # Few values, so that there are ties; and windows without anything above zero.
    map = beside(((noise(5, channels, *size) * 4).round() / 4 - 1).to(precision)).requires_grad_()
    geometry = [n for pair in (kernel, stride, padding) for n in (pair if isinstance(pair, tuple) else (pair, pair))]
    expected = F.max_pool2d(map, kernel, stride, padding, ceil_mode=ceil)
    gradient = beside(noise(*expected.shape, seed=1).to(precision))
    (back,) = torch.autograd.grad(expected, map, gradient, retain_graph=True)
    assert kernels.can_pool(map, geometry)

    def ours(rectified: bool, of: Tensor, part: slice = slice(5)) -> tuple[Tensor, Tensor]:
        found, which = kernels.pool(of.detach()[part], geometry, (expected.shape[2], expected.shape[3]), rectified)
        return found, kernels.pool_back(gradient[part], which, of[part].shape, geometry)

    found, found_back = ours(False, map)
    assert torch.equal(found, expected)
    close(found_back.float(), back.float(), 1e-6 if precision == torch.float32 else 2e-2)
    alone_as_together(lambda part: ours(True, map, part))

    rectified = map.relu()
    (back,) = torch.autograd.grad(F.max_pool2d(rectified, kernel, stride, padding, ceil_mode=ceil), map, gradient)
    found, found_back = ours(True, rectified)
    close(found_back.float(), back.float(), 1e-6 if precision == torch.float32 else 2e-2)
    assert not found_back[rectified == 0].any()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_both_zeros_are_one(precision: torch.dtype) -> None:
    map = beside(torch.zeros(1, 32, 2, 2, dtype=precision))
    map[:, :, 0, 0] = -0.0
    found, which = kernels.pool(map, [2, 2, 2, 2, 0, 0], (1, 1), False)
    assert not found.any() and not which.any(), "the first of equals"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_pooling_hides_no_infinity_and_nothing_that_is_no_number(precision: torch.dtype) -> None:
    map = beside(noise(2, 40, 8, 8).to(precision))
    map[0, 3, 2, 2], map[0, 4, 2, 2], map[1] = float("nan"), -float("nan"), -float("inf")
    found, _ = kernels.pool(map, [2, 2, 2, 2, 0, 0], (4, 4), False)
    assert torch.equal(found.isnan(), F.max_pool2d(map, 2).isnan())
    torch.testing.assert_close(found, F.max_pool2d(map, 2), equal_nan=True)


def test_what_a_kernel_cannot_pool_it_refuses() -> None:
    geometry, map = [2, 2, 2, 2, 0, 0], beside(noise(1, 40, 8, 8))
    assert kernels.can_pool(map, geometry)
    assert not kernels.can_pool(beside(noise(1, 16, 8, 8)), geometry)
    assert not kernels.can_pool(map.double(), geometry)
    assert not kernels.can_pool(noise(1, 40, 8, 8), geometry)
    assert not kernels.can_pool(map, [17, 17, 2, 2, 0, 0])


#: (out channels, kernel, stride, padding, height and width)
STEMS = [
    (96, 7, 2, 0, (128, 128)),
    (64, 7, 2, 3, (64, 61)),
    (32, 3, 2, 1, (65, 50)),
    (64, 11, 4, 2, (63, 70)),
    (48, 4, 4, 0, (64, 63)),
    (16, (3, 5), 2, (1, 2), (30, 31)),
    (16, 2, 3, 0, (20, 21)),
]


@pytest.mark.parametrize(("out", "kernel", "stride", "padding", "size"), STEMS)
def test_a_stem_by_columns_and_rows(out: int, kernel: Any, stride: int, padding: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, out, kernel, stride, padding).requires_grad_(False)
    own = nn.Sequential(nn.Conv2d(3, out, kernel, stride, padding)).requires_grad_(False)
    own[0].load_state_dict(plain.state_dict())
    quicken(own, kernels=True)
    assert isinstance(own[0], StemConv2d) and own[0]._columns is not None

    def both(net: nn.Module, half: bool) -> tuple[Tensor, Tensor]:
        picture = beside(noise(3, 3, *size)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answer = net(picture)
        (back,) = torch.autograd.grad(answer, picture, noise(*answer.shape, seed=1).to(answer.dtype))
        return answer.detach().float(), back

    for half, share in ((False, 1e-5), (True, 2e-2)):
        for found, expected in zip(both(own, half), both(plain, False), strict=True):
            close(found, expected, share)


def test_a_step_of_adam_by_bands() -> None:
    recipe = preset("regularised", {"size": (20, 26)})
    bands, spectrum = Bands(recipe.size, CPU), init(recipe, range(5))
    gradient, moment = noise(*spectrum.shape), noise(*spectrum.shape, seed=1)
    second = noise(5, 1, *spectrum.shape[2:], seed=2).square()
    fineness = noise(*spectrum.shape[2:], seed=3).abs() * 2
    band = bands.band.view(spectrum.shape[2:4]).int()[..., None].expand(fineness.shape).contiguous()
    rate, correction, decay, one, two = 0.2, 0.7, 0.8, 0.3, 0.99

    def ours(part: slice) -> tuple[Tensor, ...]:
        state = [tensor[part].clone() for tensor in (moment, second, spectrum)]
        kernels.update(gradient[part], *state, band, bands.members, fineness, (rate, correction, decay), (one, two))
        return tuple(state)

    moments = moment.lerp(gradient, 1 - one)
    seconds = second.lerp(bands.mean_square(gradient), 1 - two)
    stepped = spectrum - rate * moments / (seconds.sqrt() / correction + 1e-8)
    expected = moments, seconds, stepped * (1 - decay * fineness).clamp(min=0)
    for found, wanted in zip(ours(slice(5)), expected, strict=True):
        close(found, wanted)
    alone_as_together(ours)


RECIPES = [
    preset("regularised", {"steps": 6, "size": (24, 30), "redirect": 2}),
    preset("regularised", {"steps": 6, "size": 24, "pad": 3, "coarse": 0.5, "coarse_steps": 3, "images": 2,
                           "diversity": 0.5}),
    preset("post", {"steps": 6, "size": 24}),
    preset("raw", {"steps": 6, "size": 24}),
    preset("draft", {"steps": 6, "size": 24, "blur": (14.0, 2.0)}),
    preset("regularised", {"steps": 6, "size": 24, "objective": "layer", "adapt": "coefficient"}),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_ascent_goes_the_same_way(recipe: Recipe) -> None:
    def trace(rewrites: Rewrites, kind: type[Ascent]) -> Trace:
        with open_network(VisionModel(*networks.toy()), "relu2", recipe, CPU, rewrites) as network:
            found = ascent_of(network, recipe, [1, 5], [7, 8])
            assert type(found) is kind
            return found.run()

    ours, theirs = trace(EXACT, KernelAscent), trace(replace(EXACT, kernels=False), Ascent)
    # A pixel's slope has one sign or the other: where rounding decides, a pixel differs.
    assert (ours.last - theirs.last).abs().mean() < 3e-4 and (ours.last - theirs.last).abs().max() < 1e-2
    torch.testing.assert_close(ours.history, theirs.history, atol=1e-3, rtol=1e-3)
    assert torch.equal(ours.blocked, theirs.blocked)

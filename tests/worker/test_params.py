"""What is optimised can show any picture, starts as Lucid's does, and keeps colours and sizes apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker.params import COLOUR, Bands, Parameterization, Spectrum, coarse_size, init, stream, to_image

SIZES = [(16, 16), (17, 17), (15, 22), (24, 13)]


def planes(recipe: Recipe, parameters: Tensor, sigma: float | None = None) -> Tensor:
    blur = None if sigma is None else torch.full((len(parameters),), sigma)
    return Parameterization(recipe, recipe.size, "cpu").planes(parameters, blur)


def photograph(size: tuple[int, int]) -> Tensor:
    """A bright disc and a dark edge on a sky that fades, with some grain.  [1, 3, H, W] in [0.1, 0.9]."""
    rows, columns = (torch.linspace(-1, 1, n) for n in size)
    sky = 0.5 + 0.2 * rows[:, None] + 0 * columns
    disc = ((rows[:, None] - 0.2) ** 2 + (columns - 0.3) ** 2 < 0.2).float()
    edge = (columns + 0.3 * rows[:, None] < -0.4).float()
    grain = 0.03 * torch.randn(3, *size, generator=stream(0, "grain"))
    colours = torch.tensor([[0.3, 0.1, -0.1], [-0.2, -0.3, 0.1]])
    return (sky + colours[0][:, None, None] * disc + colours[1][:, None, None] * edge + grain).clamp(0.1, 0.9)[None]


@pytest.mark.parametrize("parameterization", ["fourier", "pixel"])
@pytest.mark.parametrize("size", SIZES)
def test_descent_reaches_any_picture_of_any_size(size: tuple[int, int], parameterization: Any) -> None:
    recipe = Recipe(size=size, parameterization=parameterization)
    target = photograph(size)
    parameters = init(recipe, [1]).requires_grad_()
    errors = []
    for step in range(150):
        error = ((to_image(parameters, recipe) - target) ** 2).mean()
        (gradient,) = torch.autograd.grad(error, parameters)
        parameters = (parameters.detach() - 0.5 * 0.95**step * gradient.sign()).requires_grad_()
        errors.append(float(error.detach()))
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("size", SIZES)
def test_every_column_of_the_spectrum_has_a_gradient(size: tuple[int, int]) -> None:
    recipe = Recipe(size=size)
    parameters = init(recipe, [1]).requires_grad_()
    weights = torch.randn(3, *size, generator=stream(0, "weights"))
    (gradient,) = torch.autograd.grad((to_image(parameters, recipe) * weights).sum(), parameters)
    strength = gradient.abs().amax((0, 1, 2, 4))  # per column
    assert gradient.shape == (1, 3, size[0], size[1] // 2 + 1, 2)
    assert (strength > 1e-3 * strength.max()).all(), strength


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_amplitude_falls_with_frequency_by_the_decay(decay: float) -> None:
    recipe = Recipe(size=(24, 32), decay=decay, decorrelate=False)
    shown = planes(recipe, torch.ones(1, 3, 24, 17, 2))
    amplitude = torch.fft.rfft2(shown, norm="ortho").abs()[0, 0]
    frequency = torch.hypot(torch.fft.fftfreq(24)[:, None], torch.fft.rfftfreq(32)[None])
    # The outer columns hold both halves of the spectrum at once; Lucid's scale is 1 / 4f (spatial.py:76-86).
    expected = 2**0.5 / 4 / frequency.clamp(min=1 / 32) ** decay
    torch.testing.assert_close(amplitude[:, 1:-1], expected[:, 1:-1], rtol=1e-4, atol=1e-5)


def test_the_start_is_as_faint_as_lucids() -> None:
    recipe = Recipe(size=128)
    contrast = to_image(init(recipe, range(4)), recipe).std((1, 2, 3))
    assert contrast.median() == pytest.approx(0.0027, rel=0.15)  # as measured of Lucid and Lucent at 128 px


@pytest.mark.parametrize("size", [(32, 48), (33, 45)])
def test_a_coarse_picture_is_the_band_limited_fine_one(size: tuple[int, int]) -> None:
    recipe = Recipe(size=size, init_std=1.0)
    coarse = coarse_size(size, 0.5)
    rows, columns = coarse[0] // 2, coarse[1] // 2
    parameters = torch.zeros(1, 3, size[0], size[1] // 2 + 1, 2)
    drawn = init(recipe, [3])
    for row in range(-rows + 1, rows):  # below the coarse picture's Nyquist frequency
        parameters[:, :, row, :columns] = drawn[:, :, row, :columns]
    small = Parameterization(recipe, coarse, "cpu").planes(parameters)
    assert small.shape[-2:] == coarse
    torch.testing.assert_close(small, at_points(planes(recipe, parameters), coarse), rtol=1e-4, atol=1e-4)


def at_points(image: Tensor, count: tuple[int, int]) -> Tensor:
    """The trigonometric polynomial through the pixels, evaluated at evenly spaced points."""
    height, width = image.shape[-2:]
    spectrum = torch.fft.fft2(image, norm="forward")

    def waves(points: int, length: int) -> Tensor:
        position = torch.arange(points)[:, None] / points
        return torch.exp(2j * torch.pi * position * torch.fft.fftfreq(length, 1 / length))

    return (waves(count[0], height) @ spectrum @ waves(count[1], width).T).real


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (32, 32)), ((33, 100), (16, 50)), ((9, 12), (8, 8))])
def test_coarse_sizes_are_even_and_never_tiny(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert coarse_size(size, 0.5) == expected


@pytest.mark.parametrize("size", [(32, 32), (33, 24)])
def test_the_low_pass_is_a_gaussian_blur(size: tuple[int, int]) -> None:
    sigma, recipe = 2.0, Recipe(size=size, init_std=1.0)
    parameters = init(recipe, [5])
    sharp, soft = planes(recipe, parameters), planes(recipe, parameters, sigma)
    assert soft.std() < sharp.std()
    for axis, length in ((-2, size[0]), (-1, size[1])):
        taps = torch.arange(-12, 13)
        kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
        kernel = kernel / kernel.sum()
        # The Fourier basis is periodic, so the blur wraps around.
        sharp = sum(w * sharp.roll(int(shift) % length, axis) for w, shift in zip(kernel, taps, strict=True))
    torch.testing.assert_close(soft, sharp, rtol=1e-4, atol=1e-5)


def test_what_is_still_cut_at_the_end_is_cut_in_the_picture() -> None:
    recipe = Recipe(size=32, init_std=1.0, cut=(3.0, 1.5))
    parameters = init(recipe, [5])
    expected = torch.sigmoid(planes(recipe, parameters, 1.5))
    torch.testing.assert_close(to_image(parameters, recipe), expected)
    whole = recipe.model_copy(update={"cut": (3.0, 0.0)})
    torch.testing.assert_close(to_image(parameters, whole), torch.sigmoid(planes(whole, parameters)))


@pytest.mark.parametrize("parameterization", ["fourier", "pixel"])
def test_decorrelated_colour_has_the_covariance_of_photographs(parameterization: Any) -> None:
    recipe = Recipe(size=64, parameterization=parameterization, decay=0.0, init_std=1.0)
    colours = planes(recipe, init(recipe, range(4))).permute(1, 0, 2, 3).flatten(1)
    # Photographs vary most in brightness; the products of the rows of Lucid's matrix (color.py:24) by hand.
    expected = torch.tensor([[1.0, 0.914, 0.794], [0.914, 1.0, 0.909], [0.794, 0.909, 1.0]])
    torch.testing.assert_close(torch.corrcoef(colours), expected, rtol=0, atol=0.02)
    assert COLOUR.norm(dim=0).max() == pytest.approx(1.0)
    plain = recipe.model_copy(update={"decorrelate": False})
    apart = torch.corrcoef(planes(plain, init(plain, range(4))).permute(1, 0, 2, 3).flatten(1))
    torch.testing.assert_close(apart, torch.eye(3), rtol=0, atol=0.05)


@pytest.mark.parametrize("parameterization", ["fourier", "pixel"])
def test_a_start_depends_on_its_own_seed_only(parameterization: Any) -> None:
    recipe = Recipe(size=(8, 9), parameterization=parameterization, images=2)
    together = init(recipe, [7, 8, 9])
    assert together.shape[0] == 6
    assert torch.equal(together[2:4], init(recipe, [8]))
    assert torch.equal(together[4:5], init(recipe.model_copy(update={"images": 1}), [9]))
    assert len({start.sum().item() for start in together}) == 6
    torch.manual_seed(0)  # the global stream plays no part
    assert torch.equal(together, init(recipe, [7, 8, 9]))


def test_pixels_are_squashed_and_nothing_else() -> None:
    recipe = Recipe(size=(9, 14), parameterization="pixel", decorrelate=False, init_std=1.0, decay=2.0)
    parameters = init(recipe, [1])
    assert parameters.shape == (1, 3, 9, 14)
    assert torch.equal(to_image(parameters, recipe), torch.sigmoid(parameters))


def test_coarse_pixels_are_means() -> None:
    recipe = Recipe(size=16, parameterization="pixel", decorrelate=False, init_std=1.0)
    parameters = init(recipe, [1])
    small = Parameterization(recipe, (8, 8), "cpu").planes(parameters)
    torch.testing.assert_close(small, parameters.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_rgb_in_single_precision(size: tuple[int, int]) -> None:
    recipe = Recipe(size=size, init_std=3.0)
    image = to_image(init(recipe, [1, 2]), recipe)
    assert image.shape == (2, 3, *size) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (48, 24)])
def test_a_band_is_half_an_octave_whatever_the_shape(size: tuple[int, int]) -> None:
    bands = Bands(size, "cpu")
    frequency = torch.hypot(torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None]).flatten()
    assert (bands.band == 0).nonzero().tolist() == [[0]]  # the mean brightness is by itself
    assert bands.count > 7
    for band in range(1, bands.count):
        own = frequency[bands.band == band]
        assert len(own) == 0 or own.max() < 2**0.5 * own.min() + 1e-6


def test_a_band_shares_the_mean_square_of_its_coefficients() -> None:
    recipe = Recipe(size=(17, 24), init_std=1.0)
    spectrum = init(recipe, [1, 2])
    bands = Bands(recipe.size, "cpu")
    found = bands.mean_square(spectrum)
    assert found.shape == (2, 1, 17, 13, 2)
    assert torch.equal(found[..., 0], found[..., 1])
    square = (spectrum**2).mean((1, 4)).flatten(1)
    for band in bands.band.unique():
        own = bands.band == band
        torch.testing.assert_close(
            found[..., 0].flatten(1)[:, own], square[:, own].mean(1, keepdim=True).expand(-1, own.sum())
        )
    assert torch.equal(bands.mean_square(1024 * spectrum), 2**20 * found)
    torch.testing.assert_close(bands.mean_square(spectrum[1:]), found[1:])


def test_a_decay_takes_the_fourth_power_of_the_frequency_and_never_turns_a_sign() -> None:
    spectrum = Spectrum(Recipe(size=(16, 16)), (16, 16), "cpu")
    kept = spectrum.kept(0.1)[..., 0]  # [16, 9]
    assert kept[0, 0] == 1
    assert kept[0, 4].item() == pytest.approx(0.9)  # 4 cycles in 16 pixels
    assert kept[0, 2].item() == pytest.approx(1 - 0.1 / 16)
    assert kept[2, 0] == kept[0, 2] == kept[-2, 0]
    assert torch.equal(spectrum.kept(0.0), torch.ones(16, 9, 2))
    assert spectrum.kept(50.0).min() == 0


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (5, 2), (8, 1)])
def test_the_way_back_through_the_spectrum_is_exact(size: tuple[int, int]) -> None:
    recipe = Recipe(size=(16, 16), parameterization="fourier")
    spectrum = Spectrum(recipe, (16, 16), "cpu")
    spectrum.size, scale = size, torch.rand(size[0], size[1] // 2 + 1, dtype=torch.float64) + 0.5
    spectrum.scale, spectrum._full = scale, (size[0], size[1] // 2 + 1)
    parameters = torch.randn(2, 3, *scale.shape, 2, dtype=torch.float64, generator=stream(0, "spectrum"))
    assert torch.autograd.gradcheck(lambda p: spectrum.picture(p, None), (parameters.requires_grad_(),))

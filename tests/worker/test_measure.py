"""The numbers beside a picture, by hand or against pictures whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from feature_atlas.spec import Recipe
from feature_atlas_worker import measure
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.render import Target, render
from feature_atlas_worker.rewrite import Rewrites
from tests import networks

SIZE = (32, 40)
OFF = Rewrites(half=False, channels_last=False, fold=False, quicken=False, program=False, kernels=False, winograd=False)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with open_network(VisionModel(*networks.toy()), "conv2", Recipe(size=SIZE), torch.device("cpu")) as opened:
        yield opened


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_bytes_are_rounded_and_come_back() -> None:
    image = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.2, -0.1]).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    pixels = measure.to_bytes(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 2, 3, 3)
    assert pixels[0, ..., 1].tolist() == [[0, 0, 1], [255, 255, 0]]
    every = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, -1)
    assert np.array_equal(measure.to_bytes(measure.from_bytes(every, torch.device("cpu"))), every)


def test_activation_is_the_channels_mean_on_the_clean_picture(network: Network) -> None:
    image, channels = pictures(), torch.tensor([0, 5, 11])
    acts = network(image).detach()
    found = measure.activation(network, image, channels, Recipe(size=SIZE, sign=-1, jitter=(9, 9)))
    torch.testing.assert_close(found, torch.stack([acts[i, c].mean() for i, c in enumerate((0, 5, 11))]))


def test_robust_activation_sees_moved_and_blurred_pictures(network: Network) -> None:
    recipe, channels = Recipe(size=SIZE), torch.tensor([0, 5, 11])
    image = pictures()
    found = measure.robust(network, image, channels, recipe, 8)
    assert found.shape == (3, 8)
    assert torch.equal(found, measure.robust(network, image, channels, recipe, 8))  # held out and fixed
    torch.testing.assert_close(found[:, :3], measure.robust(network, image, channels, recipe, 3))
    assert (found.std(1) > 1e-4).all()
    clean = measure.activation(network, image, channels, recipe)
    assert ((found - clean[:, None]).abs() > 1e-4).all()
    plain = torch.full((3, 3, *SIZE), recipe.fill)  # a view of a grey picture on grey is the same picture
    torch.testing.assert_close(
        measure.robust(network, plain, channels, recipe, 8),
        measure.activation(network, plain, channels, recipe)[:, None].expand(-1, 8),
    )


@pytest.mark.parametrize("layer", ["conv2", "relu2"])
@pytest.mark.parametrize("change", [{}, {"objective": "neuron"}, {"objective": "layer"}])
def test_a_network_as_it_came_gives_the_same_numbers(layer: str, change: dict[str, Any]) -> None:
    """The shorter way to a channel, by kernels of our own, leads to the same place; bf16 only near it."""
    recipe, channels, image = Recipe(size=SIZE, **change), torch.tensor([0, 5, 11]), pictures()
    with open_network(VisionModel(*networks.toy()), layer, recipe, torch.device("cpu"), OFF) as plain:
        expected = measure.activation(plain, image, channels, recipe), measure.robust(plain, image, channels, recipe, 3)
    with open_network(VisionModel(*networks.toy()), layer, recipe, torch.device("cpu")) as fast:
        for exact in (True, False):
            measured = (
                measure.activation(fast, image, channels, recipe, exact=exact),
                measure.robust(fast, image, channels, recipe, 3, exact=exact),
            )
            for found, wanted in zip(measured, expected, strict=True):
                torch.testing.assert_close(
                    found, wanted, rtol=0, atol=float(wanted.abs().max()) * (1e-5 if exact else 2e-2)
                )
        assert plain.facts.program is None and fast.facts.program is not None


@pytest.mark.parametrize("change", [{}, {"objective": "neuron"}, {"objective": "neuron", "position": (1, 3)}])
def test_noise_statistics_are_those_of_each_channel(network: Network, change: dict[str, Any]) -> None:
    recipe = Recipe(size=SIZE, **change)
    mean, std = measure.noise(network, recipe)
    assert mean.shape == std.shape == (12,)
    image = measure._noise_pictures(recipe, 0, measure.NOISES, torch.device("cpu"))
    for channel in (0, 7, 11):
        seen = measure.activation(network, image, torch.full((measure.NOISES,), channel), recipe)
        assert mean[channel] == pytest.approx(float(seen.mean()), abs=1e-5)
        assert std[channel] == pytest.approx(float(seen.std()), abs=1e-5)


def test_noise_of_a_layer_is_one_number(network: Network) -> None:
    recipe = Recipe(size=SIZE, objective="layer")
    mean, std = measure.noise(network, recipe)
    assert len(set(mean.tolist())) == len(set(std.tolist())) == 1 and mean[0] > 0


def test_noise_is_the_same_to_the_last_digit_whatever_the_batch() -> None:
    def measured(batch: int) -> tuple[float, float]:
        model = VisionModel(*networks.toy())  # a new network: what is measured once is kept
        (one,) = render(model, [Target("conv2", 3)], Recipe(size=SIZE, steps=1), batch=batch)
        assert one.activation is not None
        return one.activation.noise_mean, one.activation.noise_std

    assert measured(1) == measured(3) == measured(8)


def test_noise_is_measured_in_halves_where_memory_is_short(network: Network) -> None:
    shown: list[int] = []

    class Short:
        module, layer, device = nn.Identity(), network.layer, network.device

        def __call__(self, picture: torch.Tensor) -> torch.Tensor:
            shown.append(len(picture))
            if len(picture) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(picture)

    recipe = Recipe(size=SIZE)
    torch.testing.assert_close(measure.noise(Short(), recipe), measure.noise(network, recipe))  # type: ignore[arg-type]
    assert shown == [8, 4, 4] * 4


def test_noise_of_many_neurons_takes_no_more_room_than_their_maps() -> None:
    """One copy of the maps per channel would be 100 GB."""
    model = VisionModel(nn.Sequential(nn.Conv2d(3, 5_000, 1)), networks.MEAN, networks.STD, (8, 8))
    recipe = Recipe(size=(8, 8), objective="neuron")
    with open_network(model, "0", recipe, torch.device("cpu")) as network:
        mean, _ = measure.noise(network, recipe)
    assert mean.shape == (5_000,) and mean.isfinite().all()


def test_noise_looks_natural() -> None:
    image = measure._noise_pictures(Recipe(size=(64, 64)), 0, 16, torch.device("cpu"))
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    power = (torch.fft.rfft2(image - image.mean((2, 3), keepdim=True)).abs() ** 2).mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None])
    inner = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(frequency[inner].log(), power[inner].log(), 1)[0]
    assert slope == pytest.approx(-2.6, abs=0.35)  # amplitude 1 / f**1.3, a little flattened by the squash


@pytest.mark.parametrize(("frequency", "share"), [(0.05, 0.0), (0.2, 0.0), (0.3, 1.0), (0.45, 1.0)])
def test_high_frequency_of_a_grating(frequency: float, share: float) -> None:
    grating = 255 * networks.grating(0, frequency, 40)[..., None].repeat(3, -1)
    assert measure.high_frequency(grating) == pytest.approx(share, abs=0.01)


def test_high_frequency_of_white_noise_and_of_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    assert measure.high_frequency(noise) == pytest.approx(1 - np.pi / 16 / 1, abs=0.02)
    assert measure.high_frequency(np.full((8, 8, 3), 7)) == 0


def test_a_description_says_what_is_there() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:2] = (255, 128, 0)
    found = measure.describe(pixels)
    assert (found.width, found.height) == (8, 4)
    assert found.mean_rgb == (127.5, 64.0, 0.0)
    assert found.hue == pytest.approx(30, abs=0.2) and found.saturation == 1
    luminance = 0.2126 + 0.7152 * 128 / 255
    assert found.contrast == pytest.approx(luminance / 2, abs=1e-3)
    assert found.clipped == pytest.approx(5 / 6, abs=1e-4)
    grey = measure.describe(np.full((4, 4, 3), 128, np.uint8))
    assert (grey.contrast, grey.saturation, grey.clipped, grey.high_frequency) == (0, 0, 0, 0)


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (5, 5), (64, 64), (65, 64), (1000, 64)])
def test_a_curve_keeps_its_ends_and_at_most_64_points(steps: int, points: int) -> None:
    history = torch.arange(steps)[:, None] + torch.tensor([0.0, 0.25, 0.5, 0.75])
    found = measure.curve(history)
    assert len(found.steps) == len(found.loss) == len(found.mean) == len(found.max) == len(found.min) == points
    assert found.steps[0] == 0 and found.steps[-1] == steps - 1
    assert list(found.loss) == [float(step) for step in found.steps]
    assert found.min[-1] == pytest.approx(steps - 1 + 0.75, rel=1e-5)


def test_curves_carry_six_digits() -> None:
    found = measure.curve(torch.tensor([[1.23456789, 1e-30, 12345678.0, float("inf")]]))
    assert (found.loss, found.mean, found.max, found.min) == ((1.23457,), (1e-30,), (12345700.0,), (0.0,))

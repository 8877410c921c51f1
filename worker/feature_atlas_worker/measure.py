"""The numbers that make a picture trustworthy: measured on the finished 8-bit picture, never on a training draw."""

from __future__ import annotations

import colorsys
import math
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_atlas.manifest import Curve, Picture
from feature_atlas.spec import Recipe
from feature_atlas_worker import kernels, objectives, transforms
from feature_atlas_worker.network import Network
from feature_atlas_worker.params import Parameterization, stream
from feature_atlas_worker.shortage import is_shortage

#: Held-out views per picture behind ``activation.robust``.
VIEWS = 8
#: Noise pictures behind ``activation.normalized``.
NOISES = 32
#: How many of them the network sees at once, whatever the batch: sums of another shape have other last digits.
_AT_ONCE = 8
#: Fewest views with which a checkpoint is judged.
JUDGES = 3

_noise_cache: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()


def to_bytes(image: Tensor) -> NDArray[np.uint8]:
    """8-bit pictures, rounded.  [B, 3, H, W] in [0, 1] -> [B, H, W, 3]."""
    pixels: NDArray[np.uint8] = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def from_bytes(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """The inverse of :func:`to_bytes`."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def activation(network: Network, image: Tensor, channels: Tensor, recipe: Recipe, *, exact: bool = True) -> Tensor:
    """The objective's value on clean pictures.  [B, 3, H, W] -> [B].

    Not ``exact``: as the network climbs, on a CPU perhaps in bf16.
    """
    own = channels if objectives.looks_at_one_channel(recipe) else None
    activations = network(image, climbing=not exact, own=own)
    chosen = objectives.values(activations, channels if own is None else torch.zeros_like(own), recipe)
    return objectives.measure(chosen, recipe)


@torch.no_grad()
def robust(
    network: Network, image: Tensor, channels: Tensor, recipe: Recipe, count: int, *, exact: bool = True
) -> Tensor:
    """As :func:`activation`, over ``count`` fixed held-out views.  [B, 3, H, W] -> [B, count]."""
    views = transforms.held_out(recipe, count)
    seen = []
    for theta, sigma in zip(views.theta, views.blur, strict=True):
        every = theta.to(image.device).expand(len(image), 2, 3), sigma.to(image.device).expand(len(image))
        view = _view(network, image, *every, recipe, float(sigma))
        seen.append(activation(network, view, channels, recipe, exact=exact))
    return torch.stack(seen, 1)


def _view(network: Network, image: Tensor, theta: Tensor, sigma: Tensor, recipe: Recipe, most: float) -> Tensor:
    if network.rewrites.kernels and kernels.suits(image):
        return kernels.view(image, theta, sigma, recipe.size, recipe.fill, most)
    return transforms.blur(transforms.affine(image, theta, recipe.size, recipe.fill), sigma, most)


@torch.no_grad()
def noise(network: Network, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) per channel of the objective over seeded 1/f**1.3 noise.  -> [C], [C] on the CPU.

    Kept per network: one pass serves every channel of a layer.
    """
    kept = _noise_cache.setdefault(network.module, {})
    key = (network.layer, recipe.size, recipe.network_size, recipe.objective, recipe.position, recipe.decorrelate)
    if key not in kept:
        values = torch.cat([_answers(network, recipe, start, _AT_ONCE) for start in range(0, NOISES, _AT_ONCE)])
        kept[key] = (values.mean(0), values.std(0))
    return kept[key]


def _answers(network: Network, recipe: Recipe, start: int, count: int) -> Tensor:
    """What every channel says to some noise pictures; where memory is short, in halves.  -> [count, C] on the CPU."""
    try:
        acts = network(_noise_pictures(recipe, start, count, network.device))
        if recipe.objective == "layer":
            return (acts**2).flatten(1).mean(1, keepdim=True).expand(-1, acts.shape[1]).cpu()
        if recipe.objective == "neuron":
            row, column = objectives.place(acts.shape[2], acts.shape[3], recipe)
            return acts[:, :, row, column].cpu()
        return acts.flatten(2).mean(2).cpu()
    except Exception as error:
        if count == 1 or not is_shortage(error):
            raise
    half = count // 2  # out here, where the error no longer holds what did not fit
    return torch.cat((_answers(network, recipe, start, half), _answers(network, recipe, start + half, count - half)))


def _noise_pictures(recipe: Recipe, start: int, count: int, device: torch.device) -> Tensor:
    """Natural-looking noise: amplitude 1 / f**1.3, unit variance before the squash.  -> [count, 3, H, W]."""
    basis = Recipe(size=recipe.size, decay=1.3, decorrelate=recipe.decorrelate)
    height, width = recipe.size
    planes = torch.stack(
        [torch.randn(3, height, width // 2 + 1, 2, generator=stream(n, "noise")) for n in range(start, start + count)]
    ).to(device)
    logits = Parameterization(basis, recipe.size, device).planes(planes)
    logits = logits - logits.mean((1, 2, 3), keepdim=True)
    return torch.sigmoid(logits / logits.std((1, 2, 3), keepdim=True).clamp(min=1e-9))


def high_frequency(pixels: NDArray[Any]) -> float:
    """Share of spectral energy above 0.25 cycles per pixel, the mean left out.  [H, W, 3] -> [0, 1]."""
    planes = pixels.astype(np.float64).transpose(2, 0, 1)
    energy = (np.abs(np.fft.fft2(planes - planes.mean((1, 2), keepdims=True))) ** 2).sum(0)
    rows, columns = np.meshgrid(*(np.fft.fftfreq(n) for n in energy.shape), indexing="ij")
    total = energy.sum()
    return float(energy[np.hypot(rows, columns) > 0.25].sum() / total) if total else 0.0


def describe(pixels: NDArray[np.uint8]) -> Picture:
    """What an 8-bit picture is like.  [H, W, 3]."""
    height, width = pixels.shape[:2]
    mean = pixels.reshape(-1, 3).mean(0)
    hue, saturation, _ = colorsys.rgb_to_hsv(*(mean / 255))
    luminance = pixels @ np.array([0.2126, 0.7152, 0.0722]) / 255
    return Picture(
        width=width,
        height=height,
        mean_rgb=(round(float(mean[0]), 2), round(float(mean[1]), 2), round(float(mean[2]), 2)),
        hue=round(hue * 360, 1),
        saturation=round(saturation, 4),
        contrast=round(float(luminance.std()), 4),
        high_frequency=round(high_frequency(pixels), 5),
        clipped=round(float(((pixels < 2) | (pixels > 253)).mean()), 5),
    )


def curve(history: Tensor, most: int = 64) -> Curve:
    """A thinned curve, first and last step included.  [steps, 4] of loss, mean, max, min."""
    steps = len(history)
    count = min(steps, most)
    at = sorted({round(i * (steps - 1) / max(1, count - 1)) for i in range(count)})
    columns = [tuple(_significant(v) for v in history[at, i].tolist()) for i in range(4)]
    return Curve(steps=tuple(at), loss=columns[0], mean=columns[1], max=columns[2], min=columns[3])


def _significant(value: float, digits: int = 6) -> float:
    if not math.isfinite(value):
        return 0.0
    return float(f"{value:.{digits}g}")

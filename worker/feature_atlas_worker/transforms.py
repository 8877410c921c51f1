"""What the picture must be robust to: a schedule drawn before the loop, applied as one resampling.

Pad, jitter, scale, rotate and jitter again compose into one affine map per image and step, one bilinear
``grid_sample``, grey outside.  Peers chain several lossy resamplings and share one draw over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker.params import stream

#: As many pixels to each side a blur adds up shifted images; above, the products are faster.
_FEW_SHIFTS = 12


@dataclass(frozen=True)
class Schedule:
    """Every random number of the loop, as data."""

    #: Maps output to input coordinates, both in [-1, 1] (``affine_grid``).  [steps, B, 2, 3]
    theta: Tensor
    #: Blur of what the network sees, sigma in full-resolution pixels.  [steps, B]
    blur: Tensor
    #: Low-pass of the spectrum, coarse to fine, sigma in full-resolution pixels.  [steps]
    cut: Tensor


def matrices(
    size: tuple[int, int], out: tuple[int, int], jitter: Tensor, scale: Tensor, degrees: Tensor, again: Tensor
) -> Tensor:
    """Affine maps for ``affine_grid`` out of pixel shifts [..., 2] (x, y), factors [...] and degrees [...].

    A point moves by ``jitter``, then scales and rotates about the centre, then moves by ``again``.  -> [..., 2, 3]
    """
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # Inverse of rotate-and-scale: output to input, in pixels from the centre, rows running down.
    linear = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)  # [..., 2, 2]
    shift = -(linear @ again[..., None])[..., 0] - jitter
    half_in = torch.tensor([size[1] / 2, size[0] / 2])
    half_out = torch.tensor([out[1] / 2, out[0] / 2])
    linear = linear * half_out / half_in[:, None]
    return torch.cat((linear, (shift / half_in)[..., None]), -1)


def _pick(values: Sequence[float], draw: str, uniform: Tensor) -> Tensor:
    if draw == "choice":
        table = torch.tensor(values, dtype=uniform.dtype)
        return table[(uniform * len(values)).long().clamp(max=len(values) - 1)]
    low, high = min(values), max(values)
    return low + (high - low) * uniform


def schedule(recipe: Recipe, seeds: Sequence[int]) -> Schedule:
    """The whole transform schedule; each image's part depends on its own seed only.  On the CPU."""
    steps, size = recipe.steps, recipe.size
    uniform = torch.stack(
        [torch.rand(steps, 7, generator=stream(seed, "views", n)) for seed in seeds for n in range(recipe.images)], 1
    )  # [steps, B, 7]
    t = torch.linspace(0.0, 1.0, steps)[:, None] if steps > 1 else torch.zeros(1, 1)
    strength = recipe.transform_ramp[0] + (recipe.transform_ramp[1] - recipe.transform_ramp[0]) * t  # [steps, 1]
    jitter, again = (2 * uniform[..., i : i + 2] - 1 for i in (0, 2))
    scale = 1 + (_pick(recipe.scale, recipe.draw, uniform[..., 4]) - 1) * strength
    degrees = _pick(recipe.rotate, recipe.draw, uniform[..., 5]) * strength
    theta = matrices(
        size, (size[0] + 2 * recipe.pad, size[1] + 2 * recipe.pad),
        jitter * recipe.jitter[0] * strength[..., None], scale, degrees, again * recipe.jitter[1] * strength[..., None],
    )  # fmt: skip
    annealed = recipe.blur[0] + (recipe.blur[1] - recipe.blur[0]) * t  # [steps, 1]
    drawn = recipe.blur_random[0] + (recipe.blur_random[1] - recipe.blur_random[0]) * uniform[..., 6]
    cut = (recipe.cut[0] + (recipe.cut[1] - recipe.cut[0]) * t)[:, 0]
    return Schedule(theta, (annealed**2 + drawn**2).sqrt(), cut)


def held_out(recipe: Recipe, count: int) -> Schedule:
    """Fixed views that no optimisation sees: shift 16/128 of the size, 10 degrees, scale 0.9 to 1.1, blur 1 px."""
    uniform = torch.rand(count, 4, generator=stream(0, "held-out"))
    reach = torch.tensor([recipe.size[1], recipe.size[0]]) / 8.0
    theta = matrices(
        recipe.size, recipe.size, (2 * uniform[:, :2] - 1) * reach, 0.9 + 0.2 * uniform[:, 2],
        20 * uniform[:, 3] - 10, torch.zeros(count, 2),
    )  # fmt: skip
    return Schedule(theta[:, None], torch.ones(count, 1), torch.zeros(count))


def affine(image: Tensor, theta: Tensor, out: tuple[int, int], fill: float) -> Tensor:
    """One bilinear resampling; ``fill`` outside.  [B, 3, h, w], [B, 2, 3] -> [B, 3, *out]."""
    grid = sampling_grid(theta, out)
    # Zero outside is exact for the shifted picture, whatever the fill.
    return F.grid_sample(image - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def sampling_grid(theta: Tensor, out: tuple[int, int]) -> Tensor:
    """``affine_grid`` without its matrix product, in a third of its time and less.  [B, 2, 3] -> [B, *out, 2]."""
    rows, columns = (
        (2 * torch.arange(side, device=theta.device, dtype=theta.dtype) + (1 - side)) / side for side in out
    )
    across = theta[:, :, :1] * columns  # [B, 2, w]
    down = torch.addcmul(theta[:, :, 2:], theta[:, :, 1:2], rows)  # [B, 2, h]
    grid = theta.new_empty(len(theta), *out, 2)
    for axis in range(2):
        torch.add(down[:, axis, :, None], across[:, axis, None, :], out=grid[..., axis])
    return grid


def most_blur(recipe: Recipe) -> float:
    """The greatest sigma of :class:`Schedule`'s blur, in full-resolution pixels."""
    return math.hypot(max(recipe.blur), max(recipe.blur_random))


def blur(image: Tensor, sigma: Tensor, most: float = math.inf) -> Tensor:
    """Gaussian blur of each image by its own sigma in pixels; 0 leaves it alone.  [B, 3, h, w], [B].

    Batched, differentiable, deterministic.  Weights are normalised, so the border keeps its brightness.  No sigma is
    above ``most``: where a CPU knows that to be little, it adds up shifted images, cut off at 4.5 sigma; everywhere
    else two products with banded matrices do it, and any sigma costs the same.
    """
    height, width = image.shape[-2:]
    reach = math.ceil(4.5 * most) if math.isfinite(most) else height
    if image.device.type == "cpu" and 0 < reach <= min(_FEW_SHIFTS, height - 1, width - 1):
        blurred: Tensor = _Shifted.apply(image, sigma, reach)
        return blurred
    rows = _bands(height, sigma)
    columns = rows if width == height else _bands(width, sigma)
    return rows @ image @ columns.transpose(-1, -2)


def _bands(length: int, sigma: Tensor) -> Tensor:
    position = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    weight = _gaussian(position[:, None] - position[None, :], sigma[:, None, None])
    return (weight / weight.sum(-1, keepdim=True))[:, None]  # [B, 1, length, length]


def _gaussian(distance: Tensor, sigma: Tensor) -> Tensor:
    return torch.exp(-0.5 * (distance / sigma.clamp(min=1e-2)) ** 2)


class _Shifted(torch.autograd.Function):
    """The blur as a sum of shifted images: 2 * reach + 1 along each axis.  A third of the matrices' time."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, sigma: Tensor, reach: int) -> Tensor:
        half = _gaussian(torch.arange(reach + 1.0, dtype=sigma.dtype), sigma[:, None])  # [B, reach + 1]
        inside = {length: _inside(half, length) for length in dict.fromkeys(image.shape[-2:])}
        ctx.half, ctx.shares = half, [inside[length] for length in image.shape[-2:]]
        for axis, share in zip((2, 3), ctx.shares, strict=True):
            image = _along(image, half, axis).div_(_lie(share, axis))
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gradient = grads[0]
        for axis, share in reversed(list(zip((2, 3), ctx.shares, strict=True))):
            gradient = _along(gradient / _lie(share, axis), ctx.half, axis)
        return gradient, None, None


def _along(image: Tensor, half: Tensor, axis: int) -> Tensor:
    """Sum of the image shifted both ways along an axis.  [B, 3, h, w], [B, reach + 1] -> [B, 3, h, w]."""
    weights = half[:, :, None, None, None]
    out, length = image * weights[:, 0], image.shape[axis]
    for by in range(1, half.shape[1]):
        out.narrow(axis, 0, length - by).addcmul_(image.narrow(axis, by, length - by), weights[:, by])
        out.narrow(axis, by, length - by).addcmul_(image.narrow(axis, 0, length - by), weights[:, by])
    return out


def _inside(half: Tensor, length: int) -> Tensor:
    """What the weights that do not fall over the border add up to, at each place.  [B, reach + 1] -> [B, length]."""
    reach = torch.cat((torch.zeros_like(half[:, :1]), half[:, 1:].cumsum(1)), 1)  # one way, so far
    place = torch.arange(length).clamp(max=half.shape[1] - 1)
    return half[:, :1] + reach[:, place] + reach[:, place.flip(0)]


def _lie(share: Tensor, axis: int) -> Tensor:
    return share[:, None, :, None] if axis == 2 else share[:, None, None, :]


def padded(size: tuple[int, int], pad: int, share: float = 1.0) -> tuple[int, int]:
    """(height, width) that the network sees of a picture with a grey border."""
    extra = 2 * math.ceil(pad * share)
    return size[0] + extra, size[1] + extra

"""What is optimised: ``(parameters) -> picture``, in a Fourier or pixel basis with decorrelated colour.

After Olah, Mordvintsev & Schubert 2017 and lucid/optvis/param; all in fp32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feature_atlas.spec import Recipe

#: Square root of the colour covariance of ImageNet, scaled to unit greatest row norm (lucid/optvis/param/color.py:24).
_COLOUR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOUR = _COLOUR / _COLOUR.norm(dim=0).max()


def stream(seed: int, *labels: object) -> torch.Generator:
    """A CPU random stream that depends on the seed and the labels alone."""
    text = "\0".join(("feature-atlas/stream/1", str(seed), *map(str, labels)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def init(recipe: Recipe, seeds: Sequence[int]) -> Tensor:
    """Start parameters, image by image from its own seed.

    ``recipe.images`` consecutive images per seed: [B, 3, H, W//2+1, 2] (fourier) or [B, 3, H, W] (pixel), CPU.
    """
    height, width = recipe.size
    shape = (3, height, width // 2 + 1, 2) if recipe.parameterization == "fourier" else (3, height, width)
    drawn = [
        torch.randn(shape, generator=stream(seed, "start", n)) * recipe.init_std
        for seed in seeds
        for n in range(recipe.images)
    ]
    return torch.stack(drawn)


def coarse_size(size: tuple[int, int], share: float) -> tuple[int, int]:
    """(height, width) at a share of the resolution, at least 8 px, even."""
    height, width = (max(8, 2 * round(side * share / 2)) for side in size)
    return height, width


class Bands:
    """Means over half-octave bands of frequency: what all coefficients of a band share."""

    def __init__(self, size: tuple[int, int], device: torch.device | str) -> None:
        height, width = size
        side = max(size)
        rows, columns = torch.fft.fftfreq(height, 1 / side), torch.fft.rfftfreq(width, 1 / side)
        cycles = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt()  # per longer side, [H, W//2+1]
        band = (2 * torch.log2(cycles.clamp(min=0.7)) + 1).round().long()
        self.band = band.flatten().to(device)
        self.count = int(band.max()) + 1
        self.member = torch.nn.functional.one_hot(self.band, self.count).float().T.contiguous()  # [bands, H * (W//2+1)]
        self._both = self.band.repeat_interleave(2)  # of real and imaginary parts
        # 3 colours, real and imaginary part
        self.members = 6.0 * self.member.sum(1).clamp(min=1)

    def mean_square(self, spectrum: Tensor) -> Tensor:
        """[B, 3, H, W//2+1, 2] -> [B, 1, H, W//2+1, 2], constant within a band."""
        square = spectrum**2
        # Term by term: a reduction over the first and the last axis takes twenty times longer.
        energy = square[:, 0] + square[:, 1] + square[:, 2]
        energy = (energy[..., 0] + energy[..., 1]).flatten(1)
        # A product with a one-hot matrix, not scattered adds: a GPU sums it in the same order every time; and image
        # by image, so that the batch's shape does not matter.
        if energy.device.type == "cpu":  # where the batched product is slow
            sums = torch.stack([torch.mv(self.member, image) for image in energy])  # [B, bands]
        else:
            sums = (self.member.expand(len(energy), -1, -1) @ energy[:, :, None])[:, :, 0]
        return (sums / self.members)[:, self._both].view(len(energy), 1, *spectrum.shape[2:])


class Spectrum:
    """Turns Fourier parameters into pictures of one resolution; holds its constants on the device."""

    def __init__(self, recipe: Recipe, size: tuple[int, int], device: torch.device | str) -> None:
        full_height, full_width = recipe.size
        self.size = height, width = size
        # Cycles per full-resolution pixel: a coarse picture is the band-limited fine one.
        self.rows = torch.fft.fftfreq(height, full_height / height, device=device)  # [H]
        self.columns = torch.fft.rfftfreq(width, full_width / width, device=device)  # [W//2+1]
        frequency = (self.rows[:, None] ** 2 + self.columns[None, :] ** 2).sqrt()
        floor = 1.0 / max(full_height, full_width)
        # A unitary transform keeps steps in pixels and in frequencies comparable (lucid spatial.py:73); a coarse
        # one is shorter and needs its amplitude back.  /4 keeps the sigmoid out of saturation (spatial.py:86).
        shorter = math.sqrt(height * width / (full_height * full_width))
        self.scale = shorter / (4.0 * frequency.clamp(min=floor) ** recipe.decay)
        self.square_frequency = frequency**2
        #: 1 at a quarter cycle per pixel, [h, w//2+1, 2]; written out for both parts of a number: a product that
        #: repeats them takes eight times longer.
        self.fineness = ((16.0 * self.square_frequency) ** 2)[..., None].repeat(1, 1, 2)
        self._full = (full_height, full_width // 2 + 1)

    def block(self, spectrum: Tensor) -> Tensor:
        """The part of a full spectrum that this resolution can show.  [B, 3, H', W', 2] -> [B, 3, h, w//2+1, 2]."""
        height, width = self.size
        if (height, width // 2 + 1) == self._full:
            return spectrum
        top = (height + 1) // 2
        columns = spectrum[..., : width // 2 + 1, :]
        return torch.cat((columns[:, :, :top], columns[:, :, self._full[0] - (height - top) :]), dim=2)

    def low_pass(self, sigma: Tensor) -> Tensor:
        """Transfer function of a Gaussian blur of ``sigma`` full-resolution pixels.  [B] -> [B, 1, h, w//2+1].

        One sigma does for any number of images.
        """
        return torch.exp(-2.0 * (math.pi * sigma[:, None, None, None]) ** 2 * self.square_frequency)

    def kept(self, decay: float | Tensor) -> Tensor:
        """Share of each coefficient left by a decay of ``decay`` at a quarter cycle per pixel.  -> [h, w//2+1, 2].

        It grows with the fourth power of the frequency: half an octave below, a quarter is left of it.
        """
        return (1.0 - decay * self.fineness).clamp(min=0.0)

    def picture(self, parameters: Tensor, sigma: Tensor | None) -> Tensor:
        """Decorrelated colour planes before the squash.  [B, 3, H, W//2+1, 2], [B] or [1] -> [B, 3, h, w]."""
        scale = self.scale if sigma is None else self.scale * self.low_pass(sigma)
        planes: Tensor = _Inverse.apply(self.block(parameters).contiguous(), scale, self.size)
        return planes


class _Inverse(torch.autograd.Function):
    """A scaled spectrum's inverse Fourier transform; the way back is a transform and one product."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, scale: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, 3, h, w//2+1, 2], [.., h, w//2+1] -> [B, 3, h, w]."""
        ctx.scale = scale
        return torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=size, norm="ortho")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.fft.rfft2(grads[0], norm="ortho")
        # A column stands for its mirror image as well, but for the first and, where there is a middle, the last.
        twice = torch.full((gradient.shape[-1],), 2.0, device=gradient.device)
        twice[0] = 1.0
        if grads[0].shape[-1] % 2 == 0:
            twice[-1] = 1.0
        return torch.view_as_real(gradient.mul_(ctx.scale * twice)), None, None


class Parameterization:
    """``(parameters, sigma) -> picture`` for one recipe and resolution."""

    def __init__(self, recipe: Recipe, size: tuple[int, int], device: torch.device | str) -> None:
        self.size = size
        self.spectrum = Spectrum(recipe, size, device) if recipe.parameterization == "fourier" else None
        self.full = recipe.size
        self.colour = COLOUR.to(device) if recipe.decorrelate else None

    def uncoloured(self, parameters: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Decorrelated colour planes before the squash.  [B, 3, ...] -> [B, 3, h, w]."""
        if self.spectrum is not None:
            return self.spectrum.picture(parameters, sigma)
        if self.size != self.full:
            return torch.nn.functional.interpolate(parameters, self.size, mode="area")
        return parameters

    def coloured(self, planes: Tensor) -> Tensor:
        """Red, green and blue out of decorrelated colours.  [B, 3, h, w]"""
        return planes if self.colour is None else torch.einsum("ij,bjhw->bihw", self.colour, planes)

    def planes(self, parameters: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Red, green and blue before the squash.  [B, 3, ...] -> [B, 3, h, w]."""
        return self.coloured(self.uncoloured(parameters, sigma))

    def __call__(self, parameters: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The picture, RGB in [0, 1].  [B, 3, ...] -> [B, 3, h, w].

        ``sigma`` [B] or [1] low-passes the spectrum, in full-resolution pixels; it is ignored for pixels.
        """
        return torch.sigmoid(self.planes(parameters, sigma))


def to_image(parameters: Tensor, recipe: Recipe) -> Tensor:
    """The finished picture, RGB in [0, 1].  [B, 3, ...] -> [B, 3, H, W]."""
    sigma = torch.full((1,), recipe.cut[1], device=parameters.device) if recipe.cut[1] else None
    return Parameterization(recipe, recipe.size, parameters.device)(parameters, sigma)

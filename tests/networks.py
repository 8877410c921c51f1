"""Small networks whose answers are known beforehand.

Each factory returns (module, mean, std, input size) as ``python:tests.networks:NAME`` models do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RGB = tuple[float, float, float]
Made = tuple[nn.Module, RGB, RGB, tuple[int, int]]

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
#: The channel of :func:`dead` that nothing can wake.
DEAD = 3


class GaborBank(nn.Module):
    """Grey Gabor filters without a mean: channel k answers best to the grating ``tuning[k]``.

    A tuning is (orientation, frequency): the direction in which brightness varies, in degrees counter-clockwise from
    the horizontal within [0, 180), and cycles per pixel.  Channels run through the frequencies of the first
    orientation, then of the second, and so on.

    Look for gratings in ``relu`` (channel), or for the filter itself in ``conv`` (neuron).  The mean of the linear
    ``conv`` over space is no objective: each filter sums to zero, so the mean of any picture's response is zero.
    """

    def __init__(self, orientations: Sequence[float], frequencies: Sequence[float], size: int) -> None:
        super().__init__()
        self.tuning = tuple((o, f) for o in orientations for f in frequencies)
        kernels = torch.stack([gabor(orientation, frequency, size) for orientation, frequency in self.tuning])
        self.conv = nn.Conv2d(3, len(self.tuning), size, bias=False)
        self.conv.weight = nn.Parameter(kernels[:, None].expand(-1, 3, -1, -1) / 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Rectified responses.  [B, 3, H, W] -> [B, K, H - size + 1, W - size + 1]."""
        return self.relu(self.conv(x))


def gabor(orientation: float, frequency: float, size: int) -> Tensor:
    """A cosine under a Gaussian window, zero mean, unit norm.  [size, size]; rows run downwards."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    angle = np.radians(orientation)
    along = axis[None] * np.cos(angle) - axis[:, None] * np.sin(angle)  # y upwards
    window = torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * (size / 5) ** 2))
    kernel = window * torch.cos(2 * np.pi * frequency * along)
    kernel -= window * kernel.sum() / window.sum()
    return (kernel / kernel.norm()).float()


def dominant(image: NDArray[np.generic]) -> tuple[float, float]:
    """(orientation in degrees within [0, 180), cycles per pixel) of the strongest grating in a picture.

    ``image`` is [H, W] or [H, W, 3] of any scale.  The spectrum's peak, refined to the centroid of its surroundings.
    """
    grey = np.asarray(image, np.float64)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    height, width = grey.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    mean = (grey * window).sum() / window.sum()
    padded = (4 * height, 4 * width)
    power = np.abs(np.fft.fft2((grey - mean) * window, padded)) ** 2
    down = np.fft.fftfreq(padded[0])[:, None] + 0 * power
    right = np.fft.fftfreq(padded[1])[None] + 0 * power
    row, column = np.unravel_index(power.argmax(), power.shape)
    around = np.hypot(down - down[row, column], right - right[row, column]) < 2 / min(height, width)
    weight = power * around
    fx, fy = (weight * right).sum() / weight.sum(), -(weight * down).sum() / weight.sum()
    return float(np.degrees(np.arctan2(fy, fx)) % 180), float(np.hypot(fx, fy))


def grating(orientation: float, frequency: float, size: int, phase: float = 0.0) -> NDArray[np.float64]:
    """A sine grating [size, size] in [0, 1]."""
    axis = np.arange(size)
    angle = np.radians(orientation)
    along = axis[None] * np.cos(angle) - axis[:, None] * np.sin(angle)
    return 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + phase)


class Layout(nn.Module):
    """Rearranges axes, so that a layer's output has another layout than NCHW."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """The rearranged tensor."""
        return self.change(x)


class Hungry(nn.Module):
    """Asks for more memory than any machine has, and passes its input on where it gets it."""

    def forward(self, x: Tensor) -> Tensor:
        """The input.  Raises RuntimeError on a CPU, in the words of torch's allocator."""
        torch.empty(1 << 50, device=x.device)
        return x


def _seeded(build: Callable[[], nn.Module]) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        module = build()
    return module.eval(), MEAN, STD, (32, 32)


def _to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def gabors() -> Made:
    """Eight Gabor filters: four orientations at two frequencies."""
    return GaborBank((0, 45, 90, 135), (0.1, 0.2), 17).eval(), MEAN, STD, (64, 64)


def toy() -> Made:
    """Three convolutions with in-place ReLUs, 8, 12 and 10 channels; any input from 16 px."""

    def build() -> nn.Module:
        net = nn.Sequential()
        net.add_module("conv1", nn.Conv2d(3, 8, 5, stride=2, padding=2))
        net.add_module("relu1", nn.ReLU(inplace=True))
        net.add_module("conv2", nn.Conv2d(8, 12, 3, padding=1))
        net.add_module("relu2", nn.ReLU(inplace=True))
        net.add_module("pool", nn.AvgPool2d(2))
        net.add_module("conv3", nn.Conv2d(12, 10, 3, padding=1))
        net.add_module("relu3", nn.ReLU(inplace=True))
        return net

    return _seeded(build)


def dead() -> Made:
    """Two convolutions; channel :data:`DEAD` of ``conv2`` is the constant -1, whatever the picture."""
    module, mean, std, size = toy()
    with torch.no_grad():
        conv2 = module.get_submodule("conv2")
        assert isinstance(conv2, nn.Conv2d) and conv2.bias is not None
        conv2.weight[DEAD] = 0
        conv2.bias[DEAD] = -1
    return module, mean, std, size


def nhwc() -> Made:
    """The layer ``last`` has the layout [B, H, W, C], 6 channels."""

    def build() -> nn.Module:
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(3, 6, 5, stride=2, padding=2))
        net.add_module("relu", nn.ReLU(inplace=True))
        net.add_module("last", Layout(_to_nhwc))
        return net

    return _seeded(build)


def tokens() -> Made:
    """``mix`` has the layout [B, N, C]: one token per patch of 4 x 4 px, 6 channels."""

    def build() -> nn.Module:
        net = nn.Sequential()
        net.add_module("patches", nn.Conv2d(3, 8, 4, stride=4))
        net.add_module("tokens", Layout(_to_tokens))
        net.add_module("gelu", nn.GELU())
        net.add_module("mix", nn.Linear(8, 6))
        return net

    return _seeded(build)


def flat() -> Made:
    """``linear`` has the layout [B, C], 5 channels."""

    def build() -> nn.Module:
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(3, 8, 5, stride=2, padding=2))
        net.add_module("relu", nn.ReLU(inplace=True))
        net.add_module("pool", nn.AdaptiveAvgPool2d(2))
        net.add_module("flatten", nn.Flatten())
        net.add_module("linear", nn.Linear(32, 5))
        return net

    return _seeded(build)

"""A picture as 24 bytes whose Euclidean distance follows how alike two pictures look.

Position does not matter (a feature may lie anywhere in its picture): 12 bytes hold the texture, the energy of the
luminance in 3 bands x 4 directions; 4 the mean colour and contrast; 6 how colours vary; 2 the coarseness.  The basis
is fixed, so a byte string stays comparable across layers, networks and publishes.
"""

from __future__ import annotations

import base64
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Side in pixels of the thumbnail that is described: the middle one of the sheets' cells.
SIDE = 64
LENGTH = 24
_BANDS = (2.0, 5.0, 11.0, 24.0)  # cycles per picture
_DIRECTIONS = 4


@functools.cache
def _masks() -> NDArray[np.float32]:
    """Soft selectors of each band and direction on the spectrum.  [12, SIDE, SIDE // 2 + 1]."""
    v = np.fft.fftfreq(SIDE, 1 / SIDE)[:, None]
    u = np.fft.rfftfreq(SIDE, 1 / SIDE)[None, :]
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    masks = []
    for low, high in itertools.pairwise(_BANDS):
        band = (radius >= low) & (radius < high)
        for k in range(_DIRECTIONS):
            away = np.abs((angle - math.pi * k / _DIRECTIONS + math.pi / 2) % math.pi - math.pi / 2)
            masks.append(band * np.clip(1 - away / (math.pi / _DIRECTIONS), 0, 1))
    return np.array(masks, np.float32)


@functools.cache
def _window() -> NDArray[np.float32]:
    return np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype(np.float32)


def describe(thumbnail: NDArray[np.uint8]) -> str:
    """The 24 bytes in base64, 32 characters.  [SIDE, SIDE, 3]."""
    rgb = thumbnail.astype(np.float32) / 255
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    # Luminance and the two opponent colours, each about -1 to 1.
    light: NDArray[Any] = (red + green + blue) / 3
    warm, cold = red - green, blue - (red + green) / 2
    spectrum = np.abs(np.fft.rfft2((light - light.mean()) * _window())) ** 2
    energy = np.tensordot(_masks(), spectrum, 2) / SIDE**2
    texture = np.log10(energy + 1e-3) / 8 + 0.4
    coarse = _shrunk(light)
    numbers: list[Any] = [
        *texture,
        light.mean(), light.std() * 2, warm.mean() * 1.5 + 0.5, cold.mean() * 1.5 + 0.5,
        warm.std() * 1.5, cold.std() * 1.5,
        (warm * (light - light.mean())).mean() * 6 + 0.5, (cold * (light - light.mean())).mean() * 6 + 0.5,
        np.abs(warm).mean() * 1.5, np.abs(cold).mean() * 1.5,
        coarse[1:3, 1:3].mean() - coarse.mean() + 0.5, coarse.std() * 2,
    ]  # fmt: skip
    values = np.clip(np.array(numbers, np.float32), 0, 1)
    return base64.b64encode(np.round(values * 255).astype(np.uint8).tobytes()).decode()


def _shrunk(light: NDArray[Any]) -> NDArray[Any]:
    quarter = SIDE // 4
    return light.reshape(4, quarter, 4, quarter).mean((1, 3))

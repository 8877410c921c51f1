"""Textures as functions of position: coverage in [0, 1] on a pixel grid, drawn at a random pitch and phase."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Texture = Callable[[Array, Array, np.random.Generator], Array]


def coverage(implicit: Array) -> Array:
    """Anti-aliased mask [H, W] of the region where `implicit` is negative.

    The value over its own gradient is the distance to the edge in pixels (to first order), whatever the
    function's scale: one rule draws every shape and every texture here.
    """
    down, right = np.gradient(implicit)
    return np.clip(0.5 - implicit / (np.hypot(down, right) + 1e-6), 0, 1).astype(np.float32)


def noise(shape: tuple[int, int], low: float, high: float, rng: np.random.Generator, slope: float = 0) -> Array:
    """Gaussian noise [H, W] between two frequencies (cycles per image side), zero mean, unit variance."""
    height, width = shape
    down = np.fft.fftfreq(height)[:, None] * height
    right = np.fft.rfftfreq(width)[None] * width
    frequency = np.hypot(down, right)
    gain = np.where((frequency >= low) & (frequency <= high), np.maximum(frequency, 1) ** -slope, 0)
    spectrum = rng.normal(size=(2, *gain.shape))
    field = np.fft.irfft2((spectrum[0] + 1j * spectrum[1]) * gain, s=shape)
    return ((field - field.mean()) / (field.std() + 1e-9)).astype(np.float32)


def _triangle_wave(phase: Array) -> Array:
    """Zigzag between -1 and 1 with period 1."""
    return np.abs((phase % 1) - 0.5) * 4 - 1


def _stripes(angle: float) -> Texture:
    """Stripes that run along `angle` degrees, counted from the horizontal towards the upper right."""

    def draw(x: Array, y: Array, rng: np.random.Generator) -> Array:
        tilt = np.radians(angle + rng.uniform(-10, 10))
        phase = rng.uniform(2.5, 7) * (y * np.cos(tilt) - x * np.sin(tilt)) + rng.uniform()
        return coverage(np.cos(2 * np.pi * phase) - rng.uniform(-0.4, 0.4))

    return draw


def _checkers(x: Array, y: Array, rng: np.random.Generator) -> Array:
    pitch = np.pi * rng.uniform(2, 5)
    return coverage(np.sin(pitch * x + rng.uniform(0, 6)) * np.sin(pitch * y + rng.uniform(0, 6)))


def _lattice(x: Array, y: Array, pitch: float, squash: float = 1.0) -> tuple[Array, Array, Array]:
    """Offsets from the nearest point of a brick-like lattice, and the row each pixel is in."""
    row = np.floor(y * pitch / squash)
    across = x * pitch + 0.5 * (row % 2)
    return across - np.floor(across) - 0.5, (y * pitch / squash - row - 0.5) * squash, row


def _dots(x: Array, y: Array, rng: np.random.Generator) -> Array:
    across, up, _ = _lattice(x + rng.uniform(), y + rng.uniform(), rng.uniform(1.6, 3.6), 0.87)
    return coverage(np.hypot(across, up) - rng.uniform(0.2, 0.36))


def _grid(x: Array, y: Array, rng: np.random.Generator) -> Array:
    pitch, thickness = rng.uniform(1.5, 3.5), rng.uniform(0.06, 0.14)
    across = np.abs((x * pitch + rng.uniform()) % 1 - 0.5)
    up = np.abs((y * pitch + rng.uniform()) % 1 - 0.5)
    return coverage(np.minimum(across, up) - thickness)


def _waves(x: Array, y: Array, rng: np.random.Generator) -> Array:
    bend = rng.uniform(0.1, 0.2) * np.sin(2 * np.pi * (rng.uniform(1, 2) * x + rng.uniform()))
    return coverage(np.cos(2 * np.pi * (rng.uniform(1.8, 4) * (y + bend) + rng.uniform())))


def _zigzag(x: Array, y: Array, rng: np.random.Generator) -> Array:
    bend = rng.uniform(0.1, 0.2) * _triangle_wave(rng.uniform(1.2, 2.4) * x + rng.uniform())
    return coverage(np.cos(2 * np.pi * (rng.uniform(1.8, 4) * (y + bend) + rng.uniform())))


def _bricks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    across, up, _ = _lattice(x + rng.uniform(), y + rng.uniform(), rng.uniform(1.2, 2.4), 0.5)
    mortar = rng.uniform(0.04, 0.08)
    return coverage(np.maximum(np.abs(across) - 0.5 + mortar, np.abs(up) - 0.25 + mortar))


def _scales(x: Array, y: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(1.4, 3)
    x, y = x + rng.uniform(), y + rng.uniform()
    distance = np.full_like(x, 9)
    # The higher row lies over the lower one, like tiles on a roof: of each disc the lower rim shows.
    for above in (0, 1):
        row = np.floor(y * pitch * 2) + above
        across = x * pitch + 0.5 * (row % 2)
        radius = np.hypot(across - np.floor(across) - 0.5, y * pitch - row / 2)
        distance = np.where(radius < 0.56, radius, distance)
    return coverage(rng.uniform(0.42, 0.48) - distance)


def _honeycomb(x: Array, y: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(1.4, 3)
    x, y = x * pitch + rng.uniform(), y * pitch + rng.uniform()
    edge = np.full_like(x, -9)
    for shift in (0.0, 0.5):  # two rectangular lattices make one hexagonal one
        across = np.abs((x + shift) % 1 - 0.5)
        up = np.abs((y + shift * np.sqrt(3)) % np.sqrt(3) - np.sqrt(3) / 2)
        edge = np.maximum(edge, 0.5 - np.maximum(across, across / 2 + up * np.sqrt(3) / 2))
    return coverage(edge - rng.uniform(0.05, 0.11))


def _labyrinth(x: Array, y: Array, rng: np.random.Generator) -> Array:
    centre = rng.uniform(5, 8) * float(x.max() - x.min()) / 2
    return coverage(noise((x.shape[0], x.shape[1]), centre * 0.8, centre * 1.2, rng))


def _cells(x: Array, y: Array, rng: np.random.Generator) -> Array:
    points = rng.uniform(-1.2, 1.2, size=(rng.integers(14, 34), 2)).astype(np.float32)
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    return coverage(nearest[..., 1] - nearest[..., 0] - rng.uniform(0.05, 0.1))


def _polar(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    x, y = x - rng.uniform(-0.35, 0.35), y - rng.uniform(-0.35, 0.35)
    return np.hypot(x, y), np.arctan2(y, x)


def _rings(x: Array, y: Array, rng: np.random.Generator) -> Array:
    radius, _ = _polar(x, y, rng)
    return coverage(np.cos(2 * np.pi * (rng.uniform(2, 4.5) * radius + rng.uniform())))


def _rays(x: Array, y: Array, rng: np.random.Generator) -> Array:
    _, angle = _polar(x, y, rng)
    return coverage(np.cos(rng.integers(8, 17) * angle + rng.uniform(0, 6)))


def _spiral(x: Array, y: Array, rng: np.random.Generator) -> Array:
    radius, angle = _polar(x, y, rng)
    turns = rng.choice([-1, 1]) * rng.integers(1, 3)
    return coverage(np.cos(2 * np.pi * rng.uniform(1.5, 3) * radius + turns * angle + rng.uniform(0, 6)))


def _clouds(x: Array, y: Array, rng: np.random.Generator) -> Array:
    field = noise((x.shape[0], x.shape[1]), 1, 20, rng, slope=rng.uniform(1.6, 2.2))
    return np.clip(0.5 + 0.4 * field, 0, 1)


TEXTURES: dict[str, Texture] = {
    "honeycomb": _honeycomb,
    "spiral": _spiral,
    "rising stripes": _stripes(45),
    "checkers": _checkers,
    "waves": _waves,
    "dots": _dots,
    "cells": _cells,
    "horizontal stripes": _stripes(0),
    "rings": _rings,
    "bricks": _bricks,
    "zigzag": _zigzag,
    "clouds": _clouds,
    "vertical stripes": _stripes(90),
    "labyrinth": _labyrinth,
    "rays": _rays,
    "grid": _grid,
    "falling stripes": _stripes(-45),
    "scales": _scales,
}
"""Name -> texture.  Coordinates are in units of 48 px from the middle, y upwards."""

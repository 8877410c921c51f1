"""The pictures `builtin:demo` is trained on: one texture or one shape each, placed, coloured and spoiled at random."""

import colorsys
import itertools

import numpy as np
from numpy.typing import NDArray

from feature_atlas_worker.builtin.shapes import SHAPES, USUAL, Colour, near
from feature_atlas_worker.builtin.textures import TEXTURES, Array, coverage, noise

CLASSES: tuple[str, ...] = tuple(
    name for pair in itertools.zip_longest(SHAPES, TEXTURES) for name in pair if name is not None
)
"""Names of the classes, in the order of the channels of the layer `classifier`: shapes and textures in turn."""


def draw(label: int, size: int, rng: np.random.Generator) -> Array:
    """One picture of class `CLASSES[label]`: RGB [3, size, size] in [0, 1], determined by the generator alone."""
    name = CLASSES[label]
    if name in TEXTURES:
        picture = _texture(name, size, rng)
    else:
        picture = _background(size, rng)
        for _ in range(rng.choice([1, 2, 3], p=[0.75, 0.15, 0.1])):
            _place(picture, name, rng)
    return _spoil(picture, rng).transpose(2, 0, 1)


def batch(count: int, size: int, seed: int | tuple[int, ...]) -> tuple[Array, NDArray[np.int64]]:
    """`count` pictures [count, 3, size, size] of random classes and their labels [count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=count)
    return np.stack([draw(int(label), size, rng) for label in labels]), labels


def _axes(size: int) -> tuple[Array, Array]:
    """Coordinates in units of 48 px, 0 in the middle, y upwards: larger pictures show more, not larger things."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) - size / 2) / 48
    x, y = np.meshgrid(axis, -axis)
    return x, y


def _colour(rng: np.random.Generator) -> Colour:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.beta(2, 1.3), rng.uniform(0.08, 1))


def _contrasting(rng: np.random.Generator, least: float) -> tuple[Colour, Colour]:
    """Two colours at least `least` apart (Euclidean, in RGB)."""
    while True:
        one, other = _colour(rng), _colour(rng)
        if np.linalg.norm(np.subtract(one, other)) >= least:
            return one, other


def _mix(mask: Array, inside: Array | Colour, outside: Array | Colour) -> Array:
    alpha = mask[..., None]
    return (alpha * np.asarray(inside, np.float32) + (1 - alpha) * np.asarray(outside, np.float32)).astype(np.float32)


def _texture(name: str, size: int, rng: np.random.Generator) -> Array:
    x, y = _axes(size)
    turn = np.radians(rng.uniform(-10, 10))
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    # A slow warp, so that no texture is perfectly straight.
    bend = rng.uniform(0, 0.03)
    x = x + bend * noise((size, size), 1, 3, rng)
    y = y + bend * noise((size, size), 1, 3, rng)
    mask = TEXTURES[name](x, y, rng)
    if name == "clouds":
        return _mix(mask, (0.95, 0.96, 0.98), colorsys.hsv_to_rgb(rng.uniform(0.52, 0.66), rng.uniform(0.4, 0.9), 0.8))
    return _mix(mask, *_contrasting(rng, 0.5))


def _background(size: int, rng: np.random.Generator) -> Array:
    """A smooth run between two colours, often with a faint texture over it."""
    x, y = _axes(size)
    angle = rng.uniform(0, 2 * np.pi)
    run = np.clip(0.5 + 0.4 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)
    picture = _mix(run, _colour(rng), _colour(rng))
    kind = rng.uniform()
    if kind < 0.35:
        texture = TEXTURES[str(rng.choice(list(TEXTURES)))](x, y, rng)
        picture += rng.uniform(0.04, 0.16) * rng.choice([-1, 1]) * texture[..., None]
    elif kind < 0.7:
        slope = rng.uniform(0.5, 1.5)
        picture += rng.uniform(0.02, 0.1) * noise((size, size), 1, size / 3, rng, slope)[..., None]
    return np.clip(picture, 0, 1)


def _place(picture: Array, name: str, rng: np.random.Generator) -> None:
    """Paint a shape into the picture at a random place, size, tilt and side."""
    size = len(picture)
    x, y = _axes(size)
    radius = rng.uniform(0.3, 0.66)
    room = max(size / 96 - 0.8 * radius, 0)
    x, y = (x - rng.uniform(-room, room)) / radius, (y - rng.uniform(-room, room)) / radius
    tilt = np.radians(rng.normal(0, 10))
    side = rng.choice([-1, 1])
    x, y = side * (x * np.cos(tilt) - y * np.sin(tilt)), x * np.sin(tilt) + y * np.cos(tilt)
    behind = np.median(picture.reshape(-1, 3), axis=0)
    colour = near(USUAL[name], rng) if name in USUAL and rng.uniform() < 0.6 else _colour(rng)
    while np.linalg.norm(np.subtract(colour, behind)) < 0.45:
        colour = _colour(rng)
    for implicit, paint in SHAPES[name](x, y, colour, rng):
        picture[:] = _mix(coverage(implicit), paint, picture)


def _spoil(picture: Array, rng: np.random.Generator) -> Array:
    """Uneven light, a colour cast, sensor noise; a third of the pictures fade, down to a third of their contrast."""
    size = len(picture)
    light = 1 + rng.uniform(0, 0.12) * noise((size, size), 1, 2, rng)[..., None]
    cast = rng.normal(1, 0.05, 3)
    grain = rng.uniform(0, 0.05) * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = picture * light * cast + grain
    # A network that answers to faint things gives a gradient to a visualisation that starts from grey.
    fade = rng.uniform(0.33, 1) if rng.uniform() < 0.33 else 1
    grey = rng.uniform(0.35, 0.65)
    return np.clip(grey + fade * (picture - grey), 0, 1).astype(np.float32)

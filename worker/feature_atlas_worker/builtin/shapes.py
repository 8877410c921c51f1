"""Shapes and small objects: layers of (implicit function, colour), negative inside, within the unit disc."""

from collections.abc import Callable

import numpy as np

from feature_atlas_worker.builtin.textures import Array

Colour = tuple[float, float, float]
Layers = list[tuple[Array, Colour]]
Shape = Callable[[Array, Array, Colour, np.random.Generator], Layers]

WHITE, BLACK, BROWN = (0.96, 0.96, 0.94), (0.06, 0.05, 0.07), (0.42, 0.26, 0.13)


def near(colour: Colour, rng: np.random.Generator, spread: float = 0.09) -> Colour:
    """The colour, moved a little, so that no class is one exact value."""
    red, green, blue = np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 1)
    return float(red), float(green), float(blue)


def disc(x: Array, y: Array, cx: float = 0, cy: float = 0, rx: float = 1, ry: float | None = None) -> Array:
    """Disc or ellipse around (cx, cy)."""
    return np.hypot((x - cx) / rx, (y - cy) / (ry or rx)) - 1


def box(x: Array, y: Array, left: float, right: float, bottom: float, top: float) -> Array:
    """Axis-parallel rectangle."""
    return np.maximum(
        np.abs(x - (left + right) / 2) - (right - left) / 2, np.abs(y - (bottom + top) / 2) - (top - bottom) / 2
    )


def star(x: Array, y: Array, points: int, notch: float) -> Array:
    """Star with its first tip up; `notch` is the inner radius, cos(pi / points) makes a regular polygon."""
    sector = np.pi / points
    angle = np.arctan2(x, y)
    folded = np.abs((angle + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    across, along = radius * np.cos(folded), radius * np.sin(folded)
    edge_x, edge_y = notch * np.cos(sector) - 1, notch * np.sin(sector)
    return (across - 1) * edge_y - along * edge_x


def triangle(x: Array, y: Array, bottom: float, top: float, half_width: float) -> Array:
    """Isosceles triangle that stands on its base."""
    return np.maximum(bottom - y, np.abs(x) / half_width - (top - y) / (top - bottom))


def _heart(x: Array, y: Array) -> Array:
    x, y = x * 1.2, y * 1.15 + 0.1
    return np.hypot(x, y - 0.75 * np.sqrt(np.abs(x) + 1e-4)) - 1


def _plain(implicit: Callable[[Array, Array], Array]) -> Shape:
    def draw(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
        return [(implicit(x, y), colour)]

    return draw


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(box(x, y, -0.3, 0.3, -0.95, 0.95), box(x, y, -0.95, 0.95, -0.3, 0.3))


def _flower(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    petals = np.hypot(x, y) - 0.68 - 0.3 * np.cos(rng.integers(5, 8) * np.arctan2(x, y))
    return [(petals, colour), (disc(x, y, rx=0.32), near((0.95, 0.8, 0.15), rng))]


def _eye(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    lid = np.maximum(disc(x, y, 0, -0.62, 1.16), disc(x, y, 0, 0.62, 1.16))
    look = rng.uniform(-0.2, 0.2)
    return [
        (lid - 0.09, near(BLACK, rng, 0.05)),
        (lid, near(WHITE, rng, 0.04)),
        (np.maximum(lid, disc(x, y, look, 0, 0.47)), near(((0.2, 0.45, 0.75), BROWN)[rng.integers(2)], rng)),
        (disc(x, y, look, 0, 0.22), near(BLACK, rng, 0.03)),
        (disc(x, y, look - 0.1, 0.12, 0.08), WHITE),
    ]


def _face(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    ink = near(BLACK, rng, 0.06)
    mouth = np.maximum(np.abs(np.hypot(x, y - 0.05) - 0.58) - 0.09, y + 0.15)
    return [
        (disc(x, y), near((0.98, 0.82, 0.2), rng, 0.12)),
        (disc(x, y, -0.34, 0.3, 0.14, 0.2), ink),
        (disc(x, y, 0.34, 0.3, 0.14, 0.2), ink),
        (mouth, ink),
    ]


def _sun(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    return [
        (star(x, y, int(rng.integers(10, 15)), 0.6), near((0.98, 0.65, 0.1), rng)),
        (disc(x, y, rx=0.55), near((1.0, 0.87, 0.25), rng)),
    ]


def _fish(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    body = disc(x, y, 0.15, 0, 0.8, 0.5)
    tail = np.maximum(np.abs(y) - 0.95 * (-0.35 - x), -1 - x)
    band = np.maximum(body, np.abs(np.abs(x - 0.1) - 0.25) - 0.08)
    body_colour = near((0.95, 0.5, 0.12), rng, 0.12)
    return [
        (np.minimum(body, tail), body_colour),
        (band, WHITE),
        (disc(x, y, 0.6, 0.13, 0.13), WHITE),
        (disc(x, y, 0.62, 0.13, 0.07), BLACK),
    ]


def _tree(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    green = near((0.12, 0.48, 0.18), rng, 0.07)
    steps = [triangle(x, y, b, t, w) for b, t, w in ((-0.6, 0.2, 0.75), (-0.15, 0.6, 0.6), (0.3, 1.0, 0.45))]
    return [(box(x, y, -0.13, 0.13, -1, -0.55), near(BROWN, rng)), (np.minimum.reduce(steps), green)]


def _house(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    pane = near((0.45, 0.7, 0.9), rng)
    return [
        (box(x, y, -0.65, 0.65, -0.85, 0.2), near((0.92, 0.86, 0.72), rng)),
        (triangle(x, y, 0.15, 0.95, 0.9), near((0.72, 0.2, 0.14), rng)),
        (box(x, y, -0.15, 0.15, -0.85, -0.25), near(BROWN, rng)),
        (box(x, y, -0.52, -0.25, -0.3, 0.0), pane),
        (box(x, y, 0.25, 0.52, -0.3, 0.0), pane),
    ]


def _ladybird(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    black = near(BLACK, rng, 0.04)
    spots = [disc(np.abs(x), y, cx, cy, 0.15) for cx, cy in ((0.35, 0.3), (0.5, -0.2), (0.28, -0.58))]
    shell = disc(x, y, 0, -0.12, 0.82, 0.86)
    return [
        (disc(x, y, 0, 0.7, 0.38, 0.3), black),
        (shell, near((0.86, 0.1, 0.08), rng)),
        (np.maximum(shell, np.abs(x) - 0.05), black),
        (np.minimum.reduce(spots), black),
    ]


def _watermelon(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    y = y - 0.45
    below = y
    seeds = [
        disc(np.abs(x), y, cx, cy, 0.06, 0.1) for cx, cy in ((0.0, -0.6), (0.3, -0.45), (0.5, -0.2), (0.16, -0.22))
    ]
    return [
        (np.maximum(disc(x, y), below), near((0.15, 0.5, 0.18), rng, 0.06)),
        (np.maximum(disc(x, y, rx=0.88), below), near((0.85, 0.93, 0.75), rng, 0.04)),
        (np.maximum(disc(x, y, rx=0.8), below), near((0.92, 0.22, 0.27), rng)),
        (np.minimum.reduce(seeds), BLACK),
    ]


def _mushroom(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    cap = np.maximum(disc(x, y, 0, -0.05, 0.95, 0.95), -0.05 - y)
    spots = [
        disc(x, y, cx, cy, 0.14) for cx, cy in ((-0.5, 0.2), (0.02, 0.25), (0.52, 0.2), (-0.26, 0.58), (0.3, 0.58))
    ]
    return [
        (box(x, y, -0.24, 0.24, -0.95, 0), near((0.93, 0.87, 0.74), rng, 0.05)),
        (cap, near((0.82, 0.12, 0.12), rng)),
        (np.maximum(cap, np.minimum.reduce(spots)), WHITE),
    ]


def _rainbow(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    y = y + 0.45
    bands: Layers = []
    colours = [
        (0.85, 0.12, 0.15),
        (0.95, 0.55, 0.1),
        (0.97, 0.88, 0.2),
        (0.2, 0.65, 0.25),
        (0.15, 0.35, 0.8),
        (0.5, 0.2, 0.65),
    ]
    for index, band in enumerate(colours):
        arc = np.maximum(disc(x, y, rx=1 - 0.1 * index), -y)
        bands.append((np.maximum(arc, 0.4 - np.hypot(x, y)), near(band, rng, 0.04)))
    return bands


def _butterfly(x: Array, y: Array, colour: Colour, rng: np.random.Generator) -> Layers:
    side = np.abs(x)
    wings = np.minimum(disc(side, y, 0.52, 0.36, 0.46, 0.5), disc(side, y, 0.42, -0.42, 0.36, 0.4))
    spots = np.minimum(disc(side, y, 0.56, 0.4, 0.2), disc(side, y, 0.44, -0.42, 0.15))
    return [
        (wings, near(BLACK, rng, 0.05)),
        (wings + 0.18, near((0.2, 0.35, 0.9), rng, 0.12)),
        (spots, near((0.98, 0.75, 0.25), rng)),
        (disc(x, y, 0, 0, 0.1, 0.8), near(BLACK, rng, 0.03)),
    ]


SHAPES: dict[str, Shape] = {
    "face": _face,
    "tree": _tree,
    "star": _plain(lambda x, y: star(x, y, 5, 0.42)),
    "ladybird": _ladybird,
    "heart": _plain(_heart),
    "house": _house,
    "eye": _eye,
    "sun": _sun,
    "mushroom": _mushroom,
    "crescent": _plain(lambda x, y: np.maximum(disc(x, y), -disc(x, y, 0.45, 0.12, 0.82))),
    "flower": _flower,
    "fish": _fish,
    "rainbow": _rainbow,
    "triangle": _plain(lambda x, y: triangle(x, y, -0.7, 0.95, 0.95)),
    "watermelon": _watermelon,
    "ring": _plain(lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.22),
    "butterfly": _butterfly,
    "square": _plain(lambda x, y: box(x, y, -0.8, 0.8, -0.8, 0.8)),
    "cross": _plain(_cross),
    "disc": _plain(lambda x, y: disc(x, y)),
}
"""Name -> shape.  The plain ones take the given colour; objects bring their own, varied."""

USUAL: dict[str, Colour] = {
    "star": (0.97, 0.8, 0.15),
    "heart": (0.9, 0.12, 0.25),
    "crescent": (0.97, 0.93, 0.65),
    "flower": (0.93, 0.45, 0.7),
    "triangle": (0.1, 0.6, 0.6),
    "ring": (0.55, 0.25, 0.7),
    "square": (0.15, 0.35, 0.85),
    "cross": (0.1, 0.6, 0.25),
    "disc": (0.93, 0.5, 0.12),
}
"""The colour that a plain shape has more often than not: what is seen in many colours looks grey in the mean."""

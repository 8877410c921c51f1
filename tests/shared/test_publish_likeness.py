"""Likeness: what looks alike is near."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_atlas.publish.likeness import LENGTH, SIDE, describe

y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE


def grating(degrees: float, cycles: float, phase: float = 0.0) -> NDArray[np.uint8]:
    angle = np.radians(degrees)
    wave = np.sin(2 * np.pi * cycles * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.repeat((127 + 100 * wave).astype(np.uint8)[..., None], 3, 2)


def tinted(picture: NDArray[np.uint8], *gain: float) -> NDArray[np.uint8]:
    return np.clip(picture * np.array(gain), 0, 255).astype(np.uint8)


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    first, second = (np.frombuffer(base64.b64decode(describe(one)), np.uint8).astype(float) for one in (a, b))
    return float(np.linalg.norm(first - second))


def test_a_description_has_24_bytes_in_32_characters() -> None:
    text = describe(grating(0, 6))
    assert len(text) == 32 and len(base64.b64decode(text)) == LENGTH


@pytest.mark.parametrize(
    ("alike", "different"),
    [
        (grating(0, 6, phase=2), grating(90, 6)),  # shifted, against turned
        (grating(0, 6, phase=2), grating(0, 16)),  # shifted, against finer
        (grating(45, 6), grating(135, 6)),
        (tinted(grating(0, 6), 1, 0.95, 0.95), tinted(grating(0, 6), 1, 0.4, 0.2)),  # a little red, against much
        (np.roll(grating(0, 6), 20, axis=0), np.full((SIDE, SIDE, 3), 127, np.uint8)),
    ],
)
def test_what_looks_more_alike_is_nearer(alike: NDArray[np.uint8], different: NDArray[np.uint8]) -> None:
    reference = grating(40 if (alike == grating(45, 6)).all() else 0, 6)
    assert distance(reference, alike) < 0.6 * distance(reference, different)


def test_flat_pictures_are_described_too() -> None:
    for value in (0, 127, 255):
        assert len(describe(np.full((SIDE, SIDE, 3), value, np.uint8))) == 32

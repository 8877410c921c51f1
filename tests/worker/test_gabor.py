"""A network whose best pictures are known: the renderer must find every filter's orientation and frequency."""

from __future__ import annotations

import numpy as np
import pytest

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Target, Visualization, render
from tests import networks

TUNING = ((0, 0.1), (0, 0.2), (45, 0.1), (45, 0.2), (90, 0.1), (90, 0.2), (135, 0.1), (135, 0.2))


def visualized(layer: str, recipe: Recipe) -> list[Visualization]:
    """One per channel of the Gabor bank."""
    model = VisionModel(*networks.gabors())
    assert isinstance(model.module, networks.GaborBank) and model.module.tuning == TUNING
    return render(model, [Target(layer, k) for k in range(len(TUNING))], recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        preset("regularised", {"size": 64, "steps": 48, "jitter": 6, "coarse_steps": 0}),
        preset("raw", {"size": 48, "steps": 24}),
    ],
    ids=["regularised", "raw"],
)
def test_channels_show_their_gratings(recipe: Recipe) -> None:
    for (orientation, frequency), found in zip(TUNING, visualized("relu", recipe), strict=True):
        angle, cycles = networks.dominant(found.images[0])
        # Filters 17 px wide take their surroundings too; the next filters are 45 degrees and an octave away.
        assert abs((angle - orientation + 90) % 180 - 90) < 15, (orientation, frequency, angle)
        assert 1 / 1.35 < cycles / frequency < 1.35, (orientation, frequency, cycles)
        assert found.status == "ok" and found.picture.saturation < 0.1  # the filters are grey


def test_neurons_show_their_filters() -> None:
    recipe = preset("regularised", {"size": 48, "steps": 32, "jitter": 1, "objective": "neuron", "coarse_steps": 0})
    kernels = [networks.gabor(*tuning, 17).numpy() for tuning in TUNING]
    # The map of a 48 px picture has 32 rows; its central unit, 16, sees the pixels 16 to 32.
    for k, found in enumerate(visualized("conv", recipe)):
        seen = found.images[0, 16:33, 16:33].astype(float).mean(-1)
        alike = [float(np.corrcoef(seen.ravel(), kernel.ravel())[0, 1]) for kernel in kernels]
        # Above 0.62, but for the one in twenty that saturates on one side before its stripes are there.
        assert int(np.argmax(alike)) == k and alike[k] > 0.5, (TUNING[k], alike)

"""A stored picture: whoever changes what the renderer draws must say so.

When this fails on purpose, raise ``RENDERER`` in feature_atlas/spec.py, which makes workers of another generation
hand their jobs back, and store the new picture: ``python -m tests.worker.test_golden_picture``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from feature_atlas.spec import RENDERER, Recipe
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Target, render
from feature_atlas_worker.rewrite import ALL, Rewrites
from tests import networks

GOLDEN = Path(__file__).with_name(f"golden-{RENDERER}.png")
#: Every part of the renderer takes its share; few steps, so that another processor's rounding does not grow.
RECIPE = Recipe(
    size=(16, 24), steps=12, learning_rate=0.2, learning_rate_end=0.1, betas=(0.5, 0.99), adapt="frequency",
    init_std=0.1, pad=2, jitter=(3, 1), scale=(0.9, 1.1), rotate=(-10, 10), cut=(1, 0.2), blur=(0.5, 0),
    blur_random=(0, 0.5), coarse=0.5, coarse_steps=3, total_variation=0.05, frequency_penalty=0.2,
    images=2, diversity=0.5,
)  # fmt: skip
#: The same in pixels, with published weights.
PIXELS = Recipe(
    size=(16, 24), steps=12, learning_rate=0.2, parameterization="pixel", decorrelate=False, penalties="absolute",
    total_variation=0.5, scale=(0.95, 1, 1.05), draw="choice", sign=-1, pick="last",
)  # fmt: skip
#: The same on every processor.
EXACT = Rewrites(half=False)


def sheet(rewrites: Rewrites = EXACT) -> NDArray[np.uint8]:
    """Channels 1, 5 and 9 one under the other: the two diverse images, then the pixels.  [48, 72, 3]."""
    model = VisionModel(*networks.toy())
    columns = [
        render(model, [Target(layer, channel) for channel in (1, 5, 9)], recipe, rewrites=rewrites)
        for layer, recipe in (("relu2", RECIPE), ("conv2", PIXELS))
    ]
    rows = zip(*columns, strict=True)
    return np.concatenate([np.concatenate([*one.images, *other.images], 1) for one, other in rows])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = float(((one.astype(float) - other) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else np.inf


#: The second is what is rendered with: bf16 where the processor has it, whose rounding is another one (32 dB there).
@pytest.mark.parametrize(("rewrites", "least"), [(EXACT, 40), (ALL, 25)])
def test_the_golden_picture_has_not_moved(rewrites: Rewrites, least: float) -> None:
    with Image.open(GOLDEN) as image:
        stored = np.asarray(image.convert("RGB"))
    drawn = sheet(rewrites)
    assert drawn.shape == stored.shape == (48, 72, 3)
    for top in range(0, 48, 16):
        for left in range(0, 72, 24):
            cell = (slice(top, top + 16), slice(left, left + 24))
            assert psnr(drawn[cell], stored[cell]) > least, cell
            assert stored[cell].std() > 5  # a grey cell would match any other
    assert psnr(stored[:16], stored[16:32]) < 25  # nor would another channel's picture pass


if __name__ == "__main__":
    Image.fromarray(sheet()).save(GOLDEN, optimize=True)

"""Recipes by name, with the published numbers behind each, and what a variant's name means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.keys import check_name
from feature_atlas.spec import RENDERER, Recipe

#: Distill and Lucid rotate by -10..10 degrees, with five more chances of none (lucid/optvis/transform.py:164).
_LUCID_ROTATE = (*(float(d) for d in range(-10, 11)), 0.0, 0.0, 0.0, 0.0, 0.0)
_LUCID_SCALE = tuple(round(1 + (i - 5) / 50, 2) for i in range(11))

PRESETS: dict[str, dict[str, Any]] = {
    # Ours: scale-free ascent, coarse to fine, random blur of what the network sees, fine detail penalised.
    "regularised": {
        "steps": 160, "learning_rate": 0.28, "learning_rate_end": 0.1, "betas": (0.3, 0.99), "adapt": "frequency",
        "decay": 1.15, "jitter": (12.0, 0.0), "rotate": (-7.0, 7.0), "scale": (0.94, 1.06), "cut": (1.0, 0.35),
        "blur_random": (0.0, 1.1), "total_variation": 0.01, "frequency_penalty": 0.07,
    },
    # The same for a first look: milder views and larger steps, less than half of the time.
    "draft": {
        "steps": 60, "learning_rate": 0.65, "learning_rate_end": 0.1, "betas": (0.3, 0.99), "adapt": "frequency",
        "decay": 1.0, "jitter": (10.0, 0.0), "rotate": (-5.0, 5.0), "scale": (0.95, 1.05), "cut": (0.6, 0.3),
        "pick": "last", "blur_random": (0.0, 0.8), "total_variation": 0.01, "frequency_penalty": 0.04,
    },
    # The blog post's settings with its slips corrected (README, "The post, corrected").
    "post": {
        "steps": 512, "learning_rate": 0.05, "jitter": (8.0, 0.0), "rotate": tuple(float(d) for d in range(-5, 6)),
        "scale": (1.0, 0.975, 1.025, 0.95, 1.05), "draw": "choice", "blur": (0.5, 0.0),
        "penalties": "absolute", "total_variation": 4.9, "pick": "last",
    },
    # lucid/optvis/render.py:35-45, transform.py:164-170: no penalty, no crop.
    "lucid": {
        "steps": 512, "learning_rate": 0.05, "pad": 12, "jitter": (4.0, 2.0), "rotate": _LUCID_ROTATE,
        "scale": _LUCID_SCALE, "draw": "choice", "penalties": "absolute", "pick": "last", "redirect_always": False,
    },
    # Olah, Mordvintsev & Schubert 2017, footnotes: 2560 steps of Adam at 0.05.
    "distill": {
        "steps": 2560, "learning_rate": 0.05, "jitter": (8.0, 4.0), "rotate": tuple(float(d) for d in range(-5, 6)),
        "scale": (1.0, 0.975, 1.025, 0.95, 1.05), "draw": "choice", "penalties": "absolute", "pick": "last",
        "redirect_always": False,
    },
    # The unregularised method: pixels, no transforms, no penalties.
    "raw": {
        "steps": 256, "learning_rate": 0.05, "parameterization": "pixel", "decorrelate": False,
        "penalties": "absolute", "pick": "last",
    },
}  # fmt: skip

#: What a variant's name alone means: a preset and what it changes.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "channel": ("regularised", {}),
    "negative": ("regularised", {"sign": -1}),
    "neuron": ("regularised", {"objective": "neuron"}),
    "layer": ("regularised", {"objective": "layer"}),
    "diverse": ("regularised", {"images": 4, "diversity": 1.0}),
    **{name: (name, {}) for name in PRESETS},
}


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a preset, with some fields changed.

    Raises:
        RequestError: no such preset, no such field, or a value out of bounds.
    """
    if name not in PRESETS:
        raise RequestError(f"no preset {name!r}{did_you_mean(name, PRESETS)} (presets: {', '.join(PRESETS)})")
    return Recipe.build(f"recipe {name!r}", {"renderer": RENDERER, **PRESETS[name], **(changes or {})})


def variant(text: str, changes: Mapping[str, Any] | None = None) -> tuple[str, Recipe]:
    """(name, recipe) of ``NAME`` or ``NAME=PRESET``, with some fields changed.

    ``NAME`` alone must be a known variant; ``NAME=BASE`` gives any name to a preset or known variant.

    Raises:
        RequestError: unknown names, unknown fields or values out of bounds.
    """
    name, _, base = text.partition("=")
    base = base or name
    if base not in VARIANTS:
        raise RequestError(
            f"no variant or preset {base!r}{did_you_mean(base, VARIANTS)} (known: {', '.join(VARIANTS)};"
            " another name is written NAME=PRESET)"
        )
    preset_name, own = VARIANTS[base]
    return check_name(name, "variant"), preset(preset_name, {**own, **(changes or {})})


def nearest(recipe: Recipe, name: str = "") -> str:
    """The known variant that a recipe differs from in the fewest fields; of several ``name``, where it is one."""

    def differing(known: str) -> tuple[int, bool]:
        own = variant(known)[1]
        return sum(getattr(own, field) != getattr(recipe, field) for field in Recipe.model_fields), known != name

    return min(VARIANTS, key=differing)

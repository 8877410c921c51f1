"""Presets and variants: all of them are recipes, and the published ones keep their published numbers."""

from __future__ import annotations

import pytest

from feature_atlas.errors import RequestError
from feature_atlas.presets import PRESETS, VARIANTS, preset, variant
from feature_atlas.spec import RENDERER


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_recipe_of_the_present_renderer(name: str) -> None:
    recipe = preset(name)
    assert recipe.renderer == RENDERER
    for field, value in PRESETS[name].items():
        assert getattr(recipe, field) == value


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_recipe_under_its_own_name(name: str) -> None:
    given, recipe = variant(name)
    assert given == name
    assert recipe == preset(VARIANTS[name][0], VARIANTS[name][1])


def test_the_variants_mean_what_they_say() -> None:
    assert variant("negative")[1].sign == -1
    assert variant("neuron")[1].objective == "neuron"
    assert variant("layer")[1].objective == "layer"
    assert variant("diverse")[1].images > 1 and variant("diverse")[1].diversity > 0
    assert variant("channel")[1] == preset("regularised")
    assert (
        len({variant(name)[1].digest() for name in ("channel", "negative", "neuron", "layer", "diverse", "raw")}) == 6
    )


def test_published_presets_take_the_last_iterate_and_absolute_penalties() -> None:
    """Lucid and Distill pick nothing and scale nothing; the post's weights are in its own units."""
    for name in ("post", "lucid", "distill", "raw"):
        assert preset(name).pick == "last" and preset(name).penalties == "absolute"
    assert preset("distill").steps == 2560 and preset("lucid").steps == 512
    assert preset("raw").parameterization == "pixel" and not preset("raw").decorrelate


def test_changes_apply_over_the_preset() -> None:
    assert preset("lucid", {"steps": 7, "size": 64}).steps == 7
    assert preset("lucid", {"size": 64}).size == (64, 64)
    assert variant("negative", {"steps": 7})[1].sign == -1
    assert variant("mine=lucid", {"steps": 7}) == ("mine", preset("lucid", {"steps": 7}))
    assert variant("mine=negative")[1] == variant("negative")[1]


@pytest.mark.parametrize(
    ("text", "changes", "sentence"),
    [
        ("chanel", {}, "no variant or preset 'chanel'; did you mean channel"),
        ("mine", {}, "another name is written NAME=PRESET"),
        ("mine=lucidd", {}, "did you mean lucid"),
        ("my variant=lucid", {}, "the variant name 'my variant' cannot be a key"),
        ("=lucid", {}, "the variant name '' cannot be a key"),
        ("../x=lucid", {}, "cannot be a key"),
        ("channel", {"stepz": 3}, "recipe 'regularised': unknown field 'stepz'; did you mean steps"),
        ("channel", {"steps": 0}, "recipe 'regularised': steps=0: input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_variant_is_refused_in_a_sentence(text: str, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        variant(text, changes)
    assert sentence in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"no preset 'regularized'; did you mean regularised\? \(presets: reg"):
        preset("regularized")

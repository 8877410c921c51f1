"""Plans: a union of immutable files, whatever their order, and the differences named."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_atlas import manifest
from feature_atlas.errors import IntegrityError, PlanConflictError, RequestError
from feature_atlas.plan import AtlasFile, LayerPlan, Plan, PlanFile, describe_model, difference
from feature_atlas.spec import ModelRef, Recipe, Unit

MODEL = ModelRef(name="resnet50", weights="IMAGENET1K_V2")
LAYERS = {"conv1": (0, 8), "layer1.0.conv2": (3, 6), "fc": (9, 10)}
RECIPES = {"channel": Recipe(steps=4), "negative": Recipe(steps=4, sign=-1), "layer": Recipe(objective="layer")}


def layer(name: str, channels: str = ":", **changes: Any) -> LayerPlan:
    index, total = LAYERS[name]
    return LayerPlan(**{"name": name, "kind": "conv", "index": index, "total": total, "channels": channels, **changes})


def file(*layers: LayerPlan, model: ModelRef = MODEL, **variants: Recipe) -> PlanFile:
    return PlanFile(
        model=model.digest(), layers=layers or (layer("conv1"),), variants=variants or {"channel": RECIPES["channel"]}
    )


def plan(*files: PlanFile) -> Plan:
    return Plan(MODEL, {each.digest(): each for each in files})


layers = st.sampled_from(sorted(LAYERS)).flatmap(
    lambda name: st.sets(st.integers(0, LAYERS[name][1] - 1), min_size=1).map(
        lambda chosen: layer(name, ",".join(map(str, sorted(chosen))))
    )
)
files = st.builds(
    lambda chosen, variants: file(*chosen, **{name: RECIPES[name] for name in variants}),
    st.lists(layers, min_size=1, max_size=3, unique_by=lambda each: each.name),
    st.sets(st.sampled_from(sorted(RECIPES)), min_size=1),
)


@settings(max_examples=40)
@given(st.lists(files, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_plan_is_the_union_of_its_files_in_any_order(requests: list[PlanFile], random: Any) -> None:
    expected = {
        Unit(variant, each.name, channel)
        for request in requests
        for variant, recipe in request.variants.items()
        for each in request.layers
        for channel in ((0,) if recipe.objective == "layer" else each.numbers)
    }
    shuffled = random.sample(requests, len(requests))
    one, two = plan(*requests), plan(*shuffled, *requests)
    assert set(one.units()) == expected
    assert list(one.units()) == list(two.units())
    assert one.digest() == two.digest()
    assert len(one) == len(expected)
    assert all(unit in one for unit in expected)


@settings(max_examples=25)
@given(st.lists(files, min_size=1, max_size=3))
def test_units_come_by_group_as_the_network_runs(requests: list[PlanFile]) -> None:
    """Contiguous by group: a worker keeps its cut network and finds siblings next to each other."""
    units = list(plan(*requests).units())
    groups = [group for group, _ in itertools.groupby((unit.variant, unit.layer) for unit in units)]
    assert len(groups) == len(set(groups))
    assert groups == list(plan(*requests).groups())
    indices = [LAYERS[name][0] for _, name in groups]
    assert indices == sorted(indices)
    for variant, name in groups:
        numbers = [unit.channel for unit in units if (unit.variant, unit.layer) == (variant, name)]
        assert numbers == sorted(set(numbers)) == list(plan(*requests).channels(variant, name))


def test_growing_adds_and_never_takes_away() -> None:
    before = plan(file(layer("conv1", "0:2")))
    after = plan(file(layer("conv1", "0:2")), file(layer("conv1", "5"), layer("fc", "1")))
    assert set(before.units()) < set(after.units())
    assert after.channels("channel", "conv1") == (0, 1, 5)
    assert after.digest() != before.digest()


def test_a_variant_covers_the_layers_of_its_own_request_only() -> None:
    both = plan(file(layer("conv1", "0")), file(layer("fc", "3"), negative=RECIPES["negative"]))
    assert list(both.units()) == [Unit("channel", "conv1", 0), Unit("negative", "fc", 3)]


def test_deepdream_has_one_job_per_layer() -> None:
    assert list(plan(file(layer("conv1", "3:6"), layer=RECIPES["layer"])).units()) == [Unit("layer", "conv1", 0)]


def test_a_job_carries_the_model_and_the_variants_recipe() -> None:
    whole = plan(file(negative=RECIPES["negative"]))
    job = whole.job(Unit("negative", "conv1", 3))
    assert (job.model, job.recipe, job.unit) == (MODEL, RECIPES["negative"], Unit("negative", "conv1", 3))


@pytest.mark.parametrize(
    "unit", [Unit("channel", "conv1", 8), Unit("other", "conv1", 0), Unit("channel", "convl", 0)], ids=str
)
def test_a_unit_that_is_not_planned_is_refused(unit: Unit) -> None:
    with pytest.raises(RequestError, match="is not planned in this atlas"):
        plan(file()).job(unit)
    assert unit not in plan(file())
    assert "conv1" not in plan(file())  # no unit at all


# -- conflicts, with the difference named


def test_another_recipe_under_a_variants_name_is_refused() -> None:
    with pytest.raises(PlanConflictError) as caught:
        plan(file(channel=Recipe(steps=4)), file(layer("fc"), channel=Recipe(steps=5, jitter=8)))
    said = str(caught.value)
    assert said.startswith("variant 'channel' already has another recipe here (")
    assert "steps 4 here, 5 asked" in said or "steps 5 here, 4 asked" in said
    assert "jitter" in said and "learning_rate" not in said
    assert said.endswith("give the new one another name")


def test_a_file_of_another_model_is_refused() -> None:
    other = ModelRef(name="resnet50", weights="IMAGENET1K_V1")
    with pytest.raises(PlanConflictError, match=r"made for another model than resnet50 \(IMAGENET1K_V2\)"):
        plan(file(model=other))


def test_a_layer_of_two_sizes_is_refused() -> None:
    with pytest.raises(PlanConflictError, match=r"layer 'conv1' has .* channels in one plan and .* in another"):
        plan(file(layer("conv1", "0")), file(layer("conv1", "1", total=64)))


def test_differences_are_named_field_by_field() -> None:
    assert difference(Recipe(steps=160), Recipe(steps=512)) == "steps 160 here, 512 asked"
    assert difference(Recipe(), Recipe(sign=-1, seed=3)) == "sign 1 here, -1 asked; seed 0 here, 3 asked"
    assert difference(Recipe(), Recipe()) == "no difference"


def test_a_model_is_named_for_people() -> None:
    assert describe_model(MODEL) == "resnet50 (IMAGENET1K_V2)"
    assert describe_model(ModelRef(name="m", weights="sha256:" + "5a" * 32)) == "m (weights 5a5a5a5a5a5a)"


# -- the files


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ("0:9", "channel 8 is out of range: layer 'conv1' has 8 channels, 0 to 7"),
        ("", "'' is neither a number nor start:stop:step"),
        ("5:3", "select nothing of layer 'conv1'"),
        ("0:9:00", "is neither a number"),
        ("," * 600_001, "at most 600000 characters"),
    ],
    ids=range(5),
)
def test_a_wrong_selection_is_a_wrong_request_or_a_damaged_file(channels: str, sentence: str) -> None:
    loose = {**file().model_dump(mode="json", by_alias=True)}
    loose["layers"] = [{**loose["layers"][0], "channels": channels}]
    with pytest.raises(RequestError) as wrong:
        PlanFile.build("the request", loose)
    assert sentence in str(wrong.value)
    with pytest.raises(IntegrityError) as damaged:
        manifest.load(PlanFile, json.dumps(loose).encode(), "plans/x.json")
    assert str(damaged.value).startswith("plans/x.json is damaged (") and sentence in str(damaged.value)


def test_a_layer_listed_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="a layer is listed twice"):
        PlanFile.build(
            "the request",
            {"model": MODEL.digest(), "layers": [layer("fc"), layer("fc", "1")], "variants": {"channel": Recipe()}},
        )


@pytest.mark.parametrize("name", ["a b", "../x", "", "a/b"])
def test_a_variant_has_a_name_that_makes_keys(name: str) -> None:
    with pytest.raises(RequestError, match="the request: variants"):
        PlanFile.build("the request", {"model": MODEL.digest(), "layers": [layer("fc")], "variants": {name: Recipe()}})


def test_files_keep_their_digest_through_json_and_in_any_order_of_variants() -> None:
    one = file(**RECIPES)
    two = file(**dict(reversed(RECIPES.items())))
    assert one.digest() == two.digest()
    assert manifest.load(PlanFile, manifest.dump(one), "x").digest() == one.digest()
    assert manifest.load(AtlasFile, manifest.dump(AtlasFile(model=MODEL)), "x") == AtlasFile(model=MODEL)


def test_identities_of_requests_never_change() -> None:
    """Frozen with version 1: the names of plan files."""
    request = file(layer("conv1", "0:4"), layer("fc", "::2"), channel=Recipe(steps=4))
    assert request.digest() == "ec7a04267401cc5d"
    assert AtlasFile(model=MODEL).digest() == "fc45f1f48cfd27c0"
    assert plan(request).digest() == "25dcddb41a8cd471"


def test_reading_the_numbers_changes_no_record() -> None:
    one, two = layer("fc", "::3"), layer("fc", "::3")
    assert one.numbers == (0, 3, 6, 9)
    assert one == two and one.digest() == two.digest()
    assert "numbers" not in one.model_dump()

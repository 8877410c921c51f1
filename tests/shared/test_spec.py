"""Records: one spelling, one digest, and identities that never change."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from feature_atlas import spec
from feature_atlas.errors import RequestError
from feature_atlas.spec import Job, ModelRef, Recipe, Record, Unit, seed_of

MODEL = ModelRef(
    name="resnet50", weights="IMAGENET1K_V2", weights_sha256="11ad3fa6",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


def job(**changes: Any) -> Job:
    given: dict[str, Any] = {
        "model": MODEL, "layer": "layer2.0.conv3", "channel": 17, "variant": "channel",
        "recipe": Recipe(steps=160, learning_rate=0.12, jitter=(16.0, 0.0), rotate=(-10.0, 10.0), total_variation=0.05),
    }  # fmt: skip
    return Job(**{**given, **changes})


# -- identities


def test_identities_never_change() -> None:
    """Frozen with version 1.  If one of these differs, every atlas ever made is lost: mend the code, not the test."""
    assert MODEL.digest() == "46f0c6bb4a505caa"
    assert Recipe().digest() == "8e0d92c788b70424"
    assert seed_of(0, "layer2.0.conv3", 17) == 4817306165734165
    assert seed_of(0, "layer2.0.conv3", 17, attempt=1) == 144345480795557
    ids = {
        "channel": job(),
        "negative": job(recipe=Recipe(sign=-1)),
        "neuron": job(recipe=Recipe(objective="neuron", position=(3, 4))),
        "layer": job(recipe=Recipe(objective="layer"), channel=0),
        "diverse": job(recipe=Recipe(images=4, diversity=1.0, seed=7)),
        "raw": job(recipe=Recipe(parameterization="pixel", decorrelate=False, penalties="absolute", pick="last")),
    }
    assert {kind: (each.id, each.seed) for kind, each in ids.items()} == {
        "channel": ("89f77790246181fd", 4817306165734165),
        "negative": ("7daae6e00fc32f34", 4817306165734165),
        "neuron": ("5c4baae56f811efd", 4817306165734165),
        "layer": ("72711ceca9aa931e", 3907495482143409),
        "diverse": ("2bee207d47f66631", 1188171000378852),
        "raw": ("19034162f1a50977", 4817306165734165),
    }


def test_canonical_json_is_sorted_compact_and_without_defaults() -> None:
    assert Recipe(steps=7, sign=-1, jitter=(2.0, 0.0)).canonical() == b'{"jitter":[2.0,0.0],"sign":-1,"steps":7}'
    assert Recipe().canonical() == b"{}"
    assert ModelRef(name="é", weights="random:0").canonical() == b'{"name":"\\u00e9","weights":"random:0"}'


def test_a_new_field_with_a_neutral_default_keeps_every_digest() -> None:
    old = Recipe

    def next_release() -> Any:
        class Recipe(old):
            ring: Annotated[float, Field(ge=0.0)] = 0.0
            stars: tuple[int, ...] = ()

        return Recipe

    new = next_release()
    for fields in ({}, {"steps": 7}, {"scale": (0.9, 1.1), "images": 2}):
        assert new(**fields).digest() == old(**fields).digest()
    assert new(ring=1.0).digest() != old().digest()


def test_the_kind_of_a_record_is_part_of_its_digest() -> None:
    class One(Record):
        a: int = 0

    class Two(Record):
        a: int = 0

    assert One(a=1).canonical() == Two(a=1).canonical() and One(a=1).digest() != Two(a=1).digest()


numbers = st.floats(0, 64, allow_nan=False) | st.sampled_from([0.0, -0.0, 0.1, 1e-300, 5e-324, 1 / 3])
recipes = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 100_000),
        "sign": st.sampled_from([1, -1]),
        "size": st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
        "jitter": st.tuples(numbers, numbers),
        "rotate": st.lists(st.floats(-180, 180), min_size=1, max_size=5).map(tuple),
        "total_variation": numbers,
        "blur": st.tuples(numbers, numbers),
        "decorrelate": st.booleans(),
        "network_size": st.none() | st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
        "seed": st.integers(0, 2**53 - 1),
        "pick": st.sampled_from(["best", "last"]),
    },
)


@given(recipes)
def test_a_recipe_survives_json_with_its_digest(fields: dict[str, Any]) -> None:
    recipe = Recipe(**fields)
    for text in (recipe.model_dump_json(), recipe.canonical()):
        again = Recipe.model_validate_json(text)
        assert again == recipe
        assert again.digest() == recipe.digest()


@given(recipes, recipes)
def test_digests_are_equal_exactly_where_recipes_are(one: dict[str, Any], two: dict[str, Any]) -> None:
    for a, b in ((Recipe(**one), Recipe(**two)), (Recipe(**one), Recipe(**{**two, **one}))):
        assert (a.digest() == b.digest()) == (a == b)


def test_zero_has_no_sign() -> None:
    """-0.0 == 0.0: equal recipes must not make two jobs."""
    assert Recipe(rotate=(-0.0, 10.0)) == Recipe(rotate=(0.0, 10.0))
    assert Recipe(rotate=(-0.0, 10.0)).digest() == Recipe(rotate=(0.0, 10.0)).digest()
    assert Recipe(rotate=(-0.5,)).digest() != Recipe(rotate=(0.5,)).digest()


# -- a job's identity is its content


def test_an_id_depends_on_all_that_changes_the_picture() -> None:
    others = [
        job(channel=18), job(layer="layer2.0.conv2"), job(recipe=Recipe(steps=161)),
        job(model=MODEL.model_copy(update={"weights": "IMAGENET1K_V1"})),
        job(model=MODEL.model_copy(update={"weights_sha256": "0676ba61"})),
        job(model=MODEL.model_copy(update={"mean": (0.5, 0.5, 0.5)})),
        job(recipe=job().recipe.model_copy(update={"seed": 1})),
        job(recipe=job().recipe.model_copy(update={"renderer": 2})),
    ]  # fmt: skip
    assert len({each.id for each in [job(), *others]}) == len(others) + 1


def test_an_id_does_not_depend_on_the_variants_name() -> None:
    assert job(variant="another").id == job().id


def test_a_seed_compares_checkpoints_and_recipes() -> None:
    """The same noise for the same layer and channel, whatever the weights and the recipe."""
    other = job(model=MODEL.model_copy(update={"weights": "random:0"}), recipe=Recipe(steps=9, sign=-1))
    assert other.seed == job().seed
    assert job(recipe=Recipe(seed=1)).seed != job().seed
    assert len({seed_of(0, "conv", channel) for channel in range(2_000)}) == 2_000
    assert len({seed_of(0, "conv", 0, attempt) for attempt in range(3)}) == 3


@given(st.integers(0, 2**53 - 1), st.text(max_size=20), st.integers(0, 99_999), st.integers(0, 3))
def test_a_seed_is_exact_in_every_json_reader(base: int, layer: str, channel: int, attempt: int) -> None:
    seed = seed_of(base, layer, channel, attempt)
    assert 0 <= seed < 2**53
    assert int(float(seed)) == seed  # what JavaScript makes of it


def test_units_sort_by_group_and_say_where_they_are() -> None:
    units = [Unit("b", "l", 1), Unit("a", "m", 0), Unit("a", "l", 10), Unit("a", "l", 9)]
    assert sorted(units) == [Unit("a", "l", 9), Unit("a", "l", 10), Unit("a", "m", 0), Unit("b", "l", 1)]
    assert str(Unit("channel", "conv", 3)) == "conv:3"
    assert str(Unit("negative", "conv", 3)) == "conv:3@negative"


# -- bounds, each refused in one sentence


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("steps", [1, 100_000], [0, -1, 100_001, 1.5, "many"]),
        ("size", [(8, 2048), 64], [(7, 64), (64, 2049), 7, (64,), (64, 64, 64)]),
        ("learning_rate", [1e-6, 100], [0, -1, 101, float("nan"), float("inf")]),
        ("learning_rate_end", [0, 1], [-0.1, 1.1]),
        ("sign", [1, -1], [0, 2]),
        ("objective", ["channel", "neuron", "layer"], ["chanel", ""]),
        ("betas", [(0, 0.999)], [(0.9, 1.0), (-0.1, 0.9), (0.9,)]),
        ("decay", [0, 4], [-1, 5]),
        ("init_std", [1e-9, 10], [0, 11]),
        ("pad", [0, 256], [-1, 257]),
        ("jitter", [(0, 256), 16], [(-1, 0), (0, 257)]),
        ("scale", [(0.2, 9.9), (1,)], [(), (0.1,), (10,), (1.0,) * 65]),
        ("rotate", [(-180, 180)], [(), (181,)]),
        ("draw", ["uniform", "choice"], ["normal"]),
        ("transform_ramp", [(0, 64)], [(-1, 0), (0, 65)]),
        ("fill", [0, 1], [-0.1, 1.1]),
        ("cut", [(8, 0)], [(-1, 0)]),
        ("coarse", [0.125, 1], [0.1, 1.1]),
        ("network_size", [None, (224, 224), 299], [(4, 4)]),
        ("total_variation", [0, 1e6], [-1e-9, 1e7]),
        ("frequency_penalty", [0, 100], [-1e-9, 101]),
        ("redirect", [0, 16], [-1]),
        ("images", [1, 64], [0, 65]),
        ("seed", [0, 2**53 - 1], [-1, 2**53]),
        ("renderer", [1, 2], [0]),
        ("pick", ["best", "last"], ["first"]),
        ("penalties", ["relative", "absolute"], ["none"]),
    ],
)
def test_a_recipe_stays_within_bounds(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        Recipe.build("recipe", {field: value})
    for value in bad:
        with pytest.raises(RequestError) as caught:
            Recipe.build("recipe", {field: value})
        assert str(caught.value).startswith(f"recipe: {field}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"diversity": 1.0}, "recipe: diversity 1.0 needs at least 2 images per job, not 1"),
        ({"position": (1, 2)}, "recipe: a position belongs to the objective 'neuron', not 'channel'"),
        ({"steps": 4, "coarse_steps": 5}, "recipe: coarse_steps 5 is more than steps 4"),
        (
            {"parameterization": "pixel", "frequency_penalty": 0.1},
            "recipe: frequency_penalty 0.1 needs the parameterization 'fourier'",
        ),
        ({"stepz": 4}, "recipe: unknown field 'stepz'; did you mean steps? (fields: adapt, betas, blur, "),
        ({"size": 4}, "recipe: size=4: input should be greater than or equal to 8; write size=224 or size=224,320"),
        ({"size": (64,)}, "recipe: size=(64,): not the numbers wanted; write size=224 or size=224,320"),
        ({"jitter": "nan"}, "recipe: jitter='nan': not the numbers wanted; write jitter=8 or jitter=8,4"),
        ({"steps": "x" * 1000}, f"recipe: steps='{'x' * 76}...: input should be a valid integer"),
    ],
)
def test_what_does_not_go_together_is_said(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        Recipe.build("recipe", fields)
    assert str(caught.value).startswith(sentence)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(RequestError) as caught:
        ModelRef.build("model", {"name": "resnet50"})
    assert str(caught.value) == "model: weights is missing"


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": (0.5,), "std": ()},
        {"mean": (0.5,), "std": (0.0,)},
        {"weights_sha256": "xyz"},
        {"input_size": (0, 224)},
        {"name": "x" * 201},
    ],
)
def test_a_model_without_a_sound_normalisation_or_hash_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"^model: "):
        ModelRef.build("model", {"name": "m", "weights": "w", **fields})


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a\n", ".a", "a.", "é", "x" * 201])
def test_a_job_has_names_that_make_keys(name: str) -> None:
    for field in ("layer", "variant"):
        with pytest.raises(ValidationError):
            job(**{field: name})


def test_records_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        job().channel = 18
    with pytest.raises(ValidationError):
        Job.model_validate({**json.loads(job().model_dump_json()), "position": 3})


def test_the_renderers_number_is_no_default() -> None:
    """The default is for ever 1, so that old records keep their digest; presets carry the present one."""
    assert Recipe().renderer == 1 <= spec.RENDERER

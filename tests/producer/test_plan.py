"""A request becomes one plan file: the same request, the same file."""

import pytest

from feature_atlas import networks, presets
from feature_atlas.errors import RequestError
from feature_atlas.networks import LayerInfo, Network
from feature_atlas.plan import Plan
from feature_atlas.spec import ModelRef
from feature_atlas_producer.plan import atlas_names, parse_settings, request

NET = Network("net", (LayerInfo("a", "conv", 8, 0, "NCHW"), LayerInfo("b", "conv", 4, 1, "NCHW")))
REF = ModelRef(name="net", weights="random:0", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_plan_holds_every_chosen_channel_under_every_variant() -> None:
    file = request(NET, REF, channels="0:2", variants=["channel", "negative", "mine=lucid"], changes={"steps": 7})
    plan = Plan(REF, {file.digest(): file})
    assert len(plan) == 2 * 2 * 3
    assert {name: recipe.steps for name, recipe in plan.variants.items()} == {"channel": 7, "negative": 7, "mine": 7}
    assert plan.variants["negative"].sign == -1
    assert plan.variants["mine"] == presets.preset("lucid", {"steps": 7})


def test_the_same_request_gives_the_same_file() -> None:
    one = request(NET, REF, layers="a,b", variants=["channel", "raw"])
    two = request(NET, REF, layers="b,*", variants=["raw", "channel", "raw"])
    assert one.digest() == two.digest()
    assert request(NET, REF, layers="a").digest() != one.digest()


def test_resnet50_is_26560_jobs() -> None:
    network = networks.find("resnet50")
    assert network is not None
    ref = network.reference()
    file = request(network, ref)
    assert len(Plan(ref, {file.digest(): file})) == 26_560
    assert len(file.model_dump_json()) < 20_000


@pytest.mark.parametrize(
    ("variants", "changes", "sentence"),
    [
        (["chanel"], {}, "no variant or preset 'chanel'; did you mean channel"),
        (["a=channel", "a=raw"], {}, "variant 'a' is given twice"),
        (["../x=channel"], {}, "variant name"),
        ([], {}, "no variant is given"),
        (["channel"], {"step": 3}, "unknown field 'step'; did you mean steps"),
        (["channel"], {"steps": 0}, "steps=0: "),
        (["channel"], {"size": 4}, "size"),
    ],
)
def test_a_mistake_is_one_sentence(variants: list[str], changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        request(NET, REF, variants=variants, changes=changes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("steps=256", 256),
        ("jitter=8,4", [8, 4]),
        ("jitter=[8, 4]", [8, 4]),
        ("learning_rate=1e-2", 0.01),
        ("pick=last", "last"),
        ("decorrelate=false", False),
        ("position=null", None),
        ("scale = 0.9, 1.1", [0.9, 1.1]),
        ('pick="last"', "last"),
        ("draw=a,b", "a,b"),
        ("x=a=b", "a=b"),
        ("x=" + "[" * 5000, "[" * 5000),
    ],
)
def test_a_setting_is_json_or_a_list_or_a_word(text: str, value: object) -> None:
    assert list(parse_settings([text]).values()) == [value]


@pytest.mark.parametrize("text", ["steps", "steps=", "=3", ""])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="write key=value"):
        parse_settings([text])


def test_a_setting_may_be_repeated_but_not_contradicted() -> None:
    assert parse_settings(["steps=3", "steps=3"]) == {"steps": 3}
    with pytest.raises(RequestError, match="steps twice: 3 and 4"):
        parse_settings(["steps=3", "steps=4"])


def test_settings_reach_the_recipe() -> None:
    changes = parse_settings(["size=96", "jitter=6", "scale=0.9,1.1", "pick=last"])
    recipe = request(NET, REF, changes=changes).variants["channel"]
    assert (recipe.size, recipe.jitter, recipe.scale, recipe.pick) == ((96, 96), (6.0, 0.0), (0.9, 1.1), "last")


def test_several_models_have_one_atlas_each() -> None:
    assert atlas_names("resnet50") == {"resnet50": "resnet50"}
    assert atlas_names("resnet18, timm:vit_b.x,python:my.nets:make,resnet18") == {
        "resnet18": "resnet18",
        "timm:vit_b.x": "timm-vit_b.x",
        "python:my.nets:make": "python-my.nets-make",
    }
    for models in ("", "a,,b", "a:b,a-b", ":"):
        with pytest.raises(RequestError):
            atlas_names(models)

"""Keys: spelt in one place, read back, and never a way out of the atlas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_atlas import keys
from feature_atlas.errors import RequestError
from feature_atlas.objects import check_key, check_prefix
from feature_atlas.spec import MAX_CHANNELS, Unit

names = st.from_regex(r"[A-Za-z0-9_-]{1,8}(\.[A-Za-z0-9_-]{1,8}){0,4}", fullmatch=True)
units = st.builds(Unit, names, names, st.integers(0, MAX_CHANNELS - 1))
PER_UNIT: dict[str, Callable[[Unit], str]] = {
    "images": keys.image,
    "manifests": keys.manifest,
    "dead": keys.dead,
    "errors": keys.error,
}
UNIT = Unit("channel", "layer2.0.conv3", 17)


def test_the_layout_is_the_product() -> None:
    """Others read these paths: they never change."""
    assert keys.image(UNIT) == "images/channel/layer2.0.conv3/00017.png"
    assert keys.image(UNIT, 2) == "images/channel/layer2.0.conv3/00017-2.png"
    assert keys.manifest(UNIT) == "manifests/channel/layer2.0.conv3/00017.json"
    assert keys.dead(UNIT) == "dead/channel/layer2.0.conv3/00017"
    assert keys.error(UNIT) == "errors/channel/layer2.0.conv3/00017.json"
    assert keys.initial(UNIT) == "initial/channel/layer2.0.conv3/00017.png"
    assert keys.layer("layer2.0.conv3") == "layers/layer2.0.conv3/layer.json"
    assert keys.layer("layer2.0.conv3", "js") == "layers/layer2.0.conv3/layer.js"
    assert keys.sheet(64, "channel", "layer2.0.conv3", 1) == "sheets/64/channel/layer2.0.conv3/001.webp"
    assert keys.pack("channel", "layer2.0.conv3", 1) == "packs/channel/layer2.0.conv3/001.tar"
    assert keys.plan("0123456789abcdef") == "plans/0123456789abcdef.json"
    assert keys.weights("5a" * 32) == f"weights/{'5a' * 32}.safetensors"


@given(units)
def test_what_is_spelt_is_read_back(unit: Unit) -> None:
    for kind, spell in PER_UNIT.items():
        assert keys.parse_unit(check_key(spell(unit))) == (kind, unit, 0)


@given(units, st.integers(1, 63))
def test_the_images_of_a_job_are_numbered(unit: Unit, n: int) -> None:
    assert keys.parse_unit(keys.image(unit, n)) == ("images", unit, n)


@given(units)
def test_a_group_is_a_prefix_of_its_keys_and_of_no_others(unit: Unit) -> None:
    group = check_prefix(keys.IMAGES + keys.group(unit.variant, unit.layer))
    assert keys.image(unit).startswith(group)
    assert not keys.image(unit._replace(layer=unit.layer + "x")).startswith(group)


@given(st.text(alphabet="imagesdeadrro/0123456789.-pngjsonv", max_size=40))
def test_what_is_read_is_spelt_back(key: str) -> None:
    """No two keys mean the same unit."""
    found = keys.parse_unit(key)
    if found is not None:
        kind, unit, n = found
        assert (keys.image(unit, n) if kind == "images" else PER_UNIT[kind](unit)) == key


@pytest.mark.parametrize(
    "key",
    [
        "images/v/l/00017.json", "images/v/l/17.png", "images/v/l/000017.png", "images/v/l/00017.PNG",
        "images/v/l/00017-0.png", "images/v/l/00017-01.png", "images/v/l/00017-.png", "images/v/l/00017-100.png",
        "manifests/v/l/00017-1.json", "dead/v/l/00017.json", "errors/v/l/00017", "images/v/l/00017.png\n",
        "images/v/l/x/00017.png", "images/v/00017.png", "images/../l/00017.png", "images/v/a..b/00017.png",
        "images/v/l/٠٠٠١٧.png", "sheets/16/v/l/000.webp", "atlas.json", "", "x/images/v/l/00017.png",
    ],
)  # fmt: skip
def test_other_keys_are_no_units(key: str) -> None:
    assert keys.parse_unit(key) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a..b", "a.", "a/b", "a\\b", "a b", "a\n", "é", "a\0", "x" * 201, "../../etc"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    calls: list[Callable[[], str]] = [
        lambda: keys.group(name, "l"), lambda: keys.group("v", name), lambda: keys.layer(name),
        lambda: keys.pack("v", name, 0), lambda: keys.pack(name, "l", 0), lambda: keys.sheet(16, "v", name, 0),
        lambda: keys.initial(Unit("v", name, 0)),
        *(lambda spell=spell: spell(Unit("v", name, 0)) for spell in PER_UNIT.values()),
        *(lambda spell=spell: spell(Unit(name, "l", 0)) for spell in PER_UNIT.values()),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RequestError, match="cannot be a key"):
            call()


@pytest.mark.parametrize("channel", [-1, MAX_CHANNELS])
def test_a_channel_without_five_digits_is_refused(channel: int) -> None:
    for spell in PER_UNIT.values():
        with pytest.raises(RequestError, match="channels run from 0 to 99999"):
            spell(Unit("v", "l", channel))


@pytest.mark.parametrize("digest", ["", "../../x", "0123456789ABCDEF", "0" * 15, "0" * 17, "0" * 15 + "\n", "0" * 63])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    for spell in (keys.plan, keys.weights):
        with pytest.raises(RequestError, match="is not a digest"):
            spell(digest)

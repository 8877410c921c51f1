"""Messages: whatever lies in the queue is either ours, whole and bounded, or refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_atlas.messages import LONGEST, MalformedMessage, field, parse, peek, renewed, unit_of
from feature_atlas.queue import Template, make_app
from feature_atlas.spec import Unit

TEMPLATE = Template(make_app("redis://localhost"))


def raw(**changes: Any) -> str:
    return next(
        TEMPLATE.messages(changes.pop("atlas", "s3://bucket/toy"), "channel", "conv", [changes.pop("channel", 3)])
    )


def with_body(*body: Any) -> str:
    data = json.loads(raw())
    data["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps(data)


def test_a_message_names_atlas_unit_and_group() -> None:
    message = parse(raw())
    assert (message.order.atlas, message.order.unit) == ("s3://bucket/toy", Unit("channel", "conv", 3))
    assert json.loads(message.raw)["headers"]["g"] == message.order.group == "s3://bucket/toy|channel|conv"
    assert peek(raw().encode()) == ("s3://bucket/toy", Unit("channel", "conv", 3))


def test_a_message_is_small() -> None:
    assert len(raw(atlas="s3://a-bucket-with-a-long-name/resnet50", channel=2047)) < 450


def test_every_message_has_a_delivery_tag_of_its_own() -> None:
    made = [
        *TEMPLATE.messages("a", "channel", "conv", range(500)),
        *TEMPLATE.messages("a", "channel", "conv", range(500)),
    ]
    assert len({parse(text).tag for text in made}) == 1000


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_get_through_or_raise_anything_else(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse(data)
    assert peek(data) is None


@pytest.mark.parametrize(
    "body", [([["s3://bucket/toy"], "channel", "conv", 3], {}, {}), (["s3://bucket/toy", {}, "conv", 3], {}, {}),
             (["s3://bucket/toy", "channel", "conv", [3]], {}, {}), (["s3://bucket/toy", "a", "b", 3], {}, [])],
)  # fmt: skip
def test_a_peek_finds_nothing_in_what_only_looks_like_a_message(body: tuple[Any, ...]) -> None:
    assert peek(with_body(*body).encode()) is None
    assert peek(b'{"body": "", "properties": []}') is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(["body", "headers", "properties", "content-type"]), JSON)
def test_no_replaced_part_raises_anything_else(part: str, value: Any) -> None:
    data = json.loads(raw())
    data[part] = value
    with pytest.raises(MalformedMessage):
        parse(json.dumps(data))


@given(JSON, JSON, JSON)
def test_no_body_raises_anything_else(args: Any, kwargs: Any, embedded: Any) -> None:
    with pytest.raises(MalformedMessage):
        parse(with_body(args, kwargs, embedded))


@pytest.mark.parametrize(
    ("args", "embedded", "why"),
    [
        (["s3://b", "channel", "conv", "3"], {}, "channel="),
        (["s3://b", "channel", "conv", True], {}, "channel="),
        (["s3://b", "channel", "conv", 100_000], {}, "channel="),
        (["s3://b", "channel", "a/b", 3], {}, "layer="),
        (["s3://b", "..", "conv", 3], {}, "variant="),
        (["s3://b|x", "channel", "conv", 3], {}, "atlas="),
        (["s3://b\n", "channel", "conv", 3], {}, "atlas="),
        (["s3://b/" + "x" * 1000, "channel", "conv", 3], {}, "atlas="),
        (["s3://bucket/toy", "channel", "conv", 3], {"callbacks": [{"task": "os.system"}]}, "callbacks"),
        (["s3://elsewhere", "channel", "conv", 3], {}, "the header names the group"),
    ],
)
def test_hostile_orders_are_refused_with_a_reason(args: list[Any], embedded: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        parse(with_body(args, {}, embedded))


@pytest.mark.parametrize(
    "headers",
    [{"eta": "2030-01-01"}, {"expires": 1}, {"compression": "zlib"}, {"timelimit": [1, 1]}, {"task": "other"}],
)
def test_a_message_that_wants_more_of_celery_is_refused(headers: dict[str, Any]) -> None:
    data = json.loads(raw())
    data["headers"].update(headers)
    with pytest.raises(MalformedMessage):
        parse(json.dumps(data))


def test_what_is_long_is_not_even_read() -> None:
    with pytest.raises(MalformedMessage, match=f"at most {LONGEST}"):
        parse("[" * (LONGEST + 1))


def test_a_message_put_back_has_a_new_tag_and_says_so() -> None:
    before = parse(raw())
    after = parse(renewed(before, "new"))
    assert (after.tag, after.redelivered) == ("new", True)
    assert after.order == before.order and not before.redelivered


def test_fields_go_both_ways() -> None:
    unit = Unit("channel", "layer1.0.conv1", 7)
    assert unit_of(field(unit)) == unit

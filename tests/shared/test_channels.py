"""Channel selections: what people write, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_atlas.channels import parse, spell
from feature_atlas.errors import RequestError

sets = st.integers(1, 300).flatmap(
    lambda total: st.tuples(st.just(total), st.sets(st.integers(0, total - 1), min_size=1))
)


@given(sets)
def test_what_is_spelt_is_read_back(case: tuple[int, set[int]]) -> None:
    total, chosen = case
    assert parse(spell(chosen), total) == tuple(sorted(chosen))


@given(sets)
def test_a_set_has_one_spelling(case: tuple[int, set[int]]) -> None:
    total, chosen = case
    assert spell(parse(spell(chosen), total)) == spell(chosen) == spell(sorted(chosen, reverse=True) * 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":", range(512)),
        ("0:64", range(64)),
        ("500:", range(500, 512)),
        (":3", range(3)),
        ("::8", range(0, 512, 8)),
        ("1::8", range(1, 512, 8)),
        ("10:20:5", (10, 15)),
        ("7", (7,)),
        ("511", (511,)),
        (" 3 , 1 ,3,1:2", (1, 3)),
        ("0:64,100,::128", sorted({*range(64), 100, *range(0, 512, 128)})),
        ("5:3,9", (9,)),
    ],
)
def test_reads_numbers_and_python_slices(text: str, expected: range) -> None:
    assert parse(text, 512) == tuple(expected)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (range(64), "0:64"),
        (range(0, 64, 8), "0:57:8"),
        ((1, 2), "1:3"),
        ((1, 5), "1,5"),
        ((3, 1, 3), "1,3"),
        ((0, 1, 2, 100), "0:3,100"),
        ((7,), "7"),
        ((), ""),
    ],
)
def test_spells_as_people_do(chosen: range, expected: str) -> None:
    assert spell(chosen) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "1,",
        "a",
        "1-3",
        "-1",
        "1:2:3:4",
        "::0",
        "0:9:00",
        "1.5",
        "٣",
        "0x1",
        "1 2",
        "1" * 10,
        "1" * 5000,
        "all",
    ],
)
def test_refuses_what_is_no_selection(text: str) -> None:
    with pytest.raises(RequestError, match="neither a number nor start:stop:step"):
        parse(text, 512)


@pytest.mark.parametrize(
    ("text", "worst"), [("512", 512), ("0:513", 512), ("600:", 600), ("3,999", 999), (":1000", 999), ("512:512", 512)]
)
def test_a_channel_out_of_range_is_named_with_the_range(text: str, worst: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text, 512, what="layer 'fc'")
    assert str(caught.value) == f"channel {worst} is out of range: layer 'fc' has 512 channels, 0 to 511"


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(RequestError, match="select nothing of this layer, which has 512"):
        parse("5:3", 512)


@given(st.text(alphabet="0123456789:, ", max_size=20))
def test_nothing_but_a_request_error_comes_of_any_text(text: str) -> None:
    try:
        chosen = parse(text, 100)
    except RequestError:
        return
    assert chosen == tuple(sorted(set(chosen))) and chosen[0] >= 0 and chosen[-1] < 100


def test_a_hostile_text_is_read_like_any_other() -> None:
    """100,000 overlapping slices of 100,000 channels: 10^10 numbers, were they all written down."""
    assert len(parse(",".join([":"] * 100_000), 100_000)) == 100_000

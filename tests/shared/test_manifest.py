"""Records inside pictures: the way in and out, and every way in which the bytes can be wrong."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from feature_atlas import manifest
from feature_atlas.errors import IntegrityError
from feature_atlas.manifest import (
    CHUNK,
    Activation,
    Curve,
    Failure,
    Manifest,
    Picture,
    SideCar,
    decode_png,
    encode_png,
    pixels_sha256,
)
from feature_atlas.plan import AtlasFile, PlanFile
from feature_atlas.spec import Job, ModelRef, Recipe, Record, Unit

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
MODEL = ModelRef(name="résnet", weights="random:0")
JOB = Job(model=MODEL, layer="conv1", channel=3, variant="channel", recipe=Recipe(steps=4))
RECORD = Manifest(
    job=JOB, job_id=JOB.id, seed=JOB.seed, weights_sha256="5a" * 32, status="ok", best_step=3,
    activation=Activation(
        start=0.1, best=2.5, final=2.4, robust=2.0, robust_std=0.1, noise_mean=0.2, noise_std=0.05, normalized=46.0
    ),
    curve=Curve(steps=(0, 3), loss=(-0.1, -2.5), mean=(0.1, 2.5), max=(1.0, 9.0), min=(-1.0, 0.0)),
    picture=Picture(
        width=24, height=16, mean_rgb=(0.5, 0.4, 0.3), hue=33.0, saturation=0.2, contrast=0.3, high_frequency=0.1,
        clipped=0.01,
    ),
    pixels_sha256=(pixels_sha256(PIXELS),), software={"torch": "2.15.0"},
)  # fmt: skip
PNG = encode_png(PIXELS, RECORD)
SIGNATURE = PNG[:8]


def refused(data: bytes) -> str:
    with pytest.raises(IntegrityError) as caught:
        decode_png(data, "images/x.png")
    assert "images/x.png" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def assemble(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with true checksums."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def itxt(keyword: str, text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", keyword.encode() + b"\0\1\0\0\0" + zlib.compress(text, 9)


# -- the way in and out


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_pixels_and_record_survive(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    record = RECORD.model_copy(update={"pixels_sha256": (pixels_sha256(pixels),)})
    again, found = decode_png(encode_png(pixels, record), "x")
    assert np.array_equal(again, pixels)
    assert found == record
    again, found = decode_png(encode_png(pixels), "x")  # a further image of a job carries none
    assert np.array_equal(again, pixels) and found is None


def test_the_same_picture_makes_the_same_bytes() -> None:
    assert encode_png(PIXELS, RECORD) == PNG
    assert encode_png(np.asfortranarray(PIXELS), RECORD) == PNG


def test_other_programs_can_read_what_it_is() -> None:
    with Image.open(io.BytesIO(PNG)) as image:
        assert (image.mode, image.size) == ("RGB", (24, 16))
        text = image.text  # type: ignore[attr-defined]
    assert text["Title"] == "résnet conv1:3"
    assert text["Software"] == "feature-atlas"
    assert json.loads(text[CHUNK])["job"]["channel"] == 3


def test_the_hash_is_over_the_rgb_bytes_in_reading_order() -> None:
    """Anybody can compute it: sha256 of the raw RGB."""
    import hashlib

    assert pixels_sha256(PIXELS) == hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert pixels_sha256(np.asfortranarray(PIXELS)) == pixels_sha256(PIXELS)
    assert pixels_sha256(PIXELS[::-1]) != pixels_sha256(PIXELS)


# -- damage


@pytest.mark.parametrize("kept", [0, 4, 8, 20, 33, len(PNG) // 2, len(PNG) - 20, len(PNG) - 12, len(PNG) - 1])
def test_a_truncated_picture_is_found(kept: int) -> None:
    assert "is not a whole PNG" in refused(PNG[:kept])


def test_bytes_behind_the_end_are_found() -> None:
    assert "its end is missing" in refused(PNG + b"\0")


@settings(max_examples=200)
@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
def test_a_single_altered_byte_anywhere_is_found(at: int, flip: int) -> None:
    refused(PNG[:at] + bytes([PNG[at] ^ flip]) + PNG[at + 1 :])


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    refused(data)
    refused(SIGNATURE + data)
    refused(PNG[:33] + data)
    refused(PNG[:33] + data + PNG[-12:])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([b"IHDR", b"IDAT", b"iTXt", b"zTXt", b"tEXt", b"iCCP", b"PLTE", b"tRNS",
                                           b"acTL", b"fcTL", b"fdAT", b"eXIf", b"pHYs", b"IEND", b"xxXx"]),
                          st.binary(max_size=30)), max_size=4))  # fmt: skip
def test_no_well_formed_chunks_raise_anything_else(extra: list[tuple[bytes, bytes]]) -> None:
    """True checksums, strange contents: what a hostile writer would send."""
    parts = chunks(PNG)
    try:
        pixels, found = decode_png(assemble([parts[0], *extra, *parts[1:]]), "images/x.png")
    except IntegrityError:
        return
    assert np.array_equal(pixels, PIXELS) and found == RECORD


def test_other_pixels_under_an_old_record_are_found() -> None:
    other = PIXELS.copy()
    other[3, 4, 1] ^= 1
    assert refused(encode_png(other, RECORD)) == (
        "images/x.png shows other pixels than its record says: it was altered"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{}", r"job is missing"),
        (b"not json", r"Expecting value"),
        (b"\xff\xfe", r""),
        (b"[1]", r"damaged"),
        (b"null", r"damaged"),
        (b"[" * 100_000, r"damaged"),
        (b'{"schema": 1, "seed": ' + b"9" * 5_000 + b"}", r"damaged"),
        (RECORD.model_dump_json(by_alias=True).replace('"ok"', '"fine"').encode(), r"status='fine'"),
        (RECORD.model_dump_json(by_alias=True).replace("46.0", "NaN").encode(), r"finite"),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_record_is_found(text: bytes, sentence: str) -> None:
    parts = [part if part[0] != b"iTXt" or CHUNK.encode() not in part[1] else itxt(CHUNK, text) for part in chunks(PNG)]
    if text == b"\xff\xfe":  # not UTF-8: no text at all, so no record
        assert decode_png(assemble(parts), "images/x.png")[1] is None
        return
    said = refused(assemble(parts))
    assert said.startswith("the record in images/x.png is damaged (") and sentence in said


# -- bombs: refused before anything is unpacked


@pytest.mark.parametrize("size", [(2049, 2048), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_a_claim_to_be_huge_is_not_believed(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that would unpack to gigabytes; Pillow itself would warn, or raise an error of its own."""
    monkeypatch.setattr(Image, "open", None)  # nobody may call it
    header = struct.pack(">II", *size) + b"\x08\x02\0\0\0"
    bomb = assemble([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b"")])
    assert f"has {size[0]} x {size[1]} pixels; at most 4194304 are read" in refused(bomb)


def test_a_file_of_many_bytes_is_not_decoded() -> None:
    assert "a picture has at most" in refused(PNG + bytes(manifest.MAX_BYTES))


@pytest.mark.parametrize("keyword", [CHUNK, "anything"])
def test_a_text_that_unpacks_to_more_than_a_mebibyte_is_refused(keyword: str) -> None:
    parts = chunks(PNG)
    bomb = assemble([parts[0], itxt(keyword, bytes(20 * 2**20)), *parts[1:]])
    assert len(bomb) < 300_000
    assert "is not a whole PNG" in refused(bomb)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20  # what we rely on; nobody here may raise it


def test_many_texts_are_refused_together() -> None:
    parts = chunks(PNG)
    bomb = assemble([parts[0], *[itxt(f"t{n}", b"x" * 2**20) for n in range(70)], *parts[1:]])
    assert "is not a whole PNG" in refused(bomb)


def test_the_largest_record_is_far_below_the_limit() -> None:
    """64 points, 64 images, a recipe of 64 scales: what is the longest text that we write ourselves?"""
    recipe = Recipe(scale=tuple(1 + n / 3 for n in range(9)) * 7, rotate=tuple(n / 3 for n in range(64)), images=64)
    points: Any = {name: tuple(n / 3 for n in range(64)) for name in ("loss", "mean", "max", "min")}
    record = RECORD.model_copy(
        update={
            "job": JOB.model_copy(update={"recipe": recipe}),
            "curve": Curve(steps=tuple(range(64)), **points),
            "pixels_sha256": (RECORD.pixels_sha256[0], *["5a" * 32] * 63),
        }
    )
    assert len(record.model_dump_json()) < 2**16
    assert decode_png(encode_png(PIXELS, record), "x")[1] == record


# -- stored JSON

FAILURE = Failure(unit=Unit("channel", "conv1", 3), job_id=JOB.id, error="not finite", attempts=3)
FILES: list[Record] = [
    RECORD,
    SideCar(manifest=RECORD, sha256="5a" * 32, bytes=len(PNG)),
    FAILURE,
    AtlasFile(model=JOB.model),
]


@pytest.mark.parametrize("record", FILES, ids=lambda record: type(record).__name__)
def test_every_record_survives_its_file(record: Record) -> None:
    data = manifest.dump(record)
    assert json.loads(data)["schema"] == 1
    assert data.endswith(b"\n")
    assert manifest.load(type(record), data, "x") == record


@pytest.mark.parametrize("kind", [Manifest, SideCar, Failure, AtlasFile, PlanFile], ids=lambda kind: kind.__name__)
def test_a_newer_schema_says_to_update(kind: type[Record]) -> None:
    with pytest.raises(IntegrityError) as caught:
        manifest.load(kind, b'{"schema": 2, "anything": {"new": 1}}', "atlas.json")
    assert str(caught.value) == "atlas.json has schema 2; this release reads 1: update feature-atlas"


def test_an_unknown_field_may_be_of_a_newer_release() -> None:
    data = json.loads(manifest.dump(FAILURE)) | {"colour": "red"}
    with pytest.raises(IntegrityError) as caught:
        manifest.load(Failure, json.dumps(data).encode(), "errors/x.json")
    said = str(caught.value)
    assert said.startswith("errors/x.json has an unknown field 'colour'")
    assert said.endswith("it is damaged, or a newer feature-atlas wrote it")


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:schema1tfn.0 ', max_size=40).map(str.encode))
def test_no_stored_bytes_raise_anything_else(data: bytes) -> None:
    for kind in (SideCar, AtlasFile, PlanFile, Failure):
        with pytest.raises(IntegrityError):
            manifest.load(kind, data, "x")


def test_a_curve_has_equal_columns_and_few_points() -> None:
    good: dict[str, Any] = {name: (0.0,) * 64 for name in ("loss", "mean", "max", "min")} | {"steps": tuple(range(64))}
    Curve(**good)
    for bad in ({"loss": (0.0,) * 63}, {name: values * 2 for name, values in good.items()}):
        with pytest.raises(ValueError, match=r"differ in length|at most 64"):
            Curve(**{**good, **bad})


def gradient() -> NDArray[np.uint8]:
    return np.arange(16 * 24 * 3, dtype=np.uint16).reshape(16, 24, 3).astype(np.uint8)


def test_reads_pictures_of_other_programs() -> None:
    """Re-saved losslessly, the record is lost and the pixels are the same."""
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "PNG")
    pixels, found = decode_png(buffer.getvalue(), "x")
    assert np.array_equal(pixels, gradient()) and found is None

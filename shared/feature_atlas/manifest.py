"""The record of one finished job, and its life inside the PNG that it describes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, ValidationError, model_validator

from feature_atlas.errors import IntegrityError
from feature_atlas.spec import Digest, Job, Record, Sha256, Unit, sentence

if TYPE_CHECKING:
    from numpy.typing import NDArray

R = TypeVar("R", bound=Record)
#: The keyword of the PNG's iTXt chunk.
CHUNK = "feature-atlas"
#: Nothing larger is decoded: a picture has at most 2048 x 2048 pixels.
MAX_PIXELS = 2048 * 2048
MAX_BYTES = 64 * 2**20


class Curve(Record):
    """How the optimisation went, thinned to at most 64 points; all of equal length."""

    steps: Annotated[tuple[int, ...], Field(max_length=64)]
    loss: tuple[float, ...]
    mean: tuple[float, ...]
    max: tuple[float, ...]
    min: tuple[float, ...]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        lengths = [len(getattr(self, name)) for name in type(self).model_fields]
        if len(set(lengths)) != 1:
            raise ValueError(f"the curve's columns differ in length: {lengths}")
        return self


class Activation(Record):
    """The objective's value: mean over space (channel), at the position (neuron), mean square (layer)."""

    #: On the clean initial picture, on the chosen one and on the last iterate.
    start: float
    best: float
    final: float
    #: Mean and standard deviation over a fixed held-out set of transforms of the chosen picture.
    robust: float
    robust_std: float
    #: The same objective over seeded 1/f noise, and the chosen picture's distance from it in standard deviations (0
    #: where noise has no spread, which publish turns into "none").
    noise_mean: float
    noise_std: float
    normalized: float


class Picture(Record):
    """What the 8-bit picture is like, without looking at it."""

    width: int
    height: int
    mean_rgb: tuple[float, float, float]
    #: Degrees on the colour circle of the mean chroma, and its strength 0 to 1.
    hue: float
    saturation: float
    #: Standard deviation of the luminance, 0 to 1.
    contrast: float
    #: Share of spectral energy above 0.25 cycles per pixel.
    high_frequency: float
    #: Share of channel values below 2 or above 253.
    clipped: float


class Manifest(Record):
    """Everything that makes a picture trustworthy and repeatable.  Deterministic: run facts live in :class:`Run`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    job: Job
    job_id: Digest
    seed: int
    #: SHA-256 of the weights that were really loaded (of the file, or of the tensors where there is no file).
    weights_sha256: Sha256
    status: Literal["ok", "dead", "nan"]
    #: Why it is dead or not finite; empty when ok.
    reason: str = ""
    #: How many seeds were tried; more than one only for a unit that stayed dead.
    attempts: Annotated[int, Field(ge=1)] = 1
    activation: Activation | None = None
    best_step: Annotated[int, Field(ge=0)] = 0
    curve: Curve | None = None
    picture: Picture
    #: SHA-256 over the RGB bytes of each image of the job, the first being this one.
    pixels_sha256: tuple[Sha256, ...] = Field(min_length=1)
    software: dict[str, str] = Field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """The job's address in its atlas."""
        return self.job.unit


class Run(Record):
    """Facts of the run that made the file; only in the side-car, in no digest."""

    worker: str = ""
    device: str = ""
    batch: int = 0
    seconds: float = 0.0
    created: str = ""


class SideCar(Record):
    """``manifests/...json``: the manifest, the file it came from, and run facts."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    manifest: Manifest
    #: SHA-256 and size of the PNG.
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]
    run: Run = Run()


class Failure(Record):
    """``errors/...json``: the last failure of a job."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    unit: Unit
    job_id: Digest
    error: str
    traceback: str = ""
    host: str = ""
    attempts: int = 1
    created: str = ""


def dump(record: Record) -> bytes:
    """A record as JSON for people: all fields, indented, ending in a newline."""
    return (record.model_dump_json(indent=1, by_alias=True) + "\n").encode()


def load(kind: type[R], data: bytes, what: str) -> R:
    """A record from stored JSON.

    Raises:
        IntegrityError: damaged, or written by a newer schema; the text says which of the two.
    """
    try:
        raw = json.loads(data)
        version = raw.get("schema") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > 1:
            raise IntegrityError(f"{what} has schema {version}; this release reads 1: update feature-atlas")
        return kind.model_validate(raw)
    except ValidationError as error:
        if all(fault["type"] == "extra_forbidden" for fault in error.errors(include_url=False)):
            newer = f"{what} has an {sentence(error, kind)}: it is damaged, or a newer feature-atlas wrote it"
            raise IntegrityError(newer) from None
        raise IntegrityError(f"{what} is damaged ({sentence(error, kind)})") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is damaged ({error})") from None


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 over a picture's RGB bytes.  [H, W, 3]."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def encode_png(pixels: NDArray[np.uint8], manifest: Manifest | None = None) -> bytes:
    """A PNG of the picture; with its manifest inside, image and record commit in one put.  [H, W, 3]."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if manifest is not None:
        info.add_itxt(CHUNK, manifest.model_dump_json(by_alias=True), zip=True)
        info.add_text("Title", f"{manifest.job.model.name} {manifest.unit}")
        info.add_text("Software", "feature-atlas")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes, what: str) -> tuple[NDArray[np.uint8], Manifest | None]:
    """(pixels [H, W, 3], embedded manifest or None where the picture carries none).

    Raises:
        IntegrityError: not a PNG, truncated, too large, altered, or its record is damaged.
    """
    _check_header(data, what)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # every chunk's checksum: load() alone does not read those of the data
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            text: dict[str, str] = getattr(image, "text", {})  # at most 1 MiB unpacked: Pillow's MAX_TEXT_CHUNK
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # whatever a decoder raises over a stranger's bytes means the same
        raise IntegrityError(f"{what} is not a whole PNG ({str(error) or type(error).__name__})") from None
    if CHUNK not in text:
        return pixels, None
    record = load(Manifest, text[CHUNK].encode(), f"the record in {what}")
    if pixels_sha256(pixels) != record.pixels_sha256[0]:
        raise IntegrityError(f"{what} shows other pixels than its record says: it was altered")
    return pixels, record


def check_further(data: bytes, what: str, record: Manifest, n: int) -> None:
    """Looks whether a file is image ``n`` of a job, from 1 on: those but the first carry no record of their own.

    Raises:
        IntegrityError: not a whole PNG, or other pixels than on the record.
    """
    if pixels_sha256(decode_png(data, what)[0]) != record.pixels_sha256[n]:
        raise IntegrityError(f"{what} shows other pixels than the record of {record.unit} says: it was altered")


def _check_header(data: bytes, what: str) -> None:
    """Refuses by size and ends before any decoder runs: a small file can claim a huge picture."""
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{what} has {len(data)} bytes; a picture has at most {MAX_BYTES}")
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise IntegrityError(f"{what} is not a whole PNG (it has no PNG header)")
    if not data.endswith(b"\0\0\0\0IEND\xaeB`\x82"):
        raise IntegrityError(f"{what} is not a whole PNG (its end is missing)")
    width, height = struct.unpack(">II", data[16:24])
    if width * height > MAX_PIXELS:
        raise IntegrityError(f"{what} has {width} x {height} pixels; at most {MAX_PIXELS} are read")

"""The records that publish writes: one row per unit, one file per layer, one for the whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from feature_atlas import keys
from feature_atlas.manifest import Manifest
from feature_atlas.spec import Name, Record, Sha256

#: Raised when the derived files change: everything is then built anew.
PUBLISHER = 2
Count = Annotated[int, Field(ge=0)]
Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Row(NamedTuple):
    """One unit in a layer file: everything to list, sort, search, verify and fetch it by."""

    channel: int
    status: str
    reason: str
    attempts: int
    #: Of the PNG, then of its further diverse images.
    sha256: tuple[str, ...]
    bytes: tuple[int, ...]
    pixels_sha256: str
    width: int
    height: int
    job_id: str
    #: A decimal string: 63 bits do not fit into JavaScript's numbers.
    seed: str
    best_step: int
    start: float | None
    best: float | None
    final: float | None
    robust: float | None
    robust_std: float | None
    noise_mean: float | None
    noise_std: float | None
    normalized: float | None
    mean_rgb: tuple[float, float, float]
    hue: float
    saturation: float
    contrast: float
    high_frequency: float
    clipped: float
    #: See :mod:`feature_atlas.publish.likeness`; base64.
    likeness: str
    #: (first step, last step, least value, greatest value, base64 of mean, max and min, one byte per point).
    curve: tuple[int, int, float, float, str] | None
    #: Where each PNG begins in the pack of its block; empty while there is no pack.
    offsets: tuple[int, ...] = ()
    #: Where its own channel ranks among those that answer to the picture (1: it answers most), and which answers most.
    rank: int | None = None
    answers: int | None = None


class Block(Record):
    """256 channels of a group: what its sheets were made from, and what they are."""

    inputs: str
    #: cell size in pixels -> sha-256 of the sheet.
    sheets: Mapping[str, Sha256]
    pack_sha256: str = ""
    pack_bytes: Count = 0


class GroupFile(Record):
    """One variant of a layer."""

    planned: str
    failed: str = ""
    #: channel -> why it failed, of the first few.
    errors: Mapping[int, str] = {}
    blocks: Mapping[Number, Block] = {}
    #: The channels of the strip, in order, and the digest of what it was made from.
    strip: tuple[int, ...] = ()
    strip_inputs: str = ""
    columns: tuple[str, ...] = Row._fields
    rows: tuple[Row, ...] = ()

    @field_validator("rows")
    @classmethod
    def _whole(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        for row in rows:
            files = len(row.sha256)
            if not files or len(row.bytes) != files or len(row.offsets) not in (0, files):
                raise ValueError(f"channel {row.channel} does not tell of all its files")
            if not 0 <= row.channel < 100_000 or min(*row.bytes, *row.offsets, 0) < 0:
                raise ValueError(f"channel {row.channel} has a negative size or place")
        return rows


class LayerFile(Record):
    """``layers/<layer>/layer.json``."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    publisher: int = PUBLISHER
    layer: Name
    kind: str
    index: Count
    total: Count
    variants: Mapping[Name, GroupFile]


class FileEntry(Record):
    """A published file and its transport digest."""

    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._/-]*$", max_length=600)]
    sha256: Sha256
    bytes: Count


class PublishedFile(Record):
    """``published.json``: the root of everything derived; a reader without listings starts here."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    #: SHA-256 over the lines of ``sha256sum`` of every file under ``images/``, sorted by name: what to cite.
    root_sha256: Sha256
    plan: Digest
    plans: tuple[Digest, ...]
    counts: Mapping[str, Count]
    layers: tuple[FileEntry, ...]
    files: tuple[FileEntry, ...]
    #: Digest of what the contact sheet shows.
    contact_inputs: str = ""
    software: Mapping[str, str] = {}

    def layer_names(self) -> list[str]:
        """The published layers, in the network's order."""
        match = [re.fullmatch(rf"{keys.LAYERS}([^/]+)/layer\.json", entry.key) for entry in self.layers]
        return [found[1] for found in match if found]


def short(value: float | None) -> float | None:
    """The number with six significant digits: what a float32 is worth, in fewer characters."""
    return None if value is None else float(f"{value:.6g}")


def row_of(manifest: Manifest, sha256: tuple[str, ...], sizes: tuple[int, ...], likeness: str) -> Row:
    """The row of a unit from its record and what was read of its files."""
    a, p = manifest.activation, manifest.picture
    numbers: dict[str, Any] = {
        name: short(getattr(a, name)) if a else None
        for name in ("start", "best", "final", "robust", "robust_std", "noise_mean", "noise_std", "normalized")
    }
    if a and not a.noise_std:  # noise without a spread: there is no such distance
        numbers["normalized"] = None
    picture: dict[str, Any] = {
        name: short(getattr(p, name)) for name in ("hue", "saturation", "contrast", "high_frequency", "clipped")
    }
    red, green, blue = (round(c, 4) for c in p.mean_rgb)
    return Row(
        channel=manifest.job.channel, status=manifest.status, reason=manifest.reason, attempts=manifest.attempts,
        sha256=sha256, bytes=sizes, pixels_sha256=manifest.pixels_sha256[0], width=p.width, height=p.height,
        job_id=manifest.job_id, seed=str(manifest.seed), best_step=manifest.best_step, **numbers,
        mean_rgb=(red, green, blue), **picture, likeness=likeness, curve=_curve(manifest),
    )  # fmt: skip


def _curve(manifest: Manifest) -> tuple[int, int, float, float, str] | None:
    import base64

    import numpy as np

    curve = manifest.curve
    if curve is None or not curve.steps:
        return None
    lines = np.array([curve.mean, curve.max, curve.min], dtype=np.float64)
    least, greatest = float(lines.min()), float(lines.max())
    scaled = np.round(255 * (lines - least) / ((greatest - least) or 1.0)).astype(np.uint8)
    text = base64.b64encode(scaled.tobytes()).decode()
    return curve.steps[0], curve.steps[-1], short(least) or 0.0, short(greatest) or 0.0, text

"""What is gathered layer by layer while an atlas is published: indexes, counts and the root digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

from feature_atlas import keys
from feature_atlas.plan import Plan
from feature_atlas.publish.records import LayerFile, Row
from feature_atlas.publish.scripts import gain, grid, layer_told
from feature_atlas.spec import Unit

#: Columns of metadata.jsonl, beside file_name; index.jsonl.gz has all.
_BRIEF = (
    "layer", "channel", "variant", "status", "activation", "robust", "normalized", "hue", "high_frequency", "seed",
    "sha256",
)  # fmt: skip


class Catalogue:
    """Layers are added in order; nothing of a layer's rows is kept but its lines."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        #: One entry per layer for ``atlas.js``.
        self.layers: list[dict[str, Any]] = []
        #: One entry per layer for ``network.js``.
        self.grids: list[dict[str, Any]] = []
        self.counts = {"planned": len(plan), "done": 0, "dead": 0, "failed": 0}
        self._digests: list[tuple[str, str]] = []
        self._metadata: list[tuple[str, bytes]] = []
        self._buffer = io.BytesIO()
        # No time and no name in the header: the same rows give the same bytes.
        self._index = gzip.GzipFile(fileobj=self._buffer, mode="wb", compresslevel=6, mtime=0, filename="")

    def add(self, file: LayerFile) -> None:
        """Takes over a layer that is finished for now."""
        told = layer_told(file)
        self.layers.append(told)
        self.grids.append(grid(file, self.plan.variants))
        for counted in told["variants"].values():
            for word in ("done", "dead", "failed"):
                self.counts[word] += counted[word]
        for name, group in file.variants.items():
            for row in group.rows:
                unit = Unit(name, file.layer, row.channel)
                self._digests += [(keys.image(unit, n), digest) for n, digest in enumerate(row.sha256)]
                for line in lines(unit, row, file, self.plan):
                    self._index.write(_json(line))
                    brief = {"file_name": line["file_name"], **{column: line[column] for column in _BRIEF}}
                    self._metadata.append((line["file_name"], _json(brief)))

    def index(self) -> bytes:
        """``index.jsonl.gz``: every number of every picture."""
        self._index.close()
        return self._buffer.getvalue()

    def metadata(self) -> bytes:
        """``metadata.jsonl``: what ``datasets.load_dataset`` reads beside the pictures."""
        return b"".join(line for _, line in sorted(self._metadata))

    def root_sha256(self) -> str:
        """The digest to cite: of what ``sha256sum`` prints for every file under ``images/``, sorted by name."""
        root = hashlib.sha256()
        for key, digest in sorted(self._digests):
            root.update(f"{digest}  {key}\n".encode())
        return root.hexdigest()


def lines(unit: Unit, row: Row, file: LayerFile, plan: Plan) -> Iterator[dict[str, Any]]:
    """One flat record per picture of a unit."""
    recipe = plan.variants[unit.variant]
    for n, digest in enumerate(row.sha256):
        red, green, blue = row.mean_rgb
        yield {
            "file_name": keys.image(unit, n), "layer": unit.layer, "layer_index": file.index, "kind": file.kind,
            "channel": unit.channel, "variant": unit.variant, "image": n, "objective": recipe.objective,
            "sign": recipe.sign, "status": row.status, "reason": row.reason, "attempts": row.attempts,
            "activation": row.best, "start": row.start, "final": row.final, "robust": row.robust,
            "robust_std": row.robust_std, "noise_mean": row.noise_mean, "noise_std": row.noise_std,
            "normalized": row.normalized, "gain": gain(row, recipe.sign), "best_step": row.best_step,
            "rank": row.rank, "answers": row.answers,
            "width": row.width, "height": row.height, "red": red, "green": green, "blue": blue, "hue": row.hue,
            "saturation": row.saturation, "contrast": row.contrast, "high_frequency": row.high_frequency,
            "clipped": row.clipped, "seed": int(row.seed), "job_id": row.job_id, "bytes": row.bytes[n],
            "sha256": digest, "pack": _pack(unit, row), "pack_offset": row.offsets[n] if row.offsets else None,
        }  # fmt: skip


def _pack(unit: Unit, row: Row) -> str | None:
    return keys.pack(unit.variant, unit.layer, unit.channel // 256) if row.offsets else None


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"

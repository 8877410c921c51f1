"""Atlases without a network: procedural pictures under true records, as many as wanted, in seconds.

``python -m tests.synthetic DIR --layers 53 --channels 501 --size 128`` leaves one on disk to look at.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feature_atlas import keys
from feature_atlas.manifest import (
    Activation,
    Curve,
    Failure,
    Manifest,
    Picture,
    Run,
    SideCar,
    dump,
    encode_png,
    pixels_sha256,
)
from feature_atlas.plan import AtlasFile, LayerPlan, Plan, PlanFile
from feature_atlas.presets import variant
from feature_atlas.spec import Job, ModelRef, Recipe, Unit
from feature_atlas.store import DirectoryStore, Store

#: The conv layers of ResNet-50 in torchvision: 53 layers, 26,560 channels.
RESNET50 = (
    ("conv1", 64),
    *(
        (f"layer{stage}.{block}.{conv}", width)
        for stage, (blocks, narrow) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1)
        for block in range(blocks)
        for conv, width in (
            ("conv1", narrow),
            ("conv2", narrow),
            ("conv3", 4 * narrow),
            *([("downsample.0", 4 * narrow)] if block == 0 else []),
        )
    ),
)

MODEL = ModelRef(
    name="synthetic",
    weights="random:0",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    input_size=(128, 128),
)


def texture(seed: int, depth: float, size: int) -> NDArray[np.uint8]:
    """A picture between a plain grating (``depth`` 0) and a tangle of coloured shapes (1).  [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    bend = depth * rng.normal(0, 0.25, 4).astype(np.float32)
    u = x + bend[0] * np.sin(6 * y + bend[1] * 20) + bend[2] * y * y
    v = y + bend[3] * np.sin(5 * x)
    angle, frequency = rng.uniform(0, math.pi), rng.uniform(2, 10)
    phase = 2 * math.pi * frequency * (math.cos(angle) * u + math.sin(angle) * v)
    wave = np.sin(phase) + depth * np.cos(2 * math.pi * rng.uniform(2, 6) * np.hypot(u, v) + rng.uniform(0, 6))
    hue = rng.normal(0, 1, 3).astype(np.float32)
    hue2 = rng.normal(0, 1, 3).astype(np.float32) * depth
    radius = np.exp(-((x**2 + y**2) / (0.08 + 0.2 * depth)))
    picture = 0.5 + radius[..., None] * (
        0.2 * wave[..., None] * (0.6 + hue / 2) + 0.18 * np.cos(phase / 3)[..., None] * hue2
    )
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def manifest(
    job: Job, pictures: Sequence[NDArray[np.uint8]], *, status: str = "ok", words: str = "", silent: bool = False
) -> Manifest:
    """A record with plausible numbers that differ from channel to channel; ``silent``: noise does not move it."""
    rng = np.random.default_rng(job.seed % 2**32)
    best = float(rng.gamma(4.0, 3.0)) if status == "ok" else 0.0
    points = np.linspace(0, 1, 48)
    mean = best * (1 - np.exp(-4 * points)) + rng.normal(0, 0.02 * max(best, 0.1), 48)
    rgb = pictures[0].reshape(-1, 3).mean(0) / 255
    grey = pictures[0].mean(-1) / 255
    red, green, blue = (float(c) for c in rgb)
    hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    return Manifest(
        job=job, job_id=job.id, seed=job.seed, weights_sha256="5a" * 32, status=status,
        reason=words if status == "ok" else words or "no gradient reached the picture from three seeds",
        attempts=1 if status == "ok" else 3,
        activation=Activation(
            start=0.02 * best, best=best, final=0.98 * best, robust=0.7 * best, robust_std=0.05 * best,
            noise_mean=0.0 if silent else 0.05 * best, noise_std=0.0 if silent else max(0.02 * best, 0.01),
            normalized=float(rng.gamma(3.0, 8.0)) if best and not silent else 0.0,
        ),
        best_step=int(job.recipe.steps * rng.uniform(0.8, 1)),
        curve=Curve(
            steps=tuple(int(s) for s in points * job.recipe.steps),
            loss=tuple(-mean), mean=tuple(mean), max=tuple(mean * 1.6), min=tuple(mean * 0.4),
        ),
        picture=Picture(
            width=pictures[0].shape[1], height=pictures[0].shape[0],
            mean_rgb=(255 * red, 255 * green, 255 * blue), hue=hue,
            saturation=float(rgb.max() - rgb.min()), contrast=float(grey.std()),
            high_frequency=float(rng.beta(2, 20)), clipped=0.01,
        ),
        pixels_sha256=tuple(pixels_sha256(picture) for picture in pictures),
        software={"feature-atlas": "0.1.0", "torch": words or "2.15.0"},
    )  # fmt: skip


def write_unit(
    store: Store, plan: Plan, unit: Unit, *, size: int = 32, status: str = "ok", words: str = "", silent: bool = False
) -> None:
    """One finished job, written in the order in which a worker writes it."""
    job = plan.job(unit)
    depth = plan.layers[unit.layer].index / max(1, len(plan.layers) - 1)
    pictures = [texture((job.seed + n) % 2**32, depth, size) for n in range(job.recipe.images)]
    if status == "dead":
        pictures = [np.full_like(picture, 128) for picture in pictures]
    record = manifest(job, pictures, status=status, words=words, silent=silent)
    for n, picture in enumerate(pictures[1:], start=1):
        store.put(keys.image(unit, n), encode_png(picture), content_type="image/png", immutable=True)
    png = encode_png(pictures[0], record)
    if status == "dead":
        store.put(keys.dead(unit), b"")
    store.put(keys.image(unit), png, content_type="image/png", immutable=True)
    side_car = SideCar(
        manifest=record, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png),
        run=Run(worker="synthetic", device="cpu", batch=8, seconds=0.3, created="2026-01-01T00:00:00Z"),
    )  # fmt: skip
    store.put(keys.manifest(unit), dump(side_car), content_type="application/json")


def write_failure(store: Store, plan: Plan, unit: Unit) -> None:
    """One job that failed."""
    failure = Failure(unit=unit, job_id=plan.job(unit).id, error="the layer cannot be optimised", host="nowhere")
    store.put(keys.error(unit), dump(failure), content_type="application/json")


def request(
    layers: Sequence[tuple[str, int]],
    *,
    variants: Sequence[str] = ("channel",),
    changes: Mapping[str, object] | None = None,
    channels: str = ":",
    model: ModelRef = MODEL,
) -> PlanFile:
    """A plan file for (layer, channels) pairs."""
    recipes: dict[str, Recipe] = dict(variant(name, changes) for name in variants)
    entries = tuple(
        LayerPlan(name=name, kind="conv", index=index, total=total, channels=channels)
        for index, (name, total) in enumerate(layers)
    )
    return PlanFile(model=model.digest(), layers=entries, variants=recipes)


def write_plan(store: Store, *files: PlanFile, model: ModelRef = MODEL) -> Plan:
    """The atlas file and its requests."""
    store.put(keys.ATLAS, dump(AtlasFile(model=model)), content_type="application/json")
    for file in files:
        store.put(keys.plan(file.digest()), dump(file), content_type="application/json")
    return Plan(model, {file.digest(): file for file in files})


def write_atlas(
    store: Store,
    layers: Sequence[tuple[str, int]] = (("conv1", 20), ("block.0.conv", 300)),
    *,
    variants: Sequence[str] = ("channel",),
    size: int = 32,
    changes: Mapping[str, object] | None = None,
    dead: Sequence[Unit] = (),
    failed: Sequence[Unit] = (),
    missing: Sequence[Unit] = (),
) -> Plan:
    """A whole atlas; ``dead``, ``failed`` and ``missing`` name the units that are not like the others."""
    plan = write_plan(store, request(layers, variants=variants, changes={"size": size, **(changes or {})}))
    left_out = set(failed) | set(missing)
    with ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(write_unit, store, plan, unit, size=size, status="dead" if unit in dead else "ok")
            for unit in plan.units()
            if unit not in left_out
        ]
        for future in done:
            future.result()
    for unit in failed:
        write_failure(store, plan, unit)
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resnet50", action="store_true", help="the 53 conv layers and 26,560 channels of ResNet-50")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--variants", default="channel")
    options = parser.parse_args()
    layers = RESNET50 if options.resnet50 else [(f"conv{i + 1}", options.channels) for i in range(options.layers)]
    plan = write_atlas(
        DirectoryStore(options.directory), layers, variants=options.variants.split(","), size=options.size
    )
    print(f"{len(plan):,} units in {options.directory}")


if __name__ == "__main__":
    main()

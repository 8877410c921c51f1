"""The golden atlas: how ``tests/golden/v1`` was written, once, with the release that fixed version 1.

Every later release must read it, so it is never written again.  ``python -m tests.golden.make FOLDER`` makes another
one to compare with.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from feature_atlas import keys
from feature_atlas.errors import RequestError
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
from feature_atlas.spec import Job, ModelRef, Recipe, Unit
from feature_atlas.store import Store, open_store

MODEL = ModelRef(
    name="builtin:demo", weights="builtin", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), input_size=(64, 64)
)
WEIGHTS = hashlib.sha256(b"no weights were loaded for this one").hexdigest()
CHANNEL = Recipe(
    size=(16, 16), steps=8, learning_rate=0.12, learning_rate_end=0.05, jitter=(2.0, 0.0), rotate=(-10.0, 10.0),
    scale=(0.9, 1.1), total_variation=0.05,
)  # fmt: skip
DIVERSE = CHANNEL.model_copy(update={"images": 2, "diversity": 1.0})

#: Neither picture nor error.
MISSING = Unit("diverse", "block.conv2", 5)
DEAD = Unit("channel", "block.conv2", 5)
FAILED = Unit("diverse", "conv1", 2)


def requests() -> Iterator[PlanFile]:
    """A first request, and one that let the atlas grow."""
    conv1 = LayerPlan(name="conv1", kind="conv", index=0, total=4, channels="0:3")
    conv2 = LayerPlan(name="block.conv2", kind="conv", index=1, total=8, channels="1,5")
    yield PlanFile(model=MODEL.digest(), layers=(conv1,), variants={"channel": CHANNEL})
    yield PlanFile(model=MODEL.digest(), layers=(conv1, conv2), variants={"channel": CHANNEL, "diverse": DIVERSE})


def picture(unit: Unit, n: int) -> NDArray[np.uint8]:
    """A grating of its own for each unit; grey where it is dead.  [16, 16, 3]."""
    if unit == DEAD:
        return np.full((16, 16, 3), 128, dtype=np.uint8)
    y, x = np.mgrid[0:16, 0:16]
    turn = unit.channel + 3 * n + len(unit.layer)
    waves = [(x * (turn % 5 + 1) + y * (turn % 3 + c)) * 16 % 256 for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def record(job: Job) -> Manifest:
    """What a worker would have written, with made-up numbers."""
    unit = job.unit
    dead = unit == DEAD
    pictures = [picture(unit, n) for n in range(job.recipe.images)]
    best = 0.0 if dead else 1.5 + unit.channel / 4
    mean = pictures[0].reshape(-1, 3).mean(0) / 255
    return Manifest(
        job=job, job_id=job.id, seed=job.seed, weights_sha256=WEIGHTS, status="dead" if dead else "ok",
        reason="no gradient reached the picture from three seeds" if dead else "", attempts=3 if dead else 1,
        activation=Activation(
            start=0.0, best=best, final=best, robust=best / 2, robust_std=best / 8, noise_mean=0.0, noise_std=0.125,
            normalized=8 * best,
        ),
        best_step=0 if dead else 7,
        curve=Curve(steps=(0, 4, 7), loss=(0.0, -best / 2, -best), mean=(0.0, best / 2, best), max=(1.0, 2.0, 3.0),
                    min=(-1.0, -0.5, 0.0)),
        picture=Picture(
            width=16, height=16, mean_rgb=(float(mean[0]), float(mean[1]), float(mean[2])), hue=0.0 if dead else 30.0,
            saturation=0.0 if dead else 0.25, contrast=0.0 if dead else 0.5, high_frequency=0.0 if dead else 0.125,
            clipped=0.0,
        ),
        pixels_sha256=tuple(pixels_sha256(pixels) for pixels in pictures),
        software={"feature-atlas": "0.1.0", "torch": "2.15.0"},
    )  # fmt: skip


def write_unit(store: Store, job: Job) -> None:
    """A finished unit, in the order in which a worker writes it: the picture that carries the record commits."""
    unit, made = job.unit, record(job)
    for n in range(1, job.recipe.images):
        store.put(keys.image(unit, n), encode_png(picture(unit, n)))
    if unit == DEAD:
        store.put(keys.dead(unit), b"")
    png = encode_png(picture(unit, 0), made)
    store.put(keys.image(unit), png)
    run = Run(worker="gpu-3", device="cpu", batch=8, seconds=1.5, created="2026-11-22T11:40:02Z")
    side = SideCar(manifest=made, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png), run=run)
    store.put(keys.manifest(unit), dump(side))


def write(store: Store) -> None:
    """The whole atlas.  Raises RequestError where there is something already."""
    if any(True for _ in store.list()):
        raise RequestError(f"{store.url} is not empty: the golden atlas is never written again")
    store.put(keys.ATLAS, dump(AtlasFile(model=MODEL)))
    files = {file.digest(): file for file in requests()}
    for digest, file in files.items():
        store.put(keys.plan(digest), dump(file))
    plan = Plan(MODEL, files)
    for unit in plan.units():
        if unit not in (FAILED, MISSING):
            write_unit(store, plan.job(unit))
    failure = Failure(
        unit=FAILED, job_id=plan.job(FAILED).id, error="the gradient was not finite at step 3",
        traceback="RenderError: the gradient was not finite at step 3", host="gpu-3", attempts=3,
        created="2026-11-22T11:41:00Z",
    )  # fmt: skip
    store.put(keys.error(FAILED), dump(failure))


if __name__ == "__main__":
    write(open_store(sys.argv[1]))

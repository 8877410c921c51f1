"""A real worker whose pictures cost nothing, and that misbehaves as told: ``python -m tests.e2e.cheap_worker NAME``.

Everything but the optimisation is the worker's own: Celery, claims, leases, executor, uploads.  The environment says
what happens:

    TEST_LOG          a file that gets one line per picture drawn (``layer:channel``)
    TEST_SECONDS      seconds per picture
    TEST_POISON       ``conv:5`` kills the process; several separated by commas
    TEST_FLAKY        ``conv:6`` raises the first two times
    TEST_BROKEN       ``conv:7`` raises always
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")

import numpy as np
import torch

from feature_atlas.manifest import Picture
from feature_atlas.spec import ModelRef, Recipe
from feature_atlas_worker import child
from feature_atlas_worker.execute import Executor
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Stopped, Target, Visualization

GREY = Picture(width=8, height=8, mean_rgb=(0, 0, 0), hue=0, saturation=0, contrast=0, high_frequency=0, clipped=0)
LOG = Path(os.environ.get("TEST_LOG", os.devnull))
SECONDS = float(os.environ.get("TEST_SECONDS", "0"))


def units(name: str) -> set[str]:
    return set(filter(None, os.environ.get(name, "").split(",")))


POISON, FLAKY, BROKEN = units("TEST_POISON"), units("TEST_FLAKY"), units("TEST_BROKEN")


def load(ref: ModelRef, **_: Any) -> VisionModel:
    return VisionModel(torch.nn.Identity(), ref.mean, ref.std, ref.input_size, ref, "0" * 64)


def render(
    model: VisionModel, targets: Sequence[Target], recipe: Recipe, *, seeds: Sequence[int], batch: int,
    stop: Callable[[], bool], on_step: Callable[[int, int], None], **_: Any,
) -> list[Visualization]:  # fmt: skip
    """Noise from each job's seed."""
    names = [f"{target.layer}:{target.channel}" for target in targets]
    for step in range(recipe.steps):
        if stop():
            raise Stopped
        time.sleep(SECONDS * len(targets) / recipe.steps)
        on_step(step + 1, recipe.steps)
    if POISON.intersection(names):
        os.kill(os.getpid(), signal.SIGKILL)
    for name in names:
        if name in BROKEN or (name in FLAKY and LOG.read_text().split().count(f"try:{name}") < 2):
            write([f"try:{name}"] if len(names) == 1 else [])
            raise ValueError(f"{name} does not want to")
    found = []
    for target, seed in zip(targets, seeds, strict=True):
        pixels = np.random.default_rng(seed).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
        found.append(Visualization(target, pixels, None, "ok", "", 1, None, 0, None, GREY))
    write(names)
    return found


def write(lines: Sequence[str]) -> None:
    """One atomic append, whoever else writes."""
    handle = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, "".join(line + "\n" for line in lines).encode())
    finally:
        os.close(handle)


if __name__ == "__main__":
    child.Executor = functools.partial(Executor, render=render, load=load)  # type: ignore[misc, assignment]
    from feature_atlas_worker.app import main

    main(*sys.argv[1:2])

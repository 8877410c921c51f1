"""A real worker whose pictures cost nothing, and that misbehaves where told: ``python -m tests.e2e.cheap_worker NAME``.

Everything but the optimisation is the worker's own: Celery, claims, leases, executor, uploads.  The layer's name says
what happens: ``poison...`` kills the process, ``flaky...`` raises the first two times, ``broken...`` raises always,
``slow...`` takes a fifth of a second per picture, ``deaf...`` a minute in which it hears nothing, and ``device...``
meets a GPU that fails.  The environment: TEST_LOG gets one line per picture drawn,
TEST_SECONDS is the time for one; as long as the file TEST_FULL exists no picture can be written, and as long as
TEST_STALL exists no message is taken.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
if "FAKETIME" in os.environ:  # its library refuses Python's way of sleeping (EINVAL), and lets this one through
    time.sleep = lambda seconds: (threading.Event().wait(seconds), None)[1]

import numpy as np
import torch

from feature_atlas import store
from feature_atlas.directory import DirectoryStore
from feature_atlas.errors import DeviceError
from feature_atlas.manifest import Picture
from feature_atlas.spec import ModelRef, Recipe
from feature_atlas_worker import child
from feature_atlas_worker.execute import Executor
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Stopped, Target, Visualization

GREY = Picture(width=8, height=8, mean_rgb=(0, 0, 0), hue=0, saturation=0, contrast=0, high_frequency=0, clipped=0)
LOG = Path(os.environ.get("TEST_LOG", os.devnull))
SECONDS = float(os.environ.get("TEST_SECONDS", "0"))
FULL = Path(os.environ.get("TEST_FULL", "/nowhere"))


def load(ref: ModelRef, **_: Any) -> VisionModel:
    return VisionModel(torch.nn.Identity(), ref.mean, ref.std, ref.input_size, ref, "0" * 64)


def render(
    model: VisionModel, targets: Sequence[Target], recipe: Recipe, *, seeds: Sequence[int], batch: int,
    stop: Callable[[], bool], on_step: Callable[[int, int], None], **_: Any,
) -> list[Visualization]:  # fmt: skip
    """Noise from each job's seed."""
    layer, names = targets[0].layer, [f"{target.layer}:{target.channel}" for target in targets]
    seconds = len(targets) * (0.2 if layer.startswith("slow") else SECONDS)
    for step in range(recipe.steps):
        if stop():
            raise Stopped
        time.sleep(seconds / recipe.steps)
        on_step(step + 1, recipe.steps)
    if layer.startswith("deaf"):
        time.sleep(60)
    if layer.startswith("device"):
        raise DeviceError("an illegal memory access was encountered")
    if layer.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if layer.startswith("broken"):
        raise ValueError(f"{names[0]} does not want to")
    if layer.startswith("flaky") and LOG.read_text().split().count(f"try:{names[0]}") < 2:
        write([f"try:{names[0]}"] if len(names) == 1 else [])
        raise ValueError(f"{names[0]} does not want to yet")
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


class Disk(DirectoryStore):
    """Full for as long as the file TEST_FULL exists."""

    def _write(self, path: Path, data: bytes) -> None:
        if FULL.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super()._write(path, data)


def count_requests(folder: Path) -> None:
    """Keeps count of the S3 client's calls in a file per process."""
    from feature_atlas.s3 import S3Store

    counts, call, lock = Counter[str](), S3Store._call, threading.Lock()

    def counted(self: S3Store, verb: str, key: str, operation: str, **arguments: Any) -> Any:
        with lock:
            counts[operation] += 1
            if sum(counts.values()) % 50 == 0:
                (folder / f"requests-{os.getpid()}.json").write_text(json.dumps(counts))
        return call(self, verb, key, operation, **arguments)

    S3Store._call = counted  # type: ignore[method-assign]


def stall(when: Path) -> None:
    """The worker that never consumes again, as after an ack that failed: for as long as the file exists."""
    from feature_atlas_worker.transport import Channel

    begin = Channel._brpop_start
    Channel._brpop_start = lambda self, timeout=None: None if when.exists() else begin(self, timeout)


if __name__ == "__main__":
    if "TEST_REQUESTS" in os.environ:
        count_requests(Path(os.environ["TEST_REQUESTS"]))
    store.DirectoryStore = Disk  # type: ignore[misc]
    child.Executor = functools.partial(Executor, render=render)  # type: ignore[misc, assignment]
    child.Preloader = functools.partial(child.Preloader, load)  # type: ignore[misc, assignment]
    if "TEST_STALL" in os.environ:
        stall(Path(os.environ["TEST_STALL"]))
    from feature_atlas_worker.app import main

    main(*sys.argv[1:2])

"""On a GPU: the same pictures as on a CPU, bf16 as good as fp32, no waiting in the loop, and memory that runs out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from feature_atlas import spec
from feature_atlas.atlas import Atlas
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.presets import preset
from feature_atlas.spec import ModelRef, Recipe
from feature_atlas.store import MemoryStore
from feature_atlas_worker.ascent import Ascent
from feature_atlas_worker.execute import Executor, Outcome
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.render import Target, Visualization, render
from feature_atlas_worker.rewrite import Rewrites
from tests import networks
from tests.worker.test_golden_picture import psnr

pytestmark = pytest.mark.gpu

TARGETS = [Target("conv3", channel) for channel in range(4)]
RECIPE = preset("regularised", {"size": 64, "steps": 48})


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return VisionModel(*networks.toy())


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte of the GPU, no more."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def close(one: list[Visualization], other: list[Visualization], decibels: float, share: float) -> None:
    for a, b in zip(one, other, strict=True):
        assert psnr(a.images[0], b.images[0]) > decibels
        assert a.activation is not None and b.activation is not None
        assert a.activation.best == pytest.approx(b.activation.best, rel=share)


def test_a_gpu_in_fp32_draws_what_a_cpu_draws(model: VisionModel) -> None:
    exact = Rewrites(half=False)
    cpu = render(model, TARGETS, RECIPE, rewrites=exact)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        close(render(model, TARGETS, RECIPE, device="cuda", rewrites=exact), cpu, 35.0, 0.01)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_bf16_draws_as_well_as_fp32(model: VisionModel) -> None:
    half = render(model, TARGETS, RECIPE, device="cuda")
    full = render(model, TARGETS, RECIPE, device="cuda", rewrites=Rewrites(half=False))
    close(half, full, 25.0, 0.05)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # says that it is a prototype
@pytest.mark.parametrize("adapt", ["frequency", "coefficient"])
def test_steps_never_wait_for_the_gpu(model: VisionModel, adapt: Any) -> None:
    """Blocked gradients are looked for every eighth step; all steps between are handed over without waiting."""
    recipe = preset("regularised", {"size": 64, "steps": 40, "adapt": adapt, "pick": "last"})
    checked = set()

    def between(done: int, _steps: int) -> None:
        # Step 24 itself looks; steps 25 to 31 must not wait.
        torch.cuda.set_sync_debug_mode("error" if 25 <= done < 32 else "default")
        checked.add(done)

    with open_network(model, "conv3", recipe, torch.device("cuda")) as network:
        try:
            Ascent(network, recipe, [1, 2], [1, 2]).run(on_step=between)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert checked == set(range(1, 41))


def test_memory_that_runs_out_halves_the_batch_and_ends_nothing(little_memory: None) -> None:
    reference = ModelRef(name="vgg11", weights="random:0", mean=networks.MEAN, std=networks.STD)
    torch.manual_seed(0)
    module = torchvision.models.vgg11(weights=None, init_weights=False).features.eval()
    loaded = VisionModel(module, networks.MEAN, networks.STD, (224, 224), reference, "0" * 64)
    layer = LayerPlan(name="3", kind="conv", index=0, total=128, channels="0:128")
    recipe = Recipe(size=(224, 224), steps=1, renderer=spec.RENDERER)
    file = PlanFile(model=reference.digest(), layers=(layer,), variants={"channel": recipe})
    atlas = Atlas.grow(MemoryStore(), reference, file)
    jobs = [atlas.plan.job(unit) for unit in atlas.missing()]
    outcomes: list[Outcome] = []
    with Executor("cuda", batch=128, load=lambda *_a, **_k: loaded, patience=0) as executor:
        executor.run(jobs, atlas.store, outcomes.append)
        assert 1 <= executor.sizes.of(jobs[0]) < 128
    assert {outcome.status for outcome in outcomes} <= {"ok", "dead"} and len(outcomes) == 128
    assert np.isfinite([car.activation.best for car in (o.manifest for o in outcomes) if car and car.activation]).all()

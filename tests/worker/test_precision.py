"""A network that climbs in bf16: where the device is faster so, as good a picture, and numbers in fp32 all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from feature_atlas.presets import preset
from feature_atlas.settings import Settings
from feature_atlas_worker import builtin, measure, network
from feature_atlas_worker.devices import computes_half
from feature_atlas_worker.execute import Executor
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.render import Target, Visualization, render
from feature_atlas_worker.rewrite import Rewrites
from tests import networks
from tests.worker.test_scale_free import default, squeezenet

CPU = torch.device("cpu")
EXACT = Rewrites(half=False)


@pytest.fixture(autouse=True)
def every_cpu_is_able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without instructions for it the same sums take longer."""
    monkeypatch.setattr(network, "computes_half", lambda _device: True)


def activation(found: Visualization) -> float:
    assert found.activation is not None
    return found.activation.best


def test_the_ascent_runs_in_bf16_and_the_numbers_are_fp32() -> None:
    model = VisionModel(*networks.toy())
    picture = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with open_network(model, "conv2", default(24, 4), CPU) as half, torch.no_grad():
        measured, climbed = half(picture), half(picture, climbing=True)
    with open_network(model, "conv2", default(24, 4), CPU, EXACT) as full, torch.no_grad():
        expected = full(picture, climbing=True)
    assert torch.equal(measured, expected) and measured.dtype == climbed.dtype == torch.float32
    assert 0 < (climbed - expected).abs().max() < 0.02 * expected.abs().max()


#: Fewer products round a little more: their weights and maps are transformed before they are rounded.
@pytest.mark.parametrize(("rewrites", "median"), [(Rewrites(winograd=False), 0.98), (Rewrites(), 0.97)])
@pytest.mark.parametrize("layer", ["features.3", "features.7", "features.12"])
def test_a_step_goes_the_same_way(weights: Path, layer: str, rewrites: Rewrites, median: float) -> None:
    """Later the ascent amplifies any rounding: the feature is the same then, its place is not."""
    model = squeezenet(weights)
    picture = measure._noise_pictures(default(64, 4), 0, 8, CPU)

    def uphill(rewrites: Rewrites) -> torch.Tensor:
        shown = picture.clone().requires_grad_()
        with open_network(model, layer, default(64, 4), CPU, rewrites) as opened:
            seen = opened(shown, climbing=True)
        return torch.autograd.grad((seen**2).sum(), shown)[0]

    alike = torch.cosine_similarity(uphill(rewrites).flatten(1), uphill(EXACT).flatten(1))
    assert alike.min() > 0.95 and alike.median() > median, alike


def test_the_finished_pictures_are_as_good() -> None:
    model, targets = VisionModel(*builtin.load("demo")), [Target("conv3", channel) for channel in range(12)]
    recipe = preset("draft", {"size": 64, "steps": 40})
    half, full = render(model, targets, recipe), render(model, targets, recipe, rewrites=EXACT)
    ratios = [activation(one) / activation(other) for one, other in zip(half, full, strict=True)]
    assert 0.95 < float(np.median(ratios)) < 1.05
    noise = [one.picture.high_frequency / other.picture.high_frequency for one, other in zip(half, full, strict=True)]
    assert 0.8 < float(np.median(noise)) < 1.25


def test_whoever_wants_fp32_gets_it() -> None:
    usual = "bf16" if computes_half(CPU) else "fp32"
    for settings, precision in ((Settings(), usual), (Settings(precision="float32"), "fp32")):
        with Executor("cpu", settings=settings) as executor:
            assert executor.software["precision"] == precision
            assert executor.how == ({} if settings.precision == "auto" else {"rewrites": EXACT})

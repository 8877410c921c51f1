"""The built-in network: small, trained, and as good as its weights say."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from feature_atlas.errors import RequestError
from feature_atlas_worker import builtin
from feature_atlas_worker.builtin import draw, train

WEIGHTS = resources.files(builtin) / "demo.safetensors"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return builtin.load("demo")[0]


def stated() -> dict[str, str]:
    with resources.as_file(WEIGHTS) as path, safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_weights_are_small() -> None:
    assert len(WEIGHTS.read_bytes()) <= 500_000


def test_network_is_ready_to_run(network: nn.Module) -> None:
    assert not any(module.training for module in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, len(builtin.CLASS_NAMES))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 33), (128, 128)])
def test_any_size_from_32_px(network: nn.Module, size: tuple[int, int]) -> None:
    assert network(torch.zeros(1, 3, *size)).isfinite().all()


def test_accuracy_is_the_stated_one(network: nn.Module) -> None:
    # Pictures that neither the training nor its own measurement saw.  400 at 95% have a standard error of 1.1 points.
    measured = train.accuracy(network, 400, seed=20_000_000)
    assert measured == pytest.approx(float(stated()["accuracy"]), abs=0.04)
    assert measured > 0.9


def test_accuracy_needs_the_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = train.folded(train.normalised(builtin.DemoNetwork(len(builtin.CLASS_NAMES))).eval())
    assert train.accuracy(untrained, 100, seed=20_000_000) < 0.2


def test_every_channel_of_every_convolution_is_alive(network: nn.Module) -> None:
    images, _ = train.pictures(128, seed=20_000_001)
    for name, module in network.named_children():
        images = module(images)
        if isinstance(module, nn.ReLU):
            silent = (images.amax((0, 2, 3)) == 0).nonzero().flatten().tolist()
            assert not silent, f"{name}: {silent}"


def test_drawing_is_determined_by_its_seed() -> None:
    first, again, other = draw.batch(12, 40, 7), draw.batch(12, 40, 7), draw.batch(12, 40, 8)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("label", range(len(draw.CLASSES)), ids=draw.CLASSES)
def test_pictures_are_rgb_with_something_on_them(label: int) -> None:
    rng = np.random.default_rng(3)
    first, second = draw.draw(label, 64, rng), draw.draw(label, 64, rng)
    assert first.shape == (3, 64, 64) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert first.std() > 0.02
    assert not np.array_equal(first, second)


def test_folding_batch_norm_changes_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = train.normalised(builtin.DemoNetwork(5)).train()
        images = torch.randn(8, 3, 64, 64)
        with torch.no_grad():
            network(images)  # gives the batch norms statistics of their own
            expected = network.eval()(images)
            folded = train.folded(network)
            torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_an_attack_moves_by_a_share_of_the_contrast_and_raises_the_loss(network: nn.Module) -> None:
    images, labels = train.pictures(16, seed=20_000_002)
    moved = train.attack(network, images, labels, 0.1)
    contrast = (images - images.mean((2, 3), keepdim=True)).flatten(1).norm(dim=1)
    share = (moved - images).flatten(1).norm(dim=1) / contrast
    # A random step of half the radius, then one of the whole radius uphill.
    assert share.min() > 0.049 and share.max() < 0.151
    cost = nn.CrossEntropyLoss()
    assert cost(network(moved), labels) > cost(network(images), labels)


def test_a_training_step_runs() -> None:
    network = train.train(steps=2)
    assert network(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_unknown_name_is_refused_with_the_possible_ones() -> None:
    with pytest.raises(RequestError, match=r"'dmo'; did you mean demo\?.*there are: demo"):
        builtin.load("dmo")

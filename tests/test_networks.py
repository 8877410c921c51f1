"""The test networks answer as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import networks


@pytest.mark.parametrize("orientation", [0, 20, 45, 90, 135, 170])
@pytest.mark.parametrize("frequency", [0.08, 0.1, 0.23])
def test_dominant_reads_a_grating(orientation: float, frequency: float) -> None:
    found = networks.dominant(networks.grating(orientation, frequency, 64))
    assert abs((found[0] - orientation + 90) % 180 - 90) < 1
    assert found[1] == pytest.approx(frequency, rel=0.03)


def test_each_gabor_answers_best_to_its_own_grating() -> None:
    module, mean, std, _ = networks.gabors()
    assert isinstance(module, networks.GaborBank)
    candidates = [(o, f) for o in range(0, 180, 15) for f in (0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3)]
    phases = np.linspace(0, 2 * np.pi, 4, endpoint=False)
    for k, tuning in enumerate(module.tuning):
        answers = []
        for orientation, frequency in candidates:
            pictures = np.stack([networks.grating(orientation, frequency, 64, phase) for phase in phases])
            x = (torch.tensor(pictures, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) - mean[0]) / std[0]
            answers.append(float(module(x)[:, k].mean().detach()))
        assert candidates[int(np.argmax(answers))] == tuning


def test_gabors_do_not_answer_to_plain_grey() -> None:
    module, *_ = networks.gabors()
    assert module.conv.weight.sum((1, 2, 3)).abs().max() < 1e-6  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("factory", [networks.toy, networks.dead, networks.nhwc, networks.tokens, networks.flat])
def test_networks_are_the_same_every_time(factory: object) -> None:
    assert callable(factory)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(factory()[0](x), factory()[0](x))


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (networks.toy, (2, 10, 8, 8)),
        (networks.nhwc, (2, 16, 16, 6)),
        (networks.tokens, (2, 64, 6)),
        (networks.flat, (2, 5)),
    ],
)
def test_layouts(factory: object, shape: tuple[int, ...]) -> None:
    assert callable(factory)
    assert factory()[0](torch.rand(2, 3, 32, 32)).shape == shape


def test_the_dead_channel_has_no_gradient() -> None:
    module, *_ = networks.dead()
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert isinstance(module, torch.nn.Sequential)
    answer = module[:3](x)[:, networks.DEAD]
    assert (answer == -1).all()
    assert torch.autograd.grad(answer.sum(), x)[0].abs().max() == 0

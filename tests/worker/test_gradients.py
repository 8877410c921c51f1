"""Lucid's redirected ReLU: a dead image is woken, a live one keeps every bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas_worker.gradients import RedirectedReLU
from tests import networks

Rectifier = Callable[[Tensor], Tensor]

# The in-place forms work on a copy, since a leaf may not be overwritten.
RELU: dict[str, Rectifier] = {
    "F.relu": F.relu,
    "F.relu inplace": lambda x: F.relu(x.clone(), inplace=True),
    "F.relu inplace, positional": lambda x: F.relu(x.clone(), True),
    "F.relu_": lambda x: F.relu_(x.clone()),
    "torch.relu": torch.relu,
    "torch.relu_": lambda x: torch.relu_(x.clone()),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.clone().relu_(),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU inplace": lambda x: nn.ReLU(inplace=True)(x.clone()),
    "by keyword": lambda x: F.relu(input=x),
}
RELU6: dict[str, Rectifier] = {
    "F.relu6": F.relu6,
    "F.relu6 inplace": lambda x: F.relu6(x.clone(), inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 inplace": lambda x: nn.ReLU6(inplace=True)(x.clone()),
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
}
each_relu = pytest.mark.parametrize("rectify", RELU.values(), ids=RELU.keys())
each_relu6 = pytest.mark.parametrize("rectify", RELU6.values(), ids=RELU6.keys())


def gradient(rectify: Rectifier, x: Tensor, arriving: Tensor, allow: list[bool] | None) -> Tensor:
    """d loss / d x where ``arriving`` is d loss / d output; ``allow`` None is torch without any mode."""
    x = x.clone().requires_grad_()
    if allow is None:
        out = rectify(x)
    else:
        with RedirectedReLU(torch.tensor(allow)):
            out = rectify(x)
    (found,) = torch.autograd.grad((out * arriving).sum(), x)
    return found


@each_relu
def test_a_dead_image_gets_what_pushes_it_up(rectify: Rectifier) -> None:
    # A negative gradient of the loss pushes the activation up.  Rows: dead, live, dead but not allowed.
    x = torch.tensor([[-1.0, -2, -3, -0.5], [-1, 2, -3, 4], [-1, -2, -3, -0.5]])
    arriving = torch.tensor([[-1.0, 2, -0.5, 0]]).expand(3, -1)
    expected = torch.tensor([[-1.0, 0, -0.5, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(gradient(rectify, x, arriving, [True, True, False]), expected)


@each_relu
def test_an_image_is_blocked_where_its_live_units_get_nothing(rectify: Rectifier) -> None:
    x, arriving = torch.tensor([[-1.0, 5.0]]), torch.tensor([[-3.0, 0.0]])
    assert torch.equal(gradient(rectify, x, arriving, [True]), torch.tensor([[-3.0, 0.0]]))


@each_relu6
def test_a_ceiling_blocks_from_both_sides(rectify: Rectifier) -> None:
    x = torch.tensor([[-1.0, 7, 8, -3], [-1, 3, 8, -3]])
    arriving = torch.tensor([[-1.0, -1, 2, 3]]).expand(2, -1)
    # Below 0 what pushes up, above 6 what pushes down; the second image is live.
    expected = torch.tensor([[-1.0, 0, 2, 0], [0, -1, 0, 0]])
    assert torch.equal(gradient(rectify, x, arriving, [True, True]), expected)


@pytest.mark.parametrize("rectify", [*RELU.values(), *RELU6.values()], ids=[*RELU, *RELU6])
def test_answers_and_live_gradients_keep_every_bit(rectify: Rectifier) -> None:
    x = 5 * torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    arriving = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    with RedirectedReLU(torch.ones(4, dtype=torch.bool)):
        assert torch.equal(rectify(x.clone().requires_grad_()), rectify(x))
    assert torch.equal(gradient(rectify, x, arriving, [True] * 4), gradient(rectify, x, arriving, None))


@pytest.mark.parametrize("rectify", [*RELU.values(), *RELU6.values()], ids=[*RELU, *RELU6])
def test_without_the_mode_nothing_changes(rectify: Rectifier) -> None:
    x, arriving = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0]])
    mode = RedirectedReLU(torch.tensor([True]))
    for _ in range(2):  # the loop enters one mode many times
        with mode:
            pass
        assert not gradient(rectify, x, arriving, None).any()
    with pytest.raises(KeyError), mode:
        raise KeyError
    assert not gradient(rectify, x, arriving, None).any()


def test_other_functions_are_left_alone() -> None:
    x, arriving = torch.tensor([[-8.0, -9.0]]), torch.tensor([[-1.0, -1.0]])
    for function in (F.hardtanh, lambda v: F.hardtanh(v, 0.0, 5.0), lambda v: v.clamp(0, 6)):
        assert not gradient(function, x, arriving, [True]).any()
    assert torch.equal(gradient(F.leaky_relu, x, arriving, [True]), gradient(F.leaky_relu, x, arriving, None))


def test_nothing_is_recorded_where_no_gradient_is_wanted() -> None:
    with RedirectedReLU(torch.tensor([True])):
        assert not F.relu(torch.tensor([[-1.0, 1.0]])).requires_grad


@pytest.mark.parametrize("rectify", [nn.ReLU(), nn.ReLU6()])
def test_finite_differences_agree_on_live_images(rectify: Rectifier) -> None:
    x = torch.tensor([[-1.0, 0.7, 2.0], [0.4, -0.3, 7.0]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([-1.0, 0.5, -2.0], dtype=torch.float64)
    with RedirectedReLU(torch.tensor([True, True])):
        assert torch.autograd.gradcheck(lambda v: (rectify(v) * weights).sum(1), (x,))


def test_images_do_not_share_their_fate() -> None:
    """A dead image is woken in company of live ones, and they notice nothing."""
    module = networks.toy()[0]
    assert isinstance(module, nn.Sequential)
    net = module[:4]
    with torch.no_grad():
        net[2].bias[5] -= 3  # type: ignore[index]  # channel 5 of conv2 starts below zero everywhere
        net[2].bias[6] += 3  # type: ignore[index]
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def objective(image: Tensor) -> Tensor:
        acts = net(image)
        return -torch.stack((acts[0, 5], acts[1, 6], acts[2, 5])).mean((1, 2)).sum()

    def step(allow: list[bool] | None) -> Tensor:
        image = x.clone().requires_grad_()
        if allow is None:
            return torch.autograd.grad(objective(image), image)[0]
        with RedirectedReLU(torch.tensor(allow)):
            return torch.autograd.grad(objective(image), image)[0]

    plain, woken = step(None), step([True, True, False])
    assert not plain[0].any() and not plain[2].any() and plain[1].any()
    assert woken[0].any() and not woken[2].any()
    assert torch.equal(woken[1], plain[1])
    before = net[2](net[:2](x))[0, 5].mean()  # what was blocked rises
    assert net[2](net[:2](x - 0.01 * woken.sign()))[0, 5].mean() > before

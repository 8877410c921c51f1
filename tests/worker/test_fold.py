"""Folded batch norms: the same answers, whatever the network does with its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from feature_atlas.spec import Recipe
from feature_atlas_worker.convolutions import StemConv2d
from feature_atlas_worker.fold import FoldedNorm, fold
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.params import stream
from feature_atlas_worker.rewrite import Rewrites, forget
from tests import networks

CPU = torch.device("cpu")
PLAIN = Rewrites(fold=False, quicken=False)


def settle(module: nn.Module) -> nn.Module:
    """Batch norms with statistics as after training, none of them 0 or 1."""
    draw = stream(0, "norms")
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = 0.2 * torch.randn(layer.num_features, generator=draw)
            layer.running_var = 0.5 + torch.rand(layer.num_features, generator=draw)
            if layer.affine:
                layer.weight.data = 0.5 + torch.rand(layer.num_features, generator=draw)
                layer.bias.data = 0.2 * torch.randn(layer.num_features, generator=draw)
    return module.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "noise"))


@pytest.mark.parametrize(("name", "norms"), [("resnet18", 20), ("googlenet", 57), ("mobilenet_v2", 52)])
def test_torchvision_networks_fold_whole_and_answer_the_same(name: str, norms: int) -> None:
    more: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    module = settle(torchvision.models.get_model(name, weights=None, **more))
    x = noise(2, 3, 64, 64)
    before = module(x)
    assert fold(module, x[:1]) == norms == sum(isinstance(layer, FoldedNorm) for layer in module.modules())
    assert not any(type(layer) is nn.BatchNorm2d for layer in module.modules())
    torch.testing.assert_close(module(x), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


@pytest.mark.parametrize("layer", ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn2", "layer2.0.downsample.0", "layer2"])
def test_every_layer_answers_as_itself(layer: str) -> None:
    """A folded convolution that is looked at shows its own output, not that of the batch norm after it."""
    torch.manual_seed(0)
    module = settle(torchvision.models.resnet18(weights=None))
    model = VisionModel(module, networks.MEAN, networks.STD, (64, 64))
    x = torch.rand(2, 3, 64, 64, generator=stream(0, "picture"))

    def seen(rewrites: Rewrites) -> tuple[Tensor, Tensor]:
        with open_network(model, layer, Recipe(size=(64, 64)), CPU, rewrites) as network:
            picture = x.clone().requires_grad_()
            acts = network(picture)
            return acts.detach(), torch.autograd.grad((acts * noise(*acts.shape)).sum(), picture)[0]

    for quick, slow in zip(seen(Rewrites()), seen(PLAIN), strict=True):
        assert slow.abs().max() > 0
        torch.testing.assert_close(quick, slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))
    # ... and is folded again for whoever looks further down
    quick, slow = seen(Rewrites())[0], seen(PLAIN)[0]
    torch.testing.assert_close(quick, slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))
    forget(module)


class Shared(nn.Module):
    """A network whose convolution is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return self.norm(out) + out


class Twice(Shared):
    """A network that runs its layers twice."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(self.conv(x)), self.norm(self.conv(x.flip(2)))])


class Between(Shared):
    """A network with something between the two."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x).relu())
        return out


@pytest.mark.parametrize("kind", [Shared, Twice, Between])
def test_what_does_not_belong_together_is_left_alone(kind: type[Shared]) -> None:
    torch.manual_seed(0)
    module = settle(kind())
    x = noise(1, 3, 16, 16)
    before, weights = module(x), module.get_parameter("conv.weight").clone()
    assert fold(module, x) == 0
    assert torch.equal(module(x), before) and torch.equal(module.get_parameter("conv.weight"), weights)
    assert type(module.get_submodule("norm")) is nn.BatchNorm2d


def test_a_network_that_refuses_the_trial_is_left_alone() -> None:
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)))
    assert fold(module, noise(1, 3, 16, 16)) == 0
    assert type(module[1]) is nn.BatchNorm2d  # type: ignore[index]


def test_norms_without_scale_and_convolutions_without_offset_fold() -> None:
    torch.manual_seed(0)
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU()))
    x = noise(1, 3, 16, 16)
    before = module(x)
    assert fold(module, x) == 1
    torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-5)


def test_a_first_convolution_is_folded_and_quickened() -> None:
    torch.manual_seed(0)
    module = settle(torchvision.models.resnet18(weights=None))
    model = VisionModel(module, networks.MEAN, networks.STD, (64, 64))
    with open_network(model, "layer1", Recipe(size=(64, 64)), CPU) as network:
        assert type(network.module.get_submodule("conv1")) is StemConv2d
        assert type(network.module.get_submodule("bn1")) is FoldedNorm
    assert type(module.get_submodule("bn1")) is nn.BatchNorm2d  # the caller's network is as it was

"""A layer is read where it is, nothing after it runs, and the network is left as it was found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas_worker.activations import count_calls, find, first_tensor, frozen, tap
from tests import networks


class Bomb(nn.Module):
    """Must never run."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the network went on after the target layer")


class Shared(nn.Module):
    """One rectifier in two places, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_nothing_runs_after_the_layer() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Bomb())
    x = torch.rand(2, 3, 8, 8)
    with tap(module, "1") as run:
        assert torch.equal(run(x), module[1](module[0](x)))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_a_following_in_place_relu_does_not_reach_what_was_read(layer: str) -> None:
    module = networks.toy()[0]
    assert isinstance(module, nn.Sequential)
    x = torch.rand(2, 3, 16, 16)
    names = [name for name, _ in module.named_children()]
    with tap(module, layer) as run:
        found = run(x)
    assert found.min() < 0
    assert torch.equal(found, module[: names.index(layer) + 1](x))


def test_a_functional_in_place_relu_does_not_either() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x), inplace=True)

    module, x = Functional(), torch.rand(1, 3, 8, 8)
    with tap(module, "conv") as run:
        assert torch.equal(run(x), module.conv(x))


def test_gradients_reach_the_input() -> None:
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    with tap(networks.toy()[0], "conv3") as run:
        (gradient,) = torch.autograd.grad(run(x).sum(), x)
    assert gradient.abs().amax() > 0


def test_a_module_used_twice_is_read_at_its_last_call() -> None:
    module, x = Shared(), torch.rand(2, 3, 8, 8)
    assert count_calls(module, "relu", x) == 2 and count_calls(module, "unused", x) == 0
    with tap(module, "relu", 2) as run:
        assert torch.equal(run(x), module(x))
        assert torch.equal(run(x), module(x))  # every pass counts anew
    with tap(module, "relu", 1) as run:
        assert torch.equal(run(x), F.relu(module.first(x)))


def test_counting_does_not_ask_what_comes_after() -> None:
    """A picture may be too large for a later fixed-size layer, which the renderer never runs."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    assert count_calls(module, "0", torch.rand(1, 3, 20, 20)) == 1
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        count_calls(module, "2", torch.rand(1, 3, 20, 20))
    assert hooks(module) == 0


def test_a_layer_that_never_runs_is_refused() -> None:
    module = Shared()
    with (
        tap(module, "unused") as run,
        pytest.raises(RequestError, match=r"^layer 'unused' does not run in this network's forward pass$"),
    ):
        run(torch.rand(1, 3, 8, 8))
    assert hooks(module) == 0


def test_no_hook_stays() -> None:
    module = networks.toy()[0]
    kept = module.register_forward_hook(lambda *_: None)
    with tap(module, "conv2") as run:
        assert hooks(module) == 2
        run(torch.rand(1, 3, 16, 16))
        with pytest.raises(RuntimeError):
            run(torch.rand(1, 5, 16, 16))  # a failure in the forward pass
        assert run(torch.rand(1, 3, 16, 16)).shape[1] == 12  # and the next one counts from the start
    assert hooks(module) == 1
    with pytest.raises(KeyError), tap(module, "conv2"):
        raise KeyError
    assert hooks(module) == 1
    kept.remove()


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    module = networks.toy()[0]
    with pytest.raises(RequestError, match=r"no layer 'conv4' in this network; did you mean .*conv3"):
        find(module, "conv4")
    with pytest.raises(RequestError, match="no layer ''"):
        find(module, "")
    with pytest.raises(RequestError, match="did you mean conv1"), tap(module, "Conv1"):
        pass
    assert find(module, "conv2") is module.get_submodule("conv2")


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_gradients_of_weights_are_put_back(fails: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    modes = [m.training for m in module.modules()]
    wanted = [p.requires_grad for p in module.parameters()]
    try:
        with frozen(module) as same:
            assert same is module
            assert not any(m.training for m in module.modules())
            assert not any(p.requires_grad for p in module.parameters())
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == wanted


def test_the_tensor_is_found_in_what_layers_return() -> None:
    tensor = torch.rand(2)
    for output in (tensor, (tensor, None), [[tensor], 3], {"out": tensor, "aux": torch.rand(1)}):
        assert first_tensor(output) is tensor
    with pytest.raises(RequestError, match="this layer's output is no tensor but NoneType"):
        first_tensor(None)

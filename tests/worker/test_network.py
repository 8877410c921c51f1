"""A network seen from one layer: normalised, in every layout, on a copy, whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas.spec import Recipe
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.objectives import canonical
from feature_atlas_worker.rewrite import Rewrites
from feature_atlas_worker.shortage import is_shortage
from tests import networks

CPU = torch.device("cpu")


@contextmanager
def opened(made: networks.Made | VisionModel, layer: str, size: tuple[int, int] = (32, 32)) -> Iterator[Network]:
    model = made if isinstance(made, VisionModel) else VisionModel(*made)
    with open_network(model, layer, Recipe(size=size), CPU) as network:
        yield network


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


def test_the_network_sees_normalised_pictures() -> None:
    module = networks.toy()[0]
    model = VisionModel(module, (0.1, 0.4, 0.7), (0.2, 0.5, 0.9), (32, 32))
    picture = pictures(32, 32)
    normalised = (picture - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]
    with opened(model, "conv1") as network:
        torch.testing.assert_close(network(picture), module.get_submodule("conv1")(normalised))
        grey = torch.tensor(model.mean)[:, None, None].expand(1, 3, 32, 32)
        bias = module.get_submodule("conv1").bias  # what a layer answers to the mean colour
        torch.testing.assert_close(network(grey)[0, :, 5, 5], bias)


@pytest.mark.parametrize(
    ("factory", "layer", "layout", "channels"),
    [
        (networks.toy, "conv3", "NCHW", 10),
        (networks.nhwc, "last", "NHWC", 6),
        (networks.tokens, "mix", "tokens", 6),
        (networks.flat, "linear", "flat", 5),
    ],
)
def test_every_layout_is_brought_to_maps(
    factory: Callable[[], networks.Made], layer: str, layout: str, channels: int
) -> None:
    made = factory()
    picture = pictures(32, 32)
    seen: list[Tensor] = []
    handle = made[0].get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    made[0]((picture - 0.5) / 0.25)
    handle.remove()
    with opened(made, layer) as network:
        found = network(picture)
        assert network.channels == found.shape[1] == channels
    assert found.dtype == torch.float32 and found.ndim == 4
    torch.testing.assert_close(found, canonical(seen[0], layout))


def test_the_picture_is_resampled_to_the_size_that_the_network_wants() -> None:
    made, picture = networks.toy(), pictures(20, 20)
    recipe = Recipe(size=(20, 20), network_size=(32, 48))
    with open_network(VisionModel(*made), "conv1", recipe, CPU) as network:
        found = network(picture)
    larger = F.interpolate(picture, (32, 48), mode="bilinear", align_corners=False)
    with opened(made, "conv1", (32, 48)) as network:
        torch.testing.assert_close(found, network(larger))


def test_a_module_that_runs_twice_is_seen_at_its_last_run() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(self.conv(x))))

    module, picture = Twice(), pictures(16, 16)
    with opened((module, (0, 0, 0), (1, 1, 1), (16, 16)), "relu", (16, 16)) as network:
        torch.testing.assert_close(network(picture), module(picture))


def test_a_picture_need_only_pass_up_to_the_layer() -> None:
    class Head(nn.Sequential):
        """Takes 32 x 32 px and nothing else, as networks for small pictures do."""

        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))

    made = (Head().eval(), networks.MEAN, networks.STD, (32, 32))
    with opened(made, "0", (48, 40)) as network:
        assert network(pictures(48, 40)).shape == (2, 4, 46, 38)
    with pytest.raises(RequestError, match=r"48 x 48 px does not pass .* to layer '2'.*--set network_size=32$"):  # noqa: SIM117
        with opened(made, "2", (48, 48)):
            pass


def test_a_picture_too_small_for_the_layer_is_refused_in_one_sentence() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 11), nn.ReLU())
    with pytest.raises(RequestError) as caught, opened((module, networks.MEAN, networks.STD, (64, 64)), "1", (8, 8)):
        pass
    text = str(caught.value)
    assert text.startswith("a picture of 8 x 8 px does not pass this network up to layer '1'")
    assert text.endswith("set a larger size, e.g. --set size=64") and "\n" not in text


class Copied(nn.Conv2d):
    def __deepcopy__(self, _memo: object) -> nn.Module:
        return networks.Hungry()(torch.zeros(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 4, 3), networks.Hungry()),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), networks.Hungry()),  # while batch norms are looked at
        (Copied(3, 4, 3),),
    ],
)
def test_a_shortage_of_memory_is_no_wrong_request(layers: tuple[nn.Module, ...]) -> None:
    made = (nn.Sequential(*layers), networks.MEAN, networks.STD, (32, 32))
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught, opened(made, str(len(layers) - 1)):
        pass
    assert is_shortage(caught.value)


@pytest.mark.parametrize("layer", ["conv9", "conv1.weight"])
def test_an_unknown_layer_is_refused(layer: str) -> None:
    with pytest.raises(RequestError, match=f"no layer '{layer}' in this network"), opened(networks.toy(), layer):
        pass


def test_a_layer_without_channels_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), networks.Layout(lambda x: x.mean((1, 2, 3))))
    with pytest.raises(RequestError, match=r"layer '1' cannot be shown"):  # noqa: SIM117
        with opened((module, networks.MEAN, networks.STD, (16, 16)), "1", (16, 16)):
            pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_network_is_left_as_it_was(fails: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    module[0].weight.grad = torch.ones_like(module[0].weight)
    handle = module[2].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(module.state_dict())
    try:
        with opened((module, networks.MEAN, networks.STD, (16, 16)), "2", (16, 16)) as network:
            network(pictures(16, 16).requires_grad_()).sum().backward()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [m.training for m in module.modules()] == [True, True, False, True]
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
    assert (module[0].weight.grad == 1).all() and module[1].weight.grad is None
    assert [len(m._forward_hooks) for m in module] == [0, 0, 1]
    assert all(p.is_contiguous() for p in module.parameters())
    handle.remove()


def test_weights_changed_between_two_renders_count() -> None:
    """A notebook trains, renders, trains and renders again."""
    model, picture = VisionModel(*networks.toy()), pictures(32, 32)
    conv = model.module.get_submodule("conv1")
    with opened(model, "conv1") as network:
        before = network(picture)
    with torch.no_grad():
        conv.weight.mul_(2)  # type: ignore[union-attr,operator]
        conv.bias.mul_(2)  # type: ignore[union-attr,operator]
    with opened(model, "conv1") as network:
        torch.testing.assert_close(network(picture), 2 * before)
    conv.weight = nn.Parameter(torch.zeros(8, 3, 5, 5))
    conv.bias = nn.Parameter(torch.zeros(8))
    with opened(model, "conv1") as network:
        assert not network(picture).any()
    model.module.load_state_dict(networks.toy()[0].state_dict())
    with opened(model, "conv1") as network:
        torch.testing.assert_close(network(picture), before)
    model.module.set_submodule("conv1", nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False))
    with opened(model, "conv1") as network:
        assert not torch.allclose(network(picture), before)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    module = networks.toy()[0]
    module.last = module(torch.rand(1, 3, 16, 16))  # a result that still hangs on its graph
    with pytest.raises(RequestError, match=r"^this network cannot be copied \(.*\): let it hold no"):  # noqa: SIM117
        with opened((module, networks.MEAN, networks.STD, (32, 32)), "conv1"):
            pass


def test_batch_norm_answers_by_its_statistics_and_learns_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    model = VisionModel(module, networks.MEAN, networks.STD, (16, 16))
    picture = pictures(16, 16)
    with opened(model, "1", (16, 16)) as network:
        found = network(picture)
        torch.testing.assert_close(network(picture[:1]), found[:1])
    assert module[1].num_batches_tracked == 0
    torch.testing.assert_close(found, module.eval()((picture - 0.5) / 0.25))


@pytest.mark.parametrize("rewrites", [Rewrites(cut=False), Rewrites(freeze=False), Rewrites(cut=False, freeze=False)])
@pytest.mark.parametrize("layer", ["conv1", "conv3"])  # an in-place ReLU follows
def test_ending_at_the_layer_and_freezing_change_nothing(rewrites: Rewrites, layer: str) -> None:
    model = VisionModel(*networks.toy())

    def seen(rewrites: Rewrites) -> tuple[Tensor, Tensor, int]:
        with open_network(model, layer, Recipe(size=(32, 32)), CPU, rewrites) as network:
            picture = pictures(32, 32).requires_grad_()
            found = network(picture)
            return found.detach(), torch.autograd.grad((found**2).sum(), picture)[0], len(network.trained)

    plain, quick = seen(rewrites), seen(Rewrites())
    torch.testing.assert_close(plain[:2], quick[:2])
    assert plain[0].min() < 0  # before the ReLU
    assert (plain[2], quick[2]) == (0 if rewrites.freeze else 6, 0)

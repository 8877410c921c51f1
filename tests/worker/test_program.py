"""A layer's program answers as the network does, goes back as it does, and leaves out what nobody looks at."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from feature_atlas.spec import Recipe
from feature_atlas_worker.convolutions import FrozenConv2d, quicken
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.programs.capture import _capture, capture
from feature_atlas_worker.programs.operations import Convolve, Other
from feature_atlas_worker.programs.own import convolved
from feature_atlas_worker.rewrite import ALL, Rewrites

CPU = torch.device("cpu")
FP32 = Rewrites(half=False)


def seeded(module: nn.Module) -> nn.Module:
    """The network with lively random weights and batch norms that know something."""
    source = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=source)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1, generator=source)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=source)
            nn.init.normal_(layer.bias, std=0.2, generator=source)
    return module.eval().requires_grad_(False)


@contextmanager
def opened(module: nn.Module, layer: str, rewrites: Rewrites = FP32, size: int = 64) -> Iterator[Network]:
    model = VisionModel(module, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (size, size))
    with open_network(model, layer, Recipe(size=(size, size)), CPU, rewrites) as network:
        yield network


def pictures(count: int = 2, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def climbed(network: Network, picture: Tensor, **how: Tensor) -> tuple[Tensor, Tensor]:
    """(activations, gradient of a weighted sum of them)."""
    picture = picture.clone().requires_grad_()
    activations = network(picture, climbing=True, **how)
    weights = torch.randn(activations.shape[1:], generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((activations * weights).sum(), picture)
    return activations.detach(), gradient


def close(one: Tensor, other: Tensor, share: float = 1e-4) -> None:
    assert other.abs().max() > 0
    assert (one - other).norm() <= share * other.norm()


def programmed(network: Network) -> bool:
    """Whether a program runs, once something was climbed."""
    return network.facts.program is not None


def operations(network: Network) -> list[object]:
    assert network.facts.program is not None
    return [line.operation for line in network.facts.program._whole.lines]


@functools.cache
def torchvision_network(name: str, **how: bool) -> nn.Module:
    if name == "densenet":
        return seeded(torchvision.models.DenseNet(growth_rate=8, block_config=(3, 2), num_init_features=16))
    return seeded(torchvision.models.get_model(name, **how))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2.0.downsample.0"),
        ("resnet18", "layer2.1.conv2"),
        ("resnet18", "layer2.1"),
        ("squeezenet1_1", "features.6"),
        ("squeezenet1_1", "features.5"),
        ("googlenet", "inception4a"),
        ("googlenet", "inception3a.branch2"),
        ("densenet", "features.denseblock1.denselayer2"),
        ("mobilenet_v2", "features.4"),
        ("mobilenet_v3_small", "features.4"),
        ("regnet_y_400mf", "trunk_output.block1.block1-0"),
    ],
)
def test_a_program_answers_and_goes_back_as_the_network(name: str, layer: str) -> None:
    # With weights, GoogLeNet has arithmetic of its own before the first convolution.
    module = torchvision_network(
        name, **({"init_weights": False, "transform_input": True} if name == "googlenet" else {})
    )
    with opened(module, layer) as network, opened(module, layer, Rewrites(half=False, program=False)) as plain:
        for size in (64, 72):
            for ours, theirs in zip(
                climbed(network, pictures(2, size)), climbed(plain, pictures(2, size)), strict=True
            ):
                close(ours, theirs)
        own = torch.tensor([network.channels - 1, 1])
        for ours, theirs in zip(
            climbed(network, pictures(), own=own), climbed(plain, pictures(), own=own), strict=True
        ):
            close(ours, theirs)
        assert programmed(network)
        assert not programmed(plain)


@pytest.mark.parametrize("channels", [(0, 1, 2, 3), (0, 70, 300, 511), (5, 5, 5, 5)])
@pytest.mark.parametrize("rewrites", [ALL, FP32])
def test_a_channel_has_the_same_bits_alone_and_beside_others(channels: tuple[int, ...], rewrites: Rewrites) -> None:
    module = torchvision_network("googlenet", init_weights=False)
    with opened(module, "inception4a", rewrites) as network:
        own = torch.tensor(channels)
        activations, gradient = climbed(network, pictures(4), own=own)
        for n in range(4):
            alone, own_gradient = climbed(network, pictures(4)[n : n + 1], own=own[n : n + 1])
            assert torch.equal(alone[0], activations[n])
            assert torch.equal(own_gradient[0], gradient[n])
        assert programmed(network)


class Joined(nn.Module):
    """Two branches beside each other; dilated, padded, strided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Sequential(nn.Conv2d(8, 4, 3, padding=2, dilation=2), nn.ReLU(inplace=True))
        self.right = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU6(), nn.Conv2d(6, 5, (3, 1), padding=(1, 0), bias=False))
        self.join = Join()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.join(self.left(x), self.right(x))  # type: ignore[no-any-return]


class Join(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat((one, other), dim=1)


def test_every_kind_of_convolution_gives_its_rows() -> None:
    """Dilated, padded, strided, one-sided, with bias and without; channels of several branches in one batch."""
    module = seeded(Joined())
    plain = Rewrites(half=False, program=False, fold=False, quicken=False)
    for layer in ("join", "right.2", "left", "stem"):
        with opened(module, layer) as network, opened(module, layer, plain) as reference:
            last = network.channels - 1
            for own in (torch.tensor([0, last]), torch.tensor([last // 2, 1])):
                ours, theirs = (climbed(each, pictures(2, 21), own=own) for each in (network, reference))
                close(ours[0], theirs[0])
                close(ours[1], theirs[1])
            assert programmed(network)


def test_what_leads_to_other_channels_only_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = seeded(Joined())
    with opened(module, "join") as network:
        climbed(network, pictures())
        ran: list[int] = []
        ahead = FrozenConv2d.ahead
        monkeypatch.setattr(
            FrozenConv2d,
            "ahead",
            lambda self, *args, **kw: (ran.append(self.out_channels), ahead(self, *args, **kw))[1],
        )
        climbed(network, pictures(), own=torch.tensor([0, 3]))
        assert ran == [8], "the stem alone: the left convolution gives one row, the right ones nothing"
        ran.clear()
        climbed(network, pictures(), own=torch.tensor([4, 8]))
        assert ran == [8, 6]
        ran.clear()
        climbed(network, pictures(), own=torch.tensor([3, 8]))
        assert ran == [8, 6]
        climbed(network, pictures())
        assert ran == [8, 6, 8, 4, 6, 5]


def test_relus_and_sums_join_their_convolutions() -> None:
    with opened(torchvision_network("resnet18"), "layer2.1") as network:
        climbed(network, pictures())
        found = operations(network)
        convolutions = [operation for operation in found if isinstance(operation, Convolve)]
        assert len(convolutions) == 10
        assert sum(operation.added for operation in convolutions) == 4, "one per block"
        assert sum(operation.rectified for operation in convolutions) == 9, "all but the first downsampling"
        assert len(found) == 11, "and a pool"


def test_blocked_gradients_are_redirected_as_in_the_network() -> None:
    module = seeded(torchvision.models.resnet18())
    with torch.no_grad():
        module.get_submodule("layer1.1.bn2").bias.fill_(-1e3)  # type: ignore[union-attr, operator]
        module.get_submodule("layer1.1.bn1").bias.fill_(-1e3)  # type: ignore[union-attr, operator]
    rewrites = Rewrites(half=False, program=False)
    with opened(module, "layer1.1") as network, opened(module, "layer1.1", rewrites) as plain:
        for allow in ([True, True], [True, False], [False, False]):
            flags = torch.tensor(allow)
            _, ours = climbed(network, pictures(), allow=flags)
            _, theirs = climbed(plain, pictures(), allow=flags)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))
            assert (ours.flatten(1).abs().amax(1) > 0).tolist() == allow
            own = torch.tensor([3, 5])
            for ours, theirs in zip(
                climbed(network, pictures(), allow=flags, own=own), climbed(plain, pictures(), allow=flags, own=own),
                strict=True,
            ):  # fmt: skip
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))
            assert (ours.flatten(1).abs().amax(1) > 0).tolist() == allow
        assert programmed(network)


def test_a_dead_channel_of_a_live_map_is_redirected_as_in_the_network() -> None:
    """The network's ReLU is blocked only where nothing at all comes back through it."""
    module = seeded(torchvision.models.resnet18())
    with torch.no_grad():
        for norm in ("layer1.0.bn2", "layer1.1.bn2"):
            module.get_submodule(norm).bias[3] = -1e3  # type: ignore[index]
    rewrites = Rewrites(half=False, program=False)
    with opened(module, "layer1.1") as network, opened(module, "layer1.1", rewrites) as plain:
        for own in (torch.tensor([3, 4]), torch.tensor([4, 3])):
            how = {"own": own, "allow": torch.tensor([True, True])}
            for ours, theirs in zip(
                climbed(network, pictures(), **how), climbed(plain, pictures(), **how), strict=True
            ):
                close(ours, theirs)
        assert programmed(network)


def test_a_way_back_can_be_gone_twice() -> None:
    with opened(torchvision_network("resnet18"), "layer1.1") as network:
        picture = pictures().requires_grad_()
        activations = network(picture, climbing=True)
        one, again = (
            torch.autograd.grad(activations.sum(), picture, retain_graph=True)[0] for _ in range(2)
        )  # fmt: skip
        assert torch.equal(one, again)


@pytest.mark.parametrize("own", [None, torch.tensor([3, 70])])
def test_a_step_leaves_nothing_behind_for_the_collector(own: Tensor | None) -> None:
    with opened(torchvision_network("googlenet", init_weights=False), "inception4a.branch1") as network:
        climbed(network, pictures(), **({"own": own} if own is not None else {}))
        gc.collect()
        gc.disable()
        try:
            picture = pictures().requires_grad_()
            activations = network(picture, climbing=True, own=own)
            kept = [weakref.ref(tensor) for tensor in _reached(activations.grad_fn)]
            assert kept
            torch.autograd.grad(activations.sum(), picture)
            del activations
            assert not [tensor for tensor in (ref() for ref in kept) if tensor is not None]
        finally:
            gc.enable()


def _reached(node: Any) -> Iterator[Tensor]:
    """What the nodes of a program keep."""
    if node is not None:
        for own in getattr(node, "kept", []):
            yield from (part for part in (own if isinstance(own, tuple) else (own,)) if isinstance(part, Tensor))
        for before, _ in node.next_functions:
            yield from _reached(before)


class Odd(nn.Module):
    """A network whose course has something odd in it."""

    def __init__(self, odd: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.odd = odd
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return self.last(self.odd(made, self.conv2(made * 1.0)))  # type: ignore[no-any-return]


def over_a_slice(one: Tensor, other: Tensor) -> Tensor:
    one[:, :4].mul_(3.0)
    return one + other


def over_what_others_read(one: Tensor, other: Tensor) -> Tensor:
    F.relu(one, inplace=True)
    return one * 0.5 + other


def over_before_it_is_read(one: Tensor, other: Tensor) -> Tensor:
    rectified = one.relu_()
    return rectified + one + other


def by_what_it_sees(one: Tensor, other: Tensor) -> Tensor:
    return one if one.mean() > 1e9 else other


def by_parts(one: Tensor, other: Tensor) -> Tensor:
    first, second = one.chunk(2, 1)
    return torch.cat((second, first), 1) + other


def by_shape(one: Tensor, other: Tensor) -> Tensor:
    batch, channels, height, width = one.shape
    return one.reshape(batch, channels, height * width).view(batch, channels, height, width) + other.transpose(2, 3)


def with_a_number(one: Tensor, other: Tensor) -> Tensor:
    return F.relu6(torch.add(one, other, alpha=0.5)) + 1 + torch.cat([one, one], 1)[:, :8]


def by_a_scale(one: Tensor, other: Tensor) -> Tensor:
    return one + torch.sigmoid(other.mean((2, 3), keepdim=True))


def twice(one: Tensor, other: Tensor) -> Tensor:
    return F.relu(F.relu(one + one) + F.relu(other))


def written_into(one: Tensor, other: Tensor) -> Tensor:
    return torch.add(one, other, out=torch.empty_like(one)) if not one.requires_grad else one + other


@pytest.mark.parametrize(
    "odd",
    [
        over_a_slice, over_what_others_read, over_before_it_is_read, by_what_it_sees, by_parts, by_shape, with_a_number,
        by_a_scale, twice, written_into,
    ],
)  # fmt: skip
def test_an_odd_network_answers_as_it_is(odd: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = seeded(Odd(odd))
    plain = Rewrites(half=False, program=False, fold=False, quicken=False)
    with opened(module, "last") as network, opened(module, "last", plain) as reference:
        for ours, theirs in zip(climbed(network, pictures()), climbed(reference, pictures()), strict=True):
            close(ours, theirs)
        own = torch.tensor([7, 2])
        for ours, theirs in zip(
            climbed(network, pictures(), own=own), climbed(reference, pictures(), own=own), strict=True
        ):
            close(ours, theirs)


class Unlike(nn.Module):
    """Under autocast, an exponential is fp32 and a convolution bf16; they meet in sums and concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.other = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = torch.logit(x.sigmoid() * 0.5).float() + x
        joined = F.relu(self.conv(x) + wide)
        return self.last(torch.cat((self.other(x), wide, joined + self.conv(joined)), 1))  # type: ignore[no-any-return]


def test_fp32_and_bf16_meet_as_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas_worker.network.computes_half", lambda device: True)
    module = seeded(Unlike())
    with opened(module, "last", ALL) as network, opened(module, "last", Rewrites(program=False)) as plain:
        for ours, theirs in zip(climbed(network, pictures()), climbed(plain, pictures()), strict=True):
            close(ours, theirs, 0.05)
        own = torch.tensor([3, 0])
        for ours, theirs in zip(
            climbed(network, pictures(), own=own), climbed(plain, pictures(), own=own), strict=True
        ):
            close(ours, theirs, 0.05)
        assert programmed(network)


class Constants(nn.Module):
    """Sums of maps and parameters, and branches that read the picture itself or nothing convolved."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.pooled = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.shift = nn.Parameter(torch.full(shape, 0.5))
        self.join = Join()

    def forward(self, x: Tensor) -> Tensor:
        made = F.relu(self.conv(x) + self.shift)
        one = self.join(F.relu(self.again(made)), self.first(x))
        return self.join(one, self.pooled(F.avg_pool2d(x, 3, 1, 1)) + self.shift[:1].mean())  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(1,), (8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize("layer", ["join", "first"])
def test_constants_and_pictures_among_the_parts(layer: str, shape: tuple[int, ...]) -> None:
    module = seeded(Constants(shape))
    with opened(module, layer) as network, opened(module, layer, Rewrites(half=False, program=False)) as plain:
        for own in (torch.arange(4), torch.arange(network.channels - 4, network.channels), torch.tensor([0, 3, 2, 1])):
            for ours, theirs in zip(
                climbed(network, pictures(4), own=own), climbed(plain, pictures(4), own=own), strict=True
            ):
                close(ours, theirs)
        assert programmed(network)


def test_a_channel_alone_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas_worker.network.computes_half", lambda device: True)
    with opened(torchvision_network("resnet18"), "layer1.1.conv2", ALL) as network:
        own = torch.tensor([3, 60])
        alone, _ = climbed(network, pictures(), own=own)
        assert alone.dtype == torch.float32
        with torch.no_grad():
            exact = network(pictures())[torch.arange(2), own][:, None]
        whole, _ = climbed(network, pictures())
        chosen = whole[torch.arange(2), own][:, None]
        assert (alone - exact).norm() < 1.2 * (chosen - exact).norm(), "no further off than bf16 is"
        assert programmed(network)


@pytest.mark.parametrize("channels", [1, 17, 34, 90])
def test_odd_numbers_of_channels_keep_their_bits(channels: int) -> None:
    layer = nn.Conv2d(channels, 5, 3, padding=1).requires_grad_(False)
    quicken(layer)
    assert isinstance(layer, FrozenConv2d)
    maps = torch.randn(8, channels, 13, 13, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own = torch.arange(8) % 5
    together = convolved(maps, layer, own)
    (gradient,) = torch.autograd.grad((together**2).sum(), maps)
    for n in range(8):
        alone = convolved(maps[n : n + 1], layer, own[n : n + 1])
        assert torch.equal(alone[0], together[n])
        assert torch.equal(torch.autograd.grad((alone**2).sum(), maps)[0][n], gradient[n])


def test_what_a_neighbour_wants_changes_no_bit() -> None:
    """A part that reads a sum before it is summed must not take a convolution's sum apart for its neighbours."""

    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b, self.n = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
            self.stem, self.join = nn.Conv2d(3, 3, 1), Join()

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            made = self.conv(x)
            return self.join(self.a(self.n(F.relu(made + made.flip(2)))), self.b(made))  # type: ignore[no-any-return]

    with opened(seeded(Taken()), "join", ALL) as network:
        climbed(network, pictures())
        with_own, gradient = climbed(network, pictures(), own=torch.tensor([0, 1]))
        for neighbour in (1, 9, 15):
            activations, beside = climbed(network, pictures(), own=torch.tensor([0, neighbour]))
            assert torch.equal(activations[0], with_own[0]) and torch.equal(beside[0], gradient[0])
        assert programmed(network)


def test_a_captured_network_is_freed() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pair = nn.Conv2d(3, 4, 1), Pair()

        def forward(self, x: Tensor) -> Tensor:
            one, _ = self.pair(self.conv(x))
            return one  # type: ignore[no-any-return]

    module = seeded(Holder())
    assert capture(module) is not None
    kept = weakref.ref(module)
    del module
    gc.collect()
    assert kept() is None


def test_another_thread_goes_on_while_a_network_is_captured() -> None:
    module, picture = torchvision_network("resnet18"), pictures(1, 32)
    expected, failed, stop = module(picture), [], threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                assert torch.equal(module(picture), expected)
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        graphs = {len(_capture(module).graph.nodes) for _ in range(5)}  # type: ignore[union-attr]
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert len(graphs) == 1


def test_a_network_with_hooks_runs_with_them() -> None:
    module = seeded(torchvision.models.resnet18())
    module.get_submodule("layer1.0").register_forward_hook(lambda _module, _args, out: 2 * out)
    with opened(module, "layer1.1") as network:
        doubled, _ = climbed(network, pictures())
        assert not programmed(network)
    with opened(torchvision_network("resnet18"), "layer1.1") as network:
        plain, _ = climbed(network, pictures())
    assert not torch.allclose(doubled, plain)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (
            lambda: torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64),
            "encoder.layers.encoder_layer_0",
        ),
        (torchvision.models.shufflenet_v2_x0_5, "stage2.1"),  # its branches are two halves of one map
    ],
)
def test_a_network_of_other_things_runs_as_it_is(make: Callable[[], nn.Module], layer: str) -> None:
    with opened(seeded(make()), layer) as network:
        activations, _ = climbed(network, pictures())
        assert not programmed(network)
        own = torch.tensor([1, 2])
        alone, _ = climbed(network, pictures(), own=own)
        assert torch.equal(alone[:, 0], activations[torch.arange(2), own])


class Hidden(nn.Module):
    """A dead ReLU where a program does not look: in a module of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.block = nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block.add_relu(self.stem(x), self.stem(x) - 1e3))  # type: ignore[no-any-return]


def test_redirecting_reaches_what_is_left_to_autograd() -> None:
    module = seeded(Hidden())
    with opened(module, "last") as network, opened(module, "last", Rewrites(half=False, program=False)) as plain:
        for allow in ([True, True], [True, False]):
            flags = torch.tensor(allow)
            for ours, theirs in zip(
                climbed(network, pictures(), allow=flags), climbed(plain, pictures(), allow=flags), strict=True
            ):
                close(ours, theirs)
        assert (ours.flatten(1).abs().amax(1) > 0).tolist() == allow
        assert programmed(network)
        assert any(isinstance(operation, Other) for operation in operations(network))


def test_a_shared_module_is_read_at_its_last_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.relu(self.conv(x))
            return x

    module = seeded(Shared())
    with opened(module, "relu") as network, opened(module, "relu", Rewrites(half=False, program=False)) as plain:
        for ours, theirs in zip(climbed(network, pictures()), climbed(plain, pictures()), strict=True):
            close(ours, theirs)
        assert programmed(network)

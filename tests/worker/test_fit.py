"""What passes a network, said by shapes alone, and that it is what the renderer says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from feature_atlas.errors import RequestError
from feature_atlas.networks import find
from feature_atlas.presets import preset
from feature_atlas.spec import ModelRef, Recipe
from feature_atlas_worker import fit
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from tests import networks


class Reads(nn.Sequential):
    """Looks at a value, which no shape has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + float(x.detach().sum()))  # type: ignore[no-any-return]


def layers() -> list[nn.Module]:
    return [nn.Conv2d(3, 4, 9, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 5), nn.Flatten(), nn.Linear(5 * 25, 2)]


MADE = {"shapes": lambda: nn.Sequential(*layers()), "values": lambda: Reads(*layers())}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("size", [8, 9, 16, 17, 24, 25, 26, 27])
@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_it_says_what_the_renderer_says(kind: str, size: int, layer: str) -> None:
    module, recipe = MADE[kind](), Recipe(size=(size, size), steps=1)
    model = VisionModel(module, networks.MEAN, networks.STD, (25, 25))
    try:
        with open_network(model, layer, recipe, torch.device("cpu")):
            passes = True
    except RequestError:
        passes = False
    try:
        fit.check(module, (25, 25), [layer], [recipe])
        said = True
    except RequestError as error:
        said = False
        assert f"{size} x {size} px does not pass this network up to layer {layer!r}" in str(error)
    assert said == passes


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"position": (60, 31)}, ""),
        ({"position": (61, 0)}, "61 rows and 61 columns at size 128 x 128"),
        ({"position": (29, 0), "coarse": 0.5, "coarse_steps": 1}, "29 rows and 29 columns at size 64 x 64"),
        ({"position": (61, 0), "pad": 8}, "61 rows and 61 columns at size 128 x 128"),
        ({"position": (40, 60), "network_size": (64, 128)}, "29 rows and 61 columns"),
    ],
    ids=str,
)
def test_a_neuron_is_on_every_map_that_will_be_seen(changes: dict[str, Any], refused: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 7, stride=2), nn.ReLU())
    recipe = preset("regularised", {"size": 128, "objective": "neuron", **changes})
    if not refused:
        fit.check(module, (128, 128), ["0"], [recipe])
        return
    with pytest.raises(RequestError, match=f"layer '0': neuron position .*{refused}"):
        fit.check(module, (128, 128), ["0"], [recipe])


class Twice(nn.Module):
    """One convolution under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.other = nn.Sequential(self.first, nn.ReLU()), nn.Sequential(self.first, nn.Conv2d(3, 3, 3))
        self.last = nn.Conv2d(3, 3, 3)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.other(self.one(x)))  # type: ignore[no-any-return]


def test_a_network_is_left_as_it_was() -> None:
    module = Twice()
    before = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    fit.check(module, (32, 32), ["last", "other.1"], [Recipe(size=(32, 32), steps=1)])
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    model = VisionModel(module, networks.MEAN, networks.STD, (32, 32))
    with open_network(model, "last", Recipe(size=(32, 32), steps=1), torch.device("cpu")) as network:
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3, 28, 28)


class Viewed(nn.Sequential):
    """Takes its map as one line, which a map in another order of memory does not allow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self[0](x)
        return self[1](x.view(len(x), -1))  # type: ignore[no-any-return]


def test_what_comes_behind_a_layer_does_not_hinder_it() -> None:
    module = Viewed(nn.Conv2d(3, 4, 5), nn.Linear(4 * 28 * 28, 2))
    model, recipe = VisionModel(module, networks.MEAN, networks.STD, (32, 32)), Recipe(size=(32, 32), steps=1)
    with open_network(model, "0", recipe, torch.device("cpu")) as network:
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 4, 28, 28)


def test_a_layer_that_is_not_there_is_said_to_be_missing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 5))
    with pytest.raises(RequestError, match="no layer '1' in this network"):
        fit.check(module, (32, 32), ["1"], [Recipe(size=(32, 32), steps=1)])


def made() -> networks.Made:
    """Looks at a value while it is made, as code that loads its own weights does."""
    bias = float(torch.ones(3).sum())
    module = nn.Sequential(*layers()).eval()
    nn.init.constant_(module.get_submodule("0").get_parameter("bias"), bias)
    return module, networks.MEAN, networks.STD, (25, 25)


def test_somebodys_network_is_made_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "made", made, raising=False)
    ref = ModelRef(name="python:tests.networks:made", weights="factory", input_size=(25, 25))
    fit.check_named(ref, ["0", "2"], [Recipe(size=(25, 25), steps=1)], ["tests.networks"])
    with pytest.raises(RequestError, match="up to layer '4'"):
        fit.check_named(ref, ["0", "4"], [Recipe(size=(24, 24), steps=1)], ["tests.networks"])


def advice(module: nn.Module, usual: tuple[int, int], layer: str, size: int) -> str:
    with pytest.raises(RequestError) as refused:
        fit.check(module, usual, [layer], [Recipe(size=(size, size), steps=1)])
    return str(refused.value)


def test_a_larger_size_is_advised_only_where_it_passes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 40), nn.Conv2d(5, 2, 1))
    assert advice(module, (64, 64), "0", 32).endswith(": set a larger size, e.g. --set size=64")
    said = advice(module, (64, 64), "1", 64)
    assert "does not pass this network up to layer '1' (" in said and said.endswith("channels instead)")


@pytest.mark.parametrize("size", [16, 48])
def test_a_network_of_one_size_is_told_how_other_pictures_come_to_it(size: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    assert advice(module, (32, 32), "2", size).endswith("--set network_size=32")


def test_a_network_that_takes_other_pictures_than_rgb_is_refused() -> None:
    said = "the network takes 1 input channels; pictures have 3"
    assert advice(nn.Sequential(nn.Conv2d(1, 4, 3)), (64, 64), "0", 64).startswith(said)

    class Grey(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, 0:1] + x[:, 1:2] + x[:, 2:3])  # type: ignore[no-any-return]

    fit.check(Grey(nn.Conv2d(1, 4, 3)), (64, 64), ["0"], [Recipe(size=(64, 64), steps=1)])


def test_a_network_is_tried_by_name_without_its_weights() -> None:
    network = find("squeezenet1_1")
    assert network is not None
    ref, names = network.reference("random:0"), [layer.name for layer in network.layers if layer.kind == "conv"]
    fit.check_named(ref, names, [preset("regularised")], ())
    with pytest.raises(
        RequestError, match=r"a picture of 16 x 16 px does not pass .*: set a larger size, e\.g\. --set size=224"
    ):
        fit.check_named(ref, names, [preset("regularised", {"size": 16})], ())

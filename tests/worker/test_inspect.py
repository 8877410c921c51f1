"""Every layer with channels is found, with the axis on which they lie, without weights and without a trace."""

import logging

import pytest
import torch
from torch import Tensor, nn

from feature_atlas.errors import DeviceError, RequestError
from feature_atlas.networks import LayerInfo
from feature_atlas_worker import inspect, trial
from feature_atlas_worker.activations import count_calls, tap
from feature_atlas_worker.shortage import is_shortage
from tests import networks

SIZE = (32, 48)


class Everything(nn.Module):
    """All layouts, a layer that runs three times, one that never does, and outputs that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.relu = nn.ReLU()
        self.wide = nn.Conv2d(8, 12, 1)
        self.last = nn.Linear(12, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.positions = nn.Linear(2, 16)  # sees a table, not the batch
        self.unused = nn.Conv2d(3, 8, 1)
        self.shape = Shape()
        self.odd = nn.ModuleDict({"a b": nn.ReLU()})
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.wide(self.relu(self.relu(self.stem(x)))))
        x = self.last(x.permute(0, 2, 3, 1))
        x = x.flatten(1, 2) + self.positions(torch.zeros(7, 2, device=x.device)).mean(0)
        x = self.attention(x, x, x)[0] + self.shape(x)
        return self.head(self.odd["a b"](x).mean(1))


class Shape(nn.Module):
    """A layer whose output is a number."""

    def forward(self, x: Tensor) -> float:
        return float(x.shape[1]) * 0


def test_every_layout_is_found() -> None:
    assert inspect.describe(Everything(), SIZE) == (
        LayerInfo("stem", "conv", 8, 0, "NCHW"),
        LayerInfo("wide", "conv", 12, 1, "NCHW"),
        LayerInfo("relu", "activation", 12, 2, "NCHW"),
        LayerInfo("last", "linear", 16, 3, "NHWC"),
        LayerInfo("attention", "attention", 16, 4, "tokens"),
        LayerInfo("head", "linear", 5, 5, "flat"),
    )


def test_what_is_described_is_what_the_renderer_reads() -> None:
    module = Everything().eval()
    x = torch.rand(2, 3, *SIZE)
    for layer in inspect.describe(module, SIZE):
        with tap(module, layer.name, count_calls(module, layer.name, x)) as run:
            assert run(x).shape[layer.channel_axis] == layer.channels, layer


def test_a_name_that_cannot_be_a_key_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        inspect.describe(Everything(), SIZE)
    assert "'odd.a b' is left out: its name cannot be a key" in caplog.text


def test_the_module_is_left_as_it_was_found() -> None:
    module = Everything().train()
    module.wide.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inspect.describe(module, SIZE)
    assert module.training and module.stem.training and not module.wide.training
    assert not any(m._forward_hooks for m in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in module.parameters())


def test_one_layer_is_asked_for_by_name() -> None:
    module = Everything()
    assert inspect.layer_layout(module, "last", SIZE) == ("NHWC", 16)
    with pytest.raises(RequestError, match="no layer 'lasst' in this network; did you mean last"):
        inspect.layer_layout(module, "lasst", SIZE)
    for name in ("unused", "shape", "positions"):
        with pytest.raises(RequestError, match=f"layer '{name}' cannot be shown"):
            inspect.layer_layout(module, name, SIZE)


class ReadsValues(nn.Module):
    """Cannot run on the meta device: it looks at its activations and keeps a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.scale = torch.tensor(2.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.scale
        return y if y.mean().item() > 0 else -y


def test_a_network_that_reads_values_is_run_for_real() -> None:
    assert inspect.describe(ReadsValues(), SIZE) == (LayerInfo("conv", "conv", 4, 0, "NCHW"),)


def test_a_network_that_does_not_run_is_one_sentence() -> None:
    with pytest.raises(RequestError, match="does not run on an input of 32 x 48 px"):
        inspect.describe(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 2)), SIZE)


class Fixed(nn.Module):
    """Runs at one size only, where growth tells nothing: a map with its channels last, then first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.to_last = Permute(0, 2, 3, 1)
        self.act = nn.GELU()
        self.linear = nn.Linear(6, 10)
        self.identity = nn.Identity()
        self.to_first = Permute(0, 3, 1, 2)
        self.windows = Windows()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[-1] == 32, "made for 32 px")
        x = self.to_first(self.identity(self.linear(self.act(self.to_last(self.patch(x))))))
        return self.windows(x)


class Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class Windows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, 4, 5)


def test_a_network_for_one_size_is_judged_by_kinds_and_squares() -> None:
    layouts = {layer.name: layer.layout for layer in inspect.describe(Fixed(), (32, 32))}
    assert layouts == {
        "patch": "NCHW",
        "to_last": "NHWC",
        "act": "NHWC",
        "linear": "NHWC",
        "identity": "NHWC",
        "to_first": "NCHW",
    }


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(3, 4, 1), "conv"),
        (nn.ConvTranspose2d(3, 4, 1), "conv"),
        (nn.Linear(3, 4), "linear"),
        (nn.BatchNorm2d(3), "norm"),
        (nn.LayerNorm(3), "norm"),
        (nn.GroupNorm(1, 3), "norm"),
        (nn.LocalResponseNorm(2), "norm"),
        (nn.ReLU(), "activation"),
        (nn.GELU(), "activation"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (nn.MaxPool2d(2), "pool"),
        (nn.AdaptiveAvgPool2d(1), "pool"),
        (nn.Sequential(nn.ReLU()), "block"),
        (nn.Dropout(), "other"),
        (nn.Flatten(), "other"),
    ],
)
def test_a_kind_is_the_fields_word(module: nn.Module, kind: str) -> None:
    assert inspect.kind(module) == kind


def test_any_model_is_described_by_name() -> None:
    assert [layer.name for layer in inspect.network("builtin:demo").layers][:2] == ["conv1", "relu1"]
    assert inspect.network("squeezenet1_0").weights
    factory = inspect.network("python:tests.worker.test_inspect:Everything", allowed=("tests",))
    assert [layer.channels for layer in factory.layers] == [8, 12, 12, 16, 16, 5]
    with pytest.raises(RequestError, match="not allowed"):
        inspect.network("python:tests.worker.test_inspect:Everything")


def test_a_network_that_the_table_does_not_know_yet_comes_from_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    known = inspect.network("squeezenet1_1")
    monkeypatch.setattr("feature_atlas.networks.find", lambda _: None)
    assert inspect.network("squeezenet1_1") == known


def test_a_shortage_of_memory_is_not_the_size_of_the_picture() -> None:
    class Looking(nn.Conv2d):
        """Reads values, so that shapes do not suffice."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.sum())

    module = nn.Sequential(Looking(3, 4, 3), networks.Hungry())
    for look in (inspect.describe, trial.reached):
        with pytest.raises(
            DeviceError, match=r"not enough memory to run this network on 2 pictures of 32 x 48 px"
        ) as e:
            look(module, SIZE)
        assert is_shortage(e.value)

"""Files of weights are read without trust: only tensors come in, and what does not fit is named."""

import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas_worker import weights


def network() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))


def saved(content: Any, path: Path, **options: Any) -> bytes:
    torch.save(content, path, **options)
    return path.read_bytes()


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_read(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    state = network().state_dict()
    content = state if wrapper is None else {wrapper: state, "epoch": 3}
    data = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert equal(weights.read(data, "x"), state)


def test_a_safetensors_file_is_read() -> None:
    state = network().state_dict()
    assert equal(weights.read(safetensors.torch.save(state), "x"), state)


def test_a_safetensors_header_that_looks_like_a_pickle_is_read() -> None:
    # A header of 0x280 bytes makes the file begin with a pickle's first two bytes.
    for n in range(0x280):
        data = safetensors.torch.save({"a": torch.ones(2)}, metadata={"x": "y" * n})
        if data[:2] == b"\x80\x02":
            break
    assert data[:2] == b"\x80\x02"
    assert weights.read(data, "x")["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"
    content = {"state_dict": network().state_dict(), "args": Malicious(mark)}
    data = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RequestError, match=r"x was refused: it holds more than tensors .*\.system.*state_dict alone"):
        weights.read(data, "x")
    assert not mark.exists()


def test_a_file_of_a_later_pickle_protocol_is_refused_without_a_warning(tmp_path: Path) -> None:
    data = saved({"a": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError, match="x was refused"):
            weights.read(data, "x")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(RequestError, match=r"^x (was refused|is no weights file|is not)"):
        weights.read(pickle.dumps(Malicious(mark), protocol), "x")
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="save the model's state_dict alone"):
        weights.read(saved(network(), tmp_path / "x.pth"), "x")


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is no weights file"),
        (b"<!DOCTYPE html><html>", "neither safetensors nor a torch state_dict"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is no weights file"),
        (b"PK\x03\x04" + bytes(64), "is not a whole torch file"),
        (b"\x80\x02" + bytes(64), "x "),
        (len(HEADER).to_bytes(8, "little") + HEADER, "is not a whole safetensors file"),
        (len(HEADER).to_bytes(8, "little") + HEADER + bytes(99), "is not a whole safetensors file"),
        ((1000).to_bytes(8, "little") + HEADER, "is not a whole safetensors file"),
        ((2**39).to_bytes(8, "little") + b"{" + bytes(64), "a header of 549755813888 bytes; at most 16777216"),
        ((3).to_bytes(8, "little") + b"{}}", "is not a whole safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensors"),
        ((400).to_bytes(8, "little") + b'{"a":' * 80, "is not a whole safetensors file"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as error:
        weights.read(data, "x")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    for data in (saved(network().state_dict(), tmp_path / "x"), safetensors.torch.save(network().state_dict())):
        for length in range(0, len(data), len(data) // 23):
            with pytest.raises(RequestError):
                weights.read(data[:length], "x")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(1)}, torch.ones(3), {"state_dict": {"a": "b"}}])
def test_other_things_than_tensors_are_no_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(RequestError, match="is not a state_dict"):
        weights.read(saved(content, tmp_path / "x"), "x")


def test_the_same_tensors_give_the_same_safetensors_even_where_they_share_memory() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "b": base.t(), "c": base[1:]}
    data = weights.to_safetensors(tensors, "x")
    assert data == weights.to_safetensors(dict(reversed(tensors.items())), "x")
    assert equal(weights.read(data, "x"), {name: t.contiguous() for name, t in tensors.items()})


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(RequestError, match="'a' is sparse or quantised"):
        weights.to_safetensors({"a": torch.eye(3).to_sparse()}, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    tensors = network().state_dict()
    weights.check_finite(tensors, "x")
    tensors["norm.weight"][1] = value
    with pytest.raises(RequestError, match=r"'norm\.weight' holds values that are not finite"):
        weights.check_finite(tensors, "x")


def test_fitting_loads_every_tensor() -> None:
    one, two = network(), network()
    weights.fit(two, one.state_dict(), "x")
    assert equal(one.state_dict(), two.state_dict())


def test_harmless_differences_in_names_are_taken_away() -> None:
    one, two = network(), network()
    given = {f"module.{name}": tensor for name, tensor in one.state_dict().items() if "num_batches" not in name}
    weights.fit(two, {**given, "aux1.conv.weight": torch.ones(1), "AuxLogits.fc.bias": torch.ones(1)}, "x")
    assert equal(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("front", ["_orig_mod.", "model.", "net.", "model._orig_mod.", "_orig_mod.module."])
def test_what_all_names_have_in_front_is_taken_away(front: str) -> None:
    one, two = network(), network()
    weights.fit(two, {front + name: tensor for name, tensor in one.state_dict().items()}, "x")
    assert equal(one.state_dict(), two.state_dict())


def test_what_does_not_fit_without_its_front_is_named_as_it_is() -> None:
    given = {f"model.{name}": tensor for name, tensor in network().state_dict().items() if name != "fc.bias"}
    with pytest.raises(RequestError, match=r"missing .*; unexpected model\."):
        weights.fit(network(), given, "the file")


def test_a_layer_that_is_called_module_keeps_its_name() -> None:
    one, two = nn.ModuleDict({"module": nn.Linear(2, 2)}), nn.ModuleDict({"module": nn.Linear(2, 2)})
    weights.fit(two, one.state_dict(), "x")
    assert equal(one.state_dict(), two.state_dict())


def test_densenets_old_names_are_understood() -> None:
    from torchvision.models import DenseNet

    one, two = (DenseNet(4, (2, 1), 8, num_classes=2) for _ in range(2))
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): t for name, t in one.state_dict().items()}
    assert any(".norm.1." in name for name in old)
    weights.fit(two, old, "x")
    assert equal(one.state_dict(), two.state_dict())


def test_what_does_not_fit_is_named() -> None:
    given = network().state_dict()
    del given["norm.bias"], given["fc.bias"]
    given |= {f"more.{i}": torch.ones(1) for i in range(5)}
    given["fc.weight"] = torch.ones(7, 4)
    with pytest.raises(RequestError) as error:
        weights.fit(network(), given, "the file")
    assert str(error.value).startswith(
        "the file does not fit the network: missing norm.bias, fc.bias;"
        " unexpected more.0, more.1, more.2 and 2 more; of another shape fc.weight [7, 4] for [2, 4]"
    )


def test_the_hash_is_over_names_shapes_and_values() -> None:
    module = network()
    first = weights.sha256_of(module)
    assert weights.sha256_of(module) == first
    with torch.no_grad():
        module.conv.bias[0] += 1
    second = weights.sha256_of(module)
    with torch.no_grad():
        module.conv.bias[0] -= 1
    flat = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), full=nn.Linear(4, 2)))
    assert len({first, second, weights.sha256_of(flat)}) == 3

"""What a person writes becomes a reference, and a file of weights the bytes that travel with the atlas."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from feature_atlas import keys, networks
from feature_atlas.errors import RequestError, WeightsError
from feature_atlas.store import open_store
from feature_atlas_worker import models, weights
from feature_atlas_worker.resolve import resolve
from tests.servers import S3Endpoint

ALLOWED = ("tests.worker.test_resolve",)
NET = "python:tests.worker.test_resolve:small"
FED = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def small() -> nn.Module:
    """A factory that does not say how its network is fed."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {name: torch.rand_like(tensor) for name, tensor in small().state_dict().items()}


def test_names_need_no_bytes() -> None:
    for name, given in (("resnet50", None), ("resnet50", "IMAGENET1K_V1"), ("vgg11", "random:3")):
        known = networks.find(name)
        assert known is not None
        assert resolve(name, given) == (known.reference(given), None)


def test_the_built_in_network_is_pinned_by_its_tensors() -> None:
    ref, data = resolve("builtin:demo")
    assert data is None and ref.weights == "builtin" and len(ref.weights_sha256) == 64
    assert models.load(ref).weights_sha256 == ref.weights_sha256


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_travels_as_safetensors_under_its_hash(
    tmp_path: Path, state: dict[str, torch.Tensor], suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, path)
    else:
        path.write_bytes(weights.to_safetensors(state, "x"))
    ref, data = resolve(NET, str(path), allowed=ALLOWED, **FED)
    assert data is not None
    assert ref.weights == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert data == weights.to_safetensors(state, "x")
    store = open_store("memory:resolve")
    store.put(keys.weights(ref.weights_sha256), data)
    model = models.load(ref, read=store.get, allowed=ALLOWED)
    assert torch.equal(model.module.state_dict()["0.weight"], state["0.weight"])
    assert model.weights_sha256 == ref.weights_sha256


def test_the_imagenet_weights_are_taken_as_they_are(weights: Path) -> None:
    ref, data = resolve("squeezenet1_0", str(weights))
    assert data == weights.read_bytes()
    assert ref.mean == (0.485, 0.456, 0.406)  # of the network's default weights


def test_a_file_without_a_suffix_is_a_file(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state, "mine")
    assert resolve(NET, "mine", allowed=ALLOWED, **FED)[1] is not None


def test_an_unknown_normalisation_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RequestError, match="is unknown: say it with --mean R,G,B --std R,G,B"):
        resolve(NET, allowed=ALLOWED)
    with pytest.raises(RequestError):
        models.load(NET, allowed=ALLOWED)
    with pytest.raises(RequestError, match="mean and std must have one entry"):
        resolve(NET, allowed=ALLOWED, mean=(0.5,) * 3)
    assert resolve(NET, allowed=ALLOWED, **FED)[0].std == (0.25,) * 3


@pytest.mark.parametrize("mean", [(123, 117, 104), (-0.5, 0.5, 0.5)])
def test_a_mean_of_other_numbers_than_pictures_have_is_refused(mean: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match=r"is not of pictures in \[0, 1\], as they are here: divide .* by 255"):
        resolve(NET, allowed=ALLOWED, mean=mean, std=(58, 57, 57))


def test_what_is_given_goes_before_the_metadata() -> None:
    ref, _ = resolve("resnet18", "random:0", mean=(0.1, 0.2, 0.3), std=(1, 1, 1), input_size=(64, 64))
    assert (ref.mean, ref.std, ref.input_size) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), (64, 64))


def test_weights_come_from_s3(
    moto: S3Endpoint, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    bucket, data = moto.new_bucket(), weights.to_safetensors(state, "x")
    moto.client().put_object(Bucket=bucket, Key="nets/mine.safetensors", Body=data)
    assert resolve(NET, f"s3://{bucket}/nets/mine.safetensors", allowed=ALLOWED, **FED)[1] == data
    with pytest.raises(RequestError, match=f"there are no weights at s3://{bucket}/nets/mine"):
        resolve(NET, f"s3://{bucket}/nets/mine", allowed=ALLOWED, **FED)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("resnt18", None, "no model 'resnt18'; did you mean"),
        ("resnet18", "IMAGENET", "resnet18 has no weights 'IMAGENET'; did you mean IMAGENET1K_V1"),
        ("resnet18", "nowhere.pth", r"cannot read the weights file 'nowhere\.pth': No such file"),
        ("resnet18", "/", "cannot read the weights file '/': Is a directory"),
        ("resnet18", "gs://bucket/x.pth", "a file, http"),
        ("builtin:demo", "random:1", "has no weights 'random:1' .possible: builtin"),
        ("builtin:demo", "x.pth", "has its own weights"),
        (NET, "IMAGENET1K_V1", r"possible: factory, random:SEED, a \.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, given: str | None, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        resolve(name, given, allowed=ALLOWED, **FED)


def test_weights_of_another_network_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"'.*x\.pth' does not fit the network: missing 0\.weight, 0\.bias"):
        resolve(NET, str(tmp_path / "x.pth"), allowed=ALLOWED, **FED)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "0.bias": torch.full((4,), float("nan"))}, tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"'0\.bias' holds values that are not finite"):
        resolve(NET, str(tmp_path / "x.pth"), allowed=ALLOWED, **FED)


def test_a_download_that_fails_is_the_environment() -> None:
    with pytest.raises(WeightsError, match="cannot download"):
        resolve("resnet18", "http://127.0.0.1:9/x.pth")

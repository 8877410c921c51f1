"""A model comes evaluated, frozen, with its normalisation, and with the weights that were asked for or not at all."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from feature_atlas import keys
from feature_atlas.errors import IntegrityError, ObjectNotFound, RequestError
from feature_atlas.spec import ModelRef
from feature_atlas.store import open_store
from feature_atlas_worker import models, sources, weights

ALLOWED = ("tests.worker.test_models",)
NET = "python:tests.worker.test_models:small"


def small() -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """A factory."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()), (0.5,) * 3, (0.25,) * 3, (32, 40)


def test_a_model_is_evaluated_frozen_and_fed() -> None:
    model = models.load(NET, allowed=ALLOWED)
    assert not model.module.training and not any(m.training for m in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())
    assert (model.mean, model.std, model.input_size) == ((0.5,) * 3, (0.25,) * 3, (32, 40))
    assert model.ref is not None and model.ref.weights == "factory"


def test_a_factory_that_makes_another_network_than_planned_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = models.reference(NET, allowed=ALLOWED)
    assert models.load(ref, allowed=ALLOWED).weights_sha256 == ref.weights_sha256
    monkeypatch.setattr(sources, "build", lambda *_, **__: sources.Source(nn.Sequential(nn.Conv2d(3, 4, 3))))
    with pytest.raises(IntegrityError, match="they have changed or are damaged"):
        models.load(ref, allowed=ALLOWED)


def imprecise(dtype: torch.dtype) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """A factory whose network is not in fp32."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype), (0.5,) * 3, (0.25,) * 3, (32, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_factorys_network_of_another_precision_runs_in_fp32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.worker.test_models.small", lambda: imprecise(dtype))
    ref = models.reference(NET, allowed=ALLOWED)
    model = models.load(ref, allowed=ALLOWED)
    assert model.weights_sha256 == ref.weights_sha256 == weights.sha256_of(model.module)
    assert {t.dtype for t in model.module.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert model.module(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


def test_a_network_of_other_pictures_than_rgb_is_refused_before_it_is_loaded() -> None:
    grey = models.reference(NET, allowed=ALLOWED).model_copy(update={"mean": (0.5,), "std": (0.25,)})
    with pytest.raises(RequestError, match="is fed 1 input channels; pictures have 3: "):
        models.load(grey, allowed=ALLOWED)


def test_random_weights_are_the_same_everywhere_and_differ_by_seed() -> None:
    first, again, other = (models.load(models.reference("squeezenet1_1", f"random:{s}")) for s in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.weights_sha256 == weights.sha256_of(first.module)
    factory = [models.load(models.reference(NET, f"random:{s}", allowed=ALLOWED), allowed=ALLOWED) for s in (1, 2)]
    assert factory[0].weights_sha256 != factory[1].weights_sha256


@pytest.mark.parametrize("name", ["timm:", "python:x", "builtin:demo"])
def test_weights_of_torchvision_are_torchvisions(name: str) -> None:
    with pytest.raises(RequestError, match="has no weights 'IMAGENET1K_V1'"):
        models.reference(name, "IMAGENET1K_V1")


def stored(tmp: str, data: bytes) -> tuple[ModelRef, models.Read]:
    store, sha256 = open_store(f"memory:{tmp}"), hashlib.sha256(data).hexdigest()
    store.put(keys.weights(sha256), data)
    ref = models.reference(NET, allowed=ALLOWED)
    return ref.model_copy(update={"weights": f"sha256:{sha256}", "weights_sha256": sha256}), store.get


def test_weights_in_the_atlas_are_checked_against_their_hash() -> None:
    data = weights.to_safetensors(small()[0].state_dict(), "x")
    ref, read = stored("good", data)
    assert models.load(ref, read=read, allowed=ALLOWED).weights_sha256 == hashlib.sha256(data).hexdigest()
    with pytest.raises(IntegrityError, match=r"weights/[0-9a-f]{64}\.safetensors holds other bytes"):
        models.load(ref, read=lambda key: read(key)[:-1] + b"\1", allowed=ALLOWED)
    with pytest.raises(ObjectNotFound):
        models.load(ref, read=open_store("memory:empty").get, allowed=ALLOWED)
    with pytest.raises(RequestError, match="lie in an atlas"):
        models.load(ref, allowed=ALLOWED)


def test_weights_of_another_network_in_the_atlas_are_refused() -> None:
    ref, read = stored("other", weights.to_safetensors({"a": torch.ones(1)}, "x"))
    with pytest.raises(RequestError, match=r"in the atlas does not fit the network: missing 0\.weight"):
        models.load(ref, read=read, allowed=ALLOWED)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """SqueezeNet's published weights, as if torch's cache held them; returns their SHA-256."""
    data = weights.to_safetensors(sources.build("squeezenet1_1", seed=9).module.state_dict(), "x")
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / f"checkpoints/squeezenet1_1-{sha256[:8]}.pth").write_bytes(data)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources, "weights_url", lambda *_: f"http://127.0.0.1:9/squeezenet1_1-{sha256[:8]}.pth")
    return sha256


def test_published_weights_carry_the_hash_of_their_whole_file(published: str) -> None:
    ref = models.reference("squeezenet1_1").model_copy(update={"weights_sha256": published[:8]})
    model = models.load(ref)
    assert model.weights_sha256 == published
    assert torch.equal(
        model.module.state_dict()["features.0.weight"],
        sources.build("squeezenet1_1", seed=9).module.state_dict()["features.0.weight"],
    )


def test_other_published_weights_than_planned_are_found_out(published: str) -> None:
    with pytest.raises(IntegrityError, match=r"IMAGENET1K_V1 of squeezenet1_1 have SHA-256"):
        models.load("squeezenet1_1")


def test_a_model_goes_to_its_device() -> None:
    assert models.load(NET, allowed=ALLOWED, device="meta").module[0].weight.is_meta


@pytest.mark.parametrize("fed", [True, False])
def test_inception_is_told_whether_its_input_is_normalised_as_imagenets(fed: bool) -> None:
    ref = models.reference("googlenet", "random:0")
    if not fed:
        ref = ref.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    with torch.device("meta"):
        assert models.build(ref).transform_input is fed


def test_timms_networks_load() -> None:
    first, other = (models.load(models.reference("timm:vit_tiny_patch16_224", f"random:{s}")) for s in (1, 2))
    assert first.weights_sha256 != other.weights_sha256
    assert (first.mean, first.std, first.input_size) == ((0.5,) * 3, (0.5,) * 3, (224, 224))
    with pytest.raises(RequestError, match=r"timm has no model 'resnet1'; did you mean resnet1\d"):
        models.reference("timm:resnet1")
    with pytest.raises(RequestError, match=r"timm has no weights 'x' of resnet18; did you mean resnet18\."):
        models.reference("timm:resnet18.x")

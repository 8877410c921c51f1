"""The committed table of networks says what torchvision says, and needs no torch to be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_atlas import networks
from feature_atlas.errors import RequestError
from feature_atlas.networks import CHANNEL_AXIS, KINDS, LayerInfo, Network, WeightsInfo
from feature_atlas_worker import inspect, sources

# One of each kind of architecture; all 80 (a minute) with FEATURE_ATLAS_TEST_TABLE=all.
SOME = ("squeezenet1_0", "googlenet", "regnet_x_400mf", "swin_t", "maxvit_t", "vit_b_32")
CHECKED = networks.names() if os.environ.get("FEATURE_ATLAS_TEST_TABLE") == "all" else SOME


def table(name: str) -> Network:
    network = networks.find(name)
    assert network is not None
    return network


@pytest.mark.parametrize("name", CHECKED)
def test_the_layers_are_torchvisions(name: str) -> None:
    assert table(name) == inspect.torchvision_network(name)


def test_every_classification_network_is_there_with_its_weights() -> None:
    from torchvision import models

    assert list(networks.names()) == sorted(models.list_models(module=models))
    for name in networks.names():
        known, published = table(name), sources.from_torchvision(name)
        assert (known.weights, known.default) == (published.weights, published.default)
        assert all(len(w.sha256) == 8 for w in known.weights.values())


def test_resnet50_has_53_convolutions_with_26560_channels() -> None:
    conv = [layer for layer in table("resnet50").layers if layer.kind == "conv"]
    assert (len(conv), sum(layer.channels for layer in conv)) == (53, 26_560)


def test_googlenets_inception_outputs_have_5488_channels() -> None:
    blocks = [la for la in table("googlenet").layers if la.name.startswith("inception") and "." not in la.name]
    assert (len(blocks), sum(layer.channels for layer in blocks)) == (9, 5_488)
    assert {layer.kind for layer in blocks} == {"block"}


def test_layers_are_numbered_in_the_order_of_execution() -> None:
    for name in networks.names():
        layers = table(name).layers
        assert [layer.index for layer in layers] == list(range(len(layers)))
        assert len({layer.name for layer in layers}) == len(layers)
        assert {layer.kind for layer in layers} <= set(KINDS)
        assert {layer.layout for layer in layers} <= set(CHANNEL_AXIS)
    order = [layer.name for layer in table("resnet50").layers]
    assert order.index("conv1") < order.index("layer1.0.conv3") < order.index("layer1.0") < order.index("fc")


def test_the_default_weights_are_named_outright() -> None:
    assert table("resnet50").reference().weights == "IMAGENET1K_V2"
    assert table("resnet50").reference("DEFAULT") == table("resnet50").reference("IMAGENET1K_V2")


def test_weights_bring_their_own_normalisation_and_size() -> None:
    ref = table("vgg16").reference("IMAGENET1K_FEATURES")
    assert ref.mean == (0.48235, 0.45882, 0.40784)
    assert ref.std[0] == pytest.approx(1 / 255)
    assert table("vit_b_16").reference("IMAGENET1K_SWAG_E2E_V1").input_size == (384, 384)


def test_random_weights_are_fed_as_the_default_ones() -> None:
    random, default = table("inception_v3").reference("random:7"), table("inception_v3").reference()
    assert (random.weights, random.weights_sha256) == ("random:7", "")
    assert (random.mean, random.std, random.input_size) == (default.mean, default.std, default.input_size)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V3", "random:", "random:-1", "imagenet"])
def test_unknown_weights_are_told_the_possible_ones(weights: str) -> None:
    with pytest.raises(RequestError, match=r"resnet50 has no weights .*IMAGENET1K_V1, IMAGENET1K_V2, random:SEED"):
        table("resnet50").reference(weights)


def test_an_unknown_network_is_told_the_nearest() -> None:
    assert networks.find("resnt50") is None
    assert "did you mean" in str(networks.unknown("resnt50")) and "resnet50" in str(networks.unknown("resnt50"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("branch4[1].conv", "branch4.1.conv"),
        ("layer1[0][2]", "layer1.0.2"),
        (" conv1 ", "conv1"),
        ("layer[a]", "layer[a]"),
    ],
)
def test_an_index_in_brackets_is_a_dotted_one(text: str, name: str) -> None:
    assert networks.dotted(text) == name


def test_a_network_survives_packing() -> None:
    layers = (LayerInfo("a", "conv", 3, 0, "NCHW"), LayerInfo("b", "linear", 5, 1, "tokens"))
    weights = {"W": WeightsInfo("W", "0123abcd", (0.5,), (0.25,), (8, 9))}
    network = Network("net", layers, weights, "W")
    assert networks.unpack("net", networks.pack(network)) == network
    assert [layer.channel_axis for layer in layers] == [1, 2]


def test_the_table_stays_small() -> None:
    assert Path(networks.__file__).with_name("networks.json.gz").stat().st_size < 100_000


def test_planning_a_known_network_needs_no_torch() -> None:
    program = """
import sys
for name in ("torch", "torchvision", "safetensors", "celery", "redis", "boto3"):
    sys.modules[name] = None
from feature_atlas import networks
from feature_atlas_producer.plan import request
network = networks.find("resnet50")
file = request(network, network.reference())
print(len(file.layers), sum(len(layer.numbers) for layer in file.layers))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.returncode) == ("53 26560\n", 0), done.stderr

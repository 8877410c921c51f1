"""What a person writes selects what they mean, and a mistake is told in one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_atlas import networks
from feature_atlas.errors import RequestError
from feature_atlas.networks import LayerInfo, Network
from feature_atlas_producer.select import select

NET = Network(
    "net",
    (
        LayerInfo("stem", "conv", 64, 0, "NCHW"),
        LayerInfo("stem_bn", "norm", 64, 1, "NCHW"),
        LayerInfo("blocks.3.conv", "conv", 48, 2, "NCHW"),
        LayerInfo("blocks.4.conv", "conv", 128, 3, "NCHW"),
        LayerInfo("blocks.4", "block", 128, 4, "NCHW"),
        LayerInfo("fc", "linear", 10, 5, "flat"),
    ),
)


def chosen(layers: str = "*", channels: str = ":", kinds: tuple[str, ...] = ("conv",)) -> dict[str, str]:
    return {layer.name: layer.channels for layer in select(NET, layers, channels, kinds)}


def test_a_whole_network_is_every_channel_of_its_convolutions() -> None:
    assert chosen() == {"stem": "0:64", "blocks.3.conv": "0:48", "blocks.4.conv": "0:128"}


def test_a_glob_selects_among_the_kinds() -> None:
    assert list(chosen("blocks.*")) == ["blocks.3.conv", "blocks.4.conv"]
    assert list(chosen("blocks.*", kinds=("block",))) == ["blocks.4"]
    assert list(chosen("*", kinds=("all",))) == [layer.name for layer in NET.layers]


def test_an_exact_name_is_taken_whatever_its_kind() -> None:
    assert list(chosen("fc")) == ["fc"]
    assert list(chosen("fc,stem*")) == ["stem", "fc"]


def test_layers_come_in_the_order_of_the_network_and_once() -> None:
    assert list(chosen("blocks.4.conv,stem,blocks.*,stem")) == ["stem", "blocks.3.conv", "blocks.4.conv"]


@pytest.mark.parametrize("layers", ["blocks[4].conv", "blocks[4].*", "blocks[4]*", "blocks.4.conv"])
def test_an_index_may_be_in_brackets(layers: str) -> None:
    assert list(chosen(layers)) == ["blocks.4.conv"]


def test_brackets_that_are_no_index_are_a_globs() -> None:
    assert list(chosen("blocks.[34].conv")) == ["blocks.3.conv", "blocks.4.conv"]


def test_channels_are_clipped_for_a_glob() -> None:
    assert chosen("*", "40:100") == {"stem": "40:64", "blocks.3.conv": "40:48", "blocks.4.conv": "40:100"}
    assert chosen("*", "::30") == {"stem": "0:61:30", "blocks.3.conv": "0,30", "blocks.4.conv": "0:121:30"}


def test_a_layer_of_which_nothing_is_left_is_left_out() -> None:
    assert chosen("*", "100") == {"blocks.4.conv": "100"}


def test_channels_are_not_clipped_for_an_exact_layer() -> None:
    with pytest.raises(RequestError, match=r"channel 99 is out of range: layer 'stem' has 64 channels, 0 to 63"):
        chosen("stem", "0:100")
    with pytest.raises(RequestError, match="layer 'stem' has 64"):
        chosen("stem,blocks.*", "100")


@pytest.mark.parametrize(
    ("layers", "channels", "kinds", "sentence"),
    [
        ("blocks.5.conv", ":", ("conv",), r"no layer 'blocks.5.conv' in net; did you mean blocks"),
        ("nothing.*", ":", ("conv",), r"no layer 'nothing.\*' in net: see feature-atlas layers"),
        ("stem_*", ":", ("conv",), r"'stem_\*' matches no conv layer of net, only 1 norm: add --kinds norm"),
        ("f*", ":", ("conv", "norm"), "matches no conv or norm layer of net, only 1 linear"),
        ("*", ":", ("convolution",), r"no kind 'convolution'.*kinds: conv, linear"),
        ("", ":", ("conv",), "no layers are given"),
        ("*", "500", ("conv",), "out of range of every layer.*widest has 128 channels, 0 to 127"),
        ("*", "9:5", ("conv",), "select nothing"),
        ("*", "a", ("conv",), "neither a number nor start:stop:step"),
        ("*", "::0", ("conv",), "neither a number nor start:stop:step"),
    ],
)
def test_a_mistake_is_one_sentence(layers: str, channels: str, kinds: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        chosen(layers, channels, kinds)


@given(st.integers(0, 120), st.integers(1, 200), st.integers(1, 40))
def test_clipping_is_what_python_slices_do(first: int, length: int, step: int) -> None:
    for layer in select(NET, "*,stem_b*", f"{first % 60}:{first % 60 + length}:{step},0", ("conv", "norm")):
        expected = {0, *range(layer.total)[first % 60 : first % 60 + length : step]}
        assert layer.numbers == tuple(sorted(expected))


def test_every_conv_channel_of_every_torchvision_network_can_be_chosen() -> None:
    for name in networks.names():
        network = networks.find(name)
        assert network is not None
        conv = [layer for layer in network.layers if layer.kind == "conv"]
        assert [(la.name, la.total) for la in select(network)] == [(la.name, la.channels) for la in conv]

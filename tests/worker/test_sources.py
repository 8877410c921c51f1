"""Modules by name: nothing runs that was not allowed, seeds stay inside, GoogLeNet sees what it was trained on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from feature_atlas.errors import MissingExtraError, RequestError
from feature_atlas_worker import models, sources, weights

NETS = """
import pathlib
from types import SimpleNamespace
from torch import nn

pathlib.Path(__file__).with_name("imported").touch()

def bare(): return nn.Conv2d(3, 4, 3)
def full(): return nn.Conv2d(3, 4, 3), (0.5,) * 3, [0.25] * 3, 64
def vision(): return SimpleNamespace(module=nn.Conv2d(3, 4, 3), mean=(0.1,) * 3, std=(0.2,) * 3, input_size=(32, 48))
def wrong(): return "a network"
def short(): return nn.Conv2d(3, 4, 3), (0.5,) * 3
def broken(): return 1 / 0
def choosy(depth, size=3, *rest, wide, **more): return nn.Conv2d(3, depth, size)
not_callable = 3
ready = nn.Conv2d(3, 4, 3)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "fa_nets").mkdir()
    (tmp_path / "fa_nets/__init__.py").touch()
    (tmp_path / "fa_nets/small.py").write_text(NETS)
    (tmp_path / "fa_nets/dependent.py").write_text("import fa_no_such_thing")
    (tmp_path / "fa_nets/slip.py").write_text("def x(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "fa_nets/imported"
    for name in [name for name in sys.modules if name.startswith("fa_nets")]:
        del sys.modules[name]


@pytest.mark.parametrize("allowed", [(), ("fa_nets.small:full",), ("fa_net",), ("fa_nets.smal",), ("fa_nets.small.x",)])
def test_a_factory_that_is_not_allowed_is_not_even_imported(nets: Path, allowed: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"not allowed here: allow it with --allow-model fa_nets\.small:bare"):
        sources.build("python:fa_nets.small:bare", allowed=allowed)
    assert not nets.exists()


@pytest.mark.parametrize(
    "allowed", ["fa_nets.small:bare", "python:fa_nets.small:bare", "fa_nets.small", "python:fa_nets.small:", "fa_nets"]
)
def test_a_factory_is_allowed_by_itself_its_module_or_a_package(nets: Path, allowed: str) -> None:
    assert sources.build("python:fa_nets.small:bare", allowed=("other", allowed)).mean == ()
    assert nets.exists()


def test_a_factory_may_say_how_its_network_is_fed(nets: Path) -> None:
    full = sources.build("python:fa_nets.small:full", allowed=("fa_nets",))
    assert full[1:] == ((0.5,) * 3, (0.25,) * 3, (64, 64))
    vision = sources.build("python:fa_nets.small:vision", allowed=("fa_nets",))
    assert vision[1:] == ((0.1,) * 3, (0.2,) * 3, (32, 48))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("fa_nets.small:wrong", "returned a str, not a module or"),
        ("fa_nets.small:short", "returned a tuple, not a module or"),
        ("fa_nets.small:broken", r"was called and failed \(ZeroDivisionError: division by zero\)$"),
        ("fa_nets.small:not_callable", "is of type int, neither a factory nor a module$"),
        ("fa_nets.small:bear", r"'fa_nets.small' \(.*small.py\) has no 'bear'; did you mean bare"),
        ("fa_nets.small:choosy", r"needs arguments \(depth, wide\), and a factory is called with none"),
        ("fa_nets.nowhere:x", "there is no module 'fa_nets.nowhere' here: install it, or put its folder on PYTHONPATH"),
        ("fa_nets.dependent:x", "the module 'fa_nets.dependent' needs 'fa_no_such_thing', which is not there"),
        ("fa_nets.slip:x", "the module 'fa_nets.slip' cannot be imported .SyntaxError"),
        ("fa_nets", "write python:module:factory"),
        (":x", "write python:module:factory"),
    ],
)
def test_a_factory_that_fails_is_one_sentence(nets: Path, path: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        sources.build(f"python:{path}", allowed=("fa_nets",))


def test_a_network_that_is_there_already_is_used_as_it_is(nets: Path) -> None:
    name = "python:fa_nets.small:ready"
    one, two = (sources.build(name, allowed=("fa_nets",)).module for _ in range(2))
    assert one is not two  # what is loaded into the one is not in the other
    assert weights.sha256_of(one) == weights.sha256_of(two)
    assert models.reference(name, allowed=("fa_nets",)).weights == "factory"
    with pytest.raises(RequestError, match="there already, which no seed makes anew: leave random:3 out"):
        models.reference(name, "random:3", allowed=("fa_nets",))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("squeezenet1_9", r"no model 'squeezenet1_9'; did you mean squeezenet1_"),
        ("fcn_resnet50", "no model 'fcn_resnet50'"),
        ("torch:resnet18", "no model 'torch:resnet18'"),
        ("mynets:plain", "no model 'mynets:plain': .* write python:mynets:plain --allow-model mynets$"),
        ("mynets.py:plain", "write python:mynets:plain --allow-model mynets$"),
        ("mynets.py", "write python:mynets:FACTORY --allow-model mynets$"),
        ("../nets/mynets.py", "python:mynets:FACTORY --allow-model mynets, with its folder on PYTHONPATH"),
        ("", "no model ''"),
        ("builtin:dmo", "no built-in network 'dmo'; did you mean demo"),
    ],
)
def test_an_unknown_model_is_told_the_known(name: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        sources.build(name)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm:resnet18 needs more than the reader.*\[timm\]"):
        sources.build("timm:resnet18")


def test_a_seed_decides_the_weights_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (weights.sha256_of(sources.build("squeezenet1_1", seed=s).module) for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(torch.rand(3), expected)


def test_a_network_for_one_size_is_made_for_that_size() -> None:
    with torch.device("meta"):
        vit = sources.build("vit_b_32", input_size=(384, 384)).module
    assert vit.state_dict()["encoder.pos_embedding"].shape[1] == (384 // 32) ** 2 + 1
    with pytest.raises(RequestError, match=r"vit_b_32 cannot be made for an input of \(100, 100\)"):
        sources.build("vit_b_32", input_size=(100, 100))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_made_for_minus_one_to_one_see_it_under_either_normalisation(name: str) -> None:
    with torch.device("meta"):
        told, plain = (sources.build(name, imagenet=flag).module for flag in (True, False))
    picture = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in sources.IMAGENET)
    seen = told._transform_input((picture - mean) / std)
    assert torch.allclose(seen, (picture - 0.5) / 0.5, atol=1e-6)
    assert torch.equal(plain._transform_input(picture), picture)
    assert not any(layer.startswith(("aux", "Aux")) for layer, _ in told.named_modules())


def test_unknown_published_weights_say_that_torchvision_is_older() -> None:
    assert sources.weights_url("resnet50", "IMAGENET1K_V2").endswith("resnet50-11ad3fa6.pth")
    with pytest.raises(RequestError, match="update it"):
        sources.weights_url("resnet50", "IMAGENET1K_V9")

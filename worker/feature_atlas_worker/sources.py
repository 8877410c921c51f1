"""Where networks come from: torchvision, timm, a Python factory, the package itself.  Modules without their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from feature_atlas import networks
from feature_atlas.errors import MissingExtraError, RequestError
from feature_atlas.networks import Network, WeightsInfo
from feature_atlas_worker import factories

#: Mean and standard deviation of ImageNet's training pictures, RGB in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: What the weights are called that a model of these kinds brings along.
_OWN = {"timm": "pretrained", "python": "factory", "builtin": "builtin"}
#: Networks made for (-1, 1) that take ImageNet's normalisation where ``transform_input`` is set.
_TRANSFORMING = ("googlenet", "inception_v3")
_HASH = re.compile(r"-([0-9a-f]{8})[0-9a-f]*\.\w+$")


class Source(NamedTuple):
    """A module and what is known about its input; empty where nothing is."""

    module: nn.Module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: tuple[int, int] | None = None


def own_weights(name: str) -> str:
    """The name of the weights that a ``timm:``, ``python:`` or ``builtin:`` model brings along.

    Raises:
        RequestError: another scheme.
    """
    scheme = name.partition(":")[0]
    if scheme not in _OWN:
        raise networks.unknown(name)
    return _OWN[scheme]


def build(
    name: str,
    *,
    seed: int = 0,
    allowed: Sequence[str] = (),
    input_size: tuple[int, int] | None = None,
    imagenet: bool = True,
    pretrained: bool = False,
) -> Source:
    """The module of that name, with the weights that its code gives it under this seed; the global seed is left alone.

    Args:
        name: a torchvision name, ``timm:NAME``, ``python:module:factory`` or ``builtin:NAME``.
        seed: of the initialisation.
        allowed: which factories may be called.
        input_size: for networks that are made for one size (ViT, MaxViT).
        imagenet: the input is normalised as ImageNet's; GoogLeNet and Inception are told.
        pretrained: timm's own weights, downloaded.

    Raises:
        RequestError: unknown, not allowed, or the factory fails.
        WeightsError: timm could not download.
    """
    scheme, _, rest = name.partition(":")
    with _seeded(seed):
        if not rest:
            return Source(_torchvision(name, input_size, imagenet))
        if scheme == "builtin":
            return _builtin(rest)
        if scheme == "python":
            return _python(rest, allowed)
        if scheme == "timm":
            from feature_atlas_worker.timm_models import create

            return Source(*create(rest, pretrained))
    raise networks.unknown(name)


def published(name: str) -> Network:
    """A torchvision network and its weights' metadata: from the table, or for a newer one from torchvision itself.

    The latter has no layers: see ``feature_atlas_worker.inspect.network``.

    Raises:
        RequestError: torchvision has no such classification network.
    """
    return networks.find(name) or from_torchvision(name)


def from_torchvision(name: str) -> Network:
    """As :func:`published`, never from the table."""
    models = _torchvision_models(name)
    if name not in models.list_models(module=models):
        raise networks.unknown(name)
    enum = models.get_model_weights(name)
    weights = {entry.name: _metadata(entry) for entry in enum}
    return Network(name=name, layers=(), weights=weights, default=enum.DEFAULT.name if weights else "")


def weights_url(name: str, weights: str) -> str:
    """Where torchvision publishes these weights.

    Raises:
        RequestError: the torchvision installed here does not know them.
    """
    models = _torchvision_models(name)
    try:
        return str(models.get_model_weights(name)[weights].url)
    except (KeyError, ValueError):
        raise RequestError(f"the torchvision installed here has no weights {weights!r} of {name}: update it") from None


def _torchvision_models(name: str) -> Any:
    try:
        from torchvision import models
    except ImportError:
        raise MissingExtraError(f"the torchvision network {name!r}", "render") from None
    return models


def _metadata(entry: Any) -> WeightsInfo:
    fed = entry.transforms()
    crop = fed.crop_size
    found = _HASH.search(entry.url)
    return WeightsInfo(
        name=entry.name, sha256=found[1] if found else "", mean=tuple(fed.mean), std=tuple(fed.std),
        input_size=(crop[0], crop[-1]),
    )  # fmt: skip


def _torchvision(name: str, input_size: tuple[int, int] | None, imagenet: bool) -> nn.Module:
    models = _torchvision_models(name)
    if name not in models.list_models(module=models):
        raise networks.unknown(name)
    options: dict[str, Any] = {}
    if name in _TRANSFORMING:
        options = {"aux_logits": False, "init_weights": True, "transform_input": imagenet}
    elif name.startswith("vit_") and input_size:
        options = {"image_size": input_size[0]}
    elif name.startswith("maxvit_") and input_size:
        options = {"input_size": input_size}
    try:
        return models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise RequestError(f"{name} cannot be made for an input of {input_size}: {error}") from None


def _builtin(name: str) -> Source:
    from feature_atlas_worker import builtin

    module, mean, std, size = builtin.load(name)
    return Source(module, tuple(mean), tuple(std), _pair(size))


def _python(path: str, allowed: Sequence[str]) -> Source:
    """What the factory of ``module:factory`` returns: a module, (module, mean, std, input size), or a VisionModel.

    In fp32, as every other network and all pictures are: a factory may give half or double precision.
    """
    made = factories.make(path, allowed)
    if isinstance(made, nn.Module):
        return Source(_single(made))
    parts: tuple[Any, ...] = made if isinstance(made, tuple) else tuple(getattr(made, f, None) for f in Source._fields)
    if len(parts) != 4 or not isinstance(parts[0], nn.Module):
        raise RequestError(
            f"python:{path} returned a {type(made).__name__}, not a module or (module, mean, std, input_size)"
        )
    module, mean, std, size = parts
    return Source(_single(module), tuple(mean or ()), tuple(std or ()), _pair(size) if size else None)


def _single(module: nn.Module) -> nn.Module:
    """The module in fp32; one whose parameters are that already keeps whatever its buffers are."""
    other = any(p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters())
    return module.float() if other else module


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A seeded CPU generator that is put back afterwards; no GPU is touched."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)

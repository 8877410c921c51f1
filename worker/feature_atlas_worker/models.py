"""A network and its normalisation as one object: named, built, filled with weights, checked.

Names: ``resnet50`` (torchvision), ``timm:NAME``, ``python:module:factory``, ``builtin:NAME``.  Weights: the name in
torchvision's enum, ``random:SEED``, ``sha256:<hex>`` (a file that lies in the atlas), ``pretrained`` (timm),
``factory`` (as the factory made them) or ``builtin``.  Files and URLs: see :mod:`feature_atlas_worker.resolve`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from feature_atlas import keys
from feature_atlas.errors import IntegrityError, RequestError
from feature_atlas.networks import RANDOM
from feature_atlas.spec import ModelRef
from feature_atlas_worker import download, factories, sources, weights

#: Reads an object of the atlas by its key.
Read = Callable[[str], bytes]
#: How the reference spells a file that lies in the atlas.
_FILE = "sha256:"


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A network, how its input is normalised, and where both came from.  In evaluation mode, frozen."""

    module: nn.Module
    #: Per input channel: the network sees (picture - mean) / std, the picture being RGB in [0, 1].
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: (height, width) in pixels that the network was made for.
    input_size: tuple[int, int]
    ref: ModelRef | None = None
    #: SHA-256 of the weights that were really loaded: of the file, or of the tensors where there is none.
    weights_sha256: str = ""


def reference(name: str, weights_name: str | None = None, *, allowed: Sequence[str] = ()) -> ModelRef:
    """The reference to a model by the name of weights that need no file; None are the model's own.

    A torchvision network with ``random:SEED`` takes mean, std and input size of its default weights' metadata.  A
    factory that says nothing about its input gives a reference without mean and std, which ``load`` refuses.

    Raises:
        RequestError: unknown model or weights, or a factory that is not allowed.
    """
    if ":" not in name:
        return sources.published(name).reference(weights_name)
    own = sources.own_weights(name)
    chosen = own if weights_name in (None, "DEFAULT") else str(weights_name)
    if chosen != own and (own == "builtin" or not RANDOM.match(chosen)):
        possible = own if own == "builtin" else f"{own}, random:SEED, a .safetensors or .pth file, or its URL"
        raise RequestError(f"{name} has no weights {chosen!r} (possible: {possible})")
    source = sources.build(name, allowed=allowed)
    scheme, _, path = name.partition(":")
    if chosen != own and scheme == "python" and factories.is_ready(path, allowed):
        raise RequestError(f"{name} is a network that is there already, which no seed makes anew: leave {chosen} out")
    # Pins what the factory makes, so that every worker draws the same network; timm pins by its tags.
    sha256 = weights.sha256_of(source.module) if chosen in ("factory", "builtin") else ""
    return ModelRef.build(f"model {name}", {
        "name": name, "weights": chosen, "weights_sha256": sha256, "mean": source.mean, "std": source.std,
        "input_size": source.input_size or (224, 224),
    })  # fmt: skip


def load(
    ref: ModelRef | str,
    *,
    read: Read | None = None,
    device: str | torch.device = "cpu",
    allowed: Sequence[str] = (),
) -> VisionModel:
    """The model of a reference, in evaluation mode, frozen, on the device.

    Args:
        ref: a reference, or a name (then its own weights).
        read: reads the atlas's objects by key; ``sha256:`` weights lie there.
        device: where the module goes.
        allowed: which factories may be called: ``module:factory``, a module, or a package.

    Raises:
        RequestError: unknown, not allowed, unknown normalisation, or weights that do not fit.
        IntegrityError: the weights are not those that the reference says.
        WeightsError: they cannot be downloaded.
        StoreError: they cannot be read.
    """
    if isinstance(ref, str):
        ref = reference(ref, allowed=allowed)
    check_fed(ref)
    module = build(ref, allowed)
    sha256 = _fill(module, ref, read)
    if not sha256.startswith(ref.weights_sha256):
        raise IntegrityError(
            f"the weights {ref.weights} of {ref.name} have SHA-256 {sha256[:16]}..., where {ref.weights_sha256[:16]}..."
            " is asked for: they have changed or are damaged"
        )
    module.eval().requires_grad_(False).to(device)
    return VisionModel(module, ref.mean, ref.std, ref.input_size, ref, sha256)


def build(ref: ModelRef, allowed: Sequence[str] = ()) -> nn.Module:
    """The module of a reference before its file of weights is read.  Raises RequestError, WeightsError."""
    random = RANDOM.match(ref.weights)
    return sources.build(
        ref.name, seed=int(random[1]) if random else 0, allowed=allowed, input_size=ref.input_size,
        imagenet=(ref.mean, ref.std) == sources.IMAGENET, pretrained=ref.weights == "pretrained",
    ).module  # fmt: skip


def check_fed(ref: ModelRef) -> None:
    """Raises RequestError where it is unknown how the network's input is normalised (never a guess), or no RGB is."""
    if not ref.mean:
        raise RequestError(
            f"how {ref.name} wants its input normalised is unknown: say it with --mean R,G,B --std R,G,B,"
            " or let the factory return (module, mean, std, input_size)"
        )
    if len(ref.mean) != 3:
        raise RequestError(
            f"{ref.name} is fed {len(ref.mean)} input channels; pictures have 3: give a network that takes RGB, and"
            " --mean R,G,B --std R,G,B"
        )


def _fill(module: nn.Module, ref: ModelRef, read: Read | None) -> str:
    """Loads the weights of the reference; returns their SHA-256."""
    if ref.weights.startswith(_FILE):
        data, what = _stored(ref.weights.removeprefix(_FILE), read), f"the weights file of {ref.name} in the atlas"
    elif ":" not in ref.name and not RANDOM.match(ref.weights):
        data = download.cached(sources.weights_url(ref.name, ref.weights))
        what = f"the weights file {ref.weights} of {ref.name}"
    else:  # the module brought them along
        return weights.sha256_of(module)
    weights.fit(module, weights.read(data, what), what)
    return hashlib.sha256(data).hexdigest()


def _stored(sha256: str, read: Read | None) -> bytes:
    if read is None:
        raise RequestError(f"the weights {_FILE}{sha256[:16]}... lie in an atlas: give load() its reader")
    data = read(keys.weights(sha256))
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{keys.weights(sha256)} holds other bytes (SHA-256 {found[:16]}...) than its name says:"
            " put the original file back"
        )
    return data

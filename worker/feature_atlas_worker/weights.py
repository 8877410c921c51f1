"""Tensors of weights: read from untrusted files, hashed, fitted into a module."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from feature_atlas.errors import RequestError

log = logging.getLogger(__name__)

#: A safetensors header of a network with a million tensors has about 100 MB; published ones stay below 1.
MAX_HEADER = 16 * 2**20
#: Torch's own checkpoints wrap the tensors under one of these names.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
#: DenseNet files of 2017 write ``norm.1.weight`` for ``norm1.weight`` (torchvision/models/densenet.py:221).
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
#: Classifiers on the side that exist in training only (GoogLeNet, Inception).
_AUXILIARY = re.compile(r"^(aux\d|AuxLogits)\.")


def read(data: bytes, what: str) -> dict[str, Tensor]:
    """The named tensors in the bytes of a safetensors or torch file.  Runs no code from the file.

    Raises:
        RequestError: neither of the two, damaged, holds more than tensors, or none at all.
    """
    # A safetensors file opens with the length of its header, eight bytes, and the header, a JSON object.
    if data[8:9] == b"{" and data[5:8] == bytes(3):
        tensors = _read_safetensors(data, what)
    elif data[:2] == b"PK" or data[:1] == b"\x80":  # a zip archive, or a pickle as torch wrote them before 1.6
        tensors = _read_torch(data, what)
    else:
        raise RequestError(f"{what} is no weights file: neither safetensors nor a torch state_dict (.pth)")
    if not tensors:
        raise RequestError(f"{what} holds no tensors")
    return tensors


def _read_safetensors(data: bytes, what: str) -> dict[str, Tensor]:
    import safetensors.torch

    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise RequestError(f"{what} has a header of {length} bytes; at most {MAX_HEADER} are read")
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{what} is not a whole safetensors file ({reason})") from None


def _read_torch(data: bytes, what: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is said below
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" ({asked[1]})" if asked else ""
        raise RequestError(
            f"{what} was refused: it holds more than tensors{held}, which could run code when read;"
            " save the model's state_dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways: RuntimeError, EOFError, KeyError, OSError...
        log.debug("%s cannot be read", what, exc_info=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RequestError(f"{what} is not a whole torch file ({reason[:200]})") from None
    return _state_dict(content, what)


def _state_dict(content: Any, what: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items()):
            return dict(inner)
    raise RequestError(f"{what} is not a state_dict: it holds a {type(content).__name__} of other things than tensors")


def to_safetensors(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """The tensors as the bytes of a safetensors file, the same for the same tensors.

    Raises:
        RequestError: a tensor that is sparse or quantised.
    """
    import safetensors.torch

    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise RequestError(f"{what}: {name!r} is sparse or quantised; dense tensors only")
    # Cloned, because safetensors refuses tensors that share memory.
    return safetensors.torch.save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


def fit(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads the tensors into the module, after the harmless differences in names are taken away.

    Those are: ``module.`` in front (DataParallel), DenseNet's old names, auxiliary classifiers that the module lacks,
    and what all names have in front (``_orig_mod.`` of torch.compile, Lightning's ``model.``) where the rest fits.

    Raises:
        RequestError: missing, unexpected or mis-shaped tensors, naming the first few.
    """
    wanted = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    given = _named(tensors, wanted)
    if faults := _faults(given, wanted):
        shorter = (_named({n.removeprefix(front): t for n, t in tensors.items()}, wanted) for front in _fronts(tensors))
        found = next((names for names in shorter if not _faults(names, wanted)), None)
        if found is None:
            raise RequestError(
                f"{what} does not fit the network: {faults}; a network of your own is given as python:module:factory"
            )
        given = found
    module.load_state_dict(given, strict=False)


def _named(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of today, without auxiliary classifiers."""
    given = {name if name in wanted else _modern(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in given.items() if name in wanted or not _AUXILIARY.match(name)}


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What of the one is not as the other has it, naming the first few; empty where all fits."""
    # Counts batches in training; old files lack it.
    missing = [n for n in wanted if n not in given and not n.endswith(".num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    other = [
        f"{name} {list(given[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    faults = (_few("missing", missing), _few("unexpected", unexpected), _few("of another shape", other))
    return "; ".join(fault for fault in faults if fault)


def _fronts(names: Iterable[str]) -> list[str]:
    """What all names have in front, up to each of its dots: ``model.``, ``model._orig_mod.``."""
    first, *others = names
    fronts = [first[: match.end()] for match in re.finditer(r"\.", first)]
    return [front for front in fronts if all(name.startswith(front) for name in others)]


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises RequestError where a weight is NaN or infinite, naming the tensor."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RequestError(f"{what} cannot be used: {name!r} holds values that are not finite")


def sha256_of(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            plain = tensor.detach().cpu().contiguous()
            digest.update(json.dumps([name, str(plain.dtype), list(plain.shape)]).encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _modern(name: str) -> str:
    name = name.removeprefix("module.")
    old = _OLD_DENSENET.match(name)
    return old[1] + old[2] if old else name


def _few(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}" if names else ""

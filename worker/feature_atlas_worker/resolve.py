"""From what a person writes (``resnet50``, a weights file, a URL) to a reference and the bytes that go with it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from feature_atlas.errors import ObjectNotFound, RequestError, StoreError
from feature_atlas.networks import RANDOM
from feature_atlas.spec import ModelRef
from feature_atlas_worker import download, models, sources, weights

#: A weights name of torchvision's enums has no dot and no slash.
_PATH = re.compile(r"[./\\]")


def resolve(
    name: str,
    weights_name: str | None = None,
    *,
    allowed: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    input_size: tuple[int, int] | None = None,
) -> tuple[ModelRef, bytes | None]:
    """(reference, bytes of the weights as safetensors, to be copied into the atlas under ``keys.weights``; or None).

    Args:
        name: torchvision's name, ``timm:NAME``, ``python:module:factory`` or ``builtin:NAME``.
        weights_name: a name (see :func:`models.reference`), a ``.safetensors`` or ``.pth`` file, or its http(s) or s3
            URL; None are the model's own.  Bytes are given back for files and URLs only.
        allowed: which factories may be called.
        mean: per input channel, before what the model's metadata say.
        std: as ``mean``.
        input_size: (height, width) in pixels, as ``mean``.

    A file for a torchvision network is fed as that network's default weights are, unless mean and std are given.

    Raises:
        RequestError: unknown, not allowed, unreadable, does not fit, not finite, or unknown normalisation.
        WeightsError: a download failed.
        StoreError: a bucket could not be read.
    """
    from_file = weights_name is not None and _is_file(name, weights_name)
    ref = models.reference(name, None if from_file else weights_name, allowed=allowed)
    own = {"mean": tuple(mean) or ref.mean, "std": tuple(std) or ref.std, "input_size": input_size or ref.input_size}
    ref = ModelRef.build(f"model {name}", {**ref.model_dump(), **own})
    models.check_fed(ref)
    if not all(0 <= value <= 1 for value in ref.mean):
        raise RequestError(
            f"the mean {','.join(f'{value:g}' for value in ref.mean)} of {name} is not of pictures in [0, 1], as they"
            " are here: divide mean and std by 255 where they count from 0 to 255"
        )
    if not from_file or weights_name is None:
        return ref, None
    if ref.weights == "builtin":
        raise RequestError(f"{name} has its own weights: leave --weights out")
    data, what = _bytes(weights_name), f"the weights file {weights_name!r}"
    tensors = weights.read(data, what)
    weights.check_finite(tensors, what)
    if data[8:9] != b"{":
        data = weights.to_safetensors(tensors, what)
    sha256 = hashlib.sha256(data).hexdigest()
    ref = ref.model_copy(update={"weights": f"sha256:{sha256}", "weights_sha256": sha256})
    weights.fit(models.build(ref, allowed), tensors, what)
    return ref, data


def _is_file(name: str, text: str) -> bool:
    if RANDOM.match(text):
        return False
    known = () if ":" in name else (*sources.published(name).weights, "DEFAULT")
    return text not in known and ("://" in text or bool(_PATH.search(text)) or Path(text).is_file())


def _bytes(text: str) -> bytes:
    """The bytes of a weights file: http(s), s3 or local."""
    if text.lower().startswith(("http://", "https://")):
        return download.http_get(text)
    if text.lower().startswith("s3://"):
        return _from_s3(text)
    if "://" in text:
        raise RequestError(f"cannot read weights from {text!r}: a file, http(s):// or s3://bucket/key")
    path = Path(text).expanduser()
    try:
        if path.stat().st_size > download.MAX_BYTES:
            raise RequestError(f"the weights file {text!r} has more than {download.MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read the weights file {text!r}: {error.strerror or error}") from None


def _from_s3(url: str) -> bytes:
    from feature_atlas.store import open_store

    prefix, _, key = url.rpartition("/")
    store = open_store(prefix)
    size = next((found.size for found in store.list(key) if found.key == key), None)
    if size is None:
        raise RequestError(f"there are no weights at {url}")
    if size > download.MAX_BYTES:
        raise RequestError(f"{url} has {size} bytes; at most {download.MAX_BYTES} are read")
    try:
        return store.get(key)
    except ObjectNotFound as error:
        raise StoreError(f"{url} went away while it was read") from error

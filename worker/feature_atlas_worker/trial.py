"""A network run once, for the shapes of what its layers give: on torch's meta device where it can be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feature_atlas.errors import DeviceError
from feature_atlas_worker.shapes import Shapes
from feature_atlas_worker.shortage import is_shortage

log = logging.getLogger(__name__)

#: Channels of a picture: red, green, blue.
PICTURE = 3


class Output(NamedTuple):
    """What a layer gave."""

    module: nn.Module
    shape: tuple[int, ...]


def reached(module: nn.Module, size: tuple[int, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    """(layer -> shape of its output [B, ...], why the network went no further) on a picture of ``size`` (h, w).

    Layers are in the order in which they finish; the reason is empty where the network ran to its end.
    """
    found, error = run_once(module, 2, size)
    return {name: output.shape for name, output in found.items()}, reason(error) if error is not None else ""


def reason(error: Exception) -> str:
    """What somebody's forward pass says of itself, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def run_once(
    module: nn.Module, batch: int, size: tuple[int, int], channels: int = PICTURE
) -> tuple[dict[str, Output], Exception | None]:
    """(the last output of every layer by name, as they finished; what ended the run before its end)."""
    found, error = _record(module, (batch, channels, *size), torch.device("meta"))
    if error is None:
        return found, None
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if devices == {torch.device("meta")}:
        return found, error
    # Reads values, or keeps tensors that are no buffers: run it for real
    log.debug("not on the meta device: %s", error)
    real = [device for device in devices if device.type != "meta"]
    return _record(module, (batch, channels, *size), real[0] if real else torch.device("cpu"))


def _record(
    module: nn.Module, shape: tuple[int, int, int, int], device: torch.device
) -> tuple[dict[str, Output], Exception | None]:
    """(what every layer gave, what ended the run before its end)."""
    found: dict[str, Output] = {}
    names: dict[nn.Module, str] = {m: name for name, m in module.named_modules() if name}

    def hook(layer: nn.Module, _args: Any, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:  # attention layers return their weights beside
            output = output[0]
        if isinstance(output, Tensor):
            found.pop(names[layer], None)
            found[names[layer]] = Output(layer, tuple(output.shape))

    with _evaluating(module), torch.no_grad():
        handles = [layer.register_forward_hook(hook) for layer in names]
        try:
            picture = torch.zeros(shape, device=device)
            if device.type == "meta":
                with Shapes():
                    # Untied: what has two names would not be put back as it was.
                    torch.func.functional_call(module, _as_meta(module), (picture,), tie_weights=False)
            else:
                module(picture)
        except Exception as error:  # somebody's forward pass
            if is_shortage(error):
                batch, _, height, width = shape
                raise DeviceError(
                    f"there is not enough memory to run this network on {batch} pictures of {height} x {width} px"
                    f" ({reason(error)[:200]}): free some, or use a machine that has more"
                ) from None
            return found, error
        finally:
            for handle in handles:
                handle.remove()
    return found, None


def _as_meta(module: nn.Module) -> dict[str, Tensor]:
    """Each module's own tensors, once by one of its names."""
    return {
        f"{path}.{name}" if path else name: tensor.detach().to("meta")
        for path, layer in module.named_modules()
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items())
        if tensor is not None
    }


def input_channels(module: nn.Module) -> int:
    """How many the first convolution takes; 3 where there is none."""
    return next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for m, training in modes.items():
            m.training = training

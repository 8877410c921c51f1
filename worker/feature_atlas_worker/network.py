"""A network seen from one layer: ``picture -> activations``, normalised, cut at the layer, frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas.spec import Recipe
from feature_atlas_worker.activations import count_calls, find, frozen, tap
from feature_atlas_worker.fold import own_weights
from feature_atlas_worker.gradients import RedirectedReLU
from feature_atlas_worker.inspect import layer_layout
from feature_atlas_worker.objectives import canonical
from feature_atlas_worker.rewrite import ALL, Rewrites, private_copy
from feature_atlas_worker.transforms import padded


class Model(Protocol):
    """What the renderer needs of a model: the network and its normalisation, one object."""

    @property
    def module(self) -> nn.Module: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def input_size(self) -> tuple[int, int]: ...  # noqa: D102


class Network:
    """``picture in [0, 1] [B, 3, h, w] -> activations [B, C, h', w']`` in fp32; use :func:`open_network`."""

    def __init__(
        self, model: Model, module: nn.Module, layer: str, recipe: Recipe, run: object, layout: str,
        device: torch.device, rewrites: Rewrites = ALL,
    ) -> None:  # fmt: skip
        self._one_by_one = device.type == "cpu" and not rewrites.together
        self._format = torch.channels_last if rewrites.channels_last else torch.contiguous_format
        self.layer, self.layout, self.device = layer, layout, device
        #: The copy that really runs; another one as soon as the model's weights change.
        self.module = module
        self._run = run
        self._mean = torch.tensor(model.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(model.std, device=device).view(1, -1, 1, 1)
        self._resample = recipe.network_size
        self.channels = 0

    def __call__(self, picture: Tensor, allow: Tensor | None = None) -> Tensor:
        """The target layer's activations.  [B, 3, h, w] -> [B, C, h', w'].

        Where ``allow`` [B] is True, rectifiers may redirect an image's blocked gradient.
        """
        if self._resample is not None and picture.shape[-2:] != self._resample:
            picture = F.interpolate(picture, self._resample, mode="bilinear", align_corners=False, antialias=False)
        if not self._one_by_one:
            return self._together(picture, allow)
        # A CPU's convolutions sum in an order that depends on the batch's shape, and the ascent amplifies the
        # difference until the pictures are others.  Image by image there is only one shape.
        asked = allow.tolist() if allow is not None else [False] * len(picture)
        images = zip(picture.split(1), asked, strict=True)
        return torch.cat([self._together(image, torch.tensor([True]) if woken else None) for image, woken in images])

    def _together(self, picture: Tensor, allow: Tensor | None) -> Tensor:
        redirect = RedirectedReLU(allow) if allow is not None else nullcontext()
        # fp32 where it matters: only the network itself may run in half precision.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"), redirect:
            normalised = ((picture - self._mean) / self._std).contiguous(memory_format=self._format)
            activations = self._run(normalised)  # type: ignore[operator]
        return canonical(activations, self.layout)


@contextmanager
def open_network(
    model: Model, layer: str, recipe: Recipe, device: torch.device, rewrites: Rewrites = ALL
) -> Iterator[Network]:
    """The network cut at ``layer``; the model is put back as found.

    Raises:
        RequestError: no such layer, it has no channels, or a picture of this size is too small for it.
    """
    trial = _trial(model)
    with frozen(private_copy(model.module, device, rewrites, trial)) as module, own_weights(find(module, layer)):
        layout, _ = layer_layout(module, layer, model.input_size)
        size = recipe.network_size or padded(recipe.size, recipe.pad)
        probe = torch.zeros(1, len(model.mean), *size, device=device)
        try:
            calls = count_calls(module, layer, probe)
        except (RuntimeError, ValueError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _refused(layer, size, model, error) from None
        if not calls:
            raise RequestError(f"layer {layer!r} does not run in this network's forward pass")
        with tap(module, layer, calls) as run:
            network = Network(model, module, layer, recipe, run, layout, device, rewrites)
            with torch.no_grad():
                activations = network(probe)
            if activations[0].numel() == 0:
                raise _refused(layer, size, model, None)
            network.channels = activations.shape[1]
            yield network


def _trial(model: Model) -> Tensor | None:
    """Seeded noise in the range that the network takes.  -> [1, C, h, w]"""
    if not model.mean:
        return None
    noise = torch.rand(1, len(model.mean), *model.input_size, generator=torch.Generator().manual_seed(0))
    return (noise - torch.tensor(model.mean).view(1, -1, 1, 1)) / torch.tensor(model.std).view(1, -1, 1, 1)


def _refused(layer: str, size: tuple[int, int], model: Model, error: Exception | None) -> RequestError:
    reason = f" ({str(error).splitlines()[0][:160]})" if error and str(error) else ""
    return RequestError(
        f"a picture of {size[0]} x {size[1]} px does not pass this network up to layer {layer!r}{reason}:"
        f" set a larger size, e.g. --set size={max(model.input_size)}"
    )

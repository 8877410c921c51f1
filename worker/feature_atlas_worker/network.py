"""A network seen from one layer: ``picture -> activations``, normalised, cut at the layer, frozen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_atlas.spec import Recipe
from feature_atlas_worker import kernels
from feature_atlas_worker.activations import find, frozen, tap
from feature_atlas_worker.devices import computes_half
from feature_atlas_worker.facts import Facts, facts_of
from feature_atlas_worker.fold import own_weights
from feature_atlas_worker.gradients import redirecting
from feature_atlas_worker.heap import keep_freed_memory
from feature_atlas_worker.objectives import canonical, looks_at_one_channel
from feature_atlas_worker.programs.layer import CompiledLayer, compiled_layer
from feature_atlas_worker.refusal import refused
from feature_atlas_worker.rewrite import ALL, Rewrites, private_copy
from feature_atlas_worker.transforms import padded

log = logging.getLogger(__name__)

#: Images that a CPU runs side by side at most: more are no faster, and less fits into its cache.
WIDTH = 16

Run = Callable[[Tensor], Tensor]


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
    """``picture in [0, 1] [B, 3, h, w] -> activations [B, C, h', w']``, an fp32 tensor; use :func:`open_network`."""

    def __init__(
        self, model: Model, module: nn.Module, layer: str, recipe: Recipe, run: Run, facts: Facts,
        device: torch.device, rewrites: Rewrites = ALL,
    ) -> None:  # fmt: skip
        self.facts = facts
        self._side_by_side, self._half = rewrites.side_by_side, rewrites.half and computes_half(device)
        self._kernels = rewrites.kernels and rewrites.channels_last and len(model.mean) == len(model.std) == 3
        self._format = torch.channels_last if rewrites.channels_last else torch.contiguous_format
        self.layer, self.layout, self.device = layer, facts.layout, device
        #: The copy that really runs; another one as soon as the model's weights change.
        self.module = module
        #: Weights that get a gradient as well: none, unless they are not frozen.
        self.trained = tuple(p for p in module.parameters() if p.requires_grad)
        self._run = run
        self._mean = torch.tensor(model.mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(model.std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._resample = recipe.network_size
        self._alone = looks_at_one_channel(recipe)
        self.rewrites = rewrites

    @property
    def channels(self) -> int:
        """Of the layer."""
        return self.facts.channels

    @property
    def map(self) -> tuple[int, int]:
        """(height, width) of the layer's map, for a picture of the recipe's size."""
        return self.facts.map

    @property
    def shape_shows(self) -> bool:
        """Whether a picture's bits may depend on the number of others beside it; on a CPU a trial sees to it."""
        return self.device.type != "cpu" or self._side_by_side == "always"

    def __call__(
        self, picture: Tensor, allow: Tensor | None = None, *, climbing: bool = False, own: Tensor | None = None
    ) -> Tensor:
        """The target layer's activations.  [B, 3, h, w] -> [B, C, h', w'].

        ``climbing``: only the direction counts, bf16 will do where it is faster; else a CPU answers in fp32.  Where
        ``allow`` [B] is True, rectifiers may redirect an image's blocked gradient.  ``own`` [B]: only this channel of
        each picture, [B, 1, h', w'].
        """
        if self._resample is not None and picture.shape[-2:] != self._resample:
            picture = F.interpolate(picture, self._resample, mode="bilinear", align_corners=False, antialias=False)
        if not self.facts.width:
            self.facts.width = self._proved_width(picture)
        width = self.facts.width
        if width >= len(picture):
            return self._together(picture, allow, own, climbing)
        # In parts of nearly equal size: 9 images are 5 and 4.
        count = -(-len(picture) // width)
        pictures, none = torch.tensor_split(picture, count), [None] * count
        allowed = torch.tensor_split(allow, count) if allow is not None else none
        owns = torch.tensor_split(own, count) if own is not None else none
        parts = zip(pictures, allowed, owns, strict=True)
        return torch.cat([self._together(*part, climbing) for part in parts])

    def _proved_width(self, picture: Tensor) -> int:
        """How many images may run side by side on a CPU: as many as come out with the same bits as alone."""
        if self._side_by_side != "proved":
            return WIDTH if self._side_by_side == "always" else 1
        noise = torch.rand(WIDTH, *picture.shape[1:], generator=torch.Generator().manual_seed(0))
        places = torch.linspace(0, 1, WIDTH)  # channels from the first to the last
        beside = self._trial(noise, places)
        alone = [self._trial(noise[part], places[part]) for part in (slice(1), slice(WIDTH - 1, WIDTH))]
        same = all(
            torch.equal(torch.cat((many[:1], many[-1:])), torch.cat((first, last)))
            for many, first, last in zip(beside, *alone, strict=True)
        )
        if not same:
            log.info("layer %s runs image by image: side by side they come out otherwise on this CPU", self.layer)
        return WIDTH if same else 1

    @torch.enable_grad()
    def _trial(self, picture: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """(activations as they are measured and as the recipe climbs them, gradient of the squares' sum of these).

        ``places`` [B] in [0, 1]: where among the channels each picture's own is.
        """
        with torch.no_grad():
            channels = self._together(picture[:1], None, None, climbing=False).shape[1]
            own = (places * (channels - 1)).long() if self._alone else None
            measured = self._together(picture, None, own, climbing=False)
        picture = picture.detach().clone().requires_grad_()
        activations = self._together(picture, None, own, climbing=True)
        if not activations.requires_grad:
            return measured, activations
        (gradient,) = torch.autograd.grad((activations**2).sum(), picture)
        return measured, activations.detach(), gradient

    def _together(self, picture: Tensor, allow: Tensor | None, own: Tensor | None, climbing: bool) -> Tensor:
        # fp32 where it matters: only the network itself may run in half precision.  A CPU reports fp32 numbers.
        half = self._half and (climbing or self.device.type == "cuda")
        if self._kernels and picture.shape[1] == 3 and kernels.suits(picture):
            normalised = kernels.normalised(picture, self._mean, self._std)
        else:
            normalised = _Normalised.apply(picture, self._mean, self._std, self._format)
        program = self._compiled(normalised)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if program is not None and own is not None and program.has_own:
                return program.own(normalised, own, allow)[:, None]
            if program is not None:
                activations = program(normalised, allow)
            else:
                with redirecting(allow):
                    activations = self._run(normalised)
        activations = canonical(activations, self.layout)
        if own is not None:
            return activations[torch.arange(len(own), device=own.device), own][:, None]
        return activations

    def _compiled(self, normalised: Tensor) -> CompiledLayer | None:
        """What runs instead of the network, or None; it is compared with it on noise like these pictures."""
        facts = self.facts
        if not facts.programmed:
            facts.programmed = True
            noise = torch.randn(1, *normalised.shape[1:], generator=torch.Generator().manual_seed(0))
            noise = noise.contiguous(memory_format=self._format)
            facts.program = compiled_layer(
                self.module, self.layer, facts.calls, self._run, noise, kernels=self.rewrites.kernels
            )
        return facts.program


class _Normalised(torch.autograd.Function):
    """``(picture - mean) / std`` in some order of memory; back, the gradient is put in the picture's order first."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor, mean: Tensor, std: Tensor, order: torch.memory_format) -> Tensor:
        ctx.std = std
        return ((picture - mean) / std).contiguous(memory_format=order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0].contiguous() / ctx.std, None, None, None


@contextmanager
def open_network(
    model: Model, layer: str, recipe: Recipe, device: torch.device, rewrites: Rewrites = ALL
) -> Iterator[Network]:
    """The network cut at ``layer``; the model is put back as found.

    Raises:
        RequestError: no such layer, it has no channels, or a picture of this size is too small for it.
    """
    if rewrites.heap and device.type == "cpu":
        keep_freed_memory()
    copy = private_copy(model.module, device, rewrites, _trial(model))
    with frozen(copy) if rewrites.freeze else nullcontext(copy) as module, own_weights(find(module, layer)):
        probe = _probe(model, recipe, device)
        facts = facts_of(model, module, layer, probe, looks_at_one_channel(recipe), rewrites)
        with tap(module, layer, facts.calls, rewrites.cut) as run:
            network = Network(model, module, layer, recipe, run, facts, device, rewrites)
            if not facts.channels:
                _look(network, probe, model)
            yield network


@torch.no_grad()
def _look(network: Network, probe: Tensor, model: Model) -> None:
    activations = network(probe)
    if activations[0].numel() == 0:
        raise refused(model.module, network.layer, (probe.shape[2], probe.shape[3]), model.input_size, "")
    network.facts.map = activations.shape[2], activations.shape[3]
    network.facts.channels = activations.shape[1]


def _probe(model: Model, recipe: Recipe, device: torch.device) -> Tensor:
    """A picture as the network sees it.  -> [1, C, h, w]"""
    return torch.zeros(1, len(model.mean), *(recipe.network_size or padded(recipe.size, recipe.pad)), device=device)


def _trial(model: Model) -> Tensor | None:
    """Seeded noise in the range that the network takes.  -> [1, C, h, w]"""
    if not model.mean:
        return None
    noise = torch.rand(1, len(model.mean), *model.input_size, generator=torch.Generator().manual_seed(0))
    return (noise - torch.tensor(model.mean).view(1, -1, 1, 1)) / torch.tensor(model.std).view(1, -1, 1, 1)

"""What is timed: networks with random but sane weights, and Lucent as shipped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from feature_atlas_worker import models, resolve
from feature_atlas_worker.models import VisionModel

#: The layers of the table, as NETWORK:LAYER.
LAYERS = ("resnet50:layer2.0.conv3", "resnet50:layer4.1.conv3", "googlenet:inception4e", "squeezenet1_0:features.12")


def load(name: str, allowed: Sequence[str] = ()) -> VisionModel:
    """A network with random weights whose batch norms know noise: no activation vanishes, no number is denormal."""
    weights = None if name.startswith("python:") else "random:0"
    reference, _ = resolve.resolve(name, weights, allowed=allowed)
    model = models.load(reference, allowed=allowed)
    return replace(model, module=_settled(copy.deepcopy(model.module), model.input_size))


@torch.no_grad()
def _settled(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a mean over all that was seen
        norm.train()
    if norms:
        module(torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval().requires_grad_(False)


def lucent_copy(module: nn.Module) -> nn.Module:
    """What Lucent is handed: a network as loaded, its weights not frozen; afresh each time, for its hooks stay."""
    return copy.deepcopy(module).requires_grad_(True).eval()


def lucent(module: nn.Module, layer: str, channel: int, *, steps: Sequence[int], size: int | None) -> list[np.ndarray]:
    """Lucent's pictures [128, 128, 3] in [0, 1] after these steps; ``size`` is its ``fixed_image_size``.

    Call it with a :func:`lucent_copy`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import render

        options: dict[str, Any] = {"show_image": False, "progress": False, "fixed_image_size": size}
        images = render.render_vis(module, f"{layer.replace('.', '_')}:{channel}", thresholds=tuple(steps), **options)
    return [image[0] for image in images]

"""What is maximised: ``(activations) -> score``, one number per image, larger is better.

Activations of any layout are first brought to [B, C, h, w]; see :func:`canonical`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from feature_atlas.errors import RequestError
from feature_atlas.spec import Recipe


def canonical(activations: Tensor, layout: str) -> Tensor:
    """Activations as [B, C, h, w] in fp32.

    ``layout`` is NCHW, NHWC, tokens ([B, N, C], a leading class token is left out) or flat ([B, C]).
    """
    if layout == "NHWC":
        activations = activations.permute(0, 3, 1, 2)
    elif layout == "tokens":
        count = activations.shape[1]
        first = 1 if math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1 else 0
        side = math.isqrt(count - first)
        tokens = activations[:, first:].transpose(1, 2)
        square = side * side == count - first
        activations = tokens.unflatten(2, (side, side)) if square else tokens.unsqueeze(2)
    elif layout == "flat":
        activations = activations[:, :, None, None]
    elif activations.ndim == 3:  # NCL, one spatial axis
        activations = activations.unsqueeze(2)
    return activations.float()


def centre(height: int, width: int) -> tuple[int, int]:
    """(row, column) of the central unit; of an even map the one after the middle, as in Lucid."""
    return height // 2, width // 2


def place(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """(row, column) of the recipe's neuron on a map.

    Raises:
        RequestError: its position is not on the map.
    """
    row, column = recipe.position or centre(height, width)
    if not (0 <= row < height and 0 <= column < width):
        raise RequestError(
            f"neuron position {row},{column} is not on this layer's map of {height} rows and {width} columns"
            f" at size {recipe.size[0]} x {recipe.size[1]}"
        )
    return row, column


def looks_at_one_channel(recipe: Recipe) -> bool:
    """Whether a step takes no other channel of the layer: a whole layer does, and what keeps pictures apart."""
    return recipe.objective != "layer" and not recipe.diversity


def values(activations: Tensor, channels: Tensor, recipe: Recipe) -> Tensor:
    """The activations that the objective looks at.  [B, C, h, w], [B] -> [B, n].

    Raises:
        RequestError: the neuron's position is not on the map.
    """
    if recipe.objective == "layer":
        return activations.flatten(1)
    own = activations[torch.arange(len(activations), device=activations.device), channels]  # [B, h, w]
    if recipe.objective == "channel":
        return own.flatten(1)
    row, column = place(own.shape[1], own.shape[2], recipe)
    return own[:, row, column][:, None]


def measure(chosen: Tensor, recipe: Recipe) -> Tensor:
    """The activation reported: mean over space, or mean square for a layer (DeepDream).  [B, n] -> [B]."""
    return (chosen**2).mean(1) if recipe.objective == "layer" else chosen.mean(1)


def score(chosen: Tensor, recipe: Recipe) -> Tensor:
    """What is maximised: the activation, or its negative where ``sign`` is -1.  [B, n] -> [B]."""
    return recipe.sign * measure(chosen, recipe)

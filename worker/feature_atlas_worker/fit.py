"""Whether a network takes the pictures of a recipe as far as a layer; by shapes, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from feature_atlas.errors import RequestError
from feature_atlas.spec import ModelRef, Recipe
from feature_atlas_worker import inspect, trial
from feature_atlas_worker.objectives import canonical, place
from feature_atlas_worker.params import coarse_size
from feature_atlas_worker.refusal import refused
from feature_atlas_worker.transforms import padded


def check(module: nn.Module, input_size: tuple[int, int], layers: Sequence[str], recipes: Iterable[Recipe]) -> None:
    """Runs shapes through the network at every size that it will see.

    Args:
        module: the network; its weights are used only where shapes do not suffice.
        input_size: (height, width) in pixels that it was made for.
        layers: as far as which pictures must pass.
        recipes: whose pictures; a neuron's position must lie on every layer's map.

    Raises:
        RequestError: a picture does not pass, or a neuron is not on the map.
    """
    reached: dict[tuple[int, int], tuple[dict[str, tuple[int, ...]], str]] = {}
    for recipe in recipes:
        for seen in _sizes(recipe):
            size = recipe.network_size or padded(seen.size, seen.pad)
            if size not in reached:
                reached[size] = trial.reached(module, size)
            shapes, why = reached[size]
            for layer in layers:
                if layer not in shapes and not why:
                    inspect.layer_layout(module, layer, input_size)  # says that there is none, or that it never runs
                if 0 in shapes.get(layer, (0,)):
                    raise refused(module, layer, size, input_size, why)
                if recipe.position is not None:
                    _check_position(module, layer, input_size, shapes[layer], seen)


def check_named(ref: ModelRef, layers: Sequence[str], recipes: Iterable[Recipe], allowed: Sequence[str]) -> None:
    """As :func:`check`, for a network without its weights.  Raises as that and as :func:`inspect.module_of`."""
    check(inspect.module_of(ref.name, ref.input_size, allowed), ref.input_size, layers, recipes)


def _sizes(recipe: Recipe) -> list[Recipe]:
    """The recipe as it is while climbing, coarse and fine, and when the finished picture is measured."""
    sizes = {(recipe.size, recipe.pad), (recipe.size, 0)}
    if recipe.coarse_steps:
        size = coarse_size(recipe.size, recipe.coarse)
        sizes.add((size, math.ceil(recipe.pad * size[0] / recipe.size[0])))
    return [recipe.model_copy(update={"size": size, "pad": pad}) for size, pad in sorted(sizes)]


def _check_position(
    module: nn.Module, layer: str, input_size: tuple[int, int], shape: tuple[int, ...], seen: Recipe
) -> None:
    layout, _ = inspect.layer_layout(module, layer, input_size)
    height, width = canonical(torch.empty(shape, device="meta"), layout).shape[2:]
    try:
        place(height, width, seen)
    except RequestError as error:
        raise RequestError(f"layer {layer!r}: {error}") from None

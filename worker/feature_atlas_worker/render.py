"""``(model, targets, recipe) -> visualizations``: the renderer as a plain function.

One channel is one independent optimisation; several run side by side in one forward pass because a processor is
idle otherwise.  A job alone equals the same job in a batch: on a GPU partial batches are padded to the fixed shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_atlas.errors import DeviceError, RequestError
from feature_atlas.manifest import Activation, Curve, Picture
from feature_atlas.spec import Recipe, seed_of
from feature_atlas_worker import measure
from feature_atlas_worker.ascent import Stopped, Trace
from feature_atlas_worker.devices import device_of
from feature_atlas_worker.network import Model, Network, open_network
from feature_atlas_worker.recorded import ascent_of
from feature_atlas_worker.rewrite import ALL, Rewrites

#: A unit is called dead only after this many seeds.
SEEDS = 3

__all__ = ["SEEDS", "Stopped", "Target", "Visualization", "render"]


class Target(NamedTuple):
    """What to look for: one channel of one layer (channel 0 for the objective ``layer``)."""

    layer: str
    channel: int


@dataclass(frozen=True)
class Visualization:
    """A finished feature visualisation with its numbers."""

    target: Target
    images: NDArray[np.uint8]  # [recipe.images, H, W, 3]
    initial: NDArray[np.uint8] | None  # [H, W, 3]
    status: Literal["ok", "dead", "nan"]
    reason: str
    attempts: int
    activation: Activation | None
    best_step: int
    curve: Curve | None
    picture: Picture


def render(
    model: Model,
    targets: Sequence[Target],
    recipe: Recipe,
    *,
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
    device: str | torch.device = "cpu",
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    rewrites: Rewrites = ALL,
) -> list[Visualization]:
    """Feature visualisations of the targets, in their order.

    Args:
        model: network and normalisation, see ``feature_atlas_worker.models.load``.
        targets: all of one layer.
        recipe: every number that can change a pixel, see ``feature_atlas.presets``.
        seeds: one per target; by default from the recipe's seed, layer and channel.
        batch: jobs side by side; on a GPU the shape is padded to it.  Default: all at once, at most 16.
        device: where to render: cpu, cuda, cuda:N, or auto.
        stop: asked between steps; True raises :class:`Stopped`.
        on_step: called with (steps done, steps of this batch).
        rewrites: how the network's copy is made to run faster.

    Raises:
        RequestError: unknown layer or device, channel or position out of range, picture too small.
        DeviceError: there is no such GPU, or it failed.
        torch.OutOfMemoryError: the batch does not fit; try a smaller one.
    """
    if not targets:
        return []
    layer = targets[0].layer
    if any(target.layer != layer for target in targets):
        raise RequestError("targets of one render share a layer: call once per layer")
    if len(model.mean) != 3:
        raise RequestError(f"the network takes {len(model.mean)} input channels; pictures have 3")
    seeds = seeds if seeds is not None else [seed_of(recipe.seed, layer, target.channel) for target in targets]
    width = batch or min(len(targets), 16)
    place = device_of(str(device))
    try:
        with open_network(model, layer, recipe, place, rewrites) as network:
            _check_channels(targets, network)
            found: list[Visualization] = []
            for start in range(0, len(targets), width):
                part = slice(start, start + width)
                found += _batch(network, recipe, targets[part], seeds[part], width, stop, on_step)
            return found
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if place.type == "cuda" and "CUDA" in str(error):
            raise DeviceError(f"the GPU failed ({str(error).splitlines()[0]})") from error
        raise


def _check_channels(targets: Sequence[Target], network: Network) -> None:
    for target in targets:
        if not 0 <= target.channel < network.channels:
            raise RequestError(
                f"channel {target.channel} is out of range: layer {target.layer!r} has {network.channels} channels,"
                f" 0 to {network.channels - 1}"
            )


def _batch(
    network: Network,
    recipe: Recipe,
    targets: Sequence[Target],
    seeds: Sequence[int],
    width: int,
    stop: Callable[[], bool] | None,
    on_step: Callable[[int, int], None] | None,
) -> list[Visualization]:
    """One batch; what stays dead is tried again with other seeds.

    Where the shape of a batch may show in its pictures, it is padded to ``width``, each time.
    """
    found: dict[int, Visualization] = {}
    waiting = list(range(len(targets)))
    for attempt in range(SEEDS):
        tried = [seed if not attempt else seed_of(seed, "retry", 0, attempt) for seed in (seeds[i] for i in waiting)]
        padding = width - len(waiting) if network.shape_shows else 0
        channels = [0 if recipe.objective == "layer" else targets[i].channel for i in waiting]
        ascent = ascent_of(network, recipe, channels + channels[:1] * padding, tried + tried[:1] * padding)
        trace = ascent.run(stop, on_step)
        results = _results(network, recipe, [targets[i] for i in waiting], ascent.channels, trace)
        for i, result in zip(waiting, results, strict=True):
            found[i] = replace(result, attempts=attempt + 1)
        waiting = [i for i in waiting if found[i].status == "dead"]
        if not waiting:
            break
    return [found[i] for i in range(len(targets))]


def _results(
    network: Network, recipe: Recipe, targets: Sequence[Target], channels: Tensor, trace: Trace
) -> list[Visualization]:
    pixels = measure.to_bytes(trace.image.nan_to_num(0.5))
    shown = measure.from_bytes(pixels, network.device)
    best = measure.activation(network, shown, channels, recipe).cpu()
    start = measure.activation(network, trace.initial, channels, recipe).cpu()
    final = _final(network, recipe, channels, trace, best)
    robust = measure.robust(network, shown, channels, recipe, measure.VIEWS).cpu()
    noise_mean, noise_std = measure.noise(network, recipe)
    initial = measure.to_bytes(trace.initial) if recipe.keep_initial else None
    history, steps = trace.history.cpu(), trace.best_step.cpu()
    blocked = trace.blocked.cpu()
    found = []
    for n, target in enumerate(targets):
        i = n * recipe.images  # a job's first image carries its numbers
        mean, std = float(noise_mean[target.channel]), float(noise_std[target.channel])
        numbers = (float(start[i]), float(best[i]), float(final[i]), *robust[i].tolist(), mean, std)
        finite = bool(np.isfinite(numbers).all()) and bool(torch.isfinite(trace.image[i]).all())
        status, reason = _status(recipe, finite, bool(blocked[i]), float(start[i]), float(best[i]), std)
        found.append(
            Visualization(
                target=target,
                images=pixels[i : i + recipe.images],
                initial=initial[i] if initial is not None else None,
                status=status,
                reason=reason,
                attempts=1,
                activation=Activation(
                    start=float(start[i]), best=float(best[i]), final=float(final[i]),
                    robust=float(robust[i].mean()), robust_std=float(robust[i].std()),
                    noise_mean=mean, noise_std=std,
                    normalized=(float(best[i]) - mean) / std if std > 0 else 0.0,
                ) if finite else None,
                best_step=int(steps[i]),
                curve=measure.curve(history[:, i]) if finite else None,
                picture=measure.describe(pixels[i]),
            )
        )  # fmt: skip
    return found


def _final(network: Network, recipe: Recipe, channels: Tensor, trace: Trace, best: Tensor) -> Tensor:
    """The objective's value on the last iterates; mostly they are the chosen pictures, and known.  -> [B]"""
    chosen = (trace.best_step == recipe.steps).cpu()
    if chosen.all():
        return best
    last = measure.activation(network, trace.last.nan_to_num(0.5), channels, recipe).cpu()
    return torch.where(chosen, best, last)


def _status(
    recipe: Recipe, finite: bool, blocked: bool, start: float, best: float, noise_std: float
) -> tuple[Literal["ok", "dead", "nan"], str]:
    if not finite:
        return "nan", "the activation or the picture is not finite"
    gain = recipe.sign * (best - start)
    moved = "rose above" if recipe.sign > 0 else "fell below"
    if gain > 1e-6 * max(abs(start), abs(best)):
        return "ok", ""
    if blocked:
        why = "its whole gradient is blocked"
    elif noise_std > 0:
        why = "it answers to noise, so more steps or another preset may raise it"
    else:
        why = "it answers to nothing"
    return "dead", f"the activation never {moved} its start of {start:.4g}: {why}"

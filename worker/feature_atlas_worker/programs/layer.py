"""A layer as it runs on a CPU: its program, and shorter ones for single channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from feature_atlas_worker.programs.capture import capture
from feature_atlas_worker.programs.compiler import Reading, compiled
from feature_atlas_worker.programs.operations import Unsuitable
from feature_atlas_worker.programs.own import own_channel
from feature_atlas_worker.programs.program import Program

log = logging.getLogger(__name__)

#: Greatest difference from the network's own answer and gradient, as a share of their size, that counts as rounding.
ROUNDING = 1e-3


class CompiledLayer:
    """``picture [B, 3, h, w] -> activations``."""

    def __init__(self, reading: Reading, node: fx.Node) -> None:
        self._reading = reading
        self._whole = compiled(reading, [node])
        self._shorter: dict[tuple[fx.Node, ...], Program] = {}
        self._own = own_channel(reading, node)
        if self._own is not None:
            self._program(self._own.reads(range(self._own.width or 0)))

    def __call__(self, picture: Tensor, allow: Tensor | None = None) -> Tensor:
        """The layer's activations."""
        return self._whole(picture, allow)[0]

    def own(self, picture: Tensor, channels: Tensor, allow: Tensor | None = None) -> Tensor:
        """Each picture's own channel.  [B] -> [B, h, w], fp32."""
        if self._own is None:
            return self(picture, allow)[torch.arange(len(channels)), channels].float()
        reads, program = self._program(self._own.reads(channels.tolist()))
        values = program(picture, allow)
        return self._own.answer(dict(zip(reads, values, strict=True)), channels)

    def _program(self, nodes: Sequence[fx.Node]) -> tuple[tuple[fx.Node, ...], Program]:
        reads = tuple(dict.fromkeys(nodes))
        if reads not in self._shorter:
            self._shorter[reads] = compiled(self._reading, list(reads))
        return reads, self._shorter[reads]


def compiled_layer(
    module: nn.Module, layer: str, calls: int, run: Callable[[Tensor], Tensor], probe: Tensor
) -> CompiledLayer | None:
    """What runs a layer faster than ``run`` and answers the same; None where nothing does.

    ``probe`` [1, 3, h, w] is what both are compared on.
    """
    captured = capture(module)
    passed = captured.passed.get(layer, []) if captured is not None else []
    if captured is None or len(passed) < calls or not isinstance(passed[calls - 1], fx.Node):
        return None
    try:
        found = CompiledLayer(Reading(module, captured), passed[calls - 1])
        if _same(run, found, probe):
            return found
        log.info("layer %s runs as it is: its program answers otherwise", layer)
    except torch.OutOfMemoryError:
        raise
    except (Unsuitable, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        log.info("layer %s runs as it is: %s", layer, error)
    return None


@torch.enable_grad()
def _same(run: Callable[[Tensor], Tensor], other: CompiledLayer, probe: Tensor) -> bool:
    """Whether both give the same activations and the same gradient, and single channels are the whole's."""
    answers = []
    for each in (run, other):
        picture = probe.clone().requires_grad_()
        activations = each(picture)
        (gradient,) = torch.autograd.grad((activations.float() ** 2).sum(), picture)
        answers.append((activations.detach(), gradient))
    (whole, _), (theirs, _) = answers
    return all(map(_alike, *answers)) and theirs.shape == whole.shape and _own_alike(other, probe, whole)


def _own_alike(layer: CompiledLayer, probe: Tensor, whole: Tensor) -> bool:
    for channel in {0, whole.shape[1] - 1}:
        with torch.no_grad():
            (found,) = layer.own(probe, torch.tensor([channel]))
        if not (found - whole[0, channel]).norm() <= ROUNDING * whole.norm():
            return False
    return True


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two answers differ by rounding only; a lone sign that rounding turned does not count."""
    one, other = one.double(), other.double()
    size = one.norm()
    return bool(size.isfinite()) and bool((one - other).norm() <= ROUNDING * size)

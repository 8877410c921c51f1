"""A layer as it runs on a CPU: its program, and shorter ones for single channels."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from feature_atlas_worker.gradients import redirecting
from feature_atlas_worker.programs.capture import capture
from feature_atlas_worker.programs.compiler import compiled
from feature_atlas_worker.programs.own import own_channel
from feature_atlas_worker.programs.program import Program
from feature_atlas_worker.programs.reading import Reading
from feature_atlas_worker.shortage import is_shortage

log = logging.getLogger(__name__)

#: Greatest difference from the network's own answer and gradient, as a share of their size, that counts as rounding.
ROUNDING = 1e-3
#: Programs of single channels that a layer keeps.
_SHORTER = 4


class CompiledLayer:
    """``picture [B, 3, h, w] -> activations``."""

    def __init__(self, reading: Reading, node: fx.Node, kernels: bool = False) -> None:
        whole = compiled(reading, [node], kernels)
        whole.check_worth()
        self._whole = whole.program([reading.origin(node)])
        self._own = own_channel(reading, node)
        # One compilation for all channels: what a channel is made by must not depend on its neighbours in a batch.
        reads = self._own.reads(range(self._own.width or 0)) if self._own else []
        self._compiled = compiled(reading, reads, kernels) if self._own else None
        #: By the nodes that they read, the last ones: the batches of a layer are many.
        self._shorter: OrderedDict[tuple[fx.Node, ...], Program] = OrderedDict()

    def __call__(self, picture: Tensor, allow: Tensor | None = None) -> Tensor:
        """The layer's activations."""
        return self._whole(picture, allow)[0]

    def own(self, picture: Tensor, channels: Tensor, allow: Tensor | None = None) -> Tensor:
        """Each picture's own channel, where there is ``has_own``.  [B] -> [B, h, w], fp32."""
        assert self._own is not None and self._compiled is not None
        reads = tuple(dict.fromkeys(self._own.reads(channels.tolist())))
        if reads not in self._shorter:
            self._shorter[reads] = self._compiled.program(reads)
            if len(self._shorter) > _SHORTER:
                self._shorter.popitem(last=False)
        values = self._shorter[reads](picture, allow)
        with torch.autocast("cpu", enabled=False), redirecting(allow):
            return self._own.answer(dict(zip(reads, values, strict=True)), channels)

    @property
    def has_own(self) -> bool:
        """Whether a channel comes about without the others."""
        return self._own is not None

    def kinds(self) -> Tensor:
        """The last channel, and one of every kind that comes about in a way of its own."""
        assert self._own is not None and self._own.width is not None
        return torch.tensor([self._own.width - 1, *self._own.kinds()])


def compiled_layer(
    module: nn.Module, layer: str, calls: int, run: Callable[[Tensor], Tensor], probe: Tensor, *, kernels: bool = False
) -> CompiledLayer | None:
    """What runs a layer faster than ``run`` and answers the same; None where nothing does.

    ``probe`` [1, 3, h, w] is what both are compared on; ``kernels``: with our own where there are some.
    """
    captured = capture(module)
    passed = captured.passed.get(layer, []) if captured is not None else []
    node = passed[calls - 1] if len(passed) >= calls else None
    if captured is None or node is None:
        return None
    try:
        found = CompiledLayer(Reading(module, captured), node, kernels)
        if _same(run, found, probe):
            return found
        log.info("layer %s runs as it is: its program answers otherwise", layer)
    except Exception as error:  # of somebody's modules
        if is_shortage(error):
            raise
        log.info("layer %s runs as it is: %s", layer, error)
    return None


@torch.enable_grad()
def _same(run: Callable[[Tensor], Tensor], other: CompiledLayer, probe: Tensor) -> bool:
    """Whether both give the same activations and the same gradient, all channels at once and channels alone."""
    picture = probe.clone().requires_grad_()
    theirs = run(picture)
    if not _alike(_answer(theirs, picture), _answer(other(picture), picture)):
        return False
    for few in other.kinds().split(2) if other.has_own else ():  # two pictures that look at channels of two kinds
        picture = probe.expand(len(few), -1, -1, -1).clone(memory_format=torch.preserve_format).requires_grad_()
        theirs = run(picture)[torch.arange(len(few)), few]
        if not _alike(_answer(theirs, picture), _answer(other.own(picture, few), picture)):
            return False
    return True


def _answer(activations: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """(activations, gradient of the squares' sum of them)."""
    (gradient,) = torch.autograd.grad((activations.float() ** 2).sum(), picture)
    return activations.detach(), gradient


def _alike(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether two answers differ by rounding only; a lone sign that rounding turned does not count."""
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or not (a.double() - b.double()).norm() <= ROUNDING * a.double().norm():
            return False
    return all(bool(a.isfinite().all()) for a in one)

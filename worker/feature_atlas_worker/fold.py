"""Batch normalisation folded into the convolution before it, in a frozen copy of a network.

In evaluation mode a batch norm is one factor and one shift per channel; a convolution can carry both in its weights.
What belongs together is found by watching one pass, and taken back where the network then answers otherwise.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from feature_atlas_worker.activations import tensors
from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.shortage import is_shortage

log = logging.getLogger(__name__)

#: Greatest difference of the network's answer, as a share of its greatest value, that counts as rounding.
ROUNDING = 1e-3
#: Where a folded convolution keeps its own (weight, bias).
PLAIN = "_feature_atlas_plain"


class FoldedNorm(nn.BatchNorm2d):
    """A batch norm whose work is done already."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


def fold(module: nn.Module, probe: Tensor) -> int:
    """Folds every batch norm that directly follows a convolution, in place.  -> how many.

    ``probe`` [1, C, h, w] shows what runs; a network that does not take it is left alone.
    """
    if not any(type(layer) is nn.BatchNorm2d for layer in module.modules()):
        return 0
    try:
        pairs, before = _watch(module, probe)
    except Exception as error:  # somebody's forward pass
        if is_shortage(error):
            raise
        log.info("batch norms are not folded, the network refused a trial: %s", error)
        return 0
    for conv, norm in pairs:
        _join(conv, norm)
    if pairs and not _same(before, _answer(module, probe)):
        for conv, norm in pairs:
            _part(conv, norm)
        return 0
    return len(pairs)


@contextmanager
def own_weights(layer: nn.Module) -> Iterator[None]:
    """While it lasts, a folded convolution answers as itself: what comes after it does not run."""
    plain = getattr(layer, PLAIN, None)
    if plain is None:
        yield
        return
    assert isinstance(layer, nn.Conv2d)
    carried = layer.weight, layer.bias
    _carry(layer, *plain)
    try:
        yield
    finally:
        _carry(layer, *carried)


def _carry(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight, layer.bias = weight, bias
    if isinstance(layer, FrozenConv2d):
        layer.prepare()


def _watch(module: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], list[Tensor]]:
    """(convolutions with the batch norm that reads them, what the network answers)."""
    made: list[tuple[Tensor, nn.Conv2d]] = []  # holds the tensors, so that no address is used twice
    read: list[tuple[Tensor, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def after(layer: nn.Module, _args: Any, out: Any) -> None:
        calls[layer] += 1
        made.append((out, layer))  # type: ignore[arg-type]

    def before(layer: nn.Module, args: Any) -> None:
        calls[layer] += 1
        read.append((args[0], layer))  # type: ignore[arg-type]

    handles = []
    for layer in module.modules():
        if type(layer) is nn.Conv2d and not layer.weight.requires_grad:
            handles.append(layer.register_forward_hook(after))
        elif type(layer) is nn.BatchNorm2d and not layer.training and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(before))
    try:
        answer = _answer(module, probe)
    finally:
        for handle in handles:
            handle.remove()
    makers = {id(tensor): conv for tensor, conv in made}
    pairs = [(makers[id(tensor)], norm) for tensor, norm in read if id(tensor) in makers]
    readers = Counter(conv for conv, _ in pairs)
    return [(c, n) for c, n in pairs if calls[c] == calls[n] == readers[c] == 1], answer


def _join(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if conv.bias is not None:
        shift = shift + conv.bias.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
    setattr(conv, PLAIN, (conv.weight, conv.bias))
    own = conv.weight
    conv.weight = nn.Parameter(weight.to(own), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(own), requires_grad=False)
    norm.__class__ = FoldedNorm  # the same object: hooks and names stay


def _part(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    _carry(conv, *getattr(conv, PLAIN))
    delattr(conv, PLAIN)
    norm.__class__ = nn.BatchNorm2d


def _answer(module: nn.Module, probe: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = module(probe)
    return [t.clone() for t in tensors(out)]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(
        a.shape == b.shape and bool(b.isfinite().all()) and bool((a - b).abs().max() <= ROUNDING * a.abs().max())
        for a, b in zip(one, other, strict=True)
    )

"""The ascent on a GPU: its steps are recorded once per layer, recipe and size of the batch, and replayed.

The same step as :class:`feature_atlas_worker.ascent.Ascent` takes, but nothing in it comes from Python: numbers are
looked up in tables on the device, by a counter on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker import kernels
from feature_atlas_worker.ascent import Ascent, Now
from feature_atlas_worker.graphs import Record, Recordings, cuda_graph
from feature_atlas_worker.kernels.ascent import KernelAscent
from feature_atlas_worker.network import Network

#: What a step changes.
_STATE = ("parameters", "first_moment", "second_moment", "history", "blocked")
#: Where a network's copy keeps the ascent that was recorded last.
_KEPT = "_feature_atlas_ascent"


class RecordedAscent(Ascent):
    """Batches of the same kind, one after the other, in the same tensors."""

    def __init__(
        self, network: Network, recipe: Recipe, channels: Sequence[int], seeds: Sequence[int],
        record: Record = cuda_graph,
    ) -> None:  # fmt: skip
        super().__init__(network, recipe, channels, seeds)
        self._recordings = Recordings(record)
        self._table = torch.tensor(self.numbers, device=network.device)  # [steps, 3]
        self._step = torch.zeros(1, dtype=torch.long, device=network.device)
        self._allow = torch.zeros_like(self.blocked)

    def again(self, network: Network, channels: Sequence[int], seeds: Sequence[int]) -> None:
        """Begins anew with as many other targets; ``network`` is the same one, opened again."""
        fresh = Ascent(network, self.recipe, channels, seeds)
        pairs = [(getattr(self, name), getattr(fresh, name)) for name in (*_STATE, "channels")]
        pairs += [(getattr(self.schedule, f.name), getattr(fresh.schedule, f.name)) for f in fields(self.schedule)]
        for own, value in pairs:
            own.copy_(value)
        self.network = network
        self.best, self.best_image, self.best_step = fresh.best, fresh.best_image, fresh.best_step
        self._step.zero_()

    def _advance(self, step: int, allow: Tensor | None) -> None:
        coarse = step < self.recipe.coarse_steps
        if allow is not None:
            self._allow.copy_(allow)
        body = functools.partial(self._body, coarse, self._allow if allow is not None else None)
        state = [self._step, *(getattr(self, name) for name in _STATE)]
        self._recordings.run((coarse, allow is not None), body, state)

    def _body(self, coarse: bool, allow: Tensor | None) -> None:
        def of(table: Tensor) -> Tensor:
            return table.index_select(0, self._step)[0]

        row = torch.empty_like(self.history[0])
        schedule = self.schedule
        now = Now(of(schedule.theta), of(schedule.blur), of(schedule.cut), *of(self._table).unbind())
        self._climb(now, coarse, allow, row)
        self.history.index_copy_(0, self._step, row[None])
        self._step.add_(1)


def ascent_of(network: Network, recipe: Recipe, channels: Sequence[int], seeds: Sequence[int]) -> Ascent:
    """The ascent of a batch; on a GPU one that is recorded, on a CPU one with kernels of its own."""
    own = network.rewrites.kernels and kernels.available() and torch.get_default_dtype() == torch.float32
    if network.device.type == "cpu" and own:
        return KernelAscent(network, recipe, channels, seeds)
    if network.device.type != "cuda" or not network.rewrites.graph:
        return Ascent(network, recipe, channels, seeds)
    return kept_ascent(network, recipe, channels, seeds, cuda_graph)


def kept_ascent(
    network: Network, recipe: Recipe, channels: Sequence[int], seeds: Sequence[int], record: Record
) -> RecordedAscent:
    """The last ascent if it is of this kind, begun anew; else a new one.  One is kept: its memory stays taken."""
    # The seeds are given, and say all that the recipe's seed could.
    key = network.layer, recipe.model_copy(update={"seed": 0}), len(channels), network.rewrites
    kept: tuple[object, RecordedAscent] | None = network.module.__dict__.pop(_KEPT, None)
    if kept is not None and kept[0] == key:
        found = kept[1]
        found.again(network, channels, seeds)
    else:
        kept = None  # frees its memory first
        found = RecordedAscent(network, recipe, channels, seeds, record)
    network.module.__dict__[_KEPT] = key, found
    return found

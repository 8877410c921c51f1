"""How many jobs go side by side: what is fastest here, tried on the jobs themselves; half as many after a shortage."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch

from feature_atlas.spec import Job, ModelRef, Recipe
from feature_atlas_worker.heap import give_memory_back

log = logging.getLogger(__name__)

_GIB = 2**30
#: What one picture of 128 x 128 pixels takes with its gradients in a large network (ResNet-152, VGG-19), rounded up.
_PER_PICTURE = 0.25 * _GIB
#: The first batch of the first layer, and the most: no network is faster beyond it.
_FIRST, _MOST = {"cpu": 8, "cuda": 64}, {"cpu": 16, "cuda": 512}
#: A larger batch must be faster by this share: it wastes more where the jobs run out.
_WORTH = 0.04
#: Seconds: a shorter batch says nothing about the next.
_TELLING = 0.5
#: Digest of the model, layer, pixels that the network sees, images per job.
_Group = tuple[str, str, tuple[int, int], int]


class BatchSizes:
    """The batch of each (model, layer, size) on one device.

    The first batches of a layer are the trial: sizes double as long as a job gets cheaper by it, or halve if that
    was cheaper.  The next layer begins where the last one ended.  What memory refused is not tried again.
    """

    def __init__(self, device: torch.device, asked: int | None = None) -> None:
        self.device = device
        #: A size that was asked for is kept, and on a GPU partial batches are padded to it: same shape, same bits.
        self.asked = asked
        self._most: dict[_Group, int] = {}
        #: Least seconds per image and step of each size.
        self._cost: dict[_Group, dict[int, float]] = {}
        self._last = _FIRST[device.type]

    def of(self, job: Job) -> int:
        """The most jobs of this group to render side by side now."""
        group = _key(job)
        if self.asked:
            return min(self.asked, self._most.get(group, self.asked))
        if group not in self._most:
            self._most[group] = _guess(self.device, job.recipe)
        return min(self._most[group], self._next(group))

    def _next(self, group: _Group) -> int:
        cost = self._cost.get(group)
        if not cost:
            return self._last
        best = min(cost, key=lambda size: (cost[size], size))
        smaller, larger = best // 2, 2 * best
        # The fastest so far has neighbours: each is tried once, the larger one first.
        if larger not in cost and larger <= self._most[group] and not self._dear(cost, best):
            return larger
        if smaller and smaller not in cost and larger in cost:
            return smaller
        worth = [size for size in cost if cost[size] <= cost[best] * (1 + _WORTH)]
        self._last = min(worth)
        return self._last

    @staticmethod
    def _dear(cost: dict[int, float], best: int) -> bool:
        """Whether the last doubling was hardly worth it: the next one will not be."""
        return best // 2 in cost and cost[best] > cost[best // 2] * (1 - _WORTH)

    def note(self, job: Job, size: int, seconds: float) -> None:
        """A full batch of ``size`` jobs like this one took so many seconds; what is too short to tell is left out."""
        if self.asked or seconds < _TELLING:
            return
        cost = self._cost.setdefault(_key(job), {})
        each = seconds / (size * job.recipe.images * job.recipe.steps)
        cost[size] = min(each, cost.get(size, each))

    def shape(self, job: Job, count: int) -> int:
        """The shape to pad ``count`` jobs to: as asked, else the next power of two, so that little is wasted."""
        most = self.of(job)
        return most if self.asked else min(most, 1 << (count - 1).bit_length())

    def shrink(self, job: Job, tried: int) -> bool:
        """Halves the group's batch after ``tried`` was too much; False where a job does not fit even alone."""
        if tried <= 1:
            return False
        self._most[_key(job)] = tried // 2
        log.warning("out of memory at batch %d of layer %s: going on with %d", tried, job.layer, tried // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True


_digest = lru_cache(maxsize=64)(ModelRef.digest)


def _key(job: Job) -> _Group:
    return _digest(job.model), job.layer, job.recipe.network_size or job.recipe.size, job.recipe.images


def _guess(device: torch.device, recipe: Recipe) -> int:
    height, width = recipe.network_size or recipe.size
    need = _PER_PICTURE * recipe.images * max(height * width / 128**2, 0.25)
    fits = int(0.8 * _free(device) / need)
    return 1 << max(0, min(_MOST[device.type], fits).bit_length() - 1)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    give_memory_back()  # what the last layer left lies free
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not on every system
        return 4.0 * _GIB

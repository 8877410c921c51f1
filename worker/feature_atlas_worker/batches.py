"""How many jobs go side by side: as many as the memory is likely to hold, half as many after each shortage."""

from __future__ import annotations

import logging
import os

import torch

from feature_atlas.errors import DeviceError
from feature_atlas.spec import Job, Recipe

log = logging.getLogger(__name__)

_GIB = 2**30
#: What one picture of 128 x 128 pixels takes with its gradients in a large network (ResNet-152, VGG-19), rounded up.
_PER_PICTURE = 0.25 * _GIB
#: Throughput no longer grows beyond these.
_MOST = {"cpu": 8, "cuda": 128}
_SHORTAGE = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_shortage(error: BaseException) -> bool:
    """Whether a smaller batch could have helped."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | DeviceError) and any(text in str(error).lower() for text in _SHORTAGE)


class BatchSizes:
    """The batch of each (model, layer, size) on one device, remembered once it had to shrink."""

    def __init__(self, device: torch.device, asked: int | None = None) -> None:
        self.device = device
        #: A size that was asked for is kept, and partial batches are padded to it: same shape, same bits.
        self.asked = asked
        self._shrunk: dict[tuple[str, str, tuple[int, int]], int] = {}

    def of(self, job: Job) -> int:
        """The most jobs of this group to render side by side."""
        return self._shrunk.get(_key(job)) or self.asked or _guess(self.device, job.recipe)

    def shape(self, job: Job, count: int) -> int:
        """The shape to pad ``count`` jobs to: as asked, else the next power of two, so that little is wasted."""
        most = self.of(job)
        return most if self.asked else min(most, 1 << (count - 1).bit_length())

    def shrink(self, job: Job, tried: int) -> bool:
        """Halves the group's batch after ``tried`` was too much; False where a job does not fit even alone."""
        if tried <= 1:
            return False
        self._shrunk[_key(job)] = tried // 2
        log.warning("out of memory at batch %d of layer %s: going on with %d", tried, job.layer, tried // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True


def _key(job: Job) -> tuple[str, str, tuple[int, int]]:
    return job.model.digest(), job.layer, job.recipe.network_size or job.recipe.size


def _guess(device: torch.device, recipe: Recipe) -> int:
    height, width = recipe.network_size or recipe.size
    need = _PER_PICTURE * recipe.images * max(height * width / 128**2, 0.25)
    fits = int(0.8 * _free(device) / need)
    return 1 << max(0, min(_MOST[device.type], fits).bit_length() - 1)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not on every system
        return 4.0 * _GIB

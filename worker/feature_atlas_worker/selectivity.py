"""Does a picture excite its own channel most?  Each finished picture is shown to its layer, and all channels answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from feature_atlas_worker import measure
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.objectives import centre

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feature_atlas.spec import ModelRef, Recipe
    from feature_atlas_worker.models import VisionModel

#: Pictures shown at once.
BATCH = 16


class Judge:
    """Ranks channels by how far they answer above noise; loads the model on first use.

    Args:
        load: returns the model.
        device: where it runs.
    """

    def __init__(self, load: Callable[[], VisionModel], device: str = "cpu") -> None:
        self._load = load
        self._device = torch.device(device)
        self._model: VisionModel | None = None

    def __call__(
        self, layer: str, recipe: Recipe, pictures: Iterable[tuple[int, NDArray[np.uint8]]]
    ) -> Iterator[tuple[int, int, int]]:
        """(channel, its rank among all channels of the layer, the channel that answers most) of each picture.

        Answers are compared in standard deviations over noise, with the recipe's sign, so that a channel that is
        always loud does not win by that.  Pictures are [H, W, 3].
        """
        self._model = self._model or self._load()
        with open_network(self._model, layer, recipe, self._device) as network, torch.no_grad():
            mean, std = measure.noise(network, recipe)
            rest = iter(pictures)
            while batch := list(islice(rest, BATCH)):
                image = measure.from_bytes(np.stack([pixels for _, pixels in batch]), self._device)
                scores = recipe.sign * (_answers(network, image, recipe) - mean) / std.clamp(min=1e-12)
                for (channel, _), row in zip(batch, scores, strict=True):
                    yield channel, 1 + int((row > row[channel]).sum()), int(row.argmax())


def _answers(network: Network, image: Tensor, recipe: Recipe) -> Tensor:
    """What every channel says to every picture, as the objective reads it.  [B, 3, H, W] -> [B, C] on the CPU."""
    acts = network(image)
    if recipe.objective == "neuron":
        row, column = recipe.position or centre(*acts.shape[2:])
        return acts[:, :, row, column].cpu()
    return acts.flatten(2).mean(2).cpu()


def judge_of(ref: ModelRef, read: Callable[[str], bytes], device: str = "cpu", allowed: tuple[str, ...] = ()) -> Judge:
    """The judge of an atlas's model; ``read`` gets objects of the atlas by key."""
    from feature_atlas_worker import models

    return Judge(lambda: models.load(ref, read=read, device=device, allowed=allowed), device)

"""The networks that come with the package: trained weights, no download.

``builtin:demo`` tells 38 classes apart, 20 shapes and 18 textures, in RGB pictures from 32 px a side:

- script: ``python -m feature_atlas_worker.builtin.train`` (4 to 9 minutes on one core), seed 0, 1000 steps of 64
  pictures;
- data: pictures of 64 px drawn by :mod:`.draw`, each seen once, moved by an L2 attack of 17% of their contrast;
- accuracy on 2000 held-out pictures: 94.8% at 64 px, 92.6% at 96 px;
- weights: 145,000 in half precision, 290 kB; script, seed, steps and accuracy stand in the file's metadata too.
"""

from __future__ import annotations

from importlib import resources

from safetensors import torch as safetensors
from torch import nn

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas_worker.builtin.draw import CLASSES
from feature_atlas_worker.builtin.network import INPUT_SIZE, MEAN, STD, DemoNetwork

#: Names of the channels of ``builtin:demo``'s layer ``classifier``.
CLASS_NAMES = CLASSES

RGB = tuple[float, float, float]


def names() -> tuple[str, ...]:
    """The names that :func:`load` takes, without ``builtin:``."""
    return ("demo",)


def load(name: str) -> tuple[nn.Module, RGB, RGB, tuple[int, int]]:
    """(network in evaluation mode with fp32 weights, mean [3], std [3], input (height, width) in pixels).

    Raises:
        RequestError: there is no such network.
    """
    if name not in names():
        raise RequestError(
            f"no built-in network {name!r}{did_you_mean(name, names())} (there are: {', '.join(names())})"
        )
    network = DemoNetwork(len(CLASSES))
    stored = resources.files(__package__).joinpath(f"{name}.safetensors").read_bytes()
    network.load_state_dict({key: tensor.float() for key, tensor in safetensors.load(stored).items()})
    return network.eval(), MEAN, STD, INPUT_SIZE

"""A private copy of a network, rewritten to run faster and answer the same.

The caller's network is never touched.  Each rewrite is exact up to rounding and is checked on a probe.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas_worker.convolutions import quicken
from feature_atlas_worker.fold import fold
from feature_atlas_worker.shortage import is_shortage


@dataclass
class _State:
    """What a network is made of at one moment; differs once a tensor or a submodule has been written or replaced."""

    modules: list[weakref.ref[nn.Module]]
    tensors: list[Tensor]
    versions: list[int]

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        tensors = [*module.parameters(), *module.buffers()]
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        return cls([weakref.ref(m) for m in module.modules()], tensors, versions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _State) or (self.modules, self.versions) != (other.modules, other.versions):
            return False
        return all(one is another for one, another in zip(self.tensors, other.tensors, strict=True))


@dataclass(frozen=True)
class Rewrites:
    """What is done to a network's copy and to how it runs.  Exact up to rounding: of fp32, or with ``half`` of bf16."""

    #: The network ends at the target layer; off, it runs to its end.
    cut: bool = True
    #: Weights get no gradient.
    freeze: bool = True
    #: The network in bf16 where the device is faster so (pictures, penalties and the optimiser are fp32 anyway).  A
    #: CPU climbs in bf16 and measures in fp32.
    half: bool = True

    #: Convolutions in channels-last order: 1.4 times faster on a CPU, more on a GPU.
    channels_last: bool = True
    #: Batch norms inside the convolutions before them.
    fold: bool = True
    #: On a CPU, for the rest of the process: what a step frees is kept for the next one.
    heap: bool = True
    #: On a CPU, convolutions that go back faster and give an image the same bits in a batch of any size.
    quicken: bool = True
    #: On a CPU, the layer as a program: without autograd between operations, and without what a step does not look at.
    program: bool = True
    #: On a CPU, kernels of our own for what a step does beside convolutions, and in bf16 for those of single pixels.
    kernels: bool = True
    #: On a CPU with ``kernels``, 3 x 3 convolutions with 16 products for four answers instead of 36 (Winograd).
    winograd: bool = True
    #: On a GPU, a step is recorded once per layer and size of the batch, and replayed.
    graph: bool = True
    #: Whether a CPU may run several images side by side: ``proved`` where a trial has shown that they come out with
    #: the same bits as alone, one by one elsewhere; ``always`` whatever comes out; ``never``.
    side_by_side: Literal["proved", "always", "never"] = "proved"


ALL = Rewrites()


_Kept = dict[tuple[str, Rewrites], tuple[_State, nn.Module]]
_copies: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def private_copy(
    module: nn.Module, device: torch.device, rewrites: Rewrites = ALL, probe: Tensor | None = None
) -> nn.Module:
    """The network's copy on the device: evaluation mode, rewritten.

    Kept while the original lives and is not changed (by anything but ``tensor.data``, which leaves no trace).
    ``probe`` [1, C, h, w] is an input that shows which batch norm reads which convolution.

    Raises:
        RequestError: the network cannot be copied.
    """
    kept, state, key = _copies.setdefault(module, {}), _State.of(module), (str(device), rewrites)
    if key not in kept or kept[key][0] != state:
        twin = _copy(module).eval().requires_grad_(not rewrites.freeze).to(device)
        if rewrites.channels_last:
            for layer in twin.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)
        if rewrites.fold and probe is not None:
            fold(twin, probe.to(device))
        if rewrites.quicken and device.type == "cpu":
            quicken(twin, rewrites.kernels, rewrites.winograd)
        kept[key] = state, twin
    return kept[key][1]


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if is_shortage(error):
            raise
        raise RequestError(
            f"this network cannot be copied ({str(error).splitlines()[0][:160]}):"
            " let it hold no intermediate results, locks or open files"
        ) from None


def forget(module: Any) -> None:
    """Frees the copies of a network."""
    _copies.pop(module, None)

"""What is found out about a layer before it is drawn, kept from one batch of it to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from feature_atlas.errors import RequestError
from feature_atlas_worker.activations import count_calls
from feature_atlas_worker.inspect import layer_layout
from feature_atlas_worker.programs.capture import capture
from feature_atlas_worker.programs.layer import CompiledLayer
from feature_atlas_worker.refusal import refused
from feature_atlas_worker.rewrite import Rewrites
from feature_atlas_worker.shortage import is_shortage
from feature_atlas_worker.trial import reason

if TYPE_CHECKING:
    from feature_atlas_worker.network import Model

#: As many as come.
_EVERY = 1 << 30


@dataclass
class Facts:
    """What was found out about one layer of a network's copy, for pictures of one size; holds while the copy lives."""

    layout: str
    #: How often the layer runs in one pass.
    calls: int
    channels: int = 0
    #: (height, width) of the layer's map.
    map: tuple[int, int] = (0, 0)
    #: Images that run side by side; 0: the trial is still to be made.
    width: int = 0
    #: What runs instead where only the direction counts; made when first asked for.
    program: CompiledLayer | None = None
    programmed: bool = False


#: Where a copy keeps what was found out last: the batches of a layer come one after the other.
_KEPT = "_feature_atlas_facts"


def facts_of(model: Model, module: nn.Module, layer: str, probe: Tensor, alone: bool, rewrites: Rewrites) -> Facts:
    """What is known of a layer of this copy; found out where it is another one than last time.

    ``probe`` [1, C, h, w] is like the pictures that it will see; ``alone``: each will look at one channel.

    Raises:
        RequestError: the layer does not run, or a picture of this size is too small for it.
    """
    key = layer, probe.shape, alone, model.input_size, (*model.mean, *model.std)
    kept: tuple[object, Facts] | None = module.__dict__.get(_KEPT)
    if kept is not None and kept[0] == key and kept[1].channels:
        return kept[1]
    layout, _ = layer_layout(model.module, layer, model.input_size)  # the copy may run otherwise behind the layer
    try:
        calls = count_calls(module, layer, probe)
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_shortage(error):
            raise
        raise refused(model.module, layer, (probe.shape[2], probe.shape[3]), model.input_size, reason(error)) from None
    if not calls:
        raise RequestError(f"layer {layer!r} does not run in this network's forward pass")
    cpu = probe.device.type == "cpu"
    if rewrites.program and cpu:
        capture(module)  # before there are hooks
    facts = Facts(layout, calls, width=0 if cpu else _EVERY, programmed=not (rewrites.program and cpu))
    module.__dict__[_KEPT] = key, facts
    return facts

"""What to say of a picture that ends before a layer: what would pass is tried before it is advised."""

from __future__ import annotations

from torch import nn

from feature_atlas.errors import RequestError
from feature_atlas_worker.inspect import grown
from feature_atlas_worker.trial import PICTURE, input_channels, reached


def refused(module: nn.Module, layer: str, size: tuple[int, int], usual: tuple[int, int], why: str) -> RequestError:
    """The error for a picture of ``size`` (h, w) that does not reach the layer.

    Args:
        module: the network.
        layer: as far as which the picture should pass.
        size: the picture as the network sees it.
        usual: (height, width) that the network was made for.
        why: what the network says of itself; empty where the layer's map became empty.
    """
    said = f"a picture of {size[0]} x {size[1]} px does not pass this network up to layer {layer!r}"
    said += f" ({why[:160]})" if why else ""
    if passes(module, layer, usual):
        smaller = size[0] < usual[0] or size[1] < usual[1]
        if smaller and passes(module, layer, grown(usual)):
            return RequestError(f"{said}: set a larger size, e.g. --set size={max(usual)}")
        exact = f"{usual[0]}" if usual[0] == usual[1] else f"{usual[0]},{usual[1]}"
        return RequestError(
            f"{said}: it was made for {usual[0]} x {usual[1]} px, to which pictures of any size are brought by"
            f" --set network_size={exact}"
        )
    channels = input_channels(module)
    if channels != PICTURE:
        return RequestError(
            f"the network takes {channels} input channels; pictures have {PICTURE}: give one that takes RGB,"
            " such as a module around it that mixes the colours first"
        )
    return RequestError(said if why else f"{said}: set a larger size")


def passes(module: nn.Module, layer: str, size: tuple[int, int]) -> bool:
    """Whether a picture of ``size`` (h, w) reaches the layer, with something left on its map."""
    shapes, _ = reached(module, size)
    return 0 not in shapes.get(layer, (0,))

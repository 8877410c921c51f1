"""``--layers``, ``--channels`` and ``--kinds`` -> layers and channels of a network."""

from __future__ import annotations

import fnmatch
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from feature_atlas import channels as channel_sets
from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.networks import KINDS, LayerInfo, Network, dotted
from feature_atlas.plan import LayerPlan

#: What a plan's layer can hold at most.
_MOST = 100_000


def select(
    network: Network, layers: str = "*", channels: str = ":", kinds: Sequence[str] = ("conv",)
) -> tuple[LayerPlan, ...]:
    """The chosen channels of the chosen layers, in the order in which the network runs them.

    Args:
        network: what there is.
        layers: a comma list of exact names and of globs.  An exact name is taken whatever its kind; a glob matches
            whole dotted names (``*`` crosses dots) among ``kinds``.  ``branch4[1].conv`` means ``branch4.1.conv``.
        channels: as :func:`feature_atlas.channels.parse` reads them.  For an exact layer a channel out of range is an
            error; for the layers of a glob the selection is clipped, and a layer of which nothing is left is left out.
        kinds: of ``networks.KINDS``, or ``all``.

    Raises:
        RequestError: nothing matches (with the nearest names or the kinds that do), or nothing is left.
    """
    wanted = _kinds(kinds)
    known = {layer.name: layer for layer in network.layers}
    exact, matched = set[str](), set[str]()
    for part in layers.split(","):
        name = dotted(part)
        if name in known:
            exact.add(name)
        elif name:
            matched.update(_match(network, part.strip(), wanted))
    if not exact and not matched:
        raise RequestError("no layers are given: write names or globs, such as 'layer3.*', or '*' for all")
    clipped = channel_sets.parse(channels, _MOST, what="the widest possible layer") if matched - exact else ()
    chosen = []
    for layer in network.layers:
        if layer.name in exact:
            numbers = channel_sets.parse(channels, layer.channels, what=f"layer {layer.name!r}")
        elif layer.name in matched:
            numbers = clipped[: bisect_left(clipped, layer.channels)]
        else:
            continue
        if numbers:
            chosen.append(_plan(layer, numbers))
    if not chosen:
        widest = max(known[name].channels for name in matched)
        raise RequestError(
            f"channels {channels!r} are out of range of every layer that {layers!r} matches:"
            f" the widest has {widest} channels, 0 to {widest - 1}"
        )
    return tuple(chosen)


def _kinds(kinds: Sequence[str]) -> frozenset[str]:
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise RequestError(f"no kind {kind!r}{did_you_mean(kind, KINDS)} (kinds: {', '.join(KINDS)}, all)")
    return frozenset(KINDS if "all" in kinds else kinds)


def _match(network: Network, pattern: str, kinds: frozenset[str]) -> list[str]:
    """The names that a glob matches among the kinds.  Raises RequestError where there are none."""
    # An index in brackets first: [34] is far more often a place in a Sequential than "3 or 4".
    found: list[LayerInfo] = []
    for spelling in (dotted(pattern), pattern):
        found = found or [layer for layer in network.layers if fnmatch.fnmatchcase(layer.name, spelling)]
    if not found:
        near = did_you_mean(dotted(pattern), (layer.name for layer in network.layers))
        raise RequestError(f"no layer {pattern!r} in {network.name}{near or ': see feature-atlas layers'}")
    names = [layer.name for layer in found if layer.kind in kinds]
    if not names:
        raise RequestError(
            f"{pattern!r} matches no {' or '.join(sorted(kinds))} layer of {network.name}, only {_count(found)}:"
            f" add --kinds {','.join(sorted({layer.kind for layer in found}))}"
        )
    return names


def _count(layers: Iterable[LayerInfo]) -> str:
    counts = Counter(layer.kind for layer in layers)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])


def _plan(layer: LayerInfo, numbers: Sequence[int]) -> LayerPlan:
    return LayerPlan(
        name=layer.name, kind=layer.kind, index=layer.index, total=layer.channels,
        channels=channel_sets.spell(numbers),
    )  # fmt: skip

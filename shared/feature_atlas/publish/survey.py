"""What a store holds of a plan, by listing alone: which units are done, dead, failed or missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from feature_atlas import keys
from feature_atlas.plan import Plan
from feature_atlas.spec import Unit
from feature_atlas.store import Store

#: Channels per sheet and pack: a square of 16 x 16 cells.
BLOCK = 256


class Master(NamedTuple):
    """The listed files of one unit."""

    #: Of the PNG that commits the unit and of its further diverse images.
    versions: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many pictures the unit has."""
        return len(self.versions)


@dataclass
class Group:
    """One variant of one layer: what is planned and what is there."""

    variant: str
    layer: str
    planned: tuple[int, ...]
    done: dict[int, Master] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether every planned unit has a picture."""
        return len(self.done) == len(self.planned)

    def blocks(self) -> Iterator[tuple[int, list[int]]]:
        """(block, its done channels ascending) for every block that holds a picture."""
        numbers: dict[int, list[int]] = {}
        for channel in sorted(self.done):
            numbers.setdefault(channel // BLOCK, []).append(channel)
        yield from sorted(numbers.items())

    def block_complete(self, block: int) -> bool:
        """Whether nothing of a block is still to come."""
        return all(channel in self.done for channel in self.planned if channel // BLOCK == block)

    def inputs(self, block: int, channels: Iterable[int], *salt: object) -> str:
        """A digest of all files that a block is made from: it changes when one of them does."""
        told = [*salt, self.variant, self.layer, block, [(channel, *self.done[channel]) for channel in channels]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def survey(store: Store, plan: Plan) -> dict[tuple[str, str], Group]:
    """Every planned group with what the store holds of it.  Files of units that are not planned are left aside."""
    groups = {pair: Group(*pair, plan.channels(*pair)) for pair in plan.groups()}
    wanted = {pair: set(group.planned) for pair, group in groups.items()}
    versions: dict[Unit, dict[int, str]] = {}
    for prefix in (keys.IMAGES, keys.DEAD, keys.ERRORS):
        for info in store.list(prefix):
            parsed = keys.parse_unit(info.key)
            if parsed is None:
                continue
            kind, unit, n = parsed
            pair = (unit.variant, unit.layer)
            if unit.channel not in wanted.get(pair, ()):
                continue
            if kind == "images":
                versions.setdefault(unit, {})[n] = info.version
            elif kind == "dead":
                groups[pair].dead.add(unit.channel)
            else:
                groups[pair].failed.add(unit.channel)
    for unit, files in versions.items():
        if 0 in files:  # the picture that commits; the others alone are a job in hand
            further = plan.variants[unit.variant].images
            found = tuple(files[n] for n in range(further) if n in files)
            groups[unit.variant, unit.layer].done[unit.channel] = Master(found)
    for group in groups.values():
        group.failed -= group.done.keys()
        group.dead &= group.done.keys()
    return groups

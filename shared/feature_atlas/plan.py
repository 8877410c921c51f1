"""What an atlas will contain: ``atlas.json`` fixes the model, each request adds one immutable plan file.

The plan is the union of the plan files, so concurrent growth loses nothing and nothing is updated in place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from feature_atlas import channels
from feature_atlas.errors import PlanConflictError, RequestError, did_you_mean
from feature_atlas.spec import MAX_CHANNELS, Digest, Job, ModelRef, Name, Recipe, Record, Unit


class AtlasFile(Record):
    """``atlas.json``: which network this atlas shows.  Written first, never changed."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    model: ModelRef
    license: str = "CC-BY-4.0"


class LayerPlan(Record):
    """Some channels of one layer."""

    name: Name
    #: ``named_modules`` class in the field's words: conv, linear, norm, activation, pool, attention, block, other.
    kind: str
    #: Position in the order of execution, for sorting.
    index: Annotated[int, Field(ge=0)]
    #: How many channels the layer has.
    total: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    #: Which of them, e.g. ``0:64,100``.
    channels: Annotated[str, Field(max_length=600_000)]

    @model_validator(mode="after")
    def _selects(self) -> Self:
        try:
            _ = self.numbers
        except RequestError as error:
            raise ValueError(str(error)) from None
        return self

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """The channels, ascending."""
        return channels.parse(self.channels, self.total, what=f"layer {self.name!r}")


class PlanFile(Record):
    """``plans/<digest>.json``: one request, layers x variants of one model."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    #: Digest of the ModelRef in ``atlas.json``; another one does not belong to this atlas.
    model: Digest
    layers: tuple[LayerPlan, ...] = Field(min_length=1)
    variants: Mapping[Name, Recipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct_layers(self) -> Self:
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise ValueError("a layer is listed twice")
        return self


class LayerEntry(Record):
    """One layer of a whole plan, all requests together."""

    name: str
    kind: str
    index: int
    total: int


class Plan:
    """The union of an atlas's plan files.

    Raises:
        PlanConflictError: a file belongs to another model, or two files give a variant's name to two recipes.
    """

    def __init__(self, model: ModelRef, files: Mapping[str, PlanFile]) -> None:
        self.model = model
        self.files = dict(sorted(files.items()))
        self.variants: dict[str, Recipe] = {}
        self.layers: dict[str, LayerEntry] = {}
        self._channels: dict[tuple[str, str], set[int]] = {}
        for digest, file in self.files.items():
            self._add(digest, file)
        self.layers = dict(sorted(self.layers.items(), key=lambda item: (item[1].index, item[0])))

    def _add(self, digest: str, file: PlanFile) -> None:
        if file.model != self.model.digest():
            raise PlanConflictError(f"plan {digest} was made for another model than {describe_model(self.model)}")
        for name, recipe in file.variants.items():
            known = self.variants.setdefault(name, recipe)
            if known != recipe:
                raise PlanConflictError(
                    f"variant {name!r} already has another recipe here ({difference(known, recipe)});"
                    " give the new one another name"
                )
        for layer in file.layers:
            entry = LayerEntry(name=layer.name, kind=layer.kind, index=layer.index, total=layer.total)
            known_layer = self.layers.setdefault(layer.name, entry)
            if known_layer.total != entry.total:
                raise PlanConflictError(
                    f"layer {layer.name!r} has {known_layer.total} channels in one plan and {entry.total} in another"
                )
            for name, recipe in file.variants.items():
                # DeepDream has one picture per layer, kept as channel 0.
                numbers = (0,) if recipe.objective == "layer" else layer.numbers
                self._channels.setdefault((name, layer.name), set()).update(numbers)

    def __len__(self) -> int:
        return sum(len(numbers) for numbers in self._channels.values())

    def __contains__(self, unit: object) -> bool:
        if not isinstance(unit, tuple) or len(unit) != 3:
            return False
        variant, layer, channel = unit
        return channel in self._channels.get((variant, layer), ())

    def channels(self, variant: str, layer: str) -> tuple[int, ...]:
        """The planned channels of a group, ascending; empty where nothing is planned."""
        return tuple(sorted(self._channels.get((variant, layer), ())))

    def groups(self) -> Iterator[tuple[str, str]]:
        """(variant, layer) in order: layer by layer as the network runs, its variants together."""
        for layer in self.layers:
            for variant in self.variants:
                if (variant, layer) in self._channels:
                    yield variant, layer

    def units(self) -> Iterator[Unit]:
        """Every planned unit, contiguous by group, channels ascending."""
        for variant, layer in self.groups():
            for channel in self.channels(variant, layer):
                yield Unit(variant, layer, channel)

    def job(self, unit: Unit) -> Job:
        """The job of a unit.

        Raises:
            RequestError: the unit is not planned.
        """
        if unit not in self:
            raise RequestError(f"{unit} is not planned in this atlas{did_you_mean(unit.layer, self.layers)}")
        return Job(
            model=self.model, layer=unit.layer, channel=unit.channel,
            variant=unit.variant, recipe=self.variants[unit.variant],
        )  # fmt: skip

    def digest(self) -> str:
        """Identity of the union: changes with every file added."""
        return PlanUnion(model=self.model.digest(), files=tuple(self.files)).digest()


class PlanUnion(Record):
    """What a plan's digest is taken over."""

    model: str
    files: tuple[str, ...]


def describe_model(model: ModelRef) -> str:
    """``resnet50 (IMAGENET1K_V2)``."""
    weights = model.weights if not model.weights.startswith("sha256:") else f"weights {model.weights[7:19]}"
    return f"{model.name} ({weights})"


def difference(old: Record, new: Record) -> str:
    """The fields in which two records of one kind differ: ``steps 160 here, 512 asked``."""
    parts = [
        f"{field} {getattr(old, field)!r} here, {getattr(new, field)!r} asked"
        for field in type(old).model_fields
        if getattr(old, field) != getattr(new, field)
    ]
    return "; ".join(parts) if parts else "no difference"

"""Errors: one sentence each, the exit code of their kind, and the hint at what was meant."""

from __future__ import annotations

import inspect
import pickle

import pytest

from feature_atlas import errors
from feature_atlas.errors import (
    AtlasError,
    BrokerError,
    DeviceError,
    EnvironmentFault,
    IntegrityError,
    MissingExtraError,
    ObjectNotFound,
    PlanConflictError,
    RenderError,
    RequestError,
    StoreError,
    did_you_mean,
)

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AtlasError)]


def test_every_kind_has_the_exit_code_of_the_design() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        "AtlasError": 1, "RequestError": 2, "MissingExtraError": 2, "PlanConflictError": 2, "RenderError": 3,
        "IntegrityError": 4, "EnvironmentFault": 5, "StoreError": 5, "ObjectNotFound": 5, "WeightsError": 5,
        "BrokerError": 5, "DeviceError": 5,
    }  # fmt: skip


def test_the_three_kinds_of_the_farm_are_apart() -> None:
    """A wrong request is never retried, the environment is not counted, a job is: no error is two of them."""
    for kind in KINDS:
        assert sum(
            issubclass(kind, farm) for farm in (RequestError, EnvironmentFault, RenderError, IntegrityError)
        ) == (kind is not AtlasError)
    assert issubclass(PlanConflictError, RequestError)
    assert all(issubclass(kind, EnvironmentFault) for kind in (StoreError, BrokerError, DeviceError))
    assert issubclass(ObjectNotFound, KeyError)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_its_sentence_and_travels(kind: type[AtlasError]) -> None:
    """To the parent of a worker process: pickled and back."""
    error = kind("the worker", "worker") if kind is MissingExtraError else kind("no object 'a' in b: put it there")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert "'a' in b" in str(error) or kind is MissingExtraError  # KeyError would quote it


def test_a_missing_extra_says_what_to_install() -> None:
    said = str(MissingExtraError("feature-atlas worker", "worker"))
    assert said == "feature-atlas worker needs more than the reader: pip install 'feature-atlas[worker]'"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("layer2.0.conv4", "; did you mean layer2.0.conv3, layer2.0.conv2 or layer2.0.conv1?"),
        ("fx", "; did you mean fc?"),
        ("something else", ""),
        ("", ""),
    ],
)
def test_did_you_mean_what_is_near(given: str, expected: str) -> None:
    assert did_you_mean(given, ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.conv3", "fc"]) == expected


def test_damage_is_not_the_environment() -> None:
    """A damaged picture must not be retried for ever."""
    assert not issubclass(IntegrityError, EnvironmentFault)

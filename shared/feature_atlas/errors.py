"""Everything that can go wrong, drawn and then coded.

* AtlasError                       its text is one sentence for a person; ``exit_code`` is the command's
  - RequestError           2       the request is wrong; never retried
    + MissingExtraError    2       a Python package of an extra is not installed
    + PlanConflictError    2       another model or recipe lives at this URL
  - IntegrityError         4       stored bytes are not what their record says
  - EnvironmentFault       5       the surroundings failed; retried in place, no attempt counted
    + StoreError           5
      / ObjectNotFound     5       also a KeyError
    + WeightsError         5
    + BrokerError          5
    + DeviceError          5
  - RenderError            3       the job itself failed; counted, isolated and recorded

The farm acts on the three kinds: a wrong request, the environment, the job itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AtlasError(Exception):
    """Any error of this project.  ``str(error)`` is one sentence: given, possible, what to do."""

    exit_code = 1


class RequestError(AtlasError):
    """The request cannot be fulfilled, today or tomorrow: never retried."""

    exit_code = 2


class MissingExtraError(RequestError):
    """A command needs a package that the base install lacks."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, extra)  # both, so that the error survives pickling

    def __str__(self) -> str:
        return f"{self.args[0]} needs more than the reader: pip install 'feature-atlas[{self.args[1]}]'"


class PlanConflictError(RequestError):
    """The URL holds an atlas of another model, or another recipe under a variant's name."""


class IntegrityError(AtlasError):
    """Stored bytes differ from their record."""

    exit_code = 4


class EnvironmentFault(AtlasError):
    """Store, broker, device or a source of weights failed; the job is not to blame."""

    exit_code = 5


class StoreError(EnvironmentFault):
    """An object store could not be read or written."""


class ObjectNotFound(StoreError, KeyError):
    """There is no object under this key."""

    def __str__(self) -> str:  # KeyError would quote the sentence
        return str(self.args[0]) if self.args else "no such object"


class WeightsError(EnvironmentFault):
    """Weights could not be had from where they are published; the atlas's own store may be well."""


class BrokerError(EnvironmentFault):
    """The message broker could not be reached or used."""


class DeviceError(EnvironmentFault):
    """The GPU (or its memory) failed."""


class RenderError(AtlasError):
    """This very job failed: not finite, out of memory alone, a layer that cannot be optimised."""

    exit_code = 3


def did_you_mean(given: str, possible: Iterable[str], *, most: int = 3) -> str:
    """Returns ``"; did you mean a, b or c?"``, or an empty string when nothing is near."""
    near = difflib.get_close_matches(given, list(possible), n=most, cutoff=0.5)
    if not near:
        return ""
    head = ", ".join(near[:-1])
    return f"; did you mean {head + ' or ' if head else ''}{near[-1]}?"

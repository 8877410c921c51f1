"""Feature Atlas: the contract and the reader.  Needs neither torch nor Celery.

    from feature_atlas import Atlas
    atlas = Atlas.open("s3://bucket/resnet50")

Names are imported when they are first used, so that ``import feature_atlas`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Atlas",
    "AtlasError",
    "EnvironmentFault",
    "IntegrityError",
    "Job",
    "Manifest",
    "ModelRef",
    "Plan",
    "PlanConflictError",
    "PlanFile",
    "Recipe",
    "RenderError",
    "RequestError",
    "StoreError",
    "Unit",
    "__version__",
    "open_store",
    "preset",
]

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas
    from feature_atlas.errors import (
        AtlasError,
        EnvironmentFault,
        IntegrityError,
        PlanConflictError,
        RenderError,
        RequestError,
        StoreError,
    )
    from feature_atlas.manifest import Manifest
    from feature_atlas.plan import Plan, PlanFile
    from feature_atlas.presets import preset
    from feature_atlas.spec import Job, ModelRef, Recipe, Unit
    from feature_atlas.store import open_store

_HOMES = {
    "atlas": ("Atlas",),
    "errors": tuple(name for name in __all__ if name.endswith(("Error", "Fault"))),
    "manifest": ("Manifest",),
    "plan": ("Plan", "PlanFile"),
    "presets": ("preset",),
    "spec": ("Job", "ModelRef", "Recipe", "Unit"),
    "store": ("open_store",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'feature_atlas' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"feature_atlas.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""How an atlas grows: plan files that are only ever added, by any number of processes at once.

A writer puts its own file and looks afterwards.  Of two requests that contradict each other at least one sees the
other, takes its file back and is refused; no lock and no conditional put is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from feature_atlas import keys, manifest, presets
from feature_atlas.errors import IntegrityError, ObjectNotFound, PlanConflictError, RequestError
from feature_atlas.plan import AtlasFile, Plan, PlanFile, describe_model, difference
from feature_atlas.spec import ModelRef
from feature_atlas.store import Store

log = logging.getLogger(__name__)


def add(store: Store, model: ModelRef, file: PlanFile) -> None:
    """Adds one request to the atlas in ``store``, or begins the atlas; the same request again changes nothing.

    Raises:
        PlanConflictError: another model, or another recipe under a variant's name; the text names the difference.
        RequestError: as :func:`check_free`.
        IntegrityError: what is there is damaged, or of a newer release.
    """
    if check(store, model, file):
        return
    digest = file.digest()
    store.put(keys.plan(digest), manifest.dump(file), content_type="application/json", immutable=True)
    try:
        others = {name: other for name, other in read_plans(store, {digest: file}).items() if name != digest}
        here = read_file(store)
        if here is None:
            _check_alone(store, model, others)
            here = AtlasFile(model=model)
            store.put(keys.ATLAS, manifest.dump(here), content_type="application/json")
        _check_fits(here, union(here.model, others), model, file)
    except PlanConflictError:
        store.delete(keys.plan(digest))
        raise


def check(store: Store, model: ModelRef, file: PlanFile) -> bool:
    """Whether the atlas in ``store`` already holds the request; writes nothing.

    Raises as :func:`add` and :func:`check_free`.
    """
    digest = file.digest()
    Plan(model, {digest: file})  # whole in itself
    here = read_file(store)
    if here is None:
        check_free(store)
        return False
    plan = union(here.model, read_plans(store))
    _check_fits(here, plan, model, file)
    return digest in plan.files


def check_free(store: Store) -> None:
    """Refuses to begin an atlas where publishing it would replace somebody's files; an atlas that is there may grow.

    Raises:
        RequestError: a file is there under a name that publish writes, and no ``atlas.json``.
    """
    # One narrow listing per name: a folder or bucket may hold any number of other things.
    held = next((key for key in keys.TOP if any(info.key == key for info in store.list(key))), None)
    if held is not None and read_file(store) is None:  # again: another process may have begun one meanwhile
        raise RequestError(
            f"{store.url} already holds {held}, which is not an atlas's (there is no {keys.ATLAS}):"
            " choose an empty folder or prefix"
        )


def read_file(store: Store) -> AtlasFile | None:
    """``atlas.json``, or None where there is none.

    Raises:
        IntegrityError: damaged, or of a newer release.
    """
    try:
        data = store.get(keys.ATLAS)
    except ObjectNotFound:
        return None
    return manifest.load(AtlasFile, data, f"{keys.ATLAS} of {store.url}")


def read_plans(store: Store, known: Mapping[str, PlanFile] | None = None) -> dict[str, PlanFile]:
    """Every plan file, oldest first; those already known are not read again: they never change.

    Raises:
        IntegrityError: one is damaged, or of a newer release.
    """
    files: dict[str, PlanFile] = {}
    for info in sorted(store.list(keys.PLANS), key=lambda info: (info.modified, info.key)):
        digest = info.key.removeprefix(keys.PLANS).removesuffix(".json")
        try:
            file = (known or {}).get(digest) or manifest.load(
                PlanFile, store.get(info.key), f"{info.key} of {store.url}"
            )
        except ObjectNotFound:  # taken back between listing and reading
            continue
        if file.digest() != digest:
            raise IntegrityError(f"{info.key} of {store.url} is damaged: its content does not match its name")
        files[digest] = file
    return files


def union(model: ModelRef, files: Mapping[str, PlanFile]) -> Plan:
    """The plan of all files.  Where two contradict each other, the older holds (the other's maker was refused)."""
    try:
        return Plan(model, files)
    except PlanConflictError:
        plan = Plan(model, {})
    for digest, file in files.items():
        try:
            plan = Plan(model, {**plan.files, digest: file})
        except PlanConflictError as conflict:
            log.warning("%s is left out: %s", keys.plan(digest), conflict)
    return plan


def _check_fits(here: AtlasFile, plan: Plan, model: ModelRef, file: PlanFile) -> None:
    if here.model != model:
        raise PlanConflictError(
            f"this place holds an atlas of {describe_model(here.model)}, not of {_told_apart(here.model, model)}:"
            " choose another URL"
        )
    for name, recipe in file.variants.items():
        known = plan.variants.get(name, recipe)
        if known != recipe:
            raise PlanConflictError(
                f"variant {name!r} already has another recipe here ({difference(known, recipe)});"
                f" give the new one another name, as in --variant {name}2={presets.nearest(recipe, name)}"
            )
    Plan(model, {**plan.files, file.digest(): file})


def _told_apart(here: ModelRef, model: ModelRef) -> str:
    """The other model by name and weights; where these are the same, with the fields that differ."""
    told = describe_model(model)
    fields = [field for field in ModelRef.model_fields if getattr(here, field) != getattr(model, field)]
    return told if told != describe_model(here) else f"{told} with another {' and '.join(fields)}"


def _check_alone(store: Store, model: ModelRef, others: Mapping[str, PlanFile]) -> None:
    for digest, other in others.items():
        if other.model != model.digest():
            raise PlanConflictError(
                f"somebody began an atlas of another model at {store.url} at the same time ({keys.plan(digest)}):"
                " choose another URL, or remove that file and try again"
            )

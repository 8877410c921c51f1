"""deploy/k8s as a cluster would see it: built by kustomize, environments resolved as the kubelet does."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy/k8s"
OVERLAYS = ("overlays/cpu", "overlays/gpu")
ALL = (*OVERLAYS, "enqueue")

Manifest = dict[str, Any]


@functools.cache
def text(part: str) -> str:
    """What ``kubectl apply -k`` would send."""
    tool = shutil.which("kubectl")
    if tool is None:
        pytest.skip("no kubectl: install one from 1.27 (its kustomize builds deploy/k8s; .ci/run shows how)")
    done = subprocess.run([tool, "kustomize", FOLDER / part], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(part: str) -> list[Manifest]:
    """Every object of one kustomization."""
    return list(yaml.safe_load_all(text(part)))


def one(part: str, kind: str, name: str) -> Manifest:
    """The object of that kind and name."""
    (found,) = [row for row in manifests(part) if row["kind"] == kind and row["metadata"]["name"] == name]
    return found


def pods(part: str) -> dict[str, Manifest]:
    """Name -> pod template of every object that has one."""
    found = {}
    for row in manifests(part):
        template = row.get("spec", {}).get("template") if isinstance(row.get("spec"), dict) else None
        if template:
            found[row["metadata"]["name"]] = template
    return found


def environ(part: str, container: Manifest, secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """A container's variables: from config maps, secrets and literals, ``$(NAME)`` by what stands before.

    Raises:
        KeyError: a secret or one of its keys is missing and not optional.
    """
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found.update(one(part, "ConfigMap", source["configMapRef"]["name"])["data"])
    for row in container.get("env", ()):
        if "value" in row:
            found[row["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), str(row["value"]))
            continue
        ref = row["valueFrom"]["secretKeyRef"]
        if ref.get("optional") and ref["key"] not in secrets.get(ref["name"], {}):
            continue
        found[row["name"]] = secrets[ref["name"]][ref["key"]]
    return found


def referenced(part: str) -> set[tuple[str, str]]:
    """(secret, key) of everything that is taken from one."""
    return set(_references(manifests(part)))


def _references(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [pair for item in value for pair in _references(item)]
    if not isinstance(value, dict):
        return []
    found = [(ref["name"], ref["key"]) for ref in [value.get("secretKeyRef")] if ref]
    found += [(ref["name"], ref["key"]) for ref in value.get("secretTargetRef", ())]
    return found + [pair for item in value.values() for pair in _references(item)]


def copy(to: Path) -> Path:
    """A copy of the folder that a test may spoil."""
    return Path(shutil.copytree(FOLDER, to / "k8s"))

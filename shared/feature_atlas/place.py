"""Which machine's folder an atlas URL means: ``/data/atlas`` here need not be ``/data/atlas`` there.

Whoever enqueues leaves a random token in the atlas and names it to the broker; a worker that does not find the same
token looks at another machine's folder.  A shared file system passes, wherever it is mounted under the same path.
The token also says that the atlas was enqueued and not cancelled, to workers whose broker has forgotten everything.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
from pathlib import Path

from feature_atlas import keys
from feature_atlas.errors import ObjectNotFound, RequestError
from feature_atlas.store import DirectoryStore, Store, open_store

log = logging.getLogger(__name__)


def check_shared(url: str) -> None:
    """Looks whether other processes can write to a place of this kind; contacts nothing.

    Raises:
        RequestError: memory of one process, a place to read from only, or no place.
    """
    if url.startswith("memory:") or url.lower().startswith(("http://", "https://")):
        raise RequestError(
            f"workers cannot write to {url!r}: use a folder that all of them share, or s3://bucket/prefix"
        )
    open_store(url)


def describe(store: Store) -> str:
    """What the broker keeps of an atlas's place (JSON); leaves a token in an atlas that has none."""
    about = {"host": socket.gethostname(), "token": _token(store) or _leave(store)}
    if isinstance(store, DirectoryStore):
        about["machine"] = _machine()
    return json.dumps(about)


def is_enqueued(store: Store) -> bool:
    """Whether somebody enqueued this atlas and nobody cancelled it since.  Raises StoreError."""
    return _token(store) is not None


def withdraw(store: Store) -> None:
    """Takes the token back: the atlas is cancelled.  Raises StoreError."""
    store.delete(keys.PLACE)
    store.delete(keys.PAUSED)


def hold(store: Store) -> None:
    """Says in the atlas that it is paused: whoever sends its jobs to a new broker says so there.  Raises StoreError."""
    store.put(keys.PAUSED, b"paused\n", content_type="text/plain")


def release(store: Store) -> bool:
    """Ends that; whether it was paused.  Raises StoreError."""
    held = is_held(store)
    if held:
        store.delete(keys.PAUSED)
    return held


def is_held(store: Store) -> bool:
    """Whether the atlas says that it is paused.  Raises StoreError."""
    return _read(store, keys.PAUSED) is not None


def difference(store: Store, described: str | bytes | None) -> str | None:
    """One sentence where the folder behind ``store`` is not the one described; None where all is well."""
    if not isinstance(store, DirectoryStore) or not described:
        return None
    try:
        about = json.loads(described)
        machine, token, host = about.get("machine"), about.get("token"), about.get("host", "another machine")
    except (ValueError, AttributeError):
        return None
    # On the machine that enqueued, a folder without its token was removed or restored: no foreign one.
    if token is None or machine == _machine() or _token(store) == token:
        return None
    return (
        f"{store.url} on this machine ({socket.gethostname()}) is not the folder that {host} enqueued:"
        " share that folder under the same path, or use s3://"
    )


def _token(store: Store) -> str | None:
    return _read(store, keys.PLACE)


def _read(store: Store, key: str) -> str | None:
    try:
        return store.get(key).decode("ascii", "replace").strip() or None
    except ObjectNotFound:
        return None


def _leave(store: Store) -> str:
    store.put(keys.PLACE, secrets.token_hex(16).encode(), content_type="text/plain")
    return _token(store) or ""


def _machine() -> str:
    """Tells machines apart: containers of one image share neither host name nor folders."""
    try:
        boot = Path("/etc/machine-id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"

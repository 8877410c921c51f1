"""Weights over HTTP: bounded, and kept in a cache where they are published ones."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import torch

from feature_atlas.errors import RequestError, WeightsError

log = logging.getLogger(__name__)

#: The largest published weights have 2.6 GB (ViT-H/14, RegNetY-128GF).
MAX_BYTES = 8 * 2**30
#: Seconds without a byte.
TIMEOUT = 60.0
_CHUNK = 2**20


def http_get(url: str, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes behind an http(s) URL.

    Raises:
        RequestError: the server has no such file, or it has more than ``limit`` bytes.
        WeightsError: it cannot be reached, or the transfer broke.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise RequestError(f"cannot download {url!r}: http:// and https:// only")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise RequestError(f"cannot download {url!r}: {error}") from None
    if "@" in parts.netloc:
        raise RequestError("a weights URL holds no user and password: give a signed URL, an s3:// URL, or a local file")
    shown = parts._replace(query="...").geturl() if parts.query else url  # a signed URL's query is a key
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "feature-atlas"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            declared = int(response.headers.get("Content-Length") or -1)
            if declared > limit:
                raise _too_large(shown, limit)
            data = bytearray()
            while chunk := response.read(_CHUNK):
                data += chunk
                if len(data) > limit:
                    raise _too_large(shown, limit)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 410):
            raise RequestError(f"cannot download {shown}: the server says {error.code} {error.reason}") from None
        raise WeightsError(f"cannot download {shown}: the server says {error.code} {error.reason}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise RequestError(f"cannot download {shown!r}: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(f"cannot download {shown} ({reason}): check the network, or give a local file") from error
    if declared >= 0 and len(data) != declared:
        raise WeightsError(f"cannot download {shown}: it ended after {len(data)} of {declared} bytes")
    return bytes(data)


def cached(url: str) -> bytes:
    """The bytes of a file that torchvision publishes, from the cache or downloaded into it.

    The cache is ``FEATURE_ATLAS_CACHE_DIR``, or torch's own.

    The file's name carries the first digits of its SHA-256: a cached file with another one is downloaded again.

    Raises:
        WeightsError: it cannot be downloaded, or what came is not what its name says.
    """
    own = os.environ.get("FEATURE_ATLAS_CACHE_DIR")
    folder = Path(own).expanduser() if own else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    wanted = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = wanted[1] if wanted else ""
    if path.exists():
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest().startswith(prefix):
            return data
        log.warning("%s is damaged; it is downloaded again", path)
    try:
        data = http_get(url)
    except RequestError as error:  # published weights that are gone for now: the request was right
        raise WeightsError(str(error)) from error
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(prefix):
        raise WeightsError(f"what {url} sent has SHA-256 {found[:16]}..., not {prefix}: it was altered on the way")
    _keep(path, data)
    return data


def _too_large(url: str, limit: int) -> RequestError:
    return RequestError(f"cannot download {url}: it has more than {limit} bytes")


def _keep(path: Path, data: bytes) -> None:
    """Writes the file into the cache in one move; a cache that cannot be written to only costs time."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("cannot keep %s: %s", path, error.strerror or error)
        with contextlib.suppress(OSError):
            temporary.unlink()

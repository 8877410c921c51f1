"""A published atlas behind https: read only, anonymous, without listings.

A web server lists nothing, so what an atlas holds is told by its own ``published.json`` and ``layers/``.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from feature_atlas import channels, keys
from feature_atlas.errors import IntegrityError, ObjectNotFound, RequestError, StoreError
from feature_atlas.objects import ObjectInfo, check_key, check_prefix
from feature_atlas.spec import Unit

if TYPE_CHECKING:
    import urllib3

    from feature_atlas.publish.records import LayerFile, PublishedFile

log = logging.getLogger(__name__)

#: Bytes; nothing larger is read into memory at once.
LARGEST = 512 * 2**20
#: Seconds until a connection stands, and between two bytes of an answer.
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0
TRIES = 4
CONNECTIONS = 16


class HttpStore:
    """Objects below ``https://host/path``.  Thread-safe; what was published is read once and kept.

    Raises:
        RequestError: the URL carries a password or has no host.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or "@" in parts.netloc:
            raise RequestError("an atlas's address is https://host/path, without a name and a password in it")
        path = parts.path.rstrip("/").removesuffix(f"/{keys.PAGE}").removesuffix(f"/{keys.ATLAS}")
        self.url = f"{parts.scheme.lower()}://{parts.netloc}{path}"
        self._lock = threading.Lock()
        self._process = 0
        self._pool: urllib3.PoolManager
        self._published: PublishedFile | None = None
        self._layers: dict[str, LayerFile] = {}

    def __repr__(self) -> str:
        return f"HttpStore({self.url!r})"

    def get(self, key: str) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        return self._read(key, {}, LARGEST)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        if length <= 0:
            return self._read(key, {"Range": "bytes=0-0"}, LARGEST) and b""
        data = self._read(key, {"Range": f"bytes={start}-{start + length - 1}"}, LARGEST, start)
        return data[:length]

    def _read(self, key: str, headers: dict[str, str], most: int, start: int = 0) -> bytes:
        import urllib3.exceptions

        url = f"{self.url}/{quote(check_key(key))}"
        try:
            answer = self._manager().request("GET", url, headers=headers, preload_content=False)
            with answer:
                if answer.status in (403, 404, 410):  # a bucket that hides its listing says 403 for what is not there
                    raise ObjectNotFound(f"no object {key!r} at {self.url} (the server said {answer.status})")
                if answer.status == 416:
                    return b""
                if answer.status not in (200, 206):
                    raise StoreError(f"cannot read {url}: the server said {answer.status}")
                # A server without ranges answers 200 with everything.
                skip = start if answer.status == 200 else 0
                data = answer.read(most + skip + 1, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise StoreError(f"cannot read {url}: {_why(error)}") from None
        if len(data) > most + skip:
            raise StoreError(f"{url} is larger than {most} bytes: it is not read")
        return data[skip:]

    def _manager(self) -> urllib3.PoolManager:
        with self._lock:
            if self._process != os.getpid():  # a fork must not share sockets
                self._pool, self._process = _pool(), os.getpid()
            return self._pool

    def put(self, key: str, data: bytes, *, content_type: str = "", immutable: bool = False) -> None:
        """Always refused."""
        raise StoreError(f"{self.url} can only be read: write to a folder or to s3://bucket/prefix")

    def delete(self, key: str) -> None:
        """Always refused."""
        raise StoreError(f"{self.url} can only be read: nothing there can be removed")

    def link(self, key: str, *, expires: int = 3600) -> str:
        """The plain URL; it does not expire."""
        return f"{self.url}/{quote(check_key(key))}"

    # -- what is there, from what was published

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All published objects whose key starts with ``prefix``, sorted by key, as of the last publish."""
        check_prefix(prefix)
        if prefix.startswith(keys.PLANS) or not prefix:
            self._published, self._layers = None, {}  # whoever opens or reloads an atlas begins with its plans
        yield from sorted(info for info in self._all(prefix) if info.key.startswith(prefix))

    def _all(self, prefix: str) -> Iterator[ObjectInfo]:
        published = self._root()
        if published is None:
            return
        # The order of plans is the order in which they were made.
        yield from (ObjectInfo(keys.plan(digest), 0, digest, float(n)) for n, digest in enumerate(published.plans))
        for entry in (*published.layers, *published.files):
            yield ObjectInfo(entry.key, entry.bytes, entry.sha256, 0.0)
        per_unit: dict[str, Callable[[LayerFile], Iterator[ObjectInfo]]] = {
            keys.IMAGES: _images, keys.MANIFESTS: _manifests, keys.DEAD: _dead, keys.ERRORS: _errors,
            keys.PACKS: _packs,
        }  # fmt: skip
        for kind, told in per_unit.items():
            if kind.startswith(prefix) or prefix.startswith(kind):
                wanted = prefix.split("/")[2] if prefix.count("/") >= 3 else ""
                for name in published.layer_names():
                    if not wanted or name == wanted:
                        yield from told(self._layer(name))

    def _root(self) -> PublishedFile | None:
        from feature_atlas.manifest import load
        from feature_atlas.publish.records import PublishedFile

        if self._published is None:
            try:
                self._published = load(PublishedFile, self.get(keys.PUBLISHED), f"{keys.PUBLISHED} of {self.url}")
            except ObjectNotFound:
                log.warning("%s was never published: 'feature-atlas publish' makes it readable over https", self.url)
        return self._published

    def _layer(self, name: str) -> LayerFile:
        from feature_atlas.manifest import load
        from feature_atlas.publish.records import LayerFile

        if name not in self._layers:
            key = keys.layer(name)
            file = load(LayerFile, self.get(key), f"{key} of {self.url}")
            if file.layer != name:
                raise IntegrityError(f"{key} of {self.url} tells of another layer, {file.layer!r}")
            self._layers[name] = file
        return self._layers[name]


def _why(error: Exception) -> str:
    """What hinders, in words."""
    from urllib3 import exceptions as known

    reason = error.reason if isinstance(error, known.MaxRetryError) and error.reason else error
    told = {
        known.NameResolutionError: "there is no host of this name",
        known.NewConnectionError: "nobody answers there",
        known.ConnectTimeoutError: f"nobody answered within {CONNECT_TIMEOUT:g} s",
        known.ReadTimeoutError: f"it fell silent for {READ_TIMEOUT:g} s",
        known.SSLError: "its certificate, or its TLS, is not to be trusted",
        known.ProtocolError: "the connection broke",
    }
    return next((words for kind, words in told.items() if isinstance(reason, kind)), type(reason).__name__)


@functools.cache
def _retry() -> urllib3.Retry:
    import urllib3

    return urllib3.Retry(
        TRIES, redirect=3, backoff_factor=0.3, backoff_jitter=0.3, status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("GET",), raise_on_status=False,
    )  # fmt: skip


def _pool() -> urllib3.PoolManager:
    import urllib3

    from feature_atlas import __version__

    return urllib3.PoolManager(
        maxsize=CONNECTIONS, block=True, retries=_retry(),
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
        headers={"User-Agent": f"feature-atlas/{__version__}", "Accept-Encoding": "identity"},
    )  # fmt: skip


def _images(file: LayerFile) -> Iterator[ObjectInfo]:
    for variant, group in file.variants.items():
        for row in group.rows:
            unit = Unit(variant, file.layer, row.channel)
            for n, (digest, size) in enumerate(zip(row.sha256, row.bytes, strict=True)):
                yield ObjectInfo(keys.image(unit, n), size, digest, 0.0)


def _manifests(file: LayerFile) -> Iterator[ObjectInfo]:
    for variant, group in file.variants.items():
        for row in group.rows:
            yield ObjectInfo(keys.manifest(Unit(variant, file.layer, row.channel)), 0, row.sha256[0], 0.0)


def _dead(file: LayerFile) -> Iterator[ObjectInfo]:
    for variant, group in file.variants.items():
        for row in group.rows:
            if row.status == "dead":
                yield ObjectInfo(keys.dead(Unit(variant, file.layer, row.channel)), 0, "", 0.0)


def _errors(file: LayerFile) -> Iterator[ObjectInfo]:
    for variant, group in file.variants.items():
        for channel in channels.parse(group.failed, file.total) if group.failed else ():
            yield ObjectInfo(keys.error(Unit(variant, file.layer, channel)), 0, "", 0.0)


def _packs(file: LayerFile) -> Iterator[ObjectInfo]:
    for variant, group in file.variants.items():
        for number, block in group.blocks.items():
            if block.pack_sha256:
                key = keys.pack(variant, file.layer, int(number))
                yield ObjectInfo(key, block.pack_bytes, block.pack_sha256, 0.0)

"""A page server on the loopback interface: shows private atlases through this machine's own credentials.

Everything lies below a random token; nothing but the files of the page is given out, whatever else the store holds.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from feature_atlas import keys
from feature_atlas.errors import AtlasError, ObjectNotFound
from feature_atlas.objects import Store, is_key

log = logging.getLogger(__name__)

#: Bytes of answers that are kept.
KEPT = 256 * 2**20
#: What a page may ask for: not weights, not errors (they hold tracebacks), nothing a stranger put beside.
_TOP = {keys.ATLAS, *keys.TOP}
_BELOW = (keys.IMAGES, keys.MANIFESTS, keys.SHEETS, keys.LAYERS, keys.PACKS, keys.PLANS, "run/", "initial/")
_TYPES = {
    "png": "image/png", "webp": "image/webp", "json": "application/json", "js": "text/javascript; charset=utf-8",
    "html": "text/html; charset=utf-8", "tar": "application/x-tar", "gz": "application/gzip",
    "jsonl": "application/jsonl", "md": "text/markdown; charset=utf-8",
}  # fmt: skip
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


def allowed(key: str) -> bool:
    """Whether a page may read this key."""
    return is_key(key) and (key in _TOP or key.startswith(_BELOW))


class PageServer(ThreadingHTTPServer):
    """Serves atlases at ``http://127.0.0.1:PORT/TOKEN/0/index.html``, ``.../1/index.html`` and so on.

    Args:
        stores: what to show.
        port: 0 takes a free one.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, stores: Sequence[Store], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.stores = list(stores)
        self.token = secrets.token_urlsafe(18)
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser may call us; anything else is another site's name bent to this address."""
        return (f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}")

    def url(self, number: int = 0) -> str:
        """The address of a page."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/{number}/{keys.PAGE}"

    def read(self, number: int, key: str) -> bytes:
        """A file's bytes; sheets and pictures of late are kept, what changes in a run is not."""
        if not key.startswith((keys.SHEETS, keys.IMAGES)):
            return self.stores[number].get(key)
        with self._lock:
            if (number, key) in self._kept:
                self._kept.move_to_end((number, key))
                return self._kept[number, key]
        data = self.stores[number].get(key)
        with self._lock:
            if (number, key) not in self._kept:
                self._kept[number, key] = data
                self._size += len(data)
            while self._size > KEPT:
                self._size -= len(self._kept.popitem(last=False)[1])
        return data

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes on to another page hangs up in mid-answer; whatever else goes wrong is logged."""
        if isinstance(sys.exc_info()[1], ConnectionError):
            log.debug("%s hung up", client_address)
        else:
            log.exception("an answer to %s failed", client_address)

    def forget(self) -> None:
        """Reads everything anew from now on."""
        with self._lock:
            self._kept.clear()
            self._size = 0


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "feature-atlas", ""
    # Answers are small and sent whole: do not wait for more to send.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        found = self._find()
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, b"not here\n", "text/plain", body=body)
            return
        match = _RANGE.match(self.headers.get("Range", ""))
        try:
            if (
                match and match[2] and found[1].startswith(keys.PACKS)
            ):  # they are large: only what was asked for is read
                self._part(*found, int(match[1]), int(match[2]), body=body)
                return
            data = self.server.read(*found)
        except ObjectNotFound:
            self._send(HTTPStatus.NOT_FOUND, b"not here\n", "text/plain", body=body)
        except AtlasError as error:
            log.warning("%s", error)
            self._send(HTTPStatus.BAD_GATEWAY, b"the store could not be read\n", "text/plain", body=body)
        else:
            self._file(data, found[1], body=body)

    def _find(self) -> tuple[int, str] | None:
        """(number of the store, key) of a request that may be answered."""
        if self.headers.get("Host", "") not in self.server.hosts:
            return None
        token, _, rest = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        number, _, key = rest.partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return None
        if not number.isdecimal() or int(number) >= len(self.server.stores) or not allowed(key or keys.PAGE):
            return None
        return int(number), key or keys.PAGE

    def _part(self, number: int, key: str, start: int, end: int, *, body: bool) -> None:
        kind = _TYPES["tar"]
        data = self.server.stores[number].get_range(key, start, end - start + 1) if start <= end else b""
        if not data:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, body=body)
            return
        span = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/*"}
        self._send(HTTPStatus.PARTIAL_CONTENT, data, kind, body=body, more=span)

    def _file(self, data: bytes, key: str, *, body: bool) -> None:
        kind = _TYPES.get(key.rpartition(".")[2], "application/octet-stream")
        match = _RANGE.match(self.headers.get("Range", ""))
        if match is None:
            self._send(HTTPStatus.OK, data, kind, body=body)
            return
        start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if start > end:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, body=body)
            return
        span = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._send(HTTPStatus.PARTIAL_CONTENT, data[start : end + 1], kind, body=body, more=span)

    def _send(
        self, status: HTTPStatus, data: bytes, kind: str, *, body: bool, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fresh = "private, max-age=3600" if "?v=" in self.path else "no-cache"
        headers = {
            "Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": fresh, "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "SAMEORIGIN",
            "Cross-Origin-Resource-Policy": "same-origin",
        }  # fmt: skip
        for name, value in {**headers, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)

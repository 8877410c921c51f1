"""An HTTP proxy before a store that answers as bad days do: busy, slowly, by half, or not at all."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class HttpFaults:
    """Forwards to a port of 127.0.0.1; a share of the requests meets a fault of one of these kinds.

    ``busy``: 503 SlowDown, nothing forwarded.  ``slow``: a second later.  ``half``: the answer breaks off in its
    middle, though the server did what was asked.  ``cut``: the connection closes without an answer.
    """

    KINDS = ("busy", "slow", "half", "cut")

    def __init__(self, target: int, share: float, seed: int) -> None:
        self.target, self.share = target, share
        self.random = random.Random(seed)
        #: Requests by the fault they met; ``fine`` for none.
        self.met: Counter[str] = Counter()
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                proxy.handle(self)

            do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                return  # a client that went away

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self.server.shutdown()
        self.server.server_close()

    def _fault(self) -> str:
        with self.lock:
            kind = self.random.choice(self.KINDS) if self.random.random() < self.share else "fine"
            self.met[kind] += 1
            return kind

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        kind = self._fault()
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if kind == "busy":
            self._answer(request, 503, [("Content-Type", "application/xml")], _BUSY)
            return
        if kind == "slow":
            time.sleep(1)
        if kind == "cut":
            request.close_connection = True
            return
        far = http.client.HTTPConnection("127.0.0.1", self.target, timeout=240)
        far.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():  # Host too: it is signed
            if name.lower() != "expect":
                far.putheader(name, value)
        far.endheaders(body or None)
        answer = far.getresponse()
        data = answer.read()
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("content-length", "transfer-encoding")]
        if request.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        self._answer(request, answer.status, headers, data, half=kind == "half")
        far.close()

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes,
        *, half: bool = False,
    ) -> None:  # fmt: skip
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if half:
            request.close_connection = True
            if not data:  # no body to break off: the headers have gone out, the connection ends
                return
            data = data[: len(data) // 2]
        request.wfile.write(data)

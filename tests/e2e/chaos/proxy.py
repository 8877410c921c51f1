"""A TCP proxy whose connections can be frozen without being closed: the half-open network of a lost route."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards a port of 127.0.0.1 to a broker; after :meth:`freeze` only new connections get through."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: Raised by a freeze: connections of an older generation are black holes.
        self._generation = 0
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Everything that is connected now hears nothing more, and is not told."""
        self._generation += 1

    def close(self) -> None:
        """Ends all connections."""
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, self._generation), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    sink.sendall(data)
        if generation == self._generation:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.close()
                self._sockets.discard(end)

"""The page server: what it gives out, and to whom."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from feature_atlas import keys
from feature_atlas.publish import publish
from feature_atlas.publish.layers import read_old
from feature_atlas.serve import PageServer, allowed
from feature_atlas.spec import Unit
from feature_atlas.store import MemoryStore
from tests import synthetic


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    store = MemoryStore()
    synthetic.write_atlas(store, (("conv1", 5),), size=24, failed=[Unit("channel", "conv1", 2)])
    store.put("weights/" + "0" * 64 + ".safetensors", b"secret")
    store.put("notes.txt", b"secret")
    publish(store)
    return store


@pytest.fixture(scope="module")
def server(store: MemoryStore) -> Iterator[PageServer]:
    with PageServer([store, store]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data, {name.lower(): value for name, value in answer.getheaders()}


def test_everything_that_the_page_needs_is_served(server: PageServer, store: MemoryStore) -> None:
    for info in store.list():
        if info.key.startswith((keys.WEIGHTS, keys.ERRORS)) or info.key == "notes.txt":
            continue
        status, data, headers = ask(server, f"/{server.token}/0/{info.key}?v=1")
        assert (status, data) == (200, store.get(info.key))
        assert headers["x-content-type-options"] == "nosniff"


def test_the_folder_itself_is_its_page(server: PageServer, store: MemoryStore) -> None:
    assert ask(server, f"/{server.token}/1/")[1] == store.get(keys.PAGE)
    assert server.url(1).endswith(f"/{server.token}/1/index.html")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/index.html", "/wrong/0/index.html", "/{token}/2/index.html", "/{token}/-1/index.html",
        "/{token}/0/weights/" + "0" * 64 + ".safetensors", "/{token}/0/errors/channel/conv1/00002.json",
        "/{token}/0/notes.txt", "/{token}/0/../0/atlas.json", "/{token}/0/%2e%2e/atlas.json",
        "/{token}/0//etc/passwd", "/{token}/0/images/../weights/x", "/{token}/0/images/%2e%2e/%2e%2e/x",
        "/{token}/0/.git/config", "/{token}/0/images/channel/conv1/00002.png",
    ],
)  # fmt: skip
def test_nothing_else_is(server: PageServer, path: str) -> None:
    status, data, _ = ask(server, path.replace("{token}", server.token))
    assert (status, data) == (404, b"not here\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "", "127.0.0.1:1"])
def test_a_site_that_bends_its_name_to_this_address_gets_nothing(server: PageServer, host: str) -> None:
    assert ask(server, f"/{server.token}/0/atlas.json", Host=host)[0] == 404


def test_it_listens_to_this_machine_only(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1" and len(server.token) >= 20


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(server: PageServer, method: str) -> None:
    assert ask(server, f"/{server.token}/0/atlas.json", method)[0] == 501


def test_a_browser_that_hangs_up_in_mid_answer_is_not_worth_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    large = MemoryStore()
    large.put("images/channel/conv1/00000.png", bytes(30_000_000))
    ended = threading.Event()

    class Server(PageServer):
        def handle_error(self, request: object, client_address: object) -> None:
            super().handle_error(request, client_address)
            ended.set()

    with Server([large]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
            path = f"/{server.token}/0/images/channel/conv1/00000.png"
            browser.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
            assert browser.recv(100).startswith(b"HTTP/1.1 200")
        assert ended.wait(20)
        server.shutdown()
        thread.join()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_ranges_and_heads(server: PageServer, store: MemoryStore) -> None:
    path, data = f"/{server.token}/0/atlas.js", store.get(keys.ATLAS_JS)
    status, piece, headers = ask(server, path, Range="bytes=3-9")
    assert (status, piece, headers["content-range"]) == (206, data[3:10], f"bytes 3-9/{len(data)}")
    assert ask(server, path, Range="bytes=5-")[1] == data[5:]
    assert ask(server, path, Range=f"bytes={len(data)}-")[0] == 416
    status, nothing, headers = ask(server, path, "HEAD")
    assert (status, nothing, headers["content-length"]) == (200, b"", str(len(data)))


def test_a_picture_in_a_pack_is_read_without_the_pack(
    server: PageServer, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_old(store, "conv1")
    assert file is not None
    group = file.variants["channel"]
    row, key = group.rows[1], keys.pack("channel", "conv1", 0)
    start, end = row.offsets[0], row.offsets[0] + row.bytes[0] - 1
    whole = store.get(key)

    def read(number: int, key: str) -> bytes:
        raise AssertionError(f"all of {key} was read")

    monkeypatch.setattr(server, "read", read)
    path = f"/{server.token}/0/{key}"
    status, piece, headers = ask(server, path, Range=f"bytes={start}-{end}")
    assert (status, headers["content-range"]) == (206, f"bytes {start}-{end}/*")
    assert hashlib.sha256(piece).hexdigest() == row.sha256[0]
    assert ask(server, path, Range=f"bytes={len(whole)}-{len(whole) + 9}")[0] == 416
    assert ask(server, path, Range="bytes=9-3")[0] == 416


@pytest.mark.parametrize(
    ("key", "yes"), [("atlas.json", True), ("sheets/16/a/b/000.webp", True), ("place", False), ("", False)]
)
def test_the_list_of_what_is_allowed(key: str, yes: bool) -> None:
    assert allowed(key) is yes

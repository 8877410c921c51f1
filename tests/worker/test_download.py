"""Downloads are bounded, whole or an error, and a damaged cache heals."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from feature_atlas.errors import RequestError, WeightsError
from feature_atlas_worker import download

CONTENT = bytes(range(256)) * 16
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``CONTENT`` in good and bad ways, by path; counts its requests."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        status = int(self.path[1:]) if self.path[1:].isdigit() else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "file:///etc/hostname")
        length = {"/cut": 2 * len(CONTENT), "/liar": 10**12}.get(self.path, len(CONTENT))
        if self.path != "/endless":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            for _ in range(100 if self.path == "/endless" else 1):
                self.wfile.write(CONTENT)
        except OSError:
            pass  # the reader has seen enough

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/checkpoints"


def test_a_file_comes_whole(server: str) -> None:
    assert download.http_get(f"{server}/file") == CONTENT


@pytest.mark.parametrize("path", ["/liar", "/endless"])
def test_too_much_is_refused_announced_or_not(server: str, path: str) -> None:
    with pytest.raises(RequestError, match="more than 8192 bytes"):
        download.http_get(server + path, limit=2 * len(CONTENT))


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_a_wrong_request(server: str, status: int) -> None:
    with pytest.raises(RequestError, match=f"the server says {status}"):
        download.http_get(f"{server}/{status}")


@pytest.mark.parametrize("path", ["/500", "/503", "/cut"])
def test_a_failing_server_is_the_environment(server: str, path: str) -> None:
    with pytest.raises(WeightsError, match="cannot download"):
        download.http_get(server + path)


def test_nobody_there_is_the_environment() -> None:
    with pytest.raises(WeightsError, match=r"refused\): check the network, or give a local file"):
        download.http_get("http://127.0.0.1:9/x.pth")


@pytest.mark.parametrize("url", ["http://[bad/x.pth", "http://a b/x.pth", "http://host:port/x"])
def test_what_is_no_url_is_a_wrong_request(url: str) -> None:
    with pytest.raises(RequestError, match="cannot download"):
        download.http_get(url)


def test_a_redirect_to_a_file_is_not_followed(server: str) -> None:
    with pytest.raises(WeightsError, match="302"):
        download.http_get(f"{server}/302")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://a/b", "/etc/hostname"])
def test_only_http_is_fetched(url: str) -> None:
    with pytest.raises(RequestError, match="http:// and https:// only"):
        download.http_get(url)


def test_a_published_file_is_downloaded_once(server: str, cache: Path) -> None:
    url = f"{server}/net-{SHA[:8]}.pth"
    assert [download.cached(url) for _ in range(3)] == [CONTENT] * 3
    assert len(Handler.requests) == 1
    assert [path.name for path in cache.iterdir()] == [f"net-{SHA[:8]}.pth"]


def test_the_cache_may_be_elsewhere(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_ATLAS_CACHE_DIR", str(tmp_path / "mine"))
    download.cached(f"{server}/net-{SHA[:8]}.pth")
    assert (tmp_path / f"mine/net-{SHA[:8]}.pth").read_bytes() == CONTENT


def test_a_damaged_cache_heals(server: str, cache: Path) -> None:
    url = f"{server}/net-{SHA[:8]}.pth"
    cache.mkdir(parents=True)
    kept = cache / f"net-{SHA[:8]}.pth"
    kept.write_bytes(CONTENT[:-1])
    assert download.cached(url) == CONTENT == kept.read_bytes()


def test_what_was_altered_on_the_way_is_not_kept(server: str, cache: Path) -> None:
    with pytest.raises(WeightsError, match="not 00000000: it was altered"):
        download.cached(f"{server}/net-00000000.pth")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_only_costs_time(server: str, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    assert download.cached(f"{server}/net-{SHA[:8]}.pth") == CONTENT


def test_published_weights_that_are_gone_are_the_environment(
    server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="404"):
        download.cached(f"{server}/404")

"""The broker: every way in which it cannot be used is one sentence."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from feature_atlas.broker import connect, examine, explain, for_kombu, for_redis, public, put
from feature_atlas.errors import AtlasError, BrokerError, RequestError
from tests.servers import RedisServer, free_port


@contextlib.contextmanager
def serving(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """A server that answers whatever it is sent as told, or not at all; to "" it hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while data := self.request.recv(4096):
                    if (reply := answer(data)) == b"":
                        return
                    if reply is not None:
                        self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def refusal(url: str, kind: type[AtlasError] = BrokerError, timeout: float = 5) -> str:
    with pytest.raises(kind) as caught:
        connect(url, timeout=timeout)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "amqp://localhost", "reddis://localhost"])
def test_what_is_no_url_of_a_broker_is_refused_with_those_that_are(url: str) -> None:
    assert "redis://" in refusal(url, RequestError)


def test_a_slip_is_recognised() -> None:
    assert "did you mean redis, rediss" in refusal("reddis://localhost", RequestError)


def test_a_wrong_port_or_database_number_is_refused() -> None:
    assert "not the URL" in refusal("redis://localhost:port/0", RequestError)


def test_nobody_there() -> None:
    assert "no broker at redis://127.0.0.1" in refusal(f"redis://127.0.0.1:{free_port()}/0")


def test_no_socket_there(valkey: RedisServer) -> None:
    assert "no broker" in refusal("redis+socket:///nowhere/s?virtual_host=0")
    connect(valkey.socket_url).close()


def test_a_server_that_says_nothing() -> None:
    with serving(lambda data: None) as url:
        assert "does not answer" in refusal(url, timeout=0.2)


def test_a_web_server() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        text = refusal(f"redis://127.0.0.1:{server.server_address[1]}/0", timeout=1)
        server.shutdown()
    assert "is it Redis" in text


def test_a_server_that_hangs_up_and_one_without_tls(valkey: RedisServer) -> None:
    with serving(lambda data: b"") as url:
        assert "hangs up at once: is it Redis, and without TLS" in refusal(url, timeout=1)
    assert "does it speak TLS" in refusal(valkey.url.replace("redis://", "rediss://"), timeout=1)


def test_a_broker_that_is_too_old() -> None:
    def old(data: bytes) -> bytes:
        if b"INFO" in data:
            info = b"redis_version:6.0.16\r\n"
            return b"$%d\r\n%s\r\n" % (len(info), info)
        return b"+PONG\r\n" if b"PING" in data else b"-ERR unknown command\r\n"

    with serving(old) as url:
        assert "Redis 6.0.16, which is too old: at least 6.2" in refusal(url)


def test_passwords(valkey: RedisServer) -> None:
    with valkey.client() as client:
        client.config_set("requirepass", "right")
        try:
            assert "wants a password" in refusal(valkey.url)
            assert "did not let us in" in refusal(valkey.url.replace("//", "//:secret@"))
            connect(valkey.url.replace("//", "//:right@")).close()
        finally:
            client.execute_command("AUTH", "right")
            client.config_set("requirepass", "")


def test_a_broker_that_may_throw_messages_away_is_used_with_a_warning(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with caplog.at_level(logging.WARNING):
                connect(valkey.url).close()
                connect(valkey.url).close()
            assert caplog.text.count("set noeviction") == 1
            assert [level for level, _, _ in examine(valkey.url)] == ["ok", "warn"]
        finally:
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("why", ["replica", "disk"])
def test_one_that_may_only_be_read_is_refused_for_what_it_is(valkey: RedisServer, why: str) -> None:
    words = {
        "replica": "a replica that may only be read: name its primary",
        "disk": "cannot write its data to its disk",
    }
    with valkey.taking_nothing(why):
        assert words[why] in refusal(valkey.url)
        ((level, what, text),) = examine(valkey.url)
        assert (level, what) == ("fail", "broker") and words[why] in text
        if why == "replica":  # can be looked at
            connect(valkey.url, write=False).close()
    connect(valkey.url).close()


def test_one_whose_memory_is_full_is_told_of_and_can_still_be_emptied(valkey: RedisServer) -> None:
    with valkey.taking_nothing("memory"):
        with connect(valkey.url) as client:
            put(client, "feature-atlas:flags", "atlas", "cancelled")
            with pytest.raises(redis.RedisError) as caught:
                client.set("feature-atlas:more", "x")
        assert "has its memory full (maxmemory)" in str(explain(caught.value, valkey.url))
        ((level, _, text),) = examine(valkey.url)
        assert level == "fail" and "has its memory full" in text


def test_doctor_is_told_what_is_there_or_what_fails(valkey: RedisServer) -> None:
    ((level, what, text),) = examine(valkey.url)
    assert (level, what) == ("ok", "broker") and text.startswith("Valkey ")
    assert [level for level, _, _ in examine(f"redis://127.0.0.1:{free_port()}/0")] == ["fail"]


def test_both_clients_get_their_spelling_of_a_socket() -> None:
    assert for_redis("redis+socket:///run/s?virtual_host=2") == "unix:///run/s?db=2"
    assert for_kombu("unix:///run/s?db=2") == "redis+socket:///run/s?virtual_host=2"
    assert for_kombu("redis://h/1") == for_redis("redis://h/1") == "redis://h/1"


def test_no_password_is_ever_shown() -> None:
    assert public("redis://user:secret@h:1/0") == "redis://user:***@h:1/0"
    assert "secret" not in public("redis://:secret@[broken/0")

"""S3 against a real gateway (Ceph): what it refuses, what it survives; and what a server sees on the wire."""

from __future__ import annotations

import datetime
import functools
import hashlib
import ipaddress
import json
import logging
import re
import ssl
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from feature_atlas import s3_client
from feature_atlas.errors import ObjectNotFound, RequestError, StoreError
from feature_atlas.s3 import S3Store
from feature_atlas.s3_client import Connection
from tests.servers import CephGateway, free_port, wait_until

SECRETS = ("AKATLAS", "SKATLASSECRET", "AKWRONG", "SKWRONG", "TOKENTOKEN")


@pytest.fixture
def bucket(ceph: CephGateway, environ: Callable[..., None]) -> str:
    """A bucket of one's own at Ceph, which the AWS_* variables lead to."""
    environ(**ceph.environ)
    return ceph.new_bucket()


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets AWS_* variables; two tries, so that a refusal comes soon."""

    def set_all(**variables: str) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def sentence(call: Callable[[], object], kind: type[Exception] = StoreError) -> str:
    """What the error says; neither it nor its traceback may hold a key."""
    with pytest.raises(kind) as caught:
        call()
    for secret in SECRETS:
        assert secret not in "".join(traceback.format_exception(caught.value, chain=True))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(store: S3Store) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: store.get("a"),
        "range": lambda: store.get_range("a", 0, 1),
        "write": lambda: store.put("a", b"x"),
        "list": lambda: list(store.list()),
        "delete": lambda: store.delete("a"),
    }


# -- what a real server refuses


def test_a_wrong_secret(bucket: str, environ: Callable[..., None]) -> None:
    environ(AWS_SECRET_ACCESS_KEY="SKWRONG")
    for call in everything(S3Store(f"s3://{bucket}/x")).values():
        assert "refuses the signature: check AWS_SECRET_ACCESS_KEY" in sentence(call)


def test_a_wrong_access_key(bucket: str, environ: Callable[..., None]) -> None:
    environ(AWS_ACCESS_KEY_ID="AKWRONG")
    for call in everything(S3Store(f"s3://{bucket}/x")).values():
        assert "does not know this access key: check AWS_ACCESS_KEY_ID" in sentence(call)


def test_a_missing_bucket(ceph: CephGateway, bucket: str) -> None:
    for call in everything(S3Store(f"s3://{bucket}-not/x")).values():
        assert sentence(call) == (
            f"there is no bucket '{bucket}-not' at 127.0.0.1:{ceph.port}: create it, or check the URL"
        )


def test_a_bucket_policy_that_allows_reading_only(ceph: CephGateway, bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    store.put("a", b"before")
    ceph.client().put_bucket_policy(
        Bucket=bucket,
        Policy=policy(bucket, "Deny", "s3:PutObject", "s3:DeleteObject"),
    )
    assert store.get("a") == b"before"
    assert [info.key for info in store.list()] == ["a"]
    said = sentence(lambda: store.put("a", b"after"))
    assert said == f"no permission to write s3://{bucket}/x/a: the credentials need s3:PutObject there"
    assert "need s3:DeleteObject" in sentence(lambda: store.delete("a"))
    assert store.get("a") == b"before"


def policy(bucket: str, effect: str, *actions: str) -> str:
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": effect, "Principal": {"AWS": ["*"]}, "Action": actions, "Resource": resources}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def nobody(bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store opened without any credentials."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return S3Store(f"s3://{bucket}/x")


def test_a_public_bucket_is_read_without_credentials(ceph: CephGateway, bucket: str, nobody: S3Store) -> None:
    client = ceph.client()
    client.put_bucket_policy(Bucket=bucket, Policy=policy(bucket, "Allow", "s3:GetObject", "s3:ListBucket"))
    client.put_object(Bucket=bucket, Key="x/a", Body=b"public")
    assert nobody.get("a") == b"public"
    assert [info.key for info in nobody.list()] == ["a"]
    with pytest.raises(ObjectNotFound):
        nobody.get("b")
    link = nobody.link("a")
    assert "?" not in link
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"public"
    assert "no AWS credentials found, and" in sentence(lambda: nobody.put("a", b"x"))


def test_a_private_bucket_without_credentials(nobody: S3Store) -> None:
    for call in everything(nobody).values():
        said = sentence(call)
        assert "no AWS credentials found" in said and "is not public: set AWS_ACCESS_KEY_ID" in said


# -- links


def test_a_signed_link_works_and_a_changed_one_does_not(bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    store.put("a", b"mine")
    store.put("b", b"not shared")
    link = store.link("a", expires=60)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link and "SKATLASSECRET" not in link
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"mine"
    for changed in (link.replace("/a?", "/b?"), link.replace("Expires=60", "Expires=61"), link[:-1] + "0" + link[-1]):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(changed)
        assert caught.value.code == 403
        caught.value.close()


def test_a_link_for_more_than_a_week_is_refused(bucket: str) -> None:
    store, week = S3Store(f"s3://{bucket}"), 7 * 24 * 3600
    assert f"X-Amz-Expires={week}" in store.link("a", expires=week)
    for expires in (0, -1, week + 1):
        said = sentence(functools.partial(store.link, "a", expires=expires), RequestError)
        assert said.startswith(f"a signed link lasts from 1 to {week} seconds (7 days), not {expires}")


def test_warns_that_a_link_ends_with_temporary_credentials(
    bucket: str, environ: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    S3Store(f"s3://{bucket}").link("a")
    assert caplog.text == ""
    environ(AWS_SESSION_TOKEN="TOKENTOKEN")
    store = S3Store(f"s3://{bucket}")
    with caplog.at_level(logging.WARNING):
        store.link("a")
        store.link("b")
    assert caplog.text.count("the link ends with them") == 1  # a shared page has thousands
    assert not any(secret in caplog.text for secret in SECRETS)


# -- what an object carries


def test_objects_say_what_they_are(ceph: CephGateway, bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    store.put("images/v/l/00000.png", b"png", content_type="image/png", immutable=True)
    store.put("atlas.json", b"{}")
    client = ceph.client()
    image = client.head_object(Bucket=bucket, Key="x/images/v/l/00000.png")
    assert image["Metadata"] == {"sha256": hashlib.sha256(b"png").hexdigest()}
    assert image["ContentType"] == "image/png"
    assert image["CacheControl"] == "public, max-age=31536000, immutable"
    record = client.head_object(Bucket=bucket, Key="x/atlas.json")
    assert record["ContentType"] == "application/json"
    assert record["CacheControl"] == "no-cache"
    assert record.get("ContentEncoding", "") == ""  # aws-chunked would stay with the object


def test_the_version_is_the_etag(ceph: CephGateway, bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    store.put("a", b"x")
    (info,) = store.list()
    assert f'"{info.version}"' == ceph.client().head_object(Bucket=bucket, Key="x/a")["ETag"]


def test_prefixes_are_apart(ceph: CephGateway, bucket: str) -> None:
    """Neither a neighbour whose name begins alike nor a folder's own empty object is listed."""
    one, two, root = (S3Store(f"s3://{bucket}{path}") for path in ("/a", "/ab", ""))
    one.put("k", b"1")
    two.put("k", b"2")
    for stranger in ("a/", "a/with space.txt", "a/.hidden"):
        ceph.client().put_object(Bucket=bucket, Key=stranger)
    assert [info.key for info in one.list()] == ["k"]
    assert [info.key for info in root.list()] == ["a/k", "ab/k"]
    assert one.get("k") == b"1"


# -- what it survives


def test_a_paused_server_delays_a_put(ceph: CephGateway, bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    store.put("a", b"old")
    data = b"new" * 1_000_000
    ceph.pause()
    try:
        with ThreadPoolExecutor(1) as pool:
            put = pool.submit(store.put, "a", data)
            with pytest.raises(TimeoutError):
                put.result(timeout=0.5)
            ceph.resume()
            put.result(timeout=240)
    finally:
        ceph.resume()
    assert store.get("a") == data


def test_puts_outlive_a_killed_server(ceph: CephGateway, bucket: str) -> None:
    """Killed in the middle of eight threads' puts and gone for longer than boto3 tries: every put arrives."""
    store = S3Store(f"s3://{bucket}/x")
    keys = [f"images/v/l/{n:05d}.png" for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(store.put, key, key.encode() * 1_000) for key in keys]
        wait_until(lambda: sum(put.done() for put in puts) >= 10, "the first puts")
        ceph.kill()
        time.sleep(1)
        ceph.start()
        for put in puts:
            put.result(timeout=120)
    assert [info.key for info in store.list()] == keys
    assert store.get(keys[50]) == keys[50].encode() * 1_000


def test_patience_ends(ceph: CephGateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas.s3.PATIENCE", 0.2)
    store = S3Store(f"s3://{bucket}/x")
    with pytest.raises(ObjectNotFound):
        store.get("a")  # the server has answered
    ceph.kill()
    assert f"cannot reach 127.0.0.1:{ceph.port}" in sentence(lambda: store.put("a", b"x"))
    ceph.start()
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_an_unreachable_server(environ: Callable[..., None]) -> None:
    port = free_port()
    environ(
        AWS_ENDPOINT_URL_S3=f"http://user:SKWRONG@127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="AKATLAS",
        AWS_SECRET_ACCESS_KEY="SKATLASSECRET",
    )
    said = sentence(lambda: S3Store("s3://bucket/x").get("a"))
    assert said.startswith(f"cannot reach 127.0.0.1:{port} (EndpointConnectionError): check the network")


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://"])
def test_an_endpoint_that_is_no_address(environ: Callable[..., None], endpoint: str) -> None:
    environ(AWS_ENDPOINT_URL_S3=endpoint, AWS_ACCESS_KEY_ID="AKATLAS", AWS_SECRET_ACCESS_KEY="SKATLASSECRET")
    assert "is no address: write http://HOST:PORT" in sentence(lambda: S3Store("s3://bucket/x").get("a"))


def test_half_a_credential(environ: Callable[..., None]) -> None:
    environ(AWS_ACCESS_KEY_ID="AKATLAS")
    assert "the AWS credentials cannot be used" in sentence(lambda: S3Store("s3://bucket/x").get("a"))


def test_a_missing_profile(environ: Callable[..., None]) -> None:
    environ(AWS_PROFILE="nobody")
    assert sentence(lambda: S3Store("s3://bucket/x").get("a")) == "there is no such AWS profile: check AWS_PROFILE"


FORK = """
import os, sys
from feature_atlas.s3 import S3Store
assert "boto3" not in sys.modules
store = S3Store(sys.argv[1])
store.put("a", b"x")
mine = store._connect().client
child = os.fork()
if not child:
    theirs = store._connect().client
    os._exit(0 if theirs is not mine and store.get("a") == b"x" else 1)
assert os.waitpid(child, 0)[1] == 0 and store._connect().client is mine and store.get("a") == b"x"
"""


def test_a_fork_makes_its_own_client(bucket: str) -> None:
    """Sockets shared with the parent would mix two conversations; boto3 is imported on first use."""
    done = subprocess.run([sys.executable, "-c", FORK, f"s3://{bucket}/x"], capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()


def test_clients_share_what_boto_knows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{name}.example")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", name)
        found.append(Connection()())
    assert [session.client.meta.endpoint_url for session in found] == ["http://one.example", "http://two.example"]
    assert [session.credentials.access_key for session in found if session.credentials] == ["one", "two"]
    descriptions = s3_client._descriptions(None)
    assert len(set(descriptions.search_paths)) == len(descriptions.search_paths)


def test_threads_share_one_client(bucket: str) -> None:
    store = S3Store(f"s3://{bucket}/x")
    with ThreadPoolExecutor(16) as pool:
        assert len({id(session.client) for session in pool.map(lambda _: store._connect(), range(64))}) == 1


# -- on the wire: a server of our own that says what it is told to


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012  (never changed)
    body: bytes = b""
    #: Bytes after which the connection breaks.
    breaks: int | None = None


class Scripted(ThreadingHTTPServer):
    """Gives its answers in turn, the last one for ever, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        self.answers = [Answer()]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses our certificate is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, self.path, headers, body))
        answers = self.server.answers
        self.give(answers.pop(0) if len(answers) > 1 else answers[0])

    def do_HEAD(self) -> None:
        self.give(Answer(404))  # boto3 asks for the region of a bucket that is elsewhere

    def give(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.breaks])
        self.close_connection = answer.breaks is not None

    do_GET = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def scripted(environ: Callable[..., None]) -> Iterator[Scripted]:
    """Over http; AWS_* variables lead there."""
    yield from serve(Scripted(), "http", environ)


@pytest.fixture
def scripted_tls(environ: Callable[..., None], tmp_path: Path) -> Iterator[Scripted]:
    """Over https with a certificate that only its own file vouches for."""
    certificate = certify(tmp_path)
    server = Scripted()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    environ(AWS_CA_BUNDLE=str(certificate))
    yield from serve(server, "https", environ)


def serve(server: Scripted, scheme: str, environ: Callable[..., None]) -> Iterator[Scripted]:
    environ(
        AWS_ENDPOINT_URL_S3=f"{scheme}://localhost:{server.server_port}",
        AWS_ACCESS_KEY_ID="AKATLAS",
        AWS_SECRET_ACCESS_KEY="SKATLASSECRET",
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certify(folder: Path) -> Path:
    """A file with a new key and a certificate for localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "localhost.pem"
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def fault(status: int, code: str, message: str = "", **more: str) -> Answer:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{inner}</Error>"
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


def test_sends_other_servers_nothing_but_the_object(scripted_tls: Scripted) -> None:
    """Over TLS boto3 sends a chunked body with a CRC32 trailer, which R2, GCS and others refuse."""
    data = b"picture" * 1_000
    S3Store("s3://bucket/x").put("a.png", data)
    (asked,) = scripted_tls.asked
    assert (asked.method, asked.path) == ("PUT", "/bucket/x/a.png")  # not every server answers to bucket.host
    assert asked.body == data
    assert "transfer-encoding" not in asked.headers
    assert "content-encoding" not in asked.headers
    assert "x-amz-trailer" not in asked.headers
    assert asked.headers.get("x-amz-sdk-checksum-algorithm", "SHA256") == "SHA256"
    assert not [name for name in asked.headers if "crc" in name]
    digest = hashlib.sha256(data)
    assert asked.headers["x-amz-content-sha256"] == digest.hexdigest()  # signed: protects the upload by itself
    assert asked.headers["x-amz-meta-sha256"] == digest.hexdigest()
    assert asked.headers["x-amz-checksum-sha256"]
    assert asked.headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
    assert "feature-atlas/" in asked.headers["user-agent"]


def test_a_certificate_that_does_not_verify(scripted_tls: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    said = sentence(lambda: S3Store("s3://bucket/x").get("a"))
    assert said.startswith("no safe connection to localhost:") and "AWS_CA_BUNDLE" in said
    assert scripted_tls.asked == []


def test_https_to_a_server_of_http(scripted: Scripted, environ: Callable[..., None]) -> None:
    environ(AWS_ENDPOINT_URL_S3=f"https://localhost:{scripted.server_port}")
    said = sentence(lambda: S3Store("s3://bucket/x").get("a"))
    assert said.startswith("no safe connection to localhost:") and "http or https" in said


def test_a_server_without_checksums_gets_none(scripted: Scripted) -> None:
    scripted.answers = [fault(501, "NotImplemented"), Answer()]
    store = S3Store("s3://bucket/x")
    store.put("a", b"1")
    store.put("b", b"2")
    assert ["x-amz-checksum-sha256" in asked.headers for asked in scripted.asked] == [True, False, False]


REFUSALS = [
    (fault(301, "PermanentRedirect"), "another region than the request: set AWS_DEFAULT_REGION to its region"),
    (
        fault(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong", Region="garage"),
        "the bucket 'bucket' is in another region than the request: set AWS_DEFAULT_REGION=garage",
    ),
    (fault(503, "SlowDown"), r"localhost:\d+ is too busy \(SlowDown\) after several tries: try again later"),
    (fault(429, "TooManyRequests"), "is too busy"),
    (fault(403, "AccessDenied"), "no permission to write s3://bucket/x/a: the credentials need s3:PutObject"),
    (fault(403, "RequestTimeTooSkewed"), "clock is wrong"),
    (fault(400, "ExpiredToken"), "credentials have expired: sign in again"),
    (fault(403, "QuotaExceeded"), "no space left to write s3://bucket/x/a"),
    (fault(507, "InsufficientStorage"), "no space left"),
    (fault(500, "InternalError", "oops"), r"cannot write s3://bucket/x/a: localhost:\d+ says InternalError: oops"),
    (Answer(502, {}, b"<html>Bad gateway</html>"), r"cannot write s3://bucket/x/a: localhost:\d+ says 502"),
]


def test_each_refusal_is_one_sentence(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas.s3.PATIENCE", 0.0)
    store = S3Store("s3://bucket/x")
    for answer, said in REFUSALS:
        scripted.answers = [answer]
        text = sentence(lambda: store.put("a", b"x"))
        assert re.search(said, text), text


def test_tries_again_when_a_server_is_busy(scripted: Scripted) -> None:
    scripted.answers = [fault(503, "SlowDown"), Answer()]
    S3Store("s3://bucket/x").put("a", b"x")
    assert [asked.body for asked in scripted.asked] == [b"x", b"x"]


def test_reads_again_what_broke_off(scripted: Scripted) -> None:
    """boto3 repeats a request only until its answer begins."""
    whole = Answer(body=b"0123456789")
    scripted.answers = [whole._replace(breaks=4), whole._replace(breaks=4), whole]
    assert S3Store("s3://bucket/x").get("a") == b"0123456789"
    scripted.answers = [whole._replace(breaks=4)]
    said = sentence(lambda: S3Store("s3://bucket/x").get("a"))
    assert said.startswith("cannot read s3://bucket/x/a: the answer broke off (") and said.endswith("three times")


def test_reads_again_what_came_altered(scripted: Scripted) -> None:
    good = Answer(headers={"x-amz-meta-sha256": hashlib.sha256(b"good").hexdigest()}, body=b"good")
    scripted.answers = [good._replace(body=b"evil"), good]
    assert S3Store("s3://bucket/x").get("a") == b"good"
    scripted.answers = [good._replace(body=b"evil")]
    said = sentence(lambda: S3Store("s3://bucket/x").get("a"))
    assert "the bytes that came are not those that were stored" in said


def test_asks_amazon_itself_at_the_buckets_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKATLAS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SKATLASSECRET")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    link = urllib.parse.urlsplit(S3Store("s3://some-bucket/x").link("a"))
    assert (link.scheme, link.path) == ("https", "/x/a")
    assert link.netloc.startswith("some-bucket.s3.") and link.netloc.endswith("amazonaws.com")
    assert "eu-central-1" in link.query


def test_uses_a_client_that_it_is_given(ceph: CephGateway, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ceph.environ:
        monkeypatch.delenv(name)
    store = S3Store(f"s3://{bucket}/x", client=ceph.client())
    store.put("a", b"x")
    assert store.get("a") == b"x"

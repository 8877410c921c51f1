"""A store in an S3 bucket: Amazon's, or any server that speaks its protocol."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_atlas.errors import ObjectNotFound, RequestError, StoreError
from feature_atlas.objects import ObjectInfo, check_key, check_prefix, is_key
from feature_atlas.s3_errors import Place, error_code, explain

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

#: Tries of one request, with exponential back-off and jitter between them; AWS_MAX_ATTEMPTS overrules it.
TRIES = 6
#: Seconds until a connection stands, and between two bytes of an answer.
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 60
#: Connections of one process; more threads than that wait for each other.
CONNECTIONS = 32
#: Seconds; SigV4 allows no more.
LONGEST_LINK = 7 * 24 * 3600

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_SEGMENT = re.compile(r"[^./?#\\\s\x00-\x1f\x7f][^/?#\\\s\x00-\x1f\x7f]*")
_PREFIX_LENGTH = 400  # with the longest key within S3's 1024 bytes
_UNKNOWN_TYPE = "application/octet-stream"
_TYPES = {
    ".png": "image/png", ".webp": "image/webp", ".json": "application/json", ".jsonl": "application/x-ndjson",
    ".js": "text/javascript; charset=utf-8", ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".md": "text/markdown; charset=utf-8", ".gz": "application/gzip", ".tar": "application/x-tar",
}  # fmt: skip


class _Session(NamedTuple):
    """A client, and the process whose sockets it holds."""

    process: int
    client: S3Client
    #: None where there are none, or where the client was given.
    credentials: Credentials | None
    #: Only public objects can be read.
    anonymous: bool


class S3Store:
    """Objects below ``s3://bucket/prefix``.  Credentials, region and endpoint are found as boto3 finds them.

    ``AWS_ENDPOINT_URL_S3`` leads to another server than Amazon's (path-style addresses).  Without any credentials,
    public buckets can be read.  Every object carries its SHA-256 as ``x-amz-meta-sha256``, which ``get`` compares.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        client: a boto3 S3 client to be used instead of one's own; it must not outlive a fork.

    Raises:
        RequestError: the URL is none of these.
    """

    def __init__(self, url: str, *, client: S3Client | None = None) -> None:
        self.bucket, self._prefix = _split(url)
        self.url = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self._given = client
        self._session: _Session | None = None
        self._checksums = True

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def get(self, key: str) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        return self._read(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :class:`~feature_atlas.objects.Store`."""
        # A range of nothing cannot be spelt: one byte tells whether the object is there.
        return self._read(key, Range=f"bytes={start}-{start + max(length, 1) - 1}")[: max(length, 0)]

    def _read(self, key: str, **span: str) -> bytes:
        wrong = ""
        # boto3 tries a request again until its answer begins; a body that breaks off is for us to repeat.
        for _ in range(3):
            name = self._prefix + check_key(key)
            answer = self._call("read", key, "get_object", tolerate="InvalidRange", Key=name, **span)
            if answer is None:  # the range begins behind the last byte
                return b""
            try:
                data: bytes = answer["Body"].read()
            except Exception as error:  # botocore's, urllib3's and the socket's own
                wrong = f"the answer broke off ({type(error).__name__})"
                continue
            expected = answer.get("Metadata", {}).get("sha256")
            if span or expected is None or hashlib.sha256(data).hexdigest() == expected:
                return data
            wrong = "the bytes that came are not those that were stored"
        raise StoreError(f"cannot read {self.url}/{key}: {wrong}, three times")

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = _UNKNOWN_TYPE,
        immutable: bool = False,
    ) -> None:
        """See :class:`~feature_atlas.objects.Store`."""
        digest = hashlib.sha256(data)
        if content_type == _UNKNOWN_TYPE:
            content_type = _TYPES.get(PurePosixPath(key).suffix, _UNKNOWN_TYPE)
        request: dict[str, Any] = {
            "Key": self._prefix + check_key(key),
            "Body": data,
            "ContentType": content_type,
            "CacheControl": "public, max-age=31536000, immutable" if immutable else "no-cache",
            "Metadata": {"sha256": digest.hexdigest()},
        }
        if self._checksums:
            checksum = base64.b64encode(digest.digest()).decode()
            if self._call("write", key, "put_object", tolerate="NotImplemented", ChecksumSHA256=checksum, **request):
                return
            log.info("this S3 server takes no checksums: the signature alone protects uploads")
            self._checksums = False
        self._call("write", key, "put_object", **request)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`~feature_atlas.objects.Store`."""
        begin = self._prefix + check_prefix(prefix)
        follow: dict[str, str] = {}
        while True:
            page = self._call("list", prefix, "list_objects_v2", Prefix=begin, **follow)
            for row in page.get("Contents", ()):
                key = row["Key"][len(self._prefix) :]
                if is_key(key):
                    version = row.get("ETag", "").strip('"')
                    yield ObjectInfo(key, row["Size"], version, row["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            follow = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """See :class:`~feature_atlas.objects.Store`."""
        with contextlib.suppress(ObjectNotFound):  # Amazon says 204, others 404
            self._call("delete", key, "delete_object", Key=self._prefix + check_key(key))

    def link(self, key: str, *, expires: int = 3600) -> str:
        """A presigned https URL; the plain one where there are no credentials to sign with.

        Raises:
            RequestError: not between a second and seven days.
        """
        if not 1 <= expires <= LONGEST_LINK:
            raise RequestError(
                f"a signed link lasts from 1 to {LONGEST_LINK} seconds (7 days), not {expires}: make the bucket public"
                " for a lasting one"
            )
        target = {"Bucket": self.bucket, "Key": self._prefix + check_key(key)}
        with self._explained("link", key):
            session = self._connect()
            if session.credentials is not None and session.credentials.get_frozen_credentials().token:
                log.warning("these credentials are temporary: the link ends with them, if that is before %d s", expires)
            return session.client.generate_presigned_url("get_object", Params=target, ExpiresIn=expires)

    def _call(self, verb: str, key: str, operation: str, *, tolerate: str = "", **arguments: Any) -> Any:
        """The server's answer, or None where it is the error code ``tolerate``."""
        with self._explained(verb, key):
            try:
                return getattr(self._connect().client, operation)(Bucket=self.bucket, **arguments)
            except Exception as error:
                if tolerate and error_code(error) == tolerate:
                    return None
                raise

    @contextlib.contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        """Makes one sentence of whatever goes wrong, without its cause: a cause may hold keys."""
        try:
            yield
        except Exception as error:
            session = self._session
            endpoint = session.client.meta.endpoint_url if session else ""
            place = Place(
                self.bucket, self._prefix + key, endpoint, anonymous=session is not None and session.anonymous
            )
            trouble = explain(error, verb, place)
            if trouble is None:
                raise
            raise trouble from None

    def _connect(self) -> _Session:
        """This process's client, made on first use: one made before a fork shares its sockets with the parent."""
        session = self._session
        if session is None or session.process != os.getpid():
            with _connecting:
                session = self._session
                if session is None or session.process != os.getpid():
                    session = self._session = _open(self._given)
        return session


_connecting = threading.Lock()


def _after_fork() -> None:
    global _connecting
    _connecting = threading.Lock()  # another thread of the parent may hold the old one for ever


os.register_at_fork(after_in_child=_after_fork)


def _open(client: S3Client | None) -> _Session:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    from feature_atlas import __version__

    if client is not None:
        return _Session(os.getpid(), client, credentials=None, anonymous=False)
    session = boto3.session.Session()  # the default one is not thread-safe
    credentials = session.get_credentials()
    if credentials is None:
        log.info("no AWS credentials found: only public buckets can be read")
    retries: Any = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = TRIES
    config = Config(
        signature_version=UNSIGNED if credentials is None else "s3v4",
        retries=retries,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        user_agent_extra=f"feature-atlas/{__version__}",
        # boto3's own checksums (a CRC32 trailer behind an aws-chunked body) break other servers: we send a SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    return _Session(os.getpid(), client, credentials, anonymous=credentials is None)


def _split(url: str) -> tuple[str, str]:
    """(bucket, prefix that is empty or ends in a slash).  Raises RequestError."""
    bucket, _, rest = url.partition("://")[2].partition("/")
    if "@" in bucket:  # the text is not repeated: it may hold a secret
        raise RequestError(
            "an S3 URL holds no keys: write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    prefix = rest.strip("/")
    segments = prefix.split("/") if prefix else []
    if not url.lower().startswith("s3://") or not _BUCKET.fullmatch(bucket):
        raise RequestError(
            f"{url!r} is not s3://bucket/prefix: a bucket's name has 3 or more letters, digits, '-', '.'"
        )
    if not all(map(_SEGMENT.fullmatch, segments)) or len(prefix.encode()) > _PREFIX_LENGTH:
        raise RequestError(
            f"{url!r} is not s3://bucket/prefix: the prefix has at most {_PREFIX_LENGTH} bytes, no blanks, no '?', '#'"
            " or '\\', and no part that is empty or starts with a dot"
        )
    return bucket, f"{prefix}/" if prefix else ""

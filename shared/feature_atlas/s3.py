"""A store in an S3 bucket: Amazon's, or any server that speaks its protocol."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import random
import re
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from feature_atlas.errors import ObjectNotFound, RequestError, StoreError
from feature_atlas.objects import ObjectInfo, check_key, check_prefix, is_key
from feature_atlas.s3_client import Connection
from feature_atlas.s3_errors import Place, error_code, explain, passing

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

#: Seconds for which a server that has answered before is waited for, and the longest wait between two tries: a
#: gateway restarts in that time.  boto3's own tries are over within a second or two.
PATIENCE, LONGEST_PAUSE = 60.0, 8.0
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
        self._connect = Connection(client)
        self._checksums = True
        self._answered = self._warned = False

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

    def look(self) -> tuple[set[str], set[str]]:
        """The names of the objects and of the folders that lie right here, of one page: one request.

        Raises StoreError.
        """
        page = self._call("list", "", "list_objects_v2", Prefix=self._prefix, Delimiter="/")
        objects = {row["Key"][len(self._prefix) :] for row in page.get("Contents", ())}
        return objects, {row["Prefix"][len(self._prefix) : -1] for row in page.get("CommonPrefixes", ())}

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
            temporary = session.credentials is not None and session.credentials.get_frozen_credentials().token
            if temporary and not self._warned:  # once, whatever the number of links
                self._warned = True
                log.warning("these credentials are temporary: the link ends with them, if that is before %d s", expires)
            return session.client.generate_presigned_url("get_object", Params=target, ExpiresIn=expires)

    def make_bucket(self) -> bool:
        """Makes the bucket where it is missing; whether it was.

        Raises:
            StoreError: it cannot be made, or belongs to somebody else.
        """
        if self._call("list", "", "list_objects_v2", tolerate="NoSuchBucket", MaxKeys=1) is not None:
            return False
        with self._explained("make", ""):
            region = self._connect().client.meta.region_name
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self._call("make", "", "create_bucket", tolerate="BucketAlreadyOwnedByYou", **where)
        return True

    def keeps_first(self, key: str) -> bool:
        """Whether the server refuses a conditional put (``If-None-Match: *``) over an object that is there.

        Nothing here relies on it: some servers ignore it, and others race.  Raises StoreError.
        """
        request = {"Key": self._prefix + check_key(key), "Body": b"", "IfNoneMatch": "*"}
        try:
            return self._call("write", key, "put_object", tolerate="PreconditionFailed", **request) is None
        except StoreError:  # it does not know the header
            return False

    def _call(self, verb: str, key: str, operation: str, *, tolerate: str = "", **arguments: Any) -> Any:
        """The server's answer, or None where it is the error code ``tolerate``.

        A server that has answered before is waited for; one that never did is more likely to be misspelt.
        """
        waited = 0.0
        with self._explained(verb, key):
            while True:
                try:
                    answer = getattr(self._connect().client, operation)(Bucket=self.bucket, **arguments)
                except Exception as error:
                    if tolerate and error_code(error) == tolerate:
                        return None
                    if not passing(error):
                        self._answered = self._answered or bool(error_code(error))
                        raise
                    if not self._answered or waited >= PATIENCE:
                        raise
                    pause = min(0.5 + waited, LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                    log.warning("%s: %s; trying again in %.1f s", self.url, type(error).__name__, pause)
                    time.sleep(pause)
                    waited += pause
                else:
                    self._answered = True
                    return answer

    @contextlib.contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        """Makes one sentence of whatever goes wrong, without its cause: a cause may hold keys."""
        try:
            yield
        except Exception as error:
            session = self._connect.made
            endpoint = session.client.meta.endpoint_url if session else ""
            place = Place(
                self.bucket, self._prefix + key, endpoint, anonymous=session is not None and session.anonymous
            )
            trouble = explain(error, verb, place)
            if trouble is None:
                raise
            raise trouble from None


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

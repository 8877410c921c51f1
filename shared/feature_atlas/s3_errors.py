"""What went wrong with an S3 request, in one sentence that holds no secret."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from feature_atlas.errors import ObjectNotFound, StoreError

_PERMISSIONS = {
    "read": "s3:GetObject", "write": "s3:PutObject", "list": "s3:ListBucket",
    "delete": "s3:DeleteObject", "link": "s3:GetObject", "make": "s3:CreateBucket",
}  # fmt: skip
_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_EXPIRED = "the AWS credentials have expired: sign in again, then run the same command again"

#: Error codes of Amazon's server and of those that speak its protocol; fields of :class:`Place`.
_SENTENCES = {
    "NoSuchBucket": "there is no bucket {bucket!r} at {server}: create it, or check the URL",
    "InvalidAccessKeyId": "{server} does not know this access key: check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3",
    "SignatureDoesNotMatch": "{server} refuses the signature: check AWS_SECRET_ACCESS_KEY",
    "InvalidToken": "{server} refuses the session token: check AWS_SESSION_TOKEN, or sign in again",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "{server} refuses the request: this machine's clock is wrong by more than 15 minutes",
    "QuotaExceeded": "no space left to {verb} {url}: the quota at {server} is used up",
    "InsufficientStorage": "no space left to {verb} {url}: the disks of {server} are full",
    "XMinioStorageFull": "no space left to {verb} {url}: the disks of {server} are full",
}
_FORBIDDEN = frozenset({"AccessDenied", "AccessForbidden", "AllAccessDisabled", "Forbidden", "403"})
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
)
_BUSY = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException",
                   "RequestLimitExceeded", "TooManyRequests", "ServiceUnavailable", "429", "503"})  # fmt: skip


class Place(NamedTuple):
    """What was asked for, and where."""

    bucket: str
    key: str
    #: As boto3 knows it; empty before there is a client.
    endpoint: str
    #: There are no credentials.
    anonymous: bool

    @property
    def url(self) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def server(self) -> str:
        """Host and port, without what a URL may hold besides."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2] or "the S3 server"


def error_code(error: Exception) -> str:
    """The server's error code; empty where it was not the server that objected."""
    from botocore.exceptions import ClientError

    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def passing(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, ProxyConnectionError, SSLError

    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return error_code(error) in _BUSY or status in (429, 500, 502, 503, 504)
    return isinstance(error, ConnectionError | HTTPClientError) and not isinstance(
        error, SSLError | ProxyConnectionError
    )


def explain(error: Exception, verb: str, place: Place) -> StoreError | None:
    """The StoreError that says it; None for an error that has nothing to do with S3."""
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        return _refused(error.response, verb, place)
    if isinstance(error, BotoCoreError):
        return StoreError(_not_asked(error, verb, place))
    if isinstance(error, ValueError) and "ndpoint" in str(error):
        return StoreError(
            "AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) is no address: write http://HOST:PORT or https://HOST"
        )
    return None


def _refused(answer: Any, verb: str, place: Place) -> StoreError:
    """The server answered, but not with what was asked for."""
    fault, meta = answer.get("Error", {}), answer.get("ResponseMetadata", {})
    code, status = str(fault.get("Code", "")), meta.get("HTTPStatusCode")
    region = fault.get("Region") or meta.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if code in ("NoSuchKey", "404"):
        return ObjectNotFound(f"no object {place.url}")
    if code in _SENTENCES:
        return StoreError(_SENTENCES[code].format(verb=verb, bucket=place.bucket, url=place.url, server=place.server))
    if code in _ELSEWHERE or status == 301 or (status == 400 and region):
        known = f"set AWS_DEFAULT_REGION={region}" if region else "set AWS_DEFAULT_REGION to its region"
        return StoreError(f"the bucket {place.bucket!r} is in another region than the request: {known}")
    if code in _FORBIDDEN and place.anonymous:
        return StoreError(f"no AWS credentials found, and {place.url} is not public: {_SIGN_IN}")
    if code in _FORBIDDEN:
        return StoreError(f"no permission to {verb} {place.url}: the credentials need {_PERMISSIONS[verb]} there")
    if code in _BUSY or status in (429, 503):
        return StoreError(f"{place.server} is too busy ({code or status}) after several tries: try again later")
    return StoreError(f"cannot {verb} {place.url}: {place.server} says {code or status}: {fault.get('Message') or '-'}")


def _not_asked(error: Exception, verb: str, place: Place) -> str:
    """No answer came, or no question could be put."""
    from botocore import exceptions as boto

    unreachable = (boto.ConnectionError, boto.HTTPClientError)
    credentials = (
        boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.TokenRetrievalError,
        boto.SSOError, boto.MetadataRetrievalError,
    )  # fmt: skip
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return (
            f"no safe connection to {place.server}: it does not speak TLS as we do; check whether it is http or https"
        )
    if isinstance(error, boto.SSLError):
        return f"no safe connection to {place.server} (its TLS certificate does not verify): check AWS_CA_BUNDLE"
    if isinstance(error, boto.ProxyConnectionError):
        return f"cannot reach {place.server} through the proxy: check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, unreachable):
        return f"cannot reach {place.server} ({type(error).__name__}): check the network and AWS_ENDPOINT_URL_S3"
    if isinstance(error, credentials):
        return f"the AWS credentials cannot be used ({type(error).__name__}): {_SIGN_IN}, or sign in again"
    if isinstance(error, boto.ProfileNotFound):
        return "there is no such AWS profile: check AWS_PROFILE"
    return f"cannot {verb} {place.url}: boto3 says {type(error).__name__}: {error}"

"""What a broker means by its errors: it refuses to be written to, or TLS fails."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

#: What a broker says that answers and refuses to be written to -> what that means and what to do.
_REFUSALS = (
    ("read only replica", "is a replica that may only be read: name its primary in the URL"),
    ("MISCONF", "cannot write its data to its disk and therefore takes nothing: make room there, or mend the disk"),
    (
        "command not allowed when used memory",
        "has its memory full (maxmemory): let workers take jobs out, cancel an atlas, or give it more memory",
    ),
    ("NOREPLICAS", "takes nothing while it lacks replicas (min-replicas-to-write): bring them back"),
)


def refusal(error: Exception) -> str:
    """Of a broker that answers but takes nothing, the predicate of a sentence that says why; else nothing."""
    from redis import ResponseError

    if not isinstance(error, ResponseError):
        return ""
    return next((why for said, why in _REFUSALS if said in str(error)), "")


def tls_hint(url: str) -> str:
    """How to go on asking what is wrong with what hangs up or says nothing."""
    if url.startswith("rediss"):
        return ", and does it speak TLS (rediss://)"
    return ", and without TLS (if it wants TLS: rediss://, and ?ssl_ca_certs=FILE for an authority of your own)"


def tls_trouble(error: Exception, url: str) -> str:
    """Why a broker cannot be trusted, and what to do; nothing where that is not the trouble."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return ""
    for file in parse_qs(parts.query).get("ssl_ca_certs", ()):
        if not Path(file).is_file():
            return f"there is no file {file} (?ssl_ca_certs=FILE)"
    cause = error if isinstance(error, ssl.SSLError) else error.__context__
    if not isinstance(cause, ssl.SSLError):
        return ""
    said = (getattr(cause, "verify_message", "") or cause.reason or short(cause)).rstrip(".")
    return f"{said}; ?ssl_ca_certs=FILE names the authority that signed its certificate"


def short(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__

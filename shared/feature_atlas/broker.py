"""The message broker: reached, and looked at before anything is entrusted to it.

Any Redis or Valkey from 6.2.  URLs: ``redis://[user:password@]host:port/db``, ``rediss://`` (TLS), and
``redis+socket:///path?virtual_host=db`` or ``unix:///path?db=N`` for a unix socket.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from feature_atlas.broker_errors import refusal, short, tls_hint, tls_trouble
from feature_atlas.errors import AtlasError, BrokerError, RequestError, did_you_mean

log = logging.getLogger(__name__)

OLDEST = (6, 2)
_SPELLINGS = "redis://[:password@]host:6379/0, rediss://... (TLS) or redis+socket:///path/to/socket"
_SCHEMES = ("redis", "rediss", "redis+socket", "unix")
#: Written and removed to see whether the broker takes anything.
_PROBE = "feature-atlas:probe"

# Sets a field of a hash also where the memory is full: a broker refuses to add only until the script has removed.
_PUT = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""


def connect(url: str, *, timeout: float = 5.0, write: bool = True) -> redis.Redis:
    """A client of a broker that is there, lets us in, and can do its work; without ``write``, can be looked at.

    Warns in the log where the broker may throw messages away.  One whose memory is full is let through: jobs can be
    taken out.

    Raises:
        RequestError: not the URL of a broker.
        BrokerError: unreachable, refused us, is not Redis, or is too old; one sentence that says which.
    """
    client = open_client(url, timeout=timeout)
    try:
        check(client, url)
        if write:
            _write(client, url)
        for sentence in doubts(client, url):
            _warn(sentence)
    except BaseException:
        client.close()
        raise
    return client


@functools.cache
def _warn(sentence: str) -> None:
    """Once, however often a command connects."""
    log.warning("%s", sentence)


def examine(url: str) -> Iterator[tuple[Literal["ok", "warn", "fail"], str, str]]:
    """(level, what, sentence) of everything that ``doctor`` should say about a broker."""
    try:
        client = open_client(url)
        try:
            name, version = check(client, url)
            _write(client, url, add=True)
            yield "ok", "broker", f"{name} {version} at {public(url)}"
            for sentence in doubts(client, url):
                yield "warn", "broker", sentence
        finally:
            client.close()
    except AtlasError as error:
        yield "fail", "broker", str(error)


def open_client(url: str, *, timeout: float = 5.0) -> redis.Redis:
    """A client that has not yet connected, and tries everything twice.  Raises RequestError."""
    # Once more for a connection that a restarted server has forgotten; longer waits are the caller's.
    retry = Retry(ConstantBackoff(0.1), 1)
    try:
        return redis.Redis.from_url(
            for_redis(url), socket_timeout=timeout, socket_connect_timeout=timeout, health_check_interval=30,
            retry=retry,
            protocol=2,  # also what is too old for RESP3 can say so
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise RequestError(f"{public(url)!r} is not the URL of a broker ({error}): use {_SPELLINGS}") from None


def check(client: redis.Redis, url: str) -> tuple[str, str]:
    """(name, version) of the broker.  Raises BrokerError unless it can be used: see :func:`connect`."""
    where = public(url)
    try:
        client.ping()
        info: dict[str, Any] = client.info("server")
    except trouble() as error:
        raise explain(error, url) from error
    numbers = re.findall(r"\d+", str(info.get("redis_version", "")))
    if len(numbers) < 2:
        raise BrokerError(f"what answers at {where} does not say which version of Redis it is")
    if (int(numbers[0]), int(numbers[1])) < OLDEST:
        oldest, version = ".".join(map(str, OLDEST)), info["redis_version"]
        raise BrokerError(f"the broker at {where} is Redis {version}, which is too old: at least {oldest} is needed")
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    return "Redis", str(info["redis_version"])


def _write(client: redis.Redis, url: str, *, add: bool = False) -> None:
    """Removes a key that is not there, or also ``add``s it first.  Raises BrokerError where that is refused."""
    try:
        if add:
            client.set(_PROBE, "1", ex=60)
        is_writable(client)
    except redis.exceptions.NoPermissionError:  # who only looks
        return
    except trouble() as error:
        raise explain(error, url) from error


def is_writable(client: redis.Redis) -> None:
    """Raises RedisError where the broker takes nothing at present, not even what needs no memory."""
    client.delete(_PROBE)


def put(client: redis.Redis, key: str, field: str, value: str) -> None:
    """Sets a field of a hash also where the broker's memory is full: for little, without which none gets free.

    Raises RedisError.
    """
    client.eval(_PUT, 1, key, field, value)


def doubts(client: redis.Redis, url: str) -> Iterator[str]:
    """One sentence for everything that may go wrong later with a broker that works now."""
    try:
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
        skew = clock_skew(client)
    except trouble():  # not everybody may ask
        return
    if policy != "noeviction":
        yield (
            f"the broker at {public(url)} throws data away when its memory is full (maxmemory-policy {policy}):"
            " set noeviction"
        )
    if abs(skew) > 5:
        yield wrong_clock(skew)


def trouble() -> tuple[type[Exception], ...]:
    """What a client may raise when the broker fails."""
    return (redis.RedisError, OSError)


def explain(error: Exception, url: str) -> BrokerError:
    """The sentence for what a client raised."""
    where = public(url)
    if isinstance(error, redis.RedisError) and ("NOAUTH" in str(error) or "required" in str(error)):
        return BrokerError(f"the broker at {where} wants a password: redis://:PASSWORD@host:port/0")
    if isinstance(error, redis.AuthenticationError):
        return BrokerError(f"the broker at {where} did not let us in ({error}): check user and password")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return BrokerError(f"the broker at {where} is still loading its data: try again in a moment")
    if why := refusal(error):
        return BrokerError(f"the broker at {where} {why}")
    if isinstance(error, redis.TimeoutError):
        return BrokerError(
            f"the broker at {where} does not answer: is it Redis{tls_hint(url)}?  does a firewall allow it?"
        )
    if isinstance(error, redis.InvalidResponse | redis.ResponseError):
        return BrokerError(f"what answers at {where} is not Redis, or not ours to use ({short(error)})")
    if why := tls_trouble(error, url):
        return BrokerError(f"TLS to the broker at {where} fails: {why}")
    if "closed by server" in str(error) or "reset by peer" in str(error):
        return BrokerError(f"what answers at {where} hangs up at once: is it Redis{tls_hint(url)}?")
    return BrokerError(f"no broker at {where} ({short(error)}): start one, or check the URL")


#: The broker's clock as :func:`now`, for scripts that note the time down: they begin with this.
LUA_NOW = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
"""


def now(client: redis.Redis) -> float:
    """The broker's clock, in seconds since 1970: the one by which leases and signs of life are told.  RedisError."""
    seconds, micros = client.time()
    return seconds + micros / 1e6


def clock_skew(client: redis.Redis) -> float:
    """Seconds by which this machine's clock is ahead of the broker's.  Raises RedisError."""
    before = time.time()
    broker = now(client)
    return (before + time.time()) / 2 - broker


def wrong_clock(ahead: float) -> str:
    """The sentence for a machine whose clock differs from the broker's by so many seconds."""
    return (
        f"this machine's clock is {ahead:+.0f} s off the broker's: leases go by the broker's, but a store refuses"
        " whoever is 15 minutes off, so synchronise it (NTP)"
    )


def for_redis(url: str) -> str:
    """The URL as redis-py spells it.  Raises RequestError."""
    if not url.strip():
        raise RequestError(f"no broker given: say --broker or set FEATURE_ATLAS_BROKER to {_SPELLINGS}")
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in _SCHEMES:
        near = did_you_mean(scheme, _SCHEMES) if scheme else ""
        raise RequestError(f"{public(url)!r} is not the URL of a broker{near}: use {_SPELLINGS}")
    if scheme != "redis+socket":
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    user = parts.netloc + "@" if parts.netloc and not parts.netloc.endswith("@") else parts.netloc
    return f"unix://{user}{parts.path}?db={database}"


def for_kombu(url: str) -> str:
    """The URL as Celery spells it.  Raises RequestError."""
    for_redis(url)
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={parse_qs(parts.query).get('db', ['0'])[0]}"


def public(url: str) -> str:
    """The URL without its password, for messages."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return url.rpartition("@")[2]
    return url.replace(f":{password}@", ":***@", 1) if password else unquote(url)

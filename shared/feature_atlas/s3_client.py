"""This process's boto3 client: which credentials, which retries, and none of the parent's sockets."""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.loaders import Loader
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

#: boto3's tries of one request, with exponential back-off and jitter between them; AWS_MAX_ATTEMPTS overrules it.
TRIES = 4
#: Seconds until a connection stands, and between two bytes of an answer.
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 60
#: Connections of one process; more threads than that wait for each other.
CONNECTIONS = 32


class Session(NamedTuple):
    """A client, and the process whose sockets it holds."""

    process: int
    client: S3Client
    #: None where there are none, or where the client was given.
    credentials: Credentials | None
    #: Only public objects can be read.
    anonymous: bool


class Connection:
    """A client per process, made on first use: one made before a fork shares its sockets with the parent.

    Args:
        client: one to be used instead; it must not outlive a fork.
    """

    def __init__(self, client: S3Client | None = None) -> None:
        self._session = Session(0, client, credentials=None, anonymous=False) if client is not None else None
        self._given = client is not None

    def __call__(self) -> Session:
        """The session of this process."""
        session = self.made
        if session is None:
            with _connecting:
                session = self.made
                if session is None:
                    session = self._session = _open()
        return session

    @property
    def made(self) -> Session | None:
        """The session of this process, if it has one."""
        session = self._session
        return session if session is not None and (self._given or session.process == os.getpid()) else None


_connecting = threading.Lock()


def _after_fork() -> None:
    global _connecting
    _connecting = threading.Lock()  # another thread of the parent may hold the old one for ever


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _descriptions(folders: str | None) -> Loader:
    """What boto knows of S3, read once: a client costs 0.01 s then, and 0.1 s where each reads it again."""
    from botocore.loaders import create_loader

    return create_loader(folders)


def _open() -> Session:
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    from feature_atlas import __version__

    ours = botocore.session.Session()
    descriptions = _descriptions(ours.get_config_variable("data_path"))
    ours.register_component("data_loader", descriptions)
    session = boto3.session.Session(botocore_session=ours)  # the default one is not thread-safe
    descriptions.search_paths[:] = dict.fromkeys(descriptions.search_paths)  # each session adds boto3's own
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
    return Session(os.getpid(), client, credentials, anonymous=credentials is None)

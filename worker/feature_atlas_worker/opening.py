"""What the broker knows of a task that begins, asked in one round trip: the rest of a job's time is its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, cast

from redis import RedisError

from feature_atlas.messages import (
    FLAGS,
    UNACKED,
    Flag,
    MalformedMessage,
    Message,
    Order,
    attempts_key,
    dead_key,
    field,
    parse,
)
from feature_atlas.reconcile import unwrap

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)


class Opening(NamedTuple):
    """A task's first message, and what was found beside it."""

    #: None where the broker has forgotten it.
    message: Message | None
    #: Of its atlas.
    flag: Flag | None
    #: How often the job was begun without an end; None where it was given up meanwhile.
    attempts: int | None


def look(client: redis.Redis, tag: str, order: Order) -> Opening | None:
    """What the broker says of the message that Celery took under this tag; None where it does not answer."""
    try:
        with client.pipeline(transaction=False) as pipe:
            pipe.hget(UNACKED, tag)
            pipe.hget(FLAGS, order.atlas)
            pipe.hget(attempts_key(order.atlas), field(order.unit))
            pipe.hexists(dead_key(order.atlas), field(order.unit))
            value, flag, attempts, given_up = cast("list[bytes | None]", pipe.execute())
    except RedisError as error:
        log.warning("the broker says nothing of the message %s: %s", tag, error)
        return None
    message = None
    try:
        message = parse(unwrap(value))._replace(tag=tag) if value else None
    except MalformedMessage as error:
        log.warning("the message %s cannot be read: %s", tag, error)
    return Opening(
        message if message is not None and message.order == order else None,
        cast("Flag | None", flag.decode() if flag else None), None if given_up else int(attempts or 0),
    )  # fmt: skip

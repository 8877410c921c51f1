"""kombu's Redis transport, five holes closed.

They are acks that fail, clocks that differ, messages that nobody can read, in the queue and in hand, a broker that
answers and takes nothing, and closed connections that wake the worker for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.transport.virtual import QoS as VirtualQoS
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import OutOfMemoryError, ResponseError

from feature_atlas.broker import LUA_NOW, is_writable, now
from feature_atlas.broker_errors import refusal
from feature_atlas.messages import MALFORMED, QUEUE, MalformedMessage, parse
from feature_atlas.monitor import MOST_MALFORMED, put_aside
from feature_atlas.reconcile import unwrap

log = logging.getLogger(__name__)


#: A flood of rubbish is said so often, then once in a thousand; so many messages are looked at in one step.
_SAID, _LOOK = 10, 200

# Takes these messages, and no others, from the front.
_TAKE = """
for i = 1, #ARGV do
  if redis.call('LINDEX', KEYS[1], -1) ~= ARGV[i] then return i - 1 end
  redis.call('RPOP', KEYS[1])
end
return #ARGV
"""

# Notes down a message in hand, also where the memory is full: the queue has just become shorter by it.  (A broker
# refuses to add only as long as a script has not removed anything, be it nothing.)
# KEYS unacked, unacked_index   ARGV tag, [message, exchange, routing key]
_APPEND = (
    LUA_NOW
    + """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
)

# Takes back what is kept of a message in hand, unless another was quicker, and puts the message into the queue.
# KEYS unacked, unacked_index, queue   ARGV tag, what was found under it, the queue's end, the message or nothing
_RESTORE = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[4] ~= '' then redis.call(ARGV[3], KEYS[3], ARGV[4]) end
return 1
"""


class Refused(Lost):
    """The broker answers but takes nothing.  Celery waits for it as for a lost one, and connects again."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Makes Celery wait where the broker takes nothing, which would end the worker."""
    try:
        yield
    except ResponseError as error:
        why = refusal(error)
        if not why and "UNBLOCKED" in str(error):
            why = "has changed its role"
        if not why:
            raise
        raise Refused(f"the broker {why}") from None


class SafeQoS(redis.QoS):  # type: ignore[misc]
    """Frees the prefetch slot even where the ack cannot be delivered, and tells leases by the broker's clock.

    kombu logs the failure and keeps the slot, so that the worker never consumes again.  At worst the message comes
    once more, and its job is found done.  By each machine's own clock, as in kombu, a worker that is ahead would take
    what others hold, and one that is behind would lose what it holds.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Notes down a message that was taken."""
        info = message.delivery_info
        kept = json.dumps([message._raw, info["exchange"], info["routing_key"]])
        try:
            with self.channel.conn_or_acquire() as client:
                client.eval(_APPEND, 2, self.unacked_key, self.unacked_index_key, delivery_tag, kept)
        except ResponseError as error:  # it is done all the same, or sent again by whoever reconciles
            log.warning("taking %s is not noted down (%s)", delivery_tag, error)
        VirtualQoS.append(self, message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Delivers again what nobody renews, ``num`` messages or all of them.

        Without kombu's mutex, which takes memory of a broker that may have none: each message is restored once.
        """
        with _refusals(), self.channel.conn_or_acquire() as client:
            over = now(client) - float(self.channel.visibility_timeout)
            key, part = self.unacked_index_key, {"offset": start, "num": num or -1}
            for tag in client.zrange(key, over, 0, desc=True, byscore=True, **part):
                self.restore_by_tag(tag, client)

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:
        """Puts a message in hand back into the queue; what cannot be read, which would end every worker, aside."""
        with self.channel.conn_or_acquire(client) as client:
            kept = client.hget(self.unacked_key, tag) or b""
            raw = ""
            try:
                raw = _marked(unwrap(kept)) if kept else ""
            except MalformedMessage as error:
                put_aside(client, kept, f"in hand: {error}")
                self.channel.say_aside(1, f"in hand: {error}")
            end = "LPUSH" if leftmost else "RPUSH"
            client.eval(_RESTORE, 3, self.unacked_key, self.unacked_index_key, QUEUE, tag, kept, end, raw)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledges, four times if need be."""
        for attempt in range(4):
            try:
                self._remove_from_indices(delivery_tag).execute()
                break
            except (*self.channel.connection_errors, ResponseError) as error:
                log.warning("acknowledging %s failed (%s)", delivery_tag, error)
                time.sleep(0.2 * 2**attempt)
        VirtualQoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Puts back or drops; where that cannot be delivered, the message comes back by its lease."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        except (*self.channel.connection_errors, ResponseError) as error:
            log.warning("rejecting %s failed (%s)", delivery_tag, error)
            VirtualQoS.ack(self, delivery_tag)


class Channel(redis.Channel):  # type: ignore[misc]
    """Lets only messages of ours through."""

    QoS = SafeQoS
    #: How many messages this process has put aside: the watchdog takes it for progress.
    aside = 0

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """As kombu's, but a connection of the event loop leaves the poller before its socket is closed.

        kombu (5.7.0) asks the poller after redis-py has closed the socket, when there is nothing left to name it by.
        That does no harm as long as nobody else has the socket: the kernel forgets it with its last descriptor.  But a
        rendering process that was started in place of a dead one has inherited it.  So once the broker had closed the
        connection, epoll reported its end for ever, and the worker's parent took a whole core until the batch was over.
        """
        params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        if asynchronous:
            params["connection_class"] = _leaving_first(self, params["connection_class"])
        return params

    def _brpop_read(self, **options: Any) -> bool:
        """As kombu's, but what cannot be read is put aside instead of ending the worker."""
        try:
            try:
                with _refusals():
                    answer = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                # The next poll connects again.
                self.client.connection.disconnect()
                raise
            if not answer:
                raise redis.Empty
            queue, raw = answer
            queue = queue.decode().rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            try:
                parse(raw)
            except MalformedMessage as error:
                self._put_aside(raw, str(error))
                raise redis.Empty from None
            self.connection._deliver(json.loads(raw), queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _queue_bind(self, *args: Any) -> None:
        """As kombu's, but a full memory is no reason not to take what fills it: what is sent names the queue itself."""
        with _refusals(), contextlib.suppress(OutOfMemoryError):
            super()._queue_bind(*args)

    def _put_aside(self, raw: bytes, why: str) -> None:
        with self.conn_or_acquire() as client:
            put_aside(client, raw, why)
            self.say_aside(1, why)
            while self._sweep(client) == _LOOK:
                pass

    def _sweep(self, client: Any) -> int:
        """Puts aside what else nobody can read at the front of the queue, so that a flood does not hold up the jobs."""
        bad: list[tuple[bytes, str]] = []
        for raw in reversed(client.lrange(QUEUE, -_LOOK, -1)):
            try:
                parse(raw)
                break
            except MalformedMessage as error:
                bad.append((raw, str(error)))
        taken = int(client.eval(_TAKE, 1, QUEUE, *(raw for raw, _ in bad))) if bad else 0
        for raw, why in bad[: min(taken, max(0, MOST_MALFORMED - client.hlen(MALFORMED)))]:
            put_aside(client, raw, why)
        if taken:
            self.say_aside(taken, bad[0][1])
        return taken

    def say_aside(self, count: int, why: str) -> None:
        """Counts messages that were put aside, and says it unless it was said often."""
        before, Channel.aside = Channel.aside, Channel.aside + count
        if before < _SAID or before // 1000 < Channel.aside // 1000:
            log.error("messages were put aside, %d by this worker so far, the last because: %s", Channel.aside, why)


def _marked(raw: bytes) -> str:
    """The message as kombu delivers it again.  Raises MalformedMessage."""
    parse(raw)
    message = json.loads(raw)
    message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
    return json.dumps(message)


def _leaving_first(channel: Channel, base: Any) -> Any:
    class Connection(base):  # type: ignore[misc]
        def disconnect(self, *args: Any, **kwargs: Any) -> None:
            # A forked process shares the poller: what it closes is its own copy, and the parent goes on listening.
            if channel._registered and self.pid == os.getpid():
                with contextlib.suppress(OSError):
                    channel._on_connection_disconnect(self)
            super().disconnect(*args, **kwargs)

    return Connection


class Transport(redis.Transport):  # type: ignore[misc]
    """Redis, with :class:`Channel`."""

    Channel = Channel

    def establish_connection(self) -> Transport:
        """As kombu's, but with a broker that takes nothing there is no connection."""
        with _refusals():
            try:
                super().establish_connection()
                is_writable(self._avail_channels[-1].client)
            except ResponseError:
                self.close_connection(self)
                raise
        return self


def install() -> None:
    """Makes ``redis://``, ``rediss://`` and ``redis+socket://`` mean :class:`Transport` in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))

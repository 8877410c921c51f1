"""kombu's Redis transport, four holes closed.

They are acks that fail, clocks that differ, messages that nobody can read, and closed connections that wake the worker
for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.transport.virtual import QoS as VirtualQoS

from feature_atlas.broker import LUA_NOW, clock_skew
from feature_atlas.messages import MALFORMED, QUEUE, MalformedMessage, parse
from feature_atlas.monitor import MOST_MALFORMED, put_aside

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

# Notes down a message in hand.
# KEYS unacked, unacked_index   ARGV tag, [message, exchange, routing key]
_APPEND = (
    LUA_NOW
    + """
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
)


class SafeQoS(redis.QoS):  # type: ignore[misc]
    """Frees the prefetch slot even where the ack cannot be delivered, and tells leases by the broker's clock.

    kombu logs the failure and keeps the slot, so that the worker never consumes again.  At worst the message comes
    once more, and its job is found done.  By each machine's own clock, as in kombu, a worker that is ahead would take
    what others hold, and one that is behind would lose what it holds.
    """

    #: Seconds by which this machine's clock is ahead of the broker's.
    ahead = 0.0

    @property
    def visibility_timeout(self) -> float:
        """Seconds without renewal after which kombu, which subtracts it from this machine's time, delivers again."""
        return float(self.channel.visibility_timeout) + self.ahead

    def append(self, message: Any, delivery_tag: str) -> None:
        """Notes down a message that was taken."""
        info = message.delivery_info
        kept = json.dumps([message._raw, info["exchange"], info["routing_key"]])
        with self.channel.conn_or_acquire() as client:
            client.eval(_APPEND, 2, self.unacked_key, self.unacked_index_key, delivery_tag, kept)
        VirtualQoS.append(self, message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Delivers again what nobody renews."""
        with self.channel.conn_or_acquire() as client:
            self.ahead = clock_skew(client)
        super().restore_visible(start, num, interval)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledges, four times if need be."""
        for attempt in range(4):
            try:
                self._remove_from_indices(delivery_tag).execute()
                break
            except self.channel.connection_errors as error:
                log.warning("acknowledging %s failed (%s)", delivery_tag, error)
                time.sleep(0.2 * 2**attempt)
        VirtualQoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Puts back or drops; where that cannot be delivered, the message comes back by its lease."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        except self.channel.connection_errors as error:
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

    def _put_aside(self, raw: bytes, why: str) -> None:
        with self.conn_or_acquire() as client:
            put_aside(client, raw, why)
            self._say_aside(1, why)
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
            self._say_aside(taken, bad[0][1])
        return taken

    def _say_aside(self, count: int, why: str) -> None:
        before, Channel.aside = Channel.aside, Channel.aside + count
        if before < _SAID or before // 1000 < Channel.aside // 1000:
            log.error("messages were put aside, %d by this worker so far, the last because: %s", Channel.aside, why)


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


def install() -> None:
    """Makes ``redis://``, ``rediss://`` and ``redis+socket://`` mean :class:`Transport` in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))

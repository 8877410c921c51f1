"""The messages in hand: claimed from the queue, finished, given back or given up, each step atomic in the broker.

A task starts with one message that Celery took.  Its siblings are moved into kombu's own ``unacked`` by one script, so
that whatever becomes of this process, kombu delivers them again once their lease is over.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, cast

from redis import RedisError

from feature_atlas.broker import LUA_NOW
from feature_atlas.messages import (
    LONGEST,
    QUEUE,
    UNACKED,
    UNACKED_INDEX,
    MalformedMessage,
    Message,
    attempts_key,
    dead_key,
    field,
    parse,
    renewed,
)
from feature_atlas.monitor import GivenUp, put_aside
from feature_atlas_worker.memory import Memory

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

#: Seconds for which a broker that failed is not told more: rendering does not wait for it.
_PAUSE = 2.0

# A broker whose memory is full refuses a script's first command if it adds, and none after one that removes.  So all of
# these begin with one that removes, if only nothing: else nobody could take out what fills the memory.

# Takes messages from the front while they are of the group: at least ARGV[1], at most ARGV[2], and in between a share
# 1/ARGV[3] of what waits, so that the last ones are spread over all workers.
# KEYS queue, unacked, unacked_index   ARGV least, most, shares, group, longest
_CLAIM = (
    LUA_NOW
    + """
local share = math.floor(redis.call('LLEN', KEYS[1]) / tonumber(ARGV[3]))
local count = math.max(tonumber(ARGV[1]), math.min(tonumber(ARGV[2]), share))
local out = {}
while #out < count do
  local m = redis.call('LINDEX', KEYS[1], -1)
  if not m or #m > tonumber(ARGV[5]) then break end
  local ok, d = pcall(cjson.decode, m)
  if not ok or type(d) ~= 'table' or type(d.headers) ~= 'table' or d.headers.g ~= ARGV[4] then break end
  local tag = type(d.properties) == 'table' and d.properties.delivery_tag
  if type(tag) ~= 'string' then break end
  redis.call('RPOP', KEYS[1])
  redis.call('HSET', KEYS[2], tag, '[' .. m .. ',"",' .. cjson.encode(KEYS[1]) .. ']')
  redis.call('ZADD', KEYS[3], now, tag)
  out[#out + 1] = m
end
return out
"""
)

# By the broker's clock: a worker whose own is wrong would make its leases look over, or never over.
# KEYS unacked_index   ARGV tag ...
_RENEW = (
    LUA_NOW
    + """
redis.call('ZREM', KEYS[1], '')
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i]) end
"""
)

# KEYS attempts   ARGV unit ...
_COUNT = """
redis.call('HDEL', KEYS[1], '')
for i = 1, #ARGV do redis.call('HINCRBY', KEYS[1], ARGV[i], 1) end
"""

# KEYS unacked, unacked_index, attempts, dead   ARGV tag, unit, why
_GIVE_UP = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
"""

# Moves messages back to where the next worker finds them; those that are no longer ours stay where they are.
# KEYS unacked, unacked_index, queue, attempts   ARGV end, 1 to take back an attempt, then tag, message, unit ...
_RETURN = """
local moved = 0
for i = 3, #ARGV, 3 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call(ARGV[1], KEYS[3], ARGV[i + 1])
    moved = moved + 1
  end
  if ARGV[2] == '1' and redis.call('HINCRBY', KEYS[4], ARGV[i + 2], -1) <= 0 then
    redis.call('HDEL', KEYS[4], ARGV[i + 2])
  end
end
return moved
"""


class Hand:
    """The messages that this process holds.  Thread-safe: the lease is renewed beside the work."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._claim = client.register_script(_CLAIM)
        self._renew = client.register_script(_RENEW)
        self._return = client.register_script(_RETURN)
        self._count = client.register_script(_COUNT)
        self._give_up = client.register_script(_GIVE_UP)
        self.memory = Memory(client)
        self._held: dict[str, Message] = {}
        #: Done and in the store, but the broker does not know yet.
        self._untold: dict[str, Message] = {}
        self._counted: set[str] = set()
        self._tell_after = 0.0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def messages(self) -> list[Message]:
        """What is in hand and not finished, in the order it was taken."""
        with self._lock:
            return list(self._held.values())

    def take(self, message: Message) -> None:
        """Holds a message that Celery took."""
        with self._lock:
            self._held[message.tag] = message

    def claim(self, group: str, least: int, most: int, shares: int = 1) -> list[Message]:
        """Takes waiting siblings, at least ``least`` if there are as many; none where the broker fails."""
        try:
            raws = cast("list[bytes]", self._claim(
                keys=[QUEUE, UNACKED, UNACKED_INDEX], args=[least, most, shares, group, LONGEST],
            ))  # fmt: skip
        except RedisError as error:
            log.warning("no siblings were claimed: %s", error)
            return []
        found = []
        for raw in raws:
            try:
                message = parse(raw)
            except MalformedMessage as error:  # comes back by its lease, alone, and is put aside then
                log.error("a claimed message is left to its lease: %s", error)
                continue
            found.append(message)
            self.take(message)
        return found

    def renew(self) -> None:
        """Renews the lease of everything in hand, unless another has it already; after FLUSHALL says what it is.

        Raises RedisError.
        """
        held = self.messages()
        told = self.memory.remind(held)
        if told:
            log.warning("the broker had forgotten %d jobs in hand and was told of them", told)
        if held:
            self._renew(keys=[UNACKED_INDEX], args=[message.tag for message in held])

    def attempts(self, messages: Sequence[Message]) -> list[int | None]:
        """How often each job was begun without an end; None where it was given up meanwhile.  Raises RedisError."""
        atlas, fields = messages[0].order.atlas, [field(message.order.unit) for message in messages]
        with self.client.pipeline() as pipe:
            pipe.hmget(attempts_key(atlas), fields)
            pipe.hmget(dead_key(atlas), fields)
            begun, given_up = cast("list[list[bytes | None]]", pipe.execute())
        return [int(tried or 0) if over is None else None for tried, over in zip(begun, given_up, strict=True)]

    def count(self, messages: Sequence[Message]) -> None:
        """Counts an attempt at each job, before it begins: what ends this process is found on record.

        One that is counted already is not counted again while it is in hand.  Raises RedisError.
        """
        with self._lock:
            fresh = [message for message in messages if message.tag not in self._counted]
        if fresh:  # all of one atlas, as what is in hand is of one group
            fields = [field(message.order.unit) for message in fresh]
            self._count(keys=[attempts_key(fresh[0].order.atlas)], args=fields)
        with self._lock:
            self._counted.update(message.tag for message in fresh)

    def finish(self, messages: Iterable[Message]) -> None:
        """Forgets jobs that are done.  Where the broker fails, it is told later."""
        with self._lock:
            for message in messages:
                self._untold[message.tag] = self._held.pop(message.tag, message)
                self._counted.discard(message.tag)
        self.tell()

    def tell(self) -> bool:
        """Tells the broker what is finished; False where that must wait."""
        with self._lock:
            untold = list(self._untold.values())
        if not untold:
            return True
        if time.monotonic() < self._tell_after:
            return False
        try:
            with self.client.pipeline(transaction=False) as pipe:  # said again where it was heard by half
                pipe.hdel(UNACKED, *[message.tag for message in untold])
                pipe.zrem(UNACKED_INDEX, *[message.tag for message in untold])
                for message in untold:
                    pipe.hdel(attempts_key(message.order.atlas), field(message.order.unit))
                pipe.execute()
        except RedisError as error:
            log.warning("%d finished jobs are not acknowledged yet: %s", len(untold), error)
            self._tell_after = time.monotonic() + _PAUSE
            return False
        with self._lock:
            for message in untold:
                if self._untold.get(message.tag) is message:  # not one of the same tag that was finished meanwhile
                    del self._untold[message.tag]
        return True

    def give_back(
        self, messages: Sequence[Message], end: Literal["front", "back"] = "front", *, uncount: bool = True
    ) -> None:
        """Puts messages back into the queue in their order; ``uncount`` takes back the attempt counted before.

        Raises RedisError; then they come back once their lease is over.
        """
        self.memory.remind(self.messages())  # what it has forgotten cannot be moved
        with self._lock:
            counted = {message.tag for message in messages} & self._counted
            for message in messages:
                self._held.pop(message.tag, None)
                self._counted.discard(message.tag)
        # The front is the right end: what shall come out first goes in last.
        ordered = list(reversed(messages)) if end == "front" else list(messages)
        for undo in (True, False):
            part = [m for m in ordered if (uncount and m.tag in counted) is undo]
            if part:
                args = [x for m in part for x in (m.tag, renewed(m, secrets.token_hex(8)), field(m.order.unit))]
                self._return(
                    keys=[UNACKED, UNACKED_INDEX, QUEUE, attempts_key(part[0].order.atlas)],
                    args=["RPUSH" if end == "front" else "LPUSH", int(undo), *args],
                )

    def give_up(self, message: Message, why: GivenUp) -> None:
        """Moves a job to the dead list.  Raises RedisError."""
        atlas = message.order.atlas
        self._give_up(
            keys=[UNACKED, UNACKED_INDEX, attempts_key(atlas), dead_key(atlas)],
            args=[message.tag, field(message.order.unit), why.model_dump_json()],
        )
        self._forget(message)

    def put_aside(self, message: Message, why: str) -> None:
        """Drops a message that no worker should have got, leaving a record.  Raises RedisError."""
        put_aside(self.client, message.raw.encode(), why)
        with self.client.pipeline() as pipe:
            pipe.hdel(UNACKED, message.tag)
            pipe.zrem(UNACKED_INDEX, message.tag)
            pipe.execute()
        self._forget(message)

    def _forget(self, message: Message) -> None:
        with self._lock:
            self._held.pop(message.tag, None)
            self._counted.discard(message.tag)

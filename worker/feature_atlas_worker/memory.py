"""Whether the broker still remembers: what was in hand before it forgot everything, its owners tell it again.

Since FLUSHALL, or a restart without its file, nobody but a worker knows what that worker holds; and it may die.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from feature_atlas.broker import LUA_NOW
from feature_atlas.messages import MEMORY, QUEUE, UNACKED, UNACKED_INDEX, Message

if TYPE_CHECKING:
    import redis

# Marks the beginning of the broker's memory, unless it is marked.  Returns the mark and its age in seconds.
# KEYS memory   ARGV a name for it
_LOOK = (
    LUA_NOW
    + """
local mark = redis.call('GET', KEYS[1])
if not mark then
  redis.call('DEL', KEYS[1])  -- after this also a broker whose memory is full lets us add
  mark = string.format('%.6f', now) .. ' ' .. ARGV[1]
  redis.call('SET', KEYS[1], mark)
end
return {mark, tostring(now - (tonumber(string.match(mark, '^%S+')) or 0))}
"""
)

# Notes down messages in hand, but for those that are noted down.
# KEYS unacked, unacked_index   ARGV tag, [message, exchange, routing key] ...
_REMIND = (
    LUA_NOW
    + """
local told = 0
redis.call('HDEL', KEYS[1], '')  -- as above
for i = 1, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('ZADD', KEYS[2], now, ARGV[i])
    told = told + 1
  end
end
return told
"""
)


class Memory:
    """The broker's, as one process sees it.  Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._look = client.register_script(_LOOK)
        self._remind = client.register_script(_REMIND)
        self._mark = b""
        # The lease's thread must not tell once more what the work's thread has told and given back meanwhile.
        self._lock = threading.Lock()

    def remind(self, held: Sequence[Message]) -> int:
        """Tells the broker what is in hand if it has forgotten everything since the last call; how many messages.

        Messages whose lease was lost are nobody's business: that is why this is not done at any other time.
        Raises RedisError; then the next call does it.
        """
        with self._lock:
            mark, _ = self._marked()
            if mark == self._mark:
                return 0
            told = 0
            if held and self._mark:  # at the first look nothing is known to be forgotten
                kept = [x for m in held for x in (m.tag, f'[{m.raw},"",{json.dumps(QUEUE)}]')]
                told = int(cast("int", self._remind(keys=[UNACKED, UNACKED_INDEX], args=kept)))
            self._mark = mark
            return told

    def age(self) -> float:
        """Seconds since the broker began to remember.  Raises RedisError."""
        return self._marked()[1]

    def _marked(self) -> tuple[bytes, float]:
        mark, age = cast("tuple[bytes, bytes]", self._look(keys=[MEMORY], args=[secrets.token_hex(8)]))
        return mark, float(age)

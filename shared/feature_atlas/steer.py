"""Cancel, pause and resume an atlas that is in the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from feature_atlas.errors import RequestError, did_you_mean
from feature_atlas.messages import ATLASES, FLAGS, QUEUE, Flag, attempts_key

if TYPE_CHECKING:
    import redis

# One part of a turn of the list: each message goes from its end to its beginning, or away.  After a whole turn the
# order is as before; others may take and add in between.
# KEYS queue  ARGV how many, group prefix of the atlas
_DROP = """
local dropped = 0
for i = 1, tonumber(ARGV[1]) do
  local m = redis.call('RPOP', KEYS[1])
  if not m then break end
  local ok, d = pcall(cjson.decode, m)
  local g = ok and type(d) == 'table' and type(d.headers) == 'table' and d.headers.g
  if type(g) == 'string' and string.sub(g, 1, #ARGV[2]) == ARGV[2] then
    dropped = dropped + 1
  else
    redis.call('LPUSH', KEYS[1], m)
  end
end
return dropped
"""
_PART = 2000


def cancel(client: redis.Redis, atlas: str, *, known: bool = False) -> int:
    """Takes the atlas's jobs out of the queue and stops those in hand; what is rendered stays.

    Enqueuing the atlas again goes on with it.  Returns how many messages were dropped.  ``known``: it was enqueued,
    though the broker may have forgotten it.

    Raises:
        RequestError: the broker knows no such atlas.
    """
    set_flag(client, atlas, "cancelled", known=known)
    client.hdel(ATLASES, atlas)
    drop = client.register_script(_DROP)
    dropped = 0
    for left in range(client.llen(QUEUE), 0, -_PART):
        dropped += int(drop(keys=[QUEUE], args=[min(left, _PART), f"{atlas}|"]))
    client.delete(attempts_key(atlas))
    return dropped


def pause(client: redis.Redis, atlas: str, *, known: bool = False) -> None:
    """Lets the batches in hand finish and leaves the rest in the queue.  As :func:`cancel`."""
    set_flag(client, atlas, "paused", known=known)


def resume(client: redis.Redis, atlas: str) -> None:
    """Ends a pause.

    Raises:
        RequestError: the atlas is not paused.
    """
    found = flag(client, atlas)
    if found != "paused":
        state = "cancelled: enqueue it again" if found else "not paused"
        raise RequestError(f"{atlas} is {state}{_known(client, atlas)}")
    client.hdel(FLAGS, atlas)


def flag(client: redis.Redis, atlas: str) -> Flag | None:
    """``paused``, ``cancelled`` or None."""
    value = cast("bytes | None", client.hget(FLAGS, atlas))
    return cast("Flag", value.decode()) if value else None


def set_flag(client: redis.Redis, atlas: str, value: Flag, *, known: bool = False) -> None:
    """Tells every worker.  Raises RequestError where nobody knows such an atlas."""
    if not known and not client.hexists(ATLASES, atlas):
        raise RequestError(f"nothing of {atlas} is known to this broker{_known(client, atlas)}")
    from feature_atlas.broker import put

    put(client, FLAGS, atlas, value)  # to cancel makes room


def _known(client: redis.Redis, atlas: str) -> str:
    known = [name.decode() for name in cast("list[bytes]", client.hkeys(ATLASES))]
    if atlas in known:
        return ""
    return did_you_mean(atlas, known) or (f" (it knows {', '.join(sorted(known)[:5])})" if known else "")

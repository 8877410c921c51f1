"""What lies in the queue: one message per job, and the names of the Redis keys beside it.

A message is a pointer (atlas URL and unit), never a recipe: the worker reads the plan from the atlas.  It is a Celery
message as kombu stores it in Redis; its header ``g`` names the group, so that siblings can be told without decoding
bodies.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_atlas.errors import RequestError
from feature_atlas.spec import MAX_CHANNELS, Name, Unit

#: The one list all workers take from, first in, first out.
QUEUE = "render"
TASK = "feature_atlas.render"
#: Raised when an older worker must not touch newer messages; it gives them back.
VERSION = 1
#: Bytes; ours have about 400.
LONGEST = 8192

#: Headers that would make Celery unpack, wait, drop or send something.
_UNWANTED = ("compression", "eta", "expires", "group", "chord", "stamps", "stamped_headers")

_PREFIX = "feature-atlas:"
#: What kombu keeps in Redis: messages taken and not acknowledged, and when they were last seen alive.  Under kombu's
#: own names, whoever looked would send again what another application's workers hold.
UNACKED, UNACKED_INDEX = f"{_PREFIX}unacked", f"{_PREFIX}unacked_index"
#: The same as options of kombu's transport.
UNACKED_KEYS = {"unacked_key": UNACKED, "unacked_index_key": UNACKED_INDEX}
#: Hash: atlas URL -> what the producer knows of it (JSON).
ATLASES = f"{_PREFIX}atlases"
Flag = Literal["paused", "cancelled"]
#: Hash: atlas URL -> its flag.
FLAGS = f"{_PREFIX}flags"
#: Hash: worker's name -> its last sign of life (JSON).
WORKERS = f"{_PREFIX}workers"
#: Hash: digest -> a message that nobody could use (JSON).
MALFORMED = f"{_PREFIX}malformed"
#: Since when the broker remembers: seconds by its clock, and a name.  Gone when it has forgotten everything.
MEMORY = f"{_PREFIX}memory"


class MalformedMessage(RequestError):
    """Not a message of ours."""


class Order(BaseModel):
    """What a message asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    atlas: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f|]+$")]
    variant: Name
    layer: Name
    channel: Annotated[int, Field(ge=0, lt=MAX_CHANNELS)]

    @property
    def unit(self) -> Unit:
        """The job's address in its atlas."""
        return Unit(self.variant, self.layer, self.channel)

    @property
    def group(self) -> str:
        """Jobs of one group may share a batch."""
        return group(self.atlas, self.variant, self.layer)


class Message(NamedTuple):
    """One message as it lies in Redis, read and checked."""

    raw: str
    tag: str
    order: Order
    #: It was in somebody's hands before.
    redelivered: bool
    version: int


def group(atlas: str, variant: str, layer: str) -> str:
    """The header ``g``."""
    return f"{atlas}|{variant}|{layer}"


def field(unit: Unit) -> str:
    """A unit's field in the hashes of its atlas."""
    return f"{unit.variant}|{unit.layer}|{unit.channel}"


def unit_of(text: str) -> Unit:
    """The unit of a field."""
    variant, layer, channel = text.split("|")
    return Unit(variant, layer, int(channel))


def attempts_key(atlas: str) -> str:
    """Hash: unit -> how often its rendering was begun without an end."""
    return f"{_PREFIX}attempts:{atlas}"


def dead_key(atlas: str) -> str:
    """Hash: unit -> why it is not tried again (JSON)."""
    return f"{_PREFIX}dead:{atlas}"


def lock_key(atlas: str) -> str:
    """Held by whoever reconciles the atlas."""
    return f"{_PREFIX}lock:{atlas}"


def rest_key(atlas: str) -> str:
    """Exists for as long as no idle worker needs to reconcile the atlas."""
    return f"{_PREFIX}rest:{atlas}"


def parse(raw: bytes | str) -> Message:
    """The message in ``raw``.

    Raises:
        MalformedMessage: it is none of ours, or asks for something impossible.
    """
    if len(raw) > LONGEST:
        raise MalformedMessage(f"a message of {len(raw)} bytes; ours have at most {LONGEST}")
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        data = json.loads(text)
        headers, properties = data["headers"], data["properties"]
        tag, task, version = properties["delivery_tag"], headers["task"], headers.get("v", VERSION)
        args = arguments(data)
        named = headers.get("g")
        info = properties["delivery_info"]
        if not (isinstance(tag, str) and 0 < len(tag) <= 100 and isinstance(headers["id"], str)):
            raise MalformedMessage("a message without a name or delivery tag")
        if not (isinstance(version, int) and isinstance(info, dict) and data["content-type"] == "application/json"):
            raise MalformedMessage("a message whose headers are not Celery's")
        if any(headers.get(name) for name in _UNWANTED) or headers.get("timelimit") not in (None, [None, None]):
            raise MalformedMessage("a message that wants more of Celery than one plain task")
    except MalformedMessage:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise MalformedMessage(f"not a Celery message ({type(error).__name__}: {str(error)[:100]})") from None
    if task != TASK:
        raise MalformedMessage(f"a message for the unknown task {str(task)[:100]!r}")
    order = order_of(args)
    if named is not None and named != order.group:
        raise MalformedMessage(f"the header names the group {str(named)[:200]!r}, the body {order.group[:200]!r}")
    return Message(text, tag, order, bool(headers.get("redelivered")), version)


def order_of(args: Any) -> Order:
    """The order in a task's arguments.  Raises MalformedMessage."""
    if not isinstance(args, list | tuple) or len(args) != 4:
        raise MalformedMessage("the arguments must be atlas, variant, layer and channel")
    try:
        return Order(atlas=args[0], variant=args[1], layer=args[2], channel=args[3])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MalformedMessage(f"{first['loc'][0]}={str(first['input'])[:100]!r}: {first['msg'].lower()}") from None


def arguments(data: dict[str, Any]) -> Any:
    """A task's positional arguments, out of a decoded message."""
    body = data["body"]
    if data["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    args, kwargs, embedded = json.loads(body)
    if kwargs or any(embedded.values()):
        raise MalformedMessage("the task takes no keyword arguments, callbacks, chains or chords")
    return args


def peek(raw: bytes) -> tuple[str, Unit] | None:
    """(atlas, unit) of a message, unchecked and fast; None where there is no reading it."""
    try:
        atlas, variant, layer, channel = arguments(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MalformedMessage):
        return None
    named = isinstance(atlas, str) and isinstance(variant, str) and isinstance(layer, str)
    return (atlas, Unit(variant, layer, channel)) if named and isinstance(channel, int) else None


def renewed(message: Message, tag: str) -> str:
    """The message to be put back: marked, and under a new tag.

    The one who had it may acknowledge the old tag late; under the same tag that would take the message from its
    next owner.
    """
    data = json.loads(message.raw)
    data["headers"]["redelivered"] = True
    data["properties"]["delivery_tag"] = tag
    return json.dumps(data, separators=(",", ":"))

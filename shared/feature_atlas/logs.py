"""Logs for people and for machines: text, or one JSON object a line that says what the line is about."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

_about: ContextVar[dict[str, Any] | None] = ContextVar("feature_atlas_about", default=None)
#: A level's name is all that text logs have of ours; Celery's own has time and process.
_TEXT = "%(levelname)s %(message)s"
OURS = ("feature_atlas", "feature_atlas_producer", "feature_atlas_worker")


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Everything logged inside concerns these: ``atlas``, ``variant``, ``layer``, ``batch``, ``job``."""
    token = _about.set({**(_about.get() or {}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    """``{"time": ..., "level": ..., "message": ..., "atlas": ..., "batch": ..., "job": ...}``, one line a record."""

    def __init__(self, **fields: Any) -> None:
        """``fields`` are the same on every line, such as the worker's name."""
        super().__init__()
        self.fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            "pid": os.getpid(), **self.fields, **(_about.get() or {}),
        }  # fmt: skip
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str, ensure_ascii=False)


def line(level: str, message: str, logger: str = "celery", **fields: Any) -> str:
    """The JSON line of something that is said outside of the logging module."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": time, "level": level, "logger": logger, "message": message, "pid": os.getpid(), **fields}
    )


def say(message: str) -> None:
    """To standard error from a signal handler, which must not wait for a lock of the logging module's."""
    as_json = any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
    text = line("info", message, OURS[0]) if as_json else "\n" + message  # on a terminal it begins with ^C
    os.write(2, (text + "\n").encode())


def set_up(
    kind: str, level: int, *, others: int = logging.WARNING, stream: TextIO | None = None, **fields: Any
) -> None:
    """Sends the records of this process to standard error, ours from ``level`` and others' from ``others``.

    Args:
        kind: ``json`` or ``text``.
        level, others: of the logging module.
        stream: instead of standard error.
        fields: the same on every JSON line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(**fields) if kind == "json" else logging.Formatter(_TEXT))
    root = logging.getLogger()
    if kind == "json":
        root.handlers[:] = [handler]
        root.setLevel(others)
        logging.captureWarnings(True)
    else:
        logging.basicConfig(level=others, handlers=[handler])
        logging.getLogger("urllib3").setLevel(max(others, logging.ERROR))  # a retry that helps needs no line
    for package in OURS:
        logging.getLogger(package).setLevel(level)

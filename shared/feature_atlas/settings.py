"""What the surroundings decide and no request can: the ``FEATURE_ATLAS_*`` environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from feature_atlas.errors import RequestError, did_you_mean

PREFIX = "FEATURE_ATLAS_"


class Settings(BaseModel):
    """Each field is the environment variable ``FEATURE_ATLAS_<FIELD>``; lists are separated by commas."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    broker: str = Field(default="", description="URL of the message broker, e.g. redis://queue:6379/0")
    allowed_stores: tuple[str, ...] = Field(
        default=(),
        description="URL prefixes of atlases that a queue worker may read and write, e.g. s3://atlases/,/data/atlases;"
        " a message that names another place is refused",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="hosts that weights may be downloaded from besides PyTorch's own"
    )
    allowed_models: tuple[str, ...] = Field(
        default=(),
        description="prefixes of python:MODULE:FACTORY models that may be imported, e.g. python:mynets:;"
        " importing runs that module's code",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one")
    precision: Literal["auto", "float32"] = Field(
        default="auto", description="auto lets the network run in bf16 where the device is faster so; or float32"
    )
    batch: int | None = Field(
        default=None, ge=1, le=4096, description="channels per batch; by default what the memory holds"
    )
    fsync: bool = Field(default=False, description="flush every file of a folder atlas to disk before going on")
    visibility_timeout: float = Field(
        default=120.0, ge=1.0, le=3600.0,
        description="seconds after a worker's last sign of life until its jobs go to others; the same for all workers",
    )  # fmt: skip
    grace: float = Field(default=25.0, ge=0.0, description="seconds that a batch may still take after SIGTERM")
    patience: float = Field(
        default=120.0, ge=0.0, description="seconds for which a store or broker that fails is tried again in place"
    )
    stall: float = Field(
        default=1800.0, ge=1.0, description="seconds without a step after which a worker's process counts as hung"
    )
    watchdog: float = Field(
        default=60.0, ge=1.0, description="seconds without a new job, while jobs wait, until a worker starts afresh"
    )
    rest: float = Field(
        default=60.0, ge=1.0, description="seconds between two looks of idle workers for jobs that the queue lost"
    )
    alive_file: str = Field(default="", description="a file that a living worker touches, for liveness probes")
    metrics: str = Field(
        default="", description="where workers serve Prometheus metrics: HOST:PORT, or PORT on the loopback interface"
    )
    log: Literal["text", "json"] = Field(default="text", description="how logs are written: text, or json, a line each")
    cache_dir: str = Field(default="", description="where downloaded weights are kept; by default PyTorch's own cache")

    @field_validator("allowed_stores", "allowed_hosts", "allowed_models", mode="before")
    @classmethod
    def _comma_list(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("not a device")
        return value

    @field_validator("metrics")
    @classmethod
    def _address(cls, value: str) -> str:
        port = value.rpartition(":")[2]
        if value and not (port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("write HOST:PORT, such as 0.0.0.0:9464")
        return value

    @property
    def metrics_address(self) -> tuple[str, int]:
        """(host, port) of ``metrics``, which must not be empty."""
        host, _, port = self.metrics.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **changes: Any) -> Self:
        """The settings of this environment; ``changes`` (a command's options) that are not None win.

        Raises:
            RequestError: a variable or an option holds no possible value; named as it was given.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for field in cls.model_fields:
            text = environ.get(PREFIX + field.upper(), "").strip()
            if text:
                given[field] = text
        options = {field: value for field, value in changes.items() if value is not None}
        given.update(options)
        try:
            return cls(**given)
        except ValidationError as error:
            raise RequestError(_sentence(error, cls, options)) from None

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Name -> description of every environment variable, in order."""
        return {PREFIX + name.upper(): field.description or "" for name, field in cls.model_fields.items()}

    @classmethod
    def unknown(cls, environ: Mapping[str, str] | None = None) -> list[str]:
        """One sentence for each ``FEATURE_ATLAS_*`` variable that means nothing here: a likely slip."""
        environ = os.environ if environ is None else environ
        known = cls.variables()
        strange = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
        return [f"the environment variable {name} means nothing{did_you_mean(name, known)}" for name in strange]


def _sentence(error: ValidationError, cls: type[Settings], options: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"no setting {field!r}{did_you_mean(field, cls.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    spelled = f"--{field} {first['input']}" if field in options else f"{PREFIX}{field.upper()}={first['input']!r}"
    return f"{spelled}: {message} ({cls.model_fields[field].description})"

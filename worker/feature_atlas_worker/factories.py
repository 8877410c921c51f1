"""``python:module:factory``: a stranger's code, run only where it is allowed, and what to say where it fails."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from feature_atlas.errors import RequestError, did_you_mean

log = logging.getLogger(__name__)


def is_allowed(path: str, allowed: Sequence[str]) -> bool:
    """Whether ``module:factory`` is allowed: itself, its module, or a package above it."""
    entries = {entry.removeprefix("python:").rstrip(":") for entry in allowed}
    module = path.partition(":")[0]
    packages = [module[: match.start()] for match in re.finditer(r"\.", module)]
    return not entries.isdisjoint((path, module, *packages))


def make(path: str, allowed: Sequence[str]) -> Any:
    """What the factory of ``module:factory`` returns; of a module that is there already, a copy.

    Raises:
        RequestError: not allowed, not there, or it fails; the text says which.
    """
    factory = _find(path, allowed)
    try:
        if isinstance(factory, nn.Module):  # a copy, because weights may be loaded into what is given out
            return copy.deepcopy(factory)
        return factory()
    except Exception as error:  # a stranger's code may raise anything
        log.debug("python:%s failed", path, exc_info=True)
        raise RequestError(f"python:{path} was called and failed ({_told(error)})") from error


def is_ready(path: str, allowed: Sequence[str]) -> bool:
    """Whether ``module:factory`` is no factory but a network that is there already.  Raises as :func:`make`."""
    return isinstance(_find(path, allowed), nn.Module)


def _find(path: str, allowed: Sequence[str]) -> Any:
    """The factory itself, or a module."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise RequestError(f"python:{path} is no factory: write python:module:factory")
    if not is_allowed(path, allowed):
        raise RequestError(
            f"python:{path} runs code of the module {module_name!r}, which is not allowed here:"
            f" allow it with --allow-model {path} or FEATURE_ATLAS_ALLOWED_MODELS={path}"
        )
    module = _import(path, module_name)
    try:
        factory = getattr(module, name)
    except AttributeError:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RequestError(
            f"python:{path}: the module {module_name!r} ({_file(module)}) has no {name!r}{did_you_mean(name, known)}"
        ) from None
    if not isinstance(factory, nn.Module):
        _check_callable(path, factory)
    return factory


def _import(path: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # as above
        log.debug("python:%s cannot be imported", path, exc_info=True)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise RequestError(
                f"python:{path}: there is no module {missing!r} here: install it, or put its folder on PYTHONPATH"
            ) from error
        if missing:
            raise RequestError(
                f"python:{path}: the module {name!r} needs {missing!r}, which is not there: install it"
            ) from error
        raise RequestError(f"python:{path}: the module {name!r} cannot be imported ({_told(error)})") from error


def _check_callable(path: str, factory: Any) -> None:
    """Refuses what cannot be called without arguments, before a TypeError of its own could be taken for that."""
    if not callable(factory):
        raise RequestError(f"python:{path} is of type {type(factory).__name__}, neither a factory nor a module")
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # of compiled code
        return
    try:
        signature.bind()
    except TypeError:
        needed = [
            name for name, p in signature.parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]  # fmt: skip
        raise RequestError(
            f"python:{path} needs arguments ({', '.join(needed)}), and a factory is called with none:"
            " write a function around it that gives them"
        ) from None


def _told(error: Exception) -> str:
    """A stranger's error in one line."""
    text = (str(error).splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "a namespace of folders"

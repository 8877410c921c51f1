"""What a network computes, as a graph: captured once per copy by ``torch.fx``, cut at any layer.

Only a network whose course does not depend on what it sees has a graph; others run as they are.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.fold import FoldedNorm
from feature_atlas_worker.shortage import is_shortage

log = logging.getLogger(__name__)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Captured:
    """A network's graph.  It names modules and holds none, so that a kept one keeps no network alive."""

    graph: fx.Graph
    #: What each submodule gives, call by call; None where that is no tensor.
    passed: dict[str, list[fx.Node | None]]


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.own = {id(child) for child in module.modules()}
        self.passed: dict[str, list[fx.Node | None]] = {}
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (FrozenConv2d, FoldedNorm)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # A trace replaces every module's call for a while: another thread's, another network's.
        if threading.get_ident() != self._thread or id(m) not in self.own:
            return forward(*args, **kwargs)
        out = super().call_module(m, forward, args, kwargs)
        self.passed.setdefault(self.path_of_module(m), []).append(out.node if isinstance(out, fx.Proxy) else None)
        return out

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_lock = threading.Lock()
_kept: weakref.WeakKeyDictionary[nn.Module, Captured | None] = weakref.WeakKeyDictionary()


def capture(module: nn.Module) -> Captured | None:
    """The graph of a network in evaluation mode; None where it has none.  Kept while the network lives."""
    if module not in _kept:
        _kept[module] = _capture(module)
    return _kept[module]


def _capture(module: nn.Module) -> Captured | None:
    if any(getattr(child, name, None) for child in module.modules() for name in _HOOKS):
        log.info("the network has hooks and runs as it is")
        return None
    try:
        with _lock, torch.no_grad():
            tracer = _Tracer(module)
            graph = tracer.trace(module)
    except Exception as error:  # somebody's forward pass
        if is_shortage(error):
            raise
        log.info("the network runs as it is, its course has no graph: %s", str(error).partition("\n")[0])
        return None
    return Captured(graph, tracer.passed)

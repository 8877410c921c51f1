"""A step recorded once and replayed: on a GPU, launching a thousand small kernels takes longer than running them.

What is recorded reads and writes the same tensors every time, so it takes no number from Python and asks no tensor
for its value.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Body = Callable[[], None]
#: Takes the body of a step and the tensors that it changes, and returns what does the same again.
Record = Callable[[Body, Sequence[Tensor]], Body]
#: Runs of a body before it is recorded: libraries choose their algorithms and allocate.
_WARM_UP = 2


def cuda_graph(body: Body, state: Sequence[Tensor]) -> Body:
    """Records the body as a CUDA graph; ``state`` is as before.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    before = [tensor.clone() for tensor in state]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Uploads run on other threads; what they do is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            body()
    finally:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
    return graph.replay


class Recordings:
    """The recorded kinds of a step; each is recorded when first asked for."""

    def __init__(self, record: Record = cuda_graph) -> None:
        self._record = record
        self._recorded: dict[Hashable, Body] = {}
        self._failed = False

    def run(self, kind: Hashable, body: Body, state: Sequence[Tensor]) -> None:
        """Does what ``body`` does; what cannot be recorded is run as it is."""
        if kind not in self._recorded and not self._failed:
            try:
                self._recorded[kind] = self._record(body, state)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.info("this network's steps cannot be recorded: %s", str(error).splitlines()[0])
                self._failed = True
        self._recorded.get(kind, body)()


class Watch:
    """Which images are blocked, looked for without waiting: a GPU answers at the next look.

    Waiting for the last answer also keeps Python from running far ahead of the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: deque[tuple[Tensor, Tensor, torch.cuda.Event | None]] = deque()

    def ask(self, blocked: Tensor) -> None:
        """Begins to find out whether any image is blocked now.  [B]"""
        snapshot = blocked.clone()
        if self._device.type != "cuda":
            self._asked.append((snapshot, snapshot.any(), None))
            return
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(snapshot.any(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._asked.append((snapshot, flag, event))

    def answer(self) -> Tensor | None:
        """The images that were blocked when last asked; None where none was, or nothing was asked.  [B]"""
        if not self._asked:
            return None
        snapshot, flag, event = self._asked.popleft()
        if event is not None:
            event.synchronize()
        return snapshot if bool(flag) else None

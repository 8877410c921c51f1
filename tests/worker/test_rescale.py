"""Arithmetic on a picture's channels, as torchvision's ``transform_input``, is one operation of a program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from feature_atlas_worker.programs.operations import Other, Rescale, Way
from tests.worker.test_program import FP32, Rewrites, climbed, close, opened, operations, pictures, seeded


def channel(x: Tensor, place: int, factor: float = 1.0, summand: float = 0.0) -> Tensor:
    return torch.unsqueeze(x[:, place], 1) * factor + summand


PREPARED: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "each": (True, lambda x: torch.cat([channel(x, 0, 0.5, -0.1), channel(x, 1, 2.0, 0.2), channel(x, 2, -3.0)], 1)),
    "factors": (True, lambda x: torch.cat([torch.unsqueeze(x[:, i], 1) * (i + 0.5) for i in range(3)], 1)),
    "summands": (True, lambda x: torch.cat([torch.unsqueeze(x[:, i], 1) + (i + 0.5) for i in range(3)], 1)),
    "turned round": (False, lambda x: torch.cat([channel(x, i, 2.0, 0.1) for i in (2, 1, 0)], 1)),
    "one twice": (False, lambda x: torch.cat([channel(x, i, 2.0, 0.1) for i in (0, 1, 1)], 1)),
    "a part": (False, lambda x: torch.cat([torch.unsqueeze(x[:, i, ::2], 1) * 2.0 for i in range(3)], 1)),
    "by each other": (False, lambda x: torch.cat([torch.unsqueeze(x[:, i], 1) * x[:, :1] for i in range(3)], 1)),
}


class Prepared(nn.Module):
    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare, self.first, self.last = prepare, nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.prepare(x)).relu())


@pytest.mark.parametrize("kind", PREPARED)
def test_channels_that_are_rescaled(kind: str) -> None:
    rescaled, prepare = PREPARED[kind]
    module = seeded(Prepared(prepare))
    with opened(module, "last") as network, opened(module, "last", Rewrites(half=False, program=False)) as plain:
        for ours, theirs in zip(climbed(network, pictures()), climbed(plain, pictures()), strict=True):
            close(ours, theirs)
        if network.facts.program is not None:
            found = [type(each) for each in operations(network)]
            assert (Rescale in found, Other in found) == (rescaled, not rescaled)
        assert network.facts.program is not None or not rescaled


@pytest.mark.parametrize("kind", [kind for kind, (rescaled, _) in PREPARED.items() if rescaled])
def test_they_come_out_to_the_last_digit(kind: str) -> None:
    """Another one turns signs in the layers behind, and in a deep network the gradient would be another."""
    _, prepare = PREPARED[kind]
    x = torch.randn(3, 3, 24, 20, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with opened(seeded(Prepared(prepare)), "last") as network:
        climbed(network, pictures())
        (rescale,) = [each for each in operations(network) if isinstance(each, Rescale)]
    found, _ = rescale.ahead(Way(), x)
    assert torch.equal(found, prepare(x))


def test_some_of_more_channels_are_no_rescaled_map() -> None:
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(2, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(torch.cat([channel(x, i, 2.0, 0.1) for i in range(2)], 1))

    module = seeded(Some())
    with opened(module, "last", FP32) as network, opened(module, "last", Rewrites(half=False, program=False)) as plain:
        for ours, theirs in zip(climbed(network, pictures()), climbed(plain, pictures()), strict=True):
            close(ours, theirs)

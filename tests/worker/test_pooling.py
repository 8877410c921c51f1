"""Max pooling in a program: where it alone reads rectified maps, theirs is the only mask on the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feature_atlas_worker.programs.operations import Convolve
from feature_atlas_worker.programs.pooling import MaxPool
from feature_atlas_worker.rewrite import Rewrites
from tests.worker.test_program import climbed, close, opened, operations, pictures, programmed, seeded


class Pooled(nn.Module):
    """Convolutions, something of each of their maps, a pooling, a convolution."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.left, self.right = (
            nn.Conv2d(3, channels, 3, 2), nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        )  # fmt: skip
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if kind != "dilated" else nn.MaxPool2d(2, 1, dilation=2)
        self.last = nn.Conv2d((2 if kind == "joined" else 1) * channels, 40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        if self.kind == "joined":
            pooled = self.pool(torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], 1))
        elif self.kind == "read twice":
            map = self.relu(self.left(x))
            pooled = self.pool(map) + self.pool(self.right(map))
        elif self.kind == "a sum":
            pooled = self.pool(self.relu(self.left(x) + self.right(x)))
        elif self.kind == "clipped":
            pooled = self.pool(self.relu6(self.left(x)))
        elif self.kind == "not rectified":
            pooled = self.pool(self.left(x))
        else:
            pooled = self.pool(self.relu(self.left(x)))
        return self.last(pooled)


#: How many convolutions leave the mask to the pooling.
MASKED = {"plain": 1, "joined": 2, "read twice": 0, "a sum": 1, "clipped": 0, "not rectified": 0, "dilated": 1}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("channels", [48, 12])  # more and fewer than a kernel takes
@pytest.mark.parametrize("kind", MASKED)
def test_a_pooled_map_goes_back_as_in_the_network(kind: str, channels: int, kernels: bool) -> None:
    module = seeded(Pooled(kind, channels))
    ours, theirs = Rewrites(half=False, kernels=kernels), Rewrites(half=False, kernels=False, program=False)
    with opened(module, "last", ours) as network, opened(module, "last", theirs) as plain:
        for allow in (None, torch.tensor([True, False])):
            how = {} if allow is None else {"allow": allow}
            for found, expected in zip(
                climbed(network, pictures(), **how), climbed(plain, pictures(), **how), strict=True
            ):
                close(found, expected)
        assert programmed(network)
        masked = [each for each in operations(network) if isinstance(each, Convolve) and each.masked]
        assert len(masked) == MASKED[kind]


def test_a_blocked_gradient_is_redirected_before_a_pooling() -> None:
    module = seeded(Pooled("plain", 48))
    assert isinstance(module, Pooled) and module.left.bias is not None
    with torch.no_grad():
        module.left.bias.fill_(-1e3)
    theirs = Rewrites(half=False, program=False)
    with opened(module, "last", Rewrites(half=False)) as network, opened(module, "last", theirs) as plain:
        for flags in ([True, True], [True, False], [False, False]):
            allow = torch.tensor(flags)
            _, found = climbed(network, pictures(), allow=allow)
            _, expected = climbed(plain, pictures(), allow=allow)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
            assert (found.flatten(1).abs().amax(1) > 0).tolist() == flags
        assert programmed(network)


def test_a_map_too_small_to_be_pooled_is_refused_as_by_the_network() -> None:
    with (
        opened(seeded(Pooled("plain", 48)), "pool", Rewrites(half=False)) as network,
        pytest.raises(RuntimeError, match="Output size is too small"),
    ):
        climbed(network, pictures())
        assert programmed(network)
        climbed(network, pictures(size=3))


def test_lengths_of_one_number_are_for_both_axes() -> None:
    assert MaxPool((3,), (2,), 0, [1], False, rectified=False, own=True)._pairs == [[3, 3], [2, 2], [0, 0], [1, 1]]

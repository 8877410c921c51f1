"""A picture depends on its own job: not on its neighbours, their order, the batch it came in, or the process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import builtin
from feature_atlas_worker.ascent import Ascent, Trace
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Target, Visualization, render
from feature_atlas_worker.rewrite import ALL, Rewrites
from tests import networks

ROOT = Path(__file__).parents[2]


def default(size: int, steps: int, **changes: object) -> Recipe:
    """The default preset, small; its shifts shrink with it."""
    whole = preset("regularised")
    fits = {"jitter": tuple(pixels * size / 128 for pixels in whole.jitter), "coarse_steps": min(whole.coarse_steps, 4)}
    return preset("regularised", {"size": size, "steps": steps, **fits, **changes})


def rendered(
    channels: Sequence[int], batch: int, recipe: Recipe | None = None, made: networks.Made | None = None
) -> list[Visualization]:
    model = VisionModel(*(made or networks.toy()))
    return render(model, [Target("relu2", c) for c in channels], recipe or default(24, 20), batch=batch)


def same(one: Visualization, other: Visualization) -> bool:
    """Every bit of the picture and every number."""
    numbers = [(v.target, v.status, v.reason, v.attempts, v.activation, v.best_step, v.curve) for v in (one, other)]
    return numbers[0] == numbers[1] and np.array_equal(one.images, other.images)


def digest(found: Sequence[Visualization]) -> str:
    return hashlib.sha256(b"".join(v.images.tobytes() for v in found)).hexdigest()


def test_alone_in_a_padded_batch_is_bit_equal_to_in_company() -> None:
    together = rendered(range(8), 8)
    assert len({digest([v]) for v in together}) == 8
    for channel in (0, 3, 7):
        (alone,) = rendered([channel], 8)
        assert same(alone, together[channel])


def test_order_does_not_matter() -> None:
    forth, back = rendered(range(7), 7), rendered([*range(6, -1, -1)], 7)
    assert all(same(one, other) for one, other in zip(forth, reversed(back), strict=True))


def test_neither_does_where_the_batches_are_cut() -> None:
    whole, cut = rendered(range(10), 4), rendered(range(3, 10), 4)  # what a resume after three jobs renders
    assert all(same(one, other) for one, other in zip(whole[3:], cut, strict=True))


def test_neither_do_neighbours_that_are_tried_again() -> None:
    made = networks.dead()
    channels = [networks.DEAD, 0, 5]
    together = rendered(channels, 3, default(24, 10), made)
    assert [v.attempts for v in together] == [3, 1, 1]
    for place, channel in enumerate(channels):
        (alone,) = rendered([channel], 3, default(24, 10), made)
        assert same(alone, together[place])


@pytest.mark.parametrize(
    ("rewrites", "sizes"), [(ALL, [3, 1, 1]), (Rewrites(side_by_side="always"), [4, 4, 4])], ids=["proved", "padded"]
)
def test_who_is_tried_again_is_alone_where_the_shape_of_a_batch_does_not_show(
    rewrites: Rewrites, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, run = [], Ascent.run

    def counted(ascent: Ascent, *arguments: Any) -> Trace:
        seen.append(len(ascent.channels))
        return run(ascent, *arguments)

    monkeypatch.setattr(Ascent, "run", counted)
    made, wanted = networks.dead(), [Target("relu2", channel) for channel in (networks.DEAD, 0, 5)]
    render(VisionModel(*made), wanted, default(24, 4), batch=4, rewrites=rewrites)
    assert seen == sizes


def test_neither_do_neighbours_that_must_be_woken() -> None:
    """Redirection is granted image by image."""
    made = networks.toy()
    with torch.no_grad():
        made[0].get_submodule("conv2").bias[4:8] -= 0.8  # type: ignore[index,operator]  # asleep near grey
    recipe = default(24, 20, redirect=4)
    together = rendered(range(3, 7), 4, recipe, made)
    starts = [v.activation.start for v in together if v.activation]
    assert starts[0] > 0 and starts[1:] == [0, 0, 0] and "ok" in {v.status for v in together[1:]}
    for place, channel in enumerate(range(3, 7)):
        (alone,) = rendered([channel], 4, recipe, made)
        assert same(alone, together[place])


def test_a_blocked_neighbour_gives_nobody_a_permission() -> None:
    """Large steps over many hills: an image is blocked now and then, while its neighbour always is."""

    class Hills(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.sin(4 * x) - 0.3)

    conv = nn.Conv2d(3, 6, 5)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)) / 4)
        conv.bias.fill_(0.2)  # type: ignore[union-attr]
        conv.weight[0], conv.bias[0] = 0, 0  # type: ignore[index]  # never awake
    model = VisionModel(nn.Sequential(conv, Hills()), networks.MEAN, networks.STD, (16, 16))
    recipe = Recipe(size=(16, 16), steps=30, learning_rate=0.5, objective="neuron", redirect=0, pick="last")
    together = render(model, [Target("1", channel) for channel in range(6)], recipe, batch=6)
    assert together[0].status == "dead"
    for channel in range(1, 6):
        (alone,) = render(model, [Target("1", channel)], recipe, batch=6)
        assert same(alone, together[channel])


def test_diverse_images_belong_to_their_job_alone() -> None:
    recipe = default(24, 10, images=3, diversity=1.0)
    together = rendered(range(4), 4, recipe)
    (alone,) = rendered([2], 4, recipe)
    assert same(alone, together[2])


def test_another_process_draws_the_same() -> None:
    code = (
        "from tests.worker.test_independence import digest, rendered\n"
        "print(digest(rendered([5, 2], 2)))"
    )  # fmt: skip
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert there.stdout.strip() == digest(rendered([5, 2], 2))


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first, state = digest(rendered([1], 1)), torch.get_rng_state()
    torch.rand(5)
    assert digest(rendered([1], 1)) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", ["conv3", "conv6"])
def test_neither_does_the_shape_of_the_batch(layer: str) -> None:
    """One image at a time goes through the network on a CPU, since an ascent amplifies the least rounding."""
    model, recipe = VisionModel(*builtin.load("demo")), default(48, 24)
    wanted = [Target(layer, channel) for channel in range(5)]
    together = render(model, wanted, recipe, batch=5)
    for size in (1, 2, 3):
        in_parts = render(model, wanted[:3], recipe, batch=size)
        assert all(same(one, other) for one, other in zip(in_parts, together, strict=False))

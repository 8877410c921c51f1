"""What a GPU replays, replayed here: a tape of kernels that reads and writes the same tensors, as a CUDA graph does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import ascent, gradients
from feature_atlas_worker.ascent import Ascent, Trace
from feature_atlas_worker.graphs import Recordings, Watch
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.recorded import RecordedAscent, ascent_of, kept_ascent
from feature_atlas_worker.rewrite import Rewrites
from tests import networks

CPU = torch.device("cpu")
#: Ways in which Python learns a tensor's value.
ASKS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class Tape(TorchDispatchMode):
    """Keeps every kernel that runs, with the very tensors that it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ASKS, f"{func} makes Python wait"
        out = func(*args, **(kwargs or {}))
        self.kernels.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.kernels:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """``Record`` on a CPU; counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, body: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        self.count += 1
        before = [tensor.clone() for tensor in state]
        body()  # what is made once is made now
        with Tape() as tape:
            body()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return tape.replay


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_may_ask", lambda _device: False)


@contextmanager
def opened(recipe: Recipe, layer: str = "relu2", made: networks.Made | None = None) -> Iterator[Network]:
    rewrites = Rewrites(half=False, kernels=False)  # a tape sees what goes through PyTorch
    with open_network(VisionModel(*(made or networks.toy())), layer, recipe, CPU, rewrites) as network:
        yield network


def small(**changes: Any) -> Recipe:
    whole = {"size": 24, "steps": 20, "jitter": 3.0, "redirect": 5, "coarse_steps": 0}
    return preset("regularised", {**whole, **changes})


def same(one: Trace, other: Trace) -> None:
    torch.testing.assert_close(one.image, other.image, atol=2e-3, rtol=0)
    torch.testing.assert_close(one.history, other.history, atol=2e-3, rtol=2e-3)
    assert torch.equal(one.best_step, other.best_step) and torch.equal(one.blocked, other.blocked)


@pytest.mark.parametrize(
    "recipe",
    [
        small(),
        small(coarse=0.5, coarse_steps=7, blur=(0.5, 0.0), pick="last"),
        small(images=2, diversity=0.5),
        small(parameterization="pixel", frequency_penalty=0.0, cut=(0.0, 0.0)),
        small(penalties="absolute", adapt="coefficient", pad=2),
        small(objective="neuron", frequency_penalty=0.02),
    ],
)  # fmt: skip
def test_replayed_steps_draw_what_the_loop_draws(recipe: Recipe) -> None:
    """Rounding apart: a rate that is a tensor is multiplied in another order."""
    with opened(recipe) as network:
        plain = Ascent(network, recipe, [1, 5, 9], [0, 1, 2]).run()
        record = Recorder()
        same(RecordedAscent(network, recipe, [1, 5, 9], [0, 1, 2], record).run(), plain)
    kinds = 2 + bool(recipe.coarse_steps)  # redirecting, not, and coarse
    assert record.count == kinds
    assert plain.image.std() > 0.05


def test_a_layer_is_recorded_once_for_all_its_batches() -> None:
    recipe, record = small(), Recorder()
    with opened(recipe) as network:
        first = kept_ascent(network, recipe, [0, 1], [0, 1], record)
        first.run()
        count = record.count
        second = kept_ascent(network, recipe.model_copy(update={"seed": 7}), [4, 2], [5, 6], record)
        assert second is first
        same(second.run(), Ascent(network, recipe, [4, 2], [5, 6]).run())
        assert record.count == count
        wider = kept_ascent(network, recipe, [4, 2, 3], [5, 6, 7], record)
        assert wider is not first
        wider.run()
        assert record.count > count


def test_only_the_last_ascent_is_kept_and_goes_with_its_network() -> None:
    recipe, record = small(steps=2, redirect=1), Recorder()
    model = VisionModel(*networks.toy())
    with open_network(model, "relu2", recipe, CPU) as network:
        first = weakref.ref(kept_ascent(network, recipe, [0], [0], record))
        second = weakref.ref(kept_ascent(network, recipe, [0, 1], [0, 1], record))
        gc.collect()
        assert first() is None and second() is not None
    del network, model
    gc.collect()
    assert second() is None


def test_an_ascent_that_was_stopped_begins_anew() -> None:
    recipe, record = small(), Recorder()
    with opened(recipe) as network:
        half = kept_ascent(network, recipe, [3], [3], record)
        ticks = iter(range(100))
        with pytest.raises(ascent.Stopped):
            half.run(stop=lambda: next(ticks) > 8)
        same(kept_ascent(network, recipe, [3], [3], record).run(), Ascent(network, recipe, [3], [3]).run())


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    class Curious(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    def refuse(body: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    made = (nn.Sequential(nn.Conv2d(3, 4, 3), Curious()).eval(), networks.MEAN, networks.STD, (24, 24))
    recipe = small()
    with opened(recipe, "1", made) as network:
        same(RecordedAscent(network, recipe, [1], [1], refuse).run(), Ascent(network, recipe, [1], [1]).run())


def test_the_tape_would_catch_a_network_that_asks() -> None:
    class Curious(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    made = (nn.Sequential(nn.Conv2d(3, 4, 3), Curious()).eval(), networks.MEAN, networks.STD, (24, 24))
    with opened(small(), "1", made) as network, pytest.raises(AssertionError, match="makes Python wait"):
        RecordedAscent(network, small(), [1], [1], Recorder()).run()


def test_a_shortage_while_recording_is_told() -> None:
    def full(body: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Recordings(full).run("step", lambda: None, [])


def test_a_cpu_records_nothing() -> None:
    recipe = small(steps=2)
    with opened(recipe) as network:
        assert type(ascent_of(network, recipe, [0], [0])) is Ascent  # without kernels of our own


def test_the_watch_answers_for_the_moment_it_was_asked() -> None:
    watch, blocked = Watch(CPU), torch.tensor([False, False])
    assert watch.answer() is None
    watch.ask(blocked)
    blocked[1] = True
    watch.ask(blocked)
    blocked[0] = True
    assert watch.answer() is None
    answer = watch.answer()
    assert answer is not None and answer.tolist() == [False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", [small(), small(coarse=0.5, coarse_steps=7)])
def test_a_gpu_replays_what_its_loop_draws(recipe: Recipe) -> None:
    device = torch.device("cuda")
    with open_network(VisionModel(*networks.toy()), "relu2", recipe, device) as network:
        plain = Ascent(network, recipe, [1, 5], [0, 1]).run()
        for _ in range(2):  # recorded, then replayed
            found = ascent_of(network, recipe, [1, 5], [0, 1])
            assert type(found) is RecordedAscent
            torch.testing.assert_close(found.run().image, plain.image, atol=0.05, rtol=0)

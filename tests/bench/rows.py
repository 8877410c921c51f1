"""The rows of the table: each names what runs, and runs a few steps of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import transforms
from feature_atlas_worker.activations import tap
from feature_atlas_worker.ascent import Ascent, Now
from feature_atlas_worker.devices import computes_half
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import WIDTH, Network, open_network
from feature_atlas_worker.recorded import ascent_of
from feature_atlas_worker.rewrite import ALL, Rewrites
from tests.bench import subjects
from tests.bench.memory import peak


class Timed:
    """Runs steps and gives the seconds of one: CPU time, or on a GPU wall time."""

    def __init__(self, run: Callable[[int], float], device: torch.device) -> None:
        self._run, self._device = run, device

    def __call__(self, steps: int) -> float:
        """Seconds of one step."""
        return self._run(steps)

    def peak(self, steps: int) -> float | None:
        """Bytes at the peak of some steps beyond what there was before; None where the system does not tell."""
        return peak(lambda: self._run(steps), self._device)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: Literal["lucent", "ours", "bare"]
    batch: int = 1
    rewrites: Rewrites = ALL
    #: Shift, scale and rotate one after the other, each a resampling, instead of composed into one.
    separate: bool = False
    #: What Lucent resizes its picture to; None is its default.
    size: int | None = None

    @property
    def untouched(self) -> bool:
        """Whether it needs a process in which nothing was changed."""
        return self.kind != "ours" or not self.rewrites.heap


OFF = Rewrites(
    cut=False,
    freeze=False,
    half=False,
    channels_last=False,
    fold=False,
    heap=False,
    quicken=False,
    program=False,
    kernels=False,
    winograd=False,
    graph=False,
    side_by_side="always",
)
_ADDED: tuple[tuple[str, dict[str, bool]], ...] = (
    ("+ end at the layer (`cut`)", {"cut": True}),
    ("+ no gradient to weights (`freeze`)", {"freeze": True}),
    ("+ one resampling instead of three", {"separate": False}),
    ("+ `channels_last`", {"channels_last": True}),
    ("+ batch norms in convolutions (`fold`)", {"fold": True}),
)
#: The last one that is exact.
_FEWER = "+ fewer products (`winograd`)"


def all_rows(batches: tuple[int, ...], device: torch.device) -> list[Row]:
    """Lucent, our loop with everything off, then one technique after the other, then batches; the bare network."""
    rows = [
        Row("Lucent, defaults (a)", "lucent"),
        Row("Lucent, `fixed_image_size=128` (b)", "lucent", size=128),
        Row("naive: our loop, everything off", "ours", 1, OFF, separate=True),
    ]
    half = computes_half(device)
    for name, change in _ADDED:
        last, own = rows[-1], dict(change)
        separate = own.pop("separate", last.separate)
        rows.append(replace(last, name=name, separate=separate, rewrites=replace(last.rewrites, **own)))
    if device.type == "cpu":
        last = rows[-1]
        rows.append(replace(last, name="+ freed memory kept (`heap`)", rewrites=replace(last.rewrites, heap=True)))
        plain = replace(ALL, program=False, kernels=False, winograd=False, half=False)
        rows.append(Row("+ faster convolutions (`quicken`)", "ours", 1, plain))
        rows.append(Row("+ a program without autograd (`program`)", "ours", 1, replace(plain, program=True)))
        rows.append(Row("+ kernels of our own (`kernels`)", "ours", 1, replace(ALL, winograd=False, half=False)))
        last = Row(_FEWER, "ours", 1, replace(ALL, half=False))
        # What is exact ends here; more than this a CPU does not take side by side.
        most = max((batch for batch in batches if batch <= WIDTH), default=1)
        rows += [last, replace(last, name=f"the same, batch {most}", batch=most)] if half else []
    name = "+ bf16 (`half`)" if half else _FEWER
    rows.append(Row(f"{name} = default, batch 1", "ours"))
    rows += [Row(f"default, batch {batch}", "ours", batch) for batch in batches]
    return rows + [Row(f"bare network, batch {batch}", "bare", batch) for batch in (1, *batches)]


class Separately(Ascent):
    """The loop as everybody writes it: every transform is a resampling of its own."""

    def _view(self, now: Now, coarse: bool, picture: Tensor) -> Tensor:
        theta = now.theta
        linear, shift = theta[:, :, :2], theta[:, :, 2:]
        factor = torch.linalg.det(linear).sqrt()[:, None, None]
        same = torch.eye(2, device=theta.device).expand_as(linear)
        view, fill = picture, self.recipe.fill
        for move, by in ((same, shift), (same * factor, 0 * shift), (linear / factor, 0 * shift)):
            view = transforms.affine(view, torch.cat((move, by), 2), picture.shape[-2:], fill)
        return transforms.blur(view, now.blur, transforms.most_blur(self.recipe))


class Bench:
    """One layer of one network with everything that its rows need; use :func:`opened`."""

    def __init__(self, model: VisionModel, layer: str, device: torch.device, size: int, stack: ExitStack) -> None:
        self.model, self.layer, self.device, self._stack = model, layer, device, stack
        self.recipe = preset("regularised", {"size": size, "pick": "last"})
        self.module = model.module.to(device)
        self._networks: dict[Rewrites, Network] = {}
        self._bare = stack.enter_context(tap(subjects.lucent_copy(self.module).requires_grad_(False), layer))

    def network(self, rewrites: Rewrites) -> Network:
        """The network so rewritten; opened once."""
        if rewrites not in self._networks:
            context = open_network(self.model, self.layer, self.recipe, self.device, rewrites)
            self._networks[rewrites] = self._stack.enter_context(context)
        return self._networks[rewrites]

    def prepared(self, row: Row) -> Timed:
        """What times the row; whatever is made once per layer is made now."""
        if row.kind == "lucent":
            return Timed(lambda steps: self._lucent(row, steps), self.device)
        if row.kind == "bare":
            return Timed(lambda steps: self._bare_steps(row, steps), self.device)
        network = self.network(row.rewrites)
        return Timed(lambda steps: self._ours(network, row, steps), self.device)

    def clock(self) -> float:
        """Seconds of this process's CPU, or of the wall once the GPU is done."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _lucent(self, row: Row, steps: int) -> float:
        """From forward pass to forward pass, without its set-up and its first step, which makes the gradients."""
        fresh, stamps, calls = subjects.lucent_copy(self.module), [], itertools.count()

        def stamp(_module: object, _args: object) -> None:
            if next(calls) in (1, steps + 1):
                stamps.append(self.clock())

        fresh.register_forward_pre_hook(stamp)
        subjects.lucent(fresh, self.layer, 1, steps=[steps + 2], size=row.size)
        return (stamps[1] - stamps[0]) / steps

    def _ours(self, network: Network, row: Row, steps: int) -> float:
        """A step's mean over the recipe: its first ones look for blocked gradients, which costs."""
        recipe: Recipe = self.recipe.model_copy(update={"steps": steps + 2, "redirect": 2})
        channels = [index % network.channels for index in range(1, row.batch + 1)]
        ascent = (Separately if row.separate else ascent_of)(network, recipe, channels, channels)
        stamps = {}

        def stamp(done: int, _steps: int) -> None:
            if done in (1, 2, steps + 2):
                stamps[done] = self.clock()

        ascent.run(on_step=stamp)
        looking, plain = stamps[2] - stamps[1], (stamps[steps + 2] - stamps[2]) / steps
        share = min(1.0, self.recipe.redirect / self.recipe.steps)
        return share * looking + (1 - share) * plain

    def _bare_steps(self, row: Row, steps: int) -> float:
        x = torch.randn(row.batch, 3, *self.recipe.size, device=self.device).requires_grad_()
        began = self.clock()
        for _ in range(steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                out = self._bare(x)
            torch.autograd.grad(out[:, 0].float().sum(), x)
        return (self.clock() - began) / steps


@contextmanager
def opened(model: VisionModel, layer: str, device: torch.device, size: int = 128) -> Iterator[Bench]:
    """The bench of one layer; leaves no hooks behind."""
    with ExitStack() as stack:
        yield Bench(model, layer, device, size, stack)

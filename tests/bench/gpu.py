"""The GPU's part: its tests, the table on it, the convolutions' own speed, and how long a whole network would take."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_atlas.errors import DeviceError
from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker.activations import find, tap
from feature_atlas_worker.ascent import Ascent
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import Network, open_network
from feature_atlas_worker.render import Target, render
from tests.bench import subjects

BATCHES = (16, 64, 256)


@dataclass(frozen=True)
class Shape:
    """One convolution as it runs: what goes in, its weights, and how."""

    x: tuple[int, ...]  # [B, in, h, w]
    weight: tuple[int, ...]  # [out, in / groups, k, k]
    out: tuple[int, ...]  # [B, out, h', w']
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def operations(self) -> float:
        """Multiplications and additions, forward and back to the input."""
        batch, channels, height, width = self.out
        each = self.weight[1] * self.weight[2] * self.weight[3]
        return 2.0 * 2.0 * batch * channels * height * width * each


def required() -> torch.device:
    """The GPU.

    Raises:
        DeviceError: there is none.
    """
    if not torch.cuda.is_available():
        raise DeviceError(
            f"no GPU: torch {torch.__version__} sees none here; run --gpu on a machine with a CUDA device"
            " (without it: the CPU's table)"
        )
    return torch.device("cuda")


def convolutions(module: nn.Module, layer: str, x: Tensor) -> list[Shape]:
    """The convolutions that run up to the layer, in order."""
    found: list[Shape] = []

    def seen(conv: Any, args: Any, out: Tensor) -> None:
        padding = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
        found.append(
            Shape(tuple(args[0].shape), tuple(conv.weight.shape), tuple(out.shape), conv.stride, padding, conv.dilation,
                  conv.groups)
        )  # fmt: skip

    # Before the tap's own hook, which ends the pass.
    handles = [m.register_forward_hook(seen) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        with tap(module, layer) as run, torch.no_grad():
            run(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def conv_loop(shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """The convolutions alone, each forward and back to its input, channels last: what the card gives at best."""
    made = [
        (
            torch.randn(shape.x, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last),
            torch.randn(shape.weight, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last),
            shape,
        )
        for shape in shapes
    ]

    def run() -> None:
        for x, weight, s in made:
            out = torch.ops.aten.convolution(x, weight, None, s.stride, s.padding, s.dilation, False, [0, 0], s.groups)
            torch.ops.aten.convolution_backward(
                out, x, weight, None, s.stride, s.padding, s.dilation, False, [0, 0], s.groups, [True, False, False]
            )

    return run


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call; the first is not timed."""
    work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_costs(
    model: VisionModel, layer: str, batch: int, device: torch.device, rounds: int, recipe: Recipe
) -> dict[str, float]:
    """Seconds of a whole step, of the rewritten network alone and of its convolutions alone, in turn; medians."""
    steps = recipe.steps
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with open_network(model, layer, recipe, device) as network:
        channels = [n % network.channels for n in range(batch)]
        x = torch.rand(batch, 3, *recipe.size, device=device).requires_grad_()

        def core() -> None:
            torch.autograd.grad(network(x)[:, 0].sum(), x)

        def whole() -> None:
            Ascent(network, recipe, channels, channels).run()

        with _bare(network) as module:
            shapes = convolutions(module, layer, x.detach())
        loop = conv_loop(shapes, device, dtype)
        found = [
            (
                seconds_of(whole, device, 1) / steps,
                seconds_of(core, device, steps),
                seconds_of(loop, device, steps),
            )
            for _ in range(rounds)
        ]
    step, alone, plain = (statistics.median(values) for values in zip(*found, strict=True))
    work = sum(shape.operations for shape in shapes)
    return {
        "step": step, "network": alone, "convolutions": plain, "of_network": step / alone,
        "tflops": work / step / 1e12, "tflops_convolutions": work / plain / 1e12, "share": plain / step,
    }  # fmt: skip


@contextmanager
def _bare(network: Network) -> Iterator[nn.Module]:
    """The module under a network that is open: its own tap would end the pass before ours."""
    hooks = find(network.module, network.layer)._forward_hooks
    kept = dict(hooks)
    hooks.clear()
    try:
        yield network.module
    finally:
        hooks.clear()
        hooks.update(kept)


def strata(module: nn.Module) -> dict[str, int]:
    """A sample of the convolutions and how many channels each stands for.

    One stratum is a stage (``layer3``) and a place in its blocks (``conv2``); its last member stands for all.
    """
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            parts = name.split(".")
            groups.setdefault((parts[0], ".".join(parts[2:])), []).append((name, layer.out_channels))
    return {members[-1][0]: sum(count for _, count in members) for members in groups.values()}


def projection(
    model: VisionModel, batch: int, device: torch.device, recipe: Recipe, say: Callable[[str], None]
) -> dict[str, Any]:
    """Minutes for every convolution's channels, out of one full batch of each stratum."""
    sample, layers = strata(model.module), sum(isinstance(m, nn.Conv2d) for m in model.module.modules())
    rows, seconds, start = [], 0.0, []
    for layer, stands_for in sample.items():
        began = time.perf_counter()
        with open_network(model, layer, recipe, device) as network:
            channels = network.channels
        _wait(device)
        start.append(time.perf_counter() - began)
        targets = [Target(layer, n % channels) for n in range(batch)]
        each = seconds_of(lambda t=targets: render(model, t, recipe, batch=batch, device=device), device, 1) / batch
        rows.append({"layer": layer, "stands_for": stands_for, "seconds_per_channel": each, "start_up": start[-1]})
        seconds += each * stands_for
        say(f"{layer}: {1000 * each:.1f} ms per channel, stands for {stands_for} channels")
    per_layer = statistics.median(start)
    return {
        "channels": sum(sample.values()), "layers": layers, "sample": rows, "start_up": per_layer,
        "minutes": (seconds + per_layer * layers) / 60,
    }  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Runs all of it on the GPU and prints it; returns the exit status."""
    from tests.bench import __main__ as command
    from tests.bench import waterfall

    device = required()
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests/worker/test_gpu.py"]
    if status := subprocess.run(tests).returncode:
        return status
    found = command.table(options, device)
    print(waterfall.markdown(found) + "\n\n" + waterfall.LEGEND.format(unit="wall time"))
    recipe = preset("regularised", {"size": options.size, "pick": "last"})
    batch, costs = max(options.batches), {}
    for subject in options.layers:
        name, _, layer = subject.rpartition(":")
        model = subjects.load(name, options.allow)
        costs[subject] = c = step_costs(model, layer, batch, device, options.rounds, recipe)
        print(
            f"{subject}, batch {batch}: a step is {c['of_network']:.2f} of the rewritten network alone;"
            f" {c['tflops']:.0f} TFLOP/s in convolutions, {100 * c['share']:.0f} % of the"
            f" {c['tflops_convolutions']:.0f} that they reach by themselves in bf16"
        )
    whole = projection(subjects.load("resnet50"), batch, device, preset("regularised"), command.say)
    about = {**command.machine(), "gpu": torch.cuda.get_device_name(device)}
    print(
        f"ResNet-50, {whole['channels']} channels of {whole['layers']} convolutions: {whole['minutes']:.1f} minutes,"
        f" projected from {len(whole['sample'])} layers; start-up {whole['start_up']:.2f} s per layer. {about}"
    )
    if options.json:
        raw = {"machine": about, "layers": found, "steps": costs, "projection": whole}
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return 0

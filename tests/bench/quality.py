"""Time to a picture as good as Lucent's: activation, robustness, noise and CPU time on real weights.

    python -m tests.bench.quality --weights squeezenet1_0-imagenet.safetensors --out quality/
    ... --layers features.7 features.12 --preset regularised draft --sweep steps=32,48,96

The same 16 channels of a SqueezeNet layer for both.  Lucent 0.1.8 runs its 512 steps with ``fixed_image_size=128``;
its pictures on the way are kept in the folder and not rendered again, but three channels are always timed afresh.
CPU seconds per channel, one thread, one process; Lucent and ours take turns; ours include loading the network's copy,
the measuring after the loop, and whatever else ``render`` does.  Ratios are to Lucent's last picture, channel by
channel, medians over the channels that are not grey there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import measure, rewrite, transforms
from feature_atlas_worker.activations import tap
from feature_atlas_worker.render import Target, render
from tests.bench import subjects

CHANNELS = {
    "features.3": list(range(0, 128, 8)),
    "features.7": list(range(0, 256, 16)),
    "features.12": list(range(0, 512, 32)),
    "classifier.1": [340, 281, 980, 113, 294, 850, *range(50, 1000, 95)],
}
#: Where Lucent is looked at on its way.
STEPS = (32, 64, 128, 256, 512)
VIEWS = 64
#: A picture whose 8-bit values spread less than this is grey.
GREY = 5.0
#: What a picture must be to count as well as Lucent's: its activation, and that over held-out views; its noise.
GOOD = {"clean": 1.0, "held_out": 0.8, "noise": 0.5}

Numbers = dict[str, np.ndarray]
Point = dict[str, Any]


def load(weights: Path) -> Any:
    """SqueezeNet 1.0 with the given weights, as the renderer takes it."""
    from feature_atlas_worker import models, resolve

    reference, data = resolve.resolve("squeezenet1_0", str(weights))
    return models.load(reference, read=lambda _key: data or b"")


class Lucent:
    """Lucent's pictures and times for one layer."""

    def __init__(self, model: Any, layer: str, channels: Sequence[int], steps: Sequence[int], folder: Path) -> None:
        self.model, self.layer, self.channels, self.steps = model, layer, list(channels), list(steps)
        self.folder = folder / "lucent"
        self.folder.mkdir(parents=True, exist_ok=True)

    def render(self, channel: int) -> float:
        """Renders and keeps one channel's pictures.  -> CPU seconds"""
        fresh = subjects.lucent_copy(self.model.module)
        torch.manual_seed(channel)
        np.random.seed(channel)
        began = time.process_time()
        images = subjects.lucent(fresh, self.layer, channel, steps=self.steps, size=128)
        seconds = time.process_time() - began
        for step, image in zip(self.steps, images, strict=True):
            Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8)).save(self._path(channel, step))
        return seconds

    def pictures(self, step: int) -> list[np.ndarray]:
        """The 8-bit pictures of all channels after so many steps."""
        for channel in self.channels:
            if not self._path(channel, step).exists():
                self.render(channel)
        return [np.asarray(Image.open(self._path(channel, step))) for channel in self.channels]

    def _path(self, channel: int, step: int) -> Path:
        return self.folder / f"{self.layer}-{channel}-{step}.png"


def ours(model: Any, layer: str, channels: Sequence[int], recipe: Recipe) -> tuple[list[np.ndarray], float]:
    """(pictures, CPU seconds per channel), 16 side by side, nothing prepared."""
    rewrite.forget(model.module)
    began = time.process_time()
    found = render(model, [Target(layer, channel) for channel in channels], recipe, batch=16)
    return [seen.images[0] for seen in found], (time.process_time() - began) / len(found)


@torch.no_grad()
def numbers(model: Any, layer: str, channels: Sequence[int], pictures: list[np.ndarray]) -> Numbers:
    """Clean activation, mean over held-out views, and noise share, picture by picture."""
    image = measure.from_bytes(np.stack(pictures), torch.device("cpu"))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    index = torch.arange(len(pictures)), torch.tensor(list(channels))
    size = (image.shape[2], image.shape[3])
    drawn = transforms.held_out(Recipe(size=size), VIEWS)
    with tap(model.module, layer) as run:

        def activation(seen: torch.Tensor) -> np.ndarray:
            return np.asarray(run((seen - mean) / std)[index].mean((1, 2)))

        held_out = [
            activation(
                transforms.blur(
                    transforms.affine(image, theta.expand(len(image), 2, 3), size, 0.5), sigma.expand(len(image))
                )
            )
            for theta, sigma in zip(drawn.theta, drawn.blur, strict=True)
        ]
        clean = activation(image)
    return {
        "clean": clean,
        "held_out": np.mean(held_out, 0),
        "noise": np.array([measure.high_frequency(p) for p in pictures]),
        "grey": np.array([p.std() < GREY for p in pictures]),
    }


def point(name: str, seconds: Sequence[float], lucent_seconds: Sequence[float], seen: Numbers, last: Numbers) -> Point:
    """One line of the frontier; ``faster`` is Lucent's whole run over this one, of the same rounds."""
    live = ~last["grey"] & (last["clean"] > 0)
    ratios = {key: round(float(np.median(seen[key][live] / last[key][live])), 3) for key in GOOD}
    faster = statistics.median(theirs / mine for theirs, mine in zip(lucent_seconds, seconds, strict=True))
    return {
        "name": name,
        "seconds": round(statistics.median(seconds), 3),
        "faster": round(faster, 1),
        **ratios,
        "grey": int(seen["grey"].sum()),
    }


def frontier(lucent: Lucent, recipes: dict[str, Recipe], rounds: int, folder: Path) -> dict[str, Any]:
    """All points of one layer, the time to Lucent's activation, and the sheets side by side on disk."""
    model, layer, channels = lucent.model, lucent.layer, lucent.channels
    theirs: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    pictures: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds):
        theirs.append(lucent.render(channels[turn % len(channels)]))
        for name, recipe in recipes.items():
            pictures[name], spent = ours(model, layer, channels, recipe)
            seconds[name].append(spent)
    final = lucent.pictures(lucent.steps[-1])
    last = numbers(model, layer, channels, final)
    points = []
    for step in lucent.steps:
        seen = last if step == lucent.steps[-1] else numbers(model, layer, channels, lucent.pictures(step))
        spent_there = [whole * step / lucent.steps[-1] for whole in theirs]
        points.append(point(f"Lucent, {step} steps", spent_there, theirs, seen, last))
    for name, images in pictures.items():
        points.append(point(name, seconds[name], theirs, numbers(model, layer, channels, images), last))
        side_by_side(final, images).save(folder / f"{layer} {name}.png")
    return {"layer": layer, "points": points, **time_to_quality(points[len(lucent.steps) :])}


def time_to_quality(points: Sequence[Point]) -> dict[str, float | None]:
    """How many times sooner ours is as active as Lucent's last picture; and while as robust and twice as clean."""
    active = [p["faster"] for p in points if p["clean"] >= GOOD["clean"]]
    good = [
        p["faster"] for p in points
        if p["clean"] >= GOOD["clean"] and p["held_out"] >= GOOD["held_out"] and p["noise"] <= GOOD["noise"]
    ]  # fmt: skip
    return {"as_active": max(active, default=None), "in_every_respect": max(good, default=None)}


def side_by_side(theirs: Sequence[np.ndarray], mine: Sequence[np.ndarray]) -> Image.Image:
    """Two sheets, four pictures wide: Lucent's on the left, ours on the right."""
    sheets = []
    for pictures in (theirs, mine):
        rows = [np.concatenate(pictures[i : i + 4], 1) for i in range(0, len(pictures) - len(pictures) % 4, 4)]
        sheets.append(np.concatenate(rows or [pictures[0]], 0))
    gap = np.full((sheets[0].shape[0], 16, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([sheets[0], gap, sheets[1]], 1))


def markdown(found: dict[str, Any]) -> str:
    """One layer's frontier as a table."""
    lines = [
        f"| `{found['layer']}` | CPU s per channel | times faster | clean | held-out | noise | grey |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in found["points"]:
        lines.append(
            f"| {p['name']} | {p['seconds']:.2f} | {p['faster']:.1f} | {p['clean']:.2f} | {p['held_out']:.2f} |"
            f" {p['noise']:.2f} | {p['grey']} |"
        )
    told = {
        key: "not reached" if found[key] is None else f"{found[key]:.1f}x" for key in ("as_active", "in_every_respect")
    }
    lines.append(
        f"\nTime to Lucent's final activation: {told['as_active']} less; with held-out at least {GOOD['held_out']} and"
        f" noise at most {GOOD['noise']} of Lucent's as well: {told['in_every_respect']} less."
    )
    return "\n".join(lines)


def recipes_of(presets: Sequence[str], sweeps: Sequence[str]) -> dict[str, Recipe]:
    """The points to render: each preset, and each with every swept value (``steps=32,48``)."""
    found = {name: preset(name) for name in presets}
    for sweep in sweeps:
        field, _, values = sweep.partition("=")
        for name in presets:
            for value in values.split(","):
                found[f"{name} {field}={value}"] = preset(name, {field: value})
    return found


def main(arguments: list[str] | None = None) -> None:
    """Prints one table per layer."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("quality"))
    parser.add_argument("--preset", nargs="+", default=["regularised"])
    parser.add_argument("--sweep", nargs="*", default=[], metavar="FIELD=VALUE,VALUE", help="more points per preset")
    parser.add_argument("--layers", nargs="*", default=list(CHANNELS))
    parser.add_argument("--rounds", type=int, default=3, help="Lucent channels timed per layer, in turn with ours")
    parser.add_argument("--channels", type=int, default=16, help="of each layer")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="where to look at Lucent")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.channels, *options.steps) < 1:
        parser.error("--rounds, --channels and --steps must be at least 1")
    if unknown := set(options.layers) - set(CHANNELS):
        parser.error(f"no layer {unknown.pop()!r} (possible: {', '.join(CHANNELS)})")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    model, recipes = load(options.weights), recipes_of(options.preset, options.sweep)
    found = []
    for layer in options.layers:
        channels = CHANNELS[layer][: options.channels]
        lucent = Lucent(model, layer, channels, sorted(options.steps), options.out)
        found.append(frontier(lucent, recipes, options.rounds, options.out))
        print(markdown(found[-1]) + "\n", flush=True)
    (options.out / "quality.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

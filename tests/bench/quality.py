"""Our default recipe against Lucent 0.1.8 on real weights: activation, robustness, noise and time, channel by channel.

    python -m tests.bench.quality --weights squeezenet1_0-imagenet.safetensors --out quality/

Same 16 channels of four SqueezeNet layers for both.  Lucent runs with ``fixed_image_size=128`` and its 512 steps.
Its pictures are kept in the folder and not rendered again; CPU seconds are taken in one process with one thread,
one Lucent channel and one batch of ours in turn for every layer.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import measure, transforms
from feature_atlas_worker.activations import tap
from feature_atlas_worker.render import Target, Visualization, render

CHANNELS = {
    "features.3": list(range(0, 128, 8)),
    "features.7": list(range(0, 256, 16)),
    "features.12": list(range(0, 512, 32)),
    "classifier.1": [340, 281, 980, 113, 294, 850, *range(50, 1000, 95)],
}
VIEWS = 64
#: A picture whose 8-bit values spread less than this is grey.
GREY = 5.0


def load(weights: Path) -> Any:
    """SqueezeNet 1.0 with the given weights, as the renderer takes it."""
    from feature_atlas_worker import models, resolve

    reference, data = resolve.resolve("squeezenet1_0", str(weights))
    return models.load(reference, read=lambda _key: data or b"")


def lucent_picture(model: Any, layer: str, channel: int) -> tuple[np.ndarray, float]:
    """(picture [128, 128, 3] of 8 bits, CPU seconds) from Lucent as shipped."""
    import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import render as lucent

        fresh = copy.deepcopy(model.module).requires_grad_(True)  # Lucent leaves its hooks behind
        torch.manual_seed(channel)
        np.random.seed(channel)
        began = time.process_time()
        name = f"{layer.replace('.', '_')}:{channel}"
        image = lucent.render_vis(fresh, name, fixed_image_size=128, show_image=False, progress=False)[-1][0]
    return (image * 255).round().clip(0, 255).astype(np.uint8), time.process_time() - began


def lucent_pictures(model: Any, layer: str, folder: Path) -> list[np.ndarray]:
    """Lucent's pictures of a layer's channels; rendered once, kept as PNG."""
    found = []
    for channel in CHANNELS[layer]:
        path = folder / "lucent" / f"{layer}-{channel}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(lucent_picture(model, layer, channel)[0]).save(path)
        found.append(np.asarray(Image.open(path)))
    return found


def ours(model: Any, layer: str, recipe: Recipe) -> tuple[list[Visualization], float]:
    """(visualizations, CPU seconds per channel), 16 side by side."""
    began = time.process_time()
    found = render(model, [Target(layer, channel) for channel in CHANNELS[layer]], recipe, batch=16)
    return found, (time.process_time() - began) / len(found)


@torch.no_grad()
def numbers(model: Any, layer: str, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Clean activation, mean over 64 held-out views, and noise share, picture by picture."""
    image = measure.from_bytes(np.stack(pictures), torch.device("cpu"))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    index = torch.arange(len(pictures)), torch.tensor(CHANNELS[layer])
    views = transforms.held_out(Recipe(size=128), VIEWS)
    with tap(model.module, layer) as run:

        def activation(seen: torch.Tensor) -> np.ndarray:
            return np.asarray(run((seen - mean) / std)[index].mean((1, 2)))

        held_out = [
            activation(
                transforms.blur(
                    transforms.affine(image, theta.expand(len(image), 2, 3), (128, 128), 0.5), sigma.expand(len(image))
                )
            )
            for theta, sigma in zip(views.theta, views.blur, strict=True)
        ]
        clean = activation(image)
    return {
        "clean": clean,
        "held_out": np.mean(held_out, 0),
        "noise": np.array([measure.high_frequency(p) for p in pictures]),
        "grey": np.array([p.std() < GREY for p in pictures]),
    }


def compare(model: Any, layer: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """One row of the table, and the layer's two sheets side by side on disk."""
    theirs = lucent_pictures(model, layer, folder)
    _, lucent_seconds = lucent_picture(model, layer, CHANNELS[layer][0])
    found, seconds = ours(model, layer, recipe)
    mine = [result.images[0] for result in found]
    a, b = numbers(model, layer, mine), numbers(model, layer, theirs)
    live = ~b["grey"]
    sheet = np.concatenate([np.concatenate(half[:8], 1) for half in (theirs, mine)], 0)
    Image.fromarray(sheet).save(folder / f"{layer}.png")
    return {
        "layer": layer,
        **{k: round(float(np.median(a[k][live] / b[k][live])), 3) for k in ("clean", "held_out", "noise")},
        "grey": f"{int(a['grey'].sum())} / {int(b['grey'].sum())}",
        "seconds": round(seconds, 2),
        "lucent_seconds": round(lucent_seconds, 2),
        "faster": round(lucent_seconds / seconds, 1),
    }


def main() -> None:
    """Prints the table; ratios are ours over Lucent's, medians over the channels that are not grey in Lucent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("quality"))
    parser.add_argument("--preset", default="regularised")
    parser.add_argument("--layers", nargs="*", default=list(CHANNELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, recipe = load(arguments.weights), preset(arguments.preset)
    rows = []
    for layer in arguments.layers:
        rows.append(compare(model, layer, recipe, arguments.out))
        print(" | ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    (arguments.out / "quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

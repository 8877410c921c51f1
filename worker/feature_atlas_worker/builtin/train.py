"""Trains ``builtin:demo`` on pictures that it draws itself: ``python -m feature_atlas_worker.builtin.train``.

Adversarial training in the L2 ball (Madry et al. 2018; one step from a random start as in Wong et al. 2020): what a
robust network looks for is what people see (Engstrom et al. 2019, "Adversarial robustness as a prior for learned
representations"), and the demo is there to be looked at.  Without it the same network scores higher and its
classifier shows noise.

Data: every picture is drawn once, by :mod:`.draw`, from (seed, step); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from feature_atlas_worker.builtin.draw import CLASSES, batch
from feature_atlas_worker.builtin.network import MEAN, STD, DemoNetwork

log = logging.getLogger(__name__)

#: Side of the training pictures in pixels: the receptive field of the classifier is about as wide.
SIZE = 64
BATCH = 64
STEPS = 1000
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
#: How far the attack moves a picture: share of the L2 norm of the picture without its mean.
RADIUS = 0.17
#: Held-out pictures are drawn from this seed.
HELD_OUT = 10**6


def pictures(count: int, seed: int | tuple[int, ...], size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Normalised pictures [count, 3, size, size] and their labels [count]."""
    images, labels = batch(count, size, seed)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (torch.from_numpy(images) - mean) / std, torch.from_numpy(labels)


@torch.no_grad()
def accuracy(network: nn.Module, count: int, size: int = SIZE, seed: int = HELD_OUT) -> float:
    """Share of freshly drawn pictures whose highest class score is that of their class."""
    images, labels = pictures(count, seed, size)
    return (network(images).argmax(1) == labels).float().mean().item()


def train(seed: int = 0, steps: int = STEPS) -> nn.Module:
    """A trained :class:`DemoNetwork` in evaluation mode."""
    torch.manual_seed(seed)
    network = normalised(DemoNetwork(len(CLASSES))).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        images, labels = pictures(BATCH, (seed, step))
        # The ball grows during the first third: a full attack from the start keeps the network from starting.
        moved = attack(network, images, labels, RADIUS * min(1.0, 3 * step / steps))
        scores = network(moved)
        loss = F.cross_entropy(scores, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            right = (scores.argmax(1) == labels).float().mean()
            log.info("step %d of %d: accuracy under attack %.2f", step + 1, steps, right.item())
    return folded(network.eval())


def attack(network: nn.Module, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """The pictures moved by ``radius`` times their own contrast up the loss, in one step from a random start."""
    contrast = (images - images.mean((2, 3), keepdim=True)).flatten(1).norm(dim=1)

    def scaled(direction: Tensor, length: float) -> Tensor:
        factor = length * contrast / direction.flatten(1).norm(dim=1).clamp(min=1e-12)
        return direction * factor.view(-1, 1, 1, 1)

    moved = (images + scaled(torch.randn_like(images), radius / 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(moved), labels), moved)
    return (moved + scaled(gradient, radius)).detach()


def normalised(network: nn.Module) -> nn.Sequential:
    """The network with a batch norm behind each convolution but the classifier."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in network.named_children():
        if isinstance(module, nn.Conv2d) and name != "classifier":
            module = nn.Sequential(module, nn.BatchNorm2d(module.out_channels))
        layers[name] = module
    return nn.Sequential(layers)


def folded(network: nn.Sequential) -> nn.Module:
    """The inverse of :func:`normalised`: each batch norm multiplied into its convolution, the same function."""
    result = DemoNetwork(len(CLASSES))
    for name, module in network.named_children():
        if isinstance(module, nn.Sequential):
            convolution, norm = module
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            module = fuse_conv_bn_eval(convolution, norm)
        setattr(result, name, module)
    return result.eval()


def main() -> None:
    """Trains, measures and writes the weights in half precision."""
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.safetensors"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    network = train(arguments.seed, arguments.steps).half().float()  # measured as it will be loaded
    reached = accuracy(network, 2000)
    log.info(
        "accuracy on 2000 held-out pictures: %.3f at %d px, %.3f at 96 px", reached, SIZE, accuracy(network, 500, 96)
    )
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    made = {
        "script": __spec__.name,
        "seed": str(arguments.seed),
        "steps": str(arguments.steps),
        "accuracy": f"{reached:.3f}",
    }
    save_file(tensors, arguments.out, made)


if __name__ == "__main__":
    main()

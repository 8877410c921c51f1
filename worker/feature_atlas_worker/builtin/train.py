"""Trains `builtin:demo` on pictures it draws itself: `python -m feature_atlas_worker.builtin.train`."""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from feature_atlas_worker.builtin.draw import CLASSES, batch
from feature_atlas_worker.builtin.network import MEAN, STD, DemoNetwork

log = logging.getLogger(__name__)
SIZE = 64  # pixels a side: the receptive field of the classifier is 65


def pictures(count: int, seed: tuple[int, ...], size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Normalised pictures [count, 3, size, size] and their labels [count]."""
    images, labels = batch(count, size, seed)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (torch.from_numpy(images) - mean) / std, torch.from_numpy(labels)


def with_batch_norm(network: nn.Module) -> None:
    """Put a batch norm behind each convolution but the classifier: training needs it."""
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Conv2d) and name != "classifier":
            setattr(network, name, nn.Sequential(module, nn.BatchNorm2d(module.out_channels)))


def fold_batch_norm(network: nn.Module) -> None:
    """Multiply each batch norm into its convolution: the same function, plain layers."""
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Sequential):
            setattr(network, name, fuse_conv_bn_eval(module[0], module[1]))


def attack(network: nn.Module, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """The pictures moved `radius` (L2, in [0, 1] units) up the loss in one step from a random start."""

    def scaled(direction: Tensor, length: float) -> Tensor:
        norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-12
        return direction * (length / STD[0] / norm)

    moved = (images + scaled(torch.randn_like(images), radius * 0.5)).requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(network(moved), labels), moved)
    return (moved + scaled(gradient, radius)).detach()


def train(steps: int, count: int, seed: int, radius: float, rate: float, decay: float) -> nn.Module:
    torch.manual_seed(seed)
    network = DemoNetwork(len(CLASSES)).to(memory_format=torch.channels_last)
    with_batch_norm(network)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    start = time.time()
    for step in range(steps):
        images, labels = pictures(count, (seed, step))
        images = attack(network, images, labels, radius * min(1, step / (steps * 0.3)))
        scores = network(images)
        loss = functional.cross_entropy(scores, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            right = (scores.argmax(1) == labels).float().mean()
            log.info("step %d  loss %.3f  accuracy under attack %.2f  %.0f s", step + 1, loss, right, time.time() - start)
    network.eval()
    fold_batch_norm(network)
    return network


def accuracy(network: nn.Module, count: int, seed: int, size: int = SIZE) -> float:
    images, labels = pictures(count, (seed,), size)
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--radius", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.safetensors"))
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    net = train(a.steps, a.count, 0, a.radius, a.rate, a.decay)
    print("64:", accuracy(net, 1000, 10**6), "96:", accuracy(net, 500, 10**6, 96))
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, a.out)

"""Penalties: ``(picture or activations) -> penalty``, one number per image; larger is worse, weights are >= 0."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(image: Tensor) -> Tensor:
    """Anisotropic total variation, summed over pixels and channels.  [B, 3, h, w] -> [B].

    A penalty: smaller is smoother.  Mahendran & Vedaldi 2015; here with exponent 1.
    """
    rows = (image[:, :, 1:] - image[:, :, :-1]).abs().sum((1, 2, 3))
    columns = (image[..., 1:] - image[..., :-1]).abs().sum((1, 2, 3))
    return rows + columns


def total_variation_mean(image: Tensor) -> Tensor:
    """Total variation per channel value, for published absolute weights.  [B, 3, h, w] -> [B]."""
    return total_variation(image) / image[0].numel()


def total_variation_gradient(image: Tensor) -> Tensor:
    """d :func:`total_variation` / d image, whole numbers.  [B, 3, h, w]"""
    gradient = torch.zeros_like(image)
    for axis in (2, 3):
        steps = image.shape[axis] - 1
        slope = (image.narrow(axis, 1, steps) - image.narrow(axis, 0, steps)).sign_()
        gradient.narrow(axis, 1, steps).add_(slope)
        gradient.narrow(axis, 0, steps).sub_(slope)
    return gradient


def total_variation_mean_gradient(image: Tensor) -> Tensor:
    """d :func:`total_variation_mean` / d image.  [B, 3, h, w]"""
    return total_variation_gradient(image) / image[0].numel()


def similarity(activations: Tensor, group: int) -> Tensor:
    """Mean pairwise cosine of the Gram matrices of each job's ``group`` images.  [B, C, h, w] -> [B / group].

    A penalty: smaller is more diverse; within [-1, 1].  Lucid's diversity term (lucid/optvis/objectives.py:393)
    summed it over pairs; the mean makes its weight independent of the number of images.
    """
    flat = activations.flatten(2)
    gram = (flat @ flat.transpose(1, 2)).flatten(1)  # [B, C * C]
    unit = torch.nn.functional.normalize(gram, dim=1, eps=1e-20).unflatten(0, (-1, group))
    # |sum of unit vectors|^2 = group + sum over ordered pairs of their cosines.
    return ((unit.sum(1) ** 2).sum(1) - (unit**2).sum((1, 2))) / (group * (group - 1))

"""Penalties by hand; going down their gradient lowers them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker.params import stream
from feature_atlas_worker.regularizers import (
    similarity,
    total_variation,
    total_variation_gradient,
    total_variation_mean,
    total_variation_mean_gradient,
)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=stream(0, "penalties"))


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 0.5], [1.0, 0.25]]]])
    # Down: |1 - 0| + |0.25 - 0.5|; right: |0.5 - 0| + |0.25 - 1|.
    assert total_variation(image).item() == pytest.approx(1.25 + 1.25)
    assert total_variation_mean(image).item() == pytest.approx(2.5 / 4)


def test_total_variation_is_per_image_and_blind_to_brightness() -> None:
    images = random(3, 3, 5, 7)
    images[1] = 0.7
    found = total_variation(images)
    assert found.shape == (3,) and found[1] == 0
    assert found[2] == pytest.approx(total_variation(images[2:]).item())
    torch.testing.assert_close(total_variation(images + 0.1), found)


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1)])
def test_the_gradient_is_the_penaltys(size: tuple[int, int]) -> None:
    image = random(2, 3, *size).mul(4).round()  # flat places, too
    (expected,) = torch.autograd.grad(total_variation(image.requires_grad_()).sum(), image)
    assert torch.equal(total_variation_gradient(image.detach()), expected)
    (expected,) = torch.autograd.grad(total_variation_mean(image).sum(), image)
    torch.testing.assert_close(total_variation_mean_gradient(image.detach()), expected)


def test_a_stripe_counts_alike_in_both_directions() -> None:
    image = torch.zeros(1, 3, 6, 6)
    image[:, :, 2] = 1
    assert total_variation(image) == total_variation(image.transpose(2, 3)) == 2 * 6 * 3


def test_the_mean_means_the_same_at_every_size() -> None:
    small, large = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 32, 32)
    small[..., ::2], large[..., ::2] = 1, 1
    assert total_variation_mean(large).item() == pytest.approx(total_variation_mean(small).item(), rel=0.15)


def test_the_same_image_twice_is_wholly_similar() -> None:
    acts = random(1, 4, 3, 3).repeat(3, 1, 1, 1)
    assert similarity(acts, 3).item() == pytest.approx(1.0, abs=1e-5)
    elsewhere = torch.cat((acts[:1], acts[:1].flatten(2)[..., torch.arange(9).flip(0)].view(1, 4, 3, 3)))
    assert similarity(elsewhere, 2).item() == pytest.approx(1.0, abs=1e-5)  # what it shows counts, not where


def test_images_without_a_common_channel_are_not_similar() -> None:
    acts = torch.zeros(2, 4, 3, 3)
    acts[0, :2], acts[1, 2:] = random(2, 3, 3), random(2, 3, 3)
    assert similarity(acts, 2).item() == pytest.approx(0.0, abs=1e-6)


def test_similarity_is_the_mean_pairwise_cosine_of_gram_matrices() -> None:
    acts = random(6, 4, 3, 3)
    found = similarity(acts, 3)
    assert found.shape == (2,)
    for job in range(2):
        grams = [torch.einsum("chw,dhw->cd", a, a).flatten() for a in acts[3 * job : 3 * job + 3]]
        pairs = [torch.cosine_similarity(grams[i], grams[j], 0) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found[job].item() == pytest.approx(float(sum(pairs)) / 3, abs=1e-5)


def test_similarity_is_blind_to_the_scale_of_a_network() -> None:
    acts = random(2, 4, 3, 3)
    assert torch.equal(similarity(acts * 1024, 2), similarity(acts, 2))
    assert similarity(torch.zeros(2, 4, 3, 3), 2) == 0  # a dead layer's images say nothing


def alike(images: Tensor) -> Tensor:
    return similarity(images, 2)


@pytest.mark.parametrize("penalty", [total_variation, total_variation_mean, alike])
def test_a_step_down_the_gradient_lowers_the_penalty(penalty: Callable[[Tensor], Tensor]) -> None:
    images = random(4, 3, 6, 6).requires_grad_()
    before = penalty(images)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    after = penalty(images - 1e-3 * gradient / gradient.abs().max())
    assert (after < before).all()


def test_diversity_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"diversity 1\.0 needs at least 2 images per job, not 1"):
        Recipe(diversity=1.0)
    assert Recipe(diversity=1.0, images=2).images == 2

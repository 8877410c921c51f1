"""The loop: what the network sees, which picture is kept, who is woken, and when it stops."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_atlas.spec import Recipe
from feature_atlas_worker import measure, transforms
from feature_atlas_worker.ascent import Ascent, Stopped, Trace, learning_rates, unit_rms
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from feature_atlas_worker.params import init, stream, to_image
from feature_atlas_worker.rewrite import Rewrites
from tests import networks

CPU = torch.device("cpu")
#: Every input of a :class:`Recorder`; its copies share this list.
SEEN: list[Tensor] = []


class Recorder(nn.Module):
    """Remembers what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(x.detach().clone())
        return x


class Wave(nn.Module):
    """An objective of many hills, on which large steps get lost."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


class Asleep(nn.Sequential):
    """Rectified channels: 0 sleeps on anything near grey and can be woken, 1 is awake."""

    def __init__(self) -> None:
        conv = nn.Conv2d(3, 2, 5)
        with torch.no_grad():
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=stream(0, "asleep")) / 9)
            conv.bias.copy_(torch.tensor([-0.5, 0.5]))  # type: ignore[union-attr]
        super().__init__(OrderedDict[str, nn.Module](conv=conv, relu=nn.ReLU()))


def ascend(
    module: nn.Module, layer: str, recipe: Recipe, channels: Sequence[int] = (0,), seeds: Sequence[int] | None = None
) -> Trace:
    model = VisionModel(module.eval(), networks.MEAN, networks.STD, recipe.size)
    # A program runs no module: what a recorder would do beside answering, it does not do.
    program = not any(isinstance(part, Recorder) for part in module.modules())
    with open_network(model, layer, recipe, CPU, Rewrites(half=False, program=program)) as network:
        SEEN.clear()
        return Ascent(network, recipe, channels, seeds or [*range(len(channels))]).run()


def test_learning_rates_fall_along_a_cosine() -> None:
    rates = learning_rates(Recipe(steps=5, learning_rate=2.0, learning_rate_end=0.1))
    assert rates == pytest.approx([2.0, 2 * (0.1 + 0.9 * 0.853553), 1.1, 2 * (0.1 + 0.9 * 0.146447), 0.2], rel=1e-5)
    assert learning_rates(Recipe(steps=3, learning_rate=0.05)) == [0.05] * 3
    assert learning_rates(Recipe(steps=1, learning_rate=0.05, learning_rate_end=0.0)) == [0.05]


def test_gradients_come_to_unit_size_image_by_image() -> None:
    gradient = torch.randn(4, 3, 5, 7, generator=stream(0, "gradient"))
    gradient[1] *= 1e-30
    gradient[2] *= 1e30
    gradient[3] = 0
    found = unit_rms(gradient)
    assert (found[:3] ** 2).mean((1, 2, 3)).sqrt().tolist() == pytest.approx([1, 1, 1], rel=1e-5)
    assert not found[3].any()
    torch.testing.assert_close(found[1], gradient[1] * 1e30 / (gradient[1] * 1e30).square().mean().sqrt())
    assert torch.equal(unit_rms(gradient[:1] * 1024), found[:1])
    assert torch.equal(unit_rms(gradient[:1]), found[:1])


def test_the_network_sees_moved_blurred_and_normalised_pictures() -> None:
    """The post draws transforms that it never applies, and does not normalise at all."""
    recipe = Recipe(
        size=(16, 20), steps=6, learning_rate=1e-7, jitter=(4, 2), rotate=(-20, 20), scale=(0.8, 1.2), pad=3,
        blur=(1.0, 0.0), init_std=1.0, pick="last",
    )  # fmt: skip
    seeds = [4]
    ascend(nn.Sequential(Recorder(), nn.Conv2d(3, 2, 3)), "1", recipe, (0,), seeds)
    drawn = transforms.schedule(recipe, seeds)
    still = to_image(init(recipe, seeds), recipe)  # the rate is so small that the picture stands still
    assert len(SEEN) == recipe.steps
    for step, seen in enumerate(SEEN):
        view = transforms.affine(still, drawn.theta[step], (22, 26), recipe.fill)
        view = transforms.blur(view, drawn.blur[step])
        torch.testing.assert_close(seen, (view - 0.5) / 0.25, rtol=0, atol=1e-3)
        assert all(not torch.allclose(seen, other, atol=0.05) for other in SEEN[:step])


@pytest.mark.parametrize("blur", [(0.5, 0.0), (0.0, 0.0), (0.0, 0.5)])
def test_blurs_may_end_at_zero(blur: tuple[float, float]) -> None:
    """torchvision's blur, which the post uses, refuses a sigma of 0."""
    trace = ascend(networks.toy()[0], "conv2", Recipe(size=(16, 16), steps=5, blur=blur))
    assert trace.image.isfinite().all()


def test_a_coarse_start_shows_the_network_small_pictures() -> None:
    recipe = Recipe(size=(32, 48), steps=5, coarse=0.5, coarse_steps=3, pad=4, pick="last")
    trace = ascend(nn.Sequential(Recorder(), nn.Conv2d(3, 2, 3)), "1", recipe)
    assert [tuple(seen.shape[-2:]) for seen in SEEN] == [(20, 28)] * 3 + [(40, 56)] * 2
    assert trace.image.shape[-2:] == (32, 48)


def test_coarse_to_fine_shows_low_frequencies_first() -> None:
    recipe = Recipe(size=(32, 32), steps=3, cut=(3.0, 0.0), decay=0.0, init_std=1.0, learning_rate=1e-7, pick="last")
    trace = ascend(nn.Sequential(Recorder(), nn.Conv2d(3, 2, 3)), "1", recipe)
    shares = [measure.high_frequency(seen[0].permute(1, 2, 0).numpy()) for seen in SEEN]
    assert shares[0] < 0.01 and shares[0] < shares[1] < shares[2]
    torch.testing.assert_close(trace.image, SEEN[2] * 0.25 + 0.5, rtol=0, atol=1e-4)


def test_the_history_records_every_step() -> None:
    recipe = Recipe(size=(16, 16), steps=4, pick="last", sign=-1)
    module = networks.toy()[0]
    trace = ascend(module, "conv2", recipe, (2, 7))
    assert trace.history.shape == (4, 2, 4)
    loss, mean, greatest, least = trace.history.unbind(-1)
    assert torch.equal(loss, mean)  # of a minimised activation
    assert (least < mean).all() and (mean < greatest).all()
    first = module.get_submodule("conv2")(module[:2]((trace.initial - 0.5) / 0.25))  # type: ignore[operator]
    torch.testing.assert_close(mean[0], torch.stack((first[0, 2].mean(), first[1, 7].mean())))


HILLS = Recipe(size=(16, 16), steps=20, learning_rate=0.3, pick="best")
WAVES = nn.Sequential(networks.toy()[0][0], Wave())  # type: ignore[index]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_picture_is_never_worse_than_the_last(sign: int) -> None:
    recipe = HILLS.model_copy(update={"sign": sign})
    trace = ascend(WAVES, "1", recipe, range(8))
    model = VisionModel(WAVES, networks.MEAN, networks.STD, recipe.size)
    with open_network(model, "1", recipe, CPU) as network:

        def merit(image: Tensor) -> Tensor:
            seen = network, image, torch.arange(8), recipe
            robust = measure.robust(*seen, measure.JUDGES, exact=False)
            return sign * (measure.activation(*seen, exact=False) + robust.mean(1))

        best, last = merit(trace.image), merit(trace.last)
    earlier = trace.best_step < recipe.steps
    assert 0 < earlier.sum() < 8  # both happen here
    assert (best[earlier] > last[earlier]).all()
    assert torch.equal(trace.image[~earlier], trace.last[~earlier])


def test_the_kept_picture_belongs_to_its_step() -> None:
    """The post stores the picture after the update beside the activation before it."""
    trace = ascend(WAVES, "1", HILLS, range(8))
    image = int((trace.best_step < HILLS.steps).nonzero()[0])
    step = int(trace.best_step[image])
    shorter = HILLS.model_copy(update={"steps": step, "pick": "last"})
    again = ascend(WAVES, "1", shorter, range(8))
    assert torch.equal(trace.image[image], again.last[image])


def test_the_last_picture_is_taken_where_the_recipe_says_so() -> None:
    trace = ascend(WAVES, "1", HILLS.model_copy(update={"pick": "last"}), range(8))
    assert torch.equal(trace.image, trace.last) and (trace.best_step == HILLS.steps).all()


SLEEPER = Recipe(size=(16, 16), steps=20, learning_rate=0.1, redirect=0, redirect_always=False)


def woken(**change: object) -> Trace:
    return ascend(Asleep(), "relu", SLEEPER.model_copy(update=change), (0, 1))


def test_a_blocked_unit_stays_grey_without_redirection() -> None:
    trace = woken()
    assert trace.blocked.tolist() == [True, False]
    assert torch.equal(trace.last[0], trace.initial[0])
    assert not trace.history[:, 0, 2].any()


@pytest.mark.parametrize("change", [{"redirect": 16}, {"redirect_always": True}])
def test_a_blocked_unit_is_woken_at_the_start_and_at_any_time(change: dict[str, object]) -> None:
    trace, plain = woken(**change), woken()
    assert trace.blocked.tolist() == [False, False]
    assert trace.history[-1, 0, 1] > 0.1
    assert torch.equal(trace.image[1], plain.image[1])  # the one that was awake has not noticed


def test_the_last_gradient_tells_what_is_blocked() -> None:
    trace = ascend(networks.dead()[0], "conv2", Recipe(size=(16, 16), steps=3), (networks.DEAD, 0))
    assert trace.blocked.tolist() == [True, False]
    assert torch.equal(trace.last[0], trace.initial[0])


def test_it_stops_between_two_steps() -> None:
    done: list[tuple[int, int]] = []
    recipe = Recipe(size=(16, 16), steps=9)
    with open_network(VisionModel(*networks.toy()), "conv1", recipe, CPU) as network:
        with pytest.raises(Stopped):
            Ascent(network, recipe, [0], [0]).run(lambda: len(done) >= 4, lambda *progress: done.append(progress))
        assert done == [(1, 9), (2, 9), (3, 9), (4, 9)]
        done.clear()
        Ascent(network, recipe, [0], [0]).run(lambda: False, lambda *progress: done.append(progress))
    assert done == [(step + 1, 9) for step in range(9)]


@pytest.mark.parametrize("penalties", ["relative", "absolute"])
def test_smoothness_pulls_against_the_objective(penalties: Any) -> None:
    def variation(weight: float) -> float:
        recipe = Recipe(
            size=(16, 16), steps=20, learning_rate=0.1, decay=0.5, total_variation=weight, penalties=penalties
        )
        image = ascend(networks.toy()[0], "conv2", recipe, (3,)).last
        return float((image[..., 1:] - image[..., :-1]).abs().mean())

    free, held = variation(0.0), variation(0.3 if penalties == "relative" else 30)
    assert held < 0.7 * free


def test_the_frequency_penalty_takes_fine_detail_and_leaves_coarse() -> None:
    def energy(weight: float) -> tuple[float, float]:
        """Mean square amplitude (below 1/8, above 1/4 cycles per pixel) before the squash."""
        recipe = Recipe(size=(32, 32), steps=20, learning_rate=0.1, decay=0.5, frequency_penalty=weight)
        planes = torch.logit(ascend(networks.toy()[0], "conv2", recipe, (3,)).last[0].clamp(1e-6, 1 - 1e-6))
        power = torch.fft.fft2(planes).abs().square()  # [3, 32, 32]
        cycles = torch.fft.fftfreq(32)
        radius = (cycles[:, None] ** 2 + cycles[None, :] ** 2).sqrt()
        return float(power[:, radius < 0.125].mean()), float(power[:, radius > 0.25].mean())

    free, held = energy(0.0), energy(1.0)
    assert held[1] < 0.5 * free[1]
    assert held[0] > 0.8 * free[0]


@pytest.mark.parametrize("penalties", ["relative", "absolute"])
def test_diversity_pushes_images_apart(penalties: Any) -> None:
    def gram_cosine(weight: float) -> float:
        recipe = Recipe(size=(16, 16), steps=20, learning_rate=0.1, images=2, diversity=weight, penalties=penalties)
        module = networks.toy()[0]
        assert isinstance(module, nn.Sequential)
        acts = module[:4]((ascend(module, "relu2", recipe, (3,)).last - 0.5) / 0.25).flatten(2)
        one, other = (acts @ acts.transpose(1, 2)).flatten(1)
        return torch.cosine_similarity(one, other, 0).item()

    assert gram_cosine(1.0) < gram_cosine(0.0) - 0.2

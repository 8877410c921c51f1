"""The renderer as a plain function: what rises, what falls, what is dead, and what is refused in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from feature_atlas.errors import DeviceError, RequestError
from feature_atlas.presets import PRESETS, preset
from feature_atlas.spec import Recipe, seed_of
from feature_atlas_worker import builtin
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.params import init, to_image
from feature_atlas_worker.render import SEEDS, Stopped, Target, Visualization, render
from tests import networks
from tests.worker.test_ascent import HILLS, WAVES


def small(name: str = "regularised", **changes: Any) -> Recipe:
    """A preset at 24 px and 16 steps, with shifts to match."""
    own = PRESETS[name]
    fitted: dict[str, Any] = {"size": 24, "steps": 16, "coarse_steps": min(own.get("coarse_steps", 0), 4)}
    if "jitter" in own:
        fitted["jitter"] = tuple(pixels / 5 for pixels in own["jitter"])
    return preset(name, {**fitted, **changes})


def toy() -> VisionModel:
    return VisionModel(*networks.toy())


def targets(layer: str, *channels: int) -> list[Target]:
    return [Target(layer, channel) for channel in channels]


def gains(found: Sequence[Visualization]) -> list[float]:
    return [v.activation.best - v.activation.start for v in found if v.activation]


def variation(pixels: NDArray[np.uint8]) -> float:
    signed = pixels.astype(float)
    return float(np.abs(np.diff(signed, axis=-2)).mean() + np.abs(np.diff(signed, axis=-3)).mean())


def grams(images: NDArray[np.uint8], network: nn.Module) -> Tensor:
    with torch.no_grad():
        acts = network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).flatten(2)
    return nn.functional.normalize((acts @ acts.transpose(1, 2)).flatten(1), dim=1)


@pytest.mark.parametrize("layer", ["conv1", "relu1", "conv2", "conv3"])
def test_every_channel_rises(layer: str) -> None:
    found = render(toy(), targets(layer, *range(8)), small())
    assert [v.target for v in found] == targets(layer, *range(8))
    assert [v.status for v in found] == ["ok"] * 8 and min(gains(found)) > 0


def test_the_numbers_are_those_of_the_picture() -> None:
    model = toy()
    (found,) = render(model, targets("conv2", 5), small())
    assert isinstance(model.module, nn.Sequential)
    picture = torch.from_numpy(found.images).permute(0, 3, 1, 2) / 255
    value = model.module[:3]((picture - 0.5) / 0.25)[0, 5].mean().item()
    assert found.activation is not None and found.curve is not None
    assert found.activation.best == pytest.approx(value, rel=1e-4)
    assert found.activation.normalized == pytest.approx(
        (found.activation.best - found.activation.noise_mean) / found.activation.noise_std
    )
    assert found.activation.normalized > 2 and found.activation.robust > found.activation.start
    assert found.picture.width == found.picture.height == 24 and found.picture.contrast > 0.02
    assert found.attempts == 1 and found.reason == "" and found.initial is None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_raises_its_channels(name: str) -> None:
    found = render(toy(), targets("conv2", 1, 5), small(name))
    assert [v.status for v in found] == ["ok", "ok"] and min(gains(found)) > 0
    assert all(v.images.shape == (1, 24, 24, 3) for v in found)


def test_minimising_lowers_the_activation() -> None:
    up, down = (render(toy(), targets("conv2", 1, 5), small(sign=sign)) for sign in (1, -1))
    assert max(gains(down)) < 0 < min(gains(up))
    assert [v.status for v in down] == ["ok", "ok"]


def test_a_neuron_rises_where_it_is() -> None:
    recipe = small(objective="neuron", position=(3, 8), jitter=0)
    found = render(toy(), targets("conv2", 1, 5), recipe)
    assert min(gains(found)) > 0.05
    contrast = np.stack([v.images[0] for v in found]).astype(float).std((0, 3))
    # The map's row 3 and column 8 look at the picture around row 6 and column 16.
    assert contrast[2:11, 12:21].mean() > 2 * contrast[14:, :10].mean()


def test_a_layer_gets_louder_as_a_whole() -> None:
    (found,) = render(toy(), targets("conv2", 0), small(objective="layer"))
    assert found.status == "ok" and found.activation is not None
    assert found.activation.best > 2 * found.activation.start > 0


@pytest.mark.parametrize("layer", ["conv", "last"])
def test_other_sizes_and_layouts(layer: str) -> None:
    found = render(VisionModel(*networks.nhwc()), targets(layer, 0, 5), small(size=(17, 30)))
    assert min(gains(found)) > 0
    assert found[0].images.shape == (1, 17, 30, 3)
    assert (found[0].picture.height, found[0].picture.width) == (17, 30)


@pytest.mark.parametrize(("factory", "layer"), [(networks.tokens, "mix"), (networks.flat, "linear")])
def test_tokens_and_flat_layers_rise(factory: Any, layer: str) -> None:
    assert min(gains(render(VisionModel(*factory()), targets(layer, 0, 4), small(size=32)))) > 0


def test_diverse_images_differ_in_what_they_show() -> None:
    network = networks.toy()[0]
    assert isinstance(network, nn.Sequential)

    def alike(diversity: float) -> float:
        (found,) = render(toy(), targets("relu2", 3), small(images=3, diversity=diversity, steps=24))
        assert found.images.shape == (3, 24, 24, 3) and min(gains([found])) > 0
        cosines = grams(found.images, network[:4]) @ grams(found.images, network[:4]).T
        return float((cosines.sum() - 3) / 6)

    assert alike(1.0) < alike(0.0) - 0.02


def test_smoothness_shows_in_the_finished_picture() -> None:
    rough, smooth = (
        render(toy(), targets("conv2", 3, 5), small(total_variation=weight))[0].images for weight in (0.0, 0.5)
    )
    assert variation(smooth) < 0.7 * variation(rough)


@pytest.mark.parametrize(
    "change",
    [{"jitter": 6}, {"rotate": (-45, 45)}, {"scale": (0.5, 1.5)}, {"blur": (2, 0)}, {"blur_random": (1, 2)},
     {"pad": 6}, {"cut": (2, 0)}, {"total_variation": 0.2}, {"decorrelate": False}, {"decay": 0.5},
     {"seed": 1}, {"coarse": 0.5, "coarse_steps": 4}, {"network_size": 40}, {"betas": (0.5, 0.9)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_changes_the_picture(change: dict[str, Any]) -> None:
    """The post draws jitter, scale and rotation, and uses none of them."""
    plain = {"jitter": 0, "rotate": (0,), "scale": (1,), "blur_random": (0, 0), "cut": (0, 0), "total_variation": 0}
    before, after = (render(toy(), targets("conv2", 5), small(steps=8, **{**plain, **own})) for own in ({}, change))
    assert np.abs(before[0].images.astype(int) - after[0].images).max() > 3


def test_normalisation_changes_the_picture() -> None:
    """The post shows the network pictures in [0, 1] that were made for its normalised ones."""
    module = networks.toy()[0]
    before, after = (
        render(VisionModel(module, (mean,) * 3, (std,) * 3, (32, 32)), targets("relu2", 5), small())[0].images
        for mean, std in ((0.0, 1.0), (0.5, 0.25))
    )
    assert np.abs(before.astype(int) - after).max() > 3


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (16, 16), (70, 64)])
def test_curves_have_at_most_64_points(steps: int, points: int) -> None:
    (found,) = render(toy(), targets("conv1", 0), small(steps=steps, size=16, coarse_steps=0))
    assert found.curve is not None
    assert len(found.curve.steps) == len(found.curve.loss) == len(found.curve.max) == points
    assert found.curve.steps[-1] == steps - 1
    assert found.best_step <= steps


def test_the_last_iterate_has_a_number_of_its_own_only_where_it_was_not_chosen() -> None:
    model = VisionModel(WAVES, networks.MEAN, networks.STD, HILLS.size)
    every = [Target("1", channel) for channel in range(8)]
    found = render(model, every, HILLS)
    last = render(model, every, HILLS.model_copy(update={"pick": "last"}))
    chosen = [one.best_step == HILLS.steps for one in found]
    assert 0 < sum(chosen) < 8  # both happen here
    for one, other, same in zip(found, last, chosen, strict=True):
        assert one.activation is not None and other.activation is not None
        assert (one.activation.final == one.activation.best) == same
        assert one.activation.final == pytest.approx(other.activation.final, rel=1e-2)  # 8 bits or not


def test_the_initial_picture_is_kept_on_request() -> None:
    recipe = small(keep_initial=True)
    (found,) = render(toy(), targets("conv1", 0), recipe, seeds=[77])
    expected = (to_image(init(recipe, [77]), recipe)[0] * 255).round().permute(1, 2, 0)
    assert found.initial is not None and np.array_equal(found.initial, expected.numpy())
    assert not np.array_equal(found.initial, found.images[0])


def test_seeds_come_from_layer_and_channel() -> None:
    model, recipe = toy(), small(steps=4, coarse_steps=0)
    (usual,) = render(model, targets("conv1", 2), recipe)
    (same,) = render(model, targets("conv1", 2), recipe, seeds=[seed_of(0, "conv1", 2)])
    (other,) = render(model, targets("conv1", 2), recipe, seeds=[5])
    assert np.array_equal(usual.images, same.images) and not np.array_equal(usual.images, other.images)


@pytest.mark.parametrize(("layer", "start"), [("conv2", "-1"), ("relu2", "0")])
def test_a_dead_channel_is_called_dead_after_three_seeds(layer: str, start: str) -> None:
    progress: list[int] = []
    dead, alive = render(
        VisionModel(*networks.dead()), targets(layer, networks.DEAD, 0), small(steps=4, coarse_steps=0),
        on_step=lambda step, steps: progress.append(step),
    )  # fmt: skip
    assert dead.status == "dead" and dead.attempts == SEEDS == 3
    assert dead.reason == f"the activation never rose above its start of {start}: its whole gradient is blocked"
    assert dead.activation is not None and dead.activation.normalized == 0  # nothing moves it, noise neither
    assert (alive.status, alive.attempts, alive.reason) == ("ok", 1, "")
    assert progress == [1, 2, 3, 4] * 3


def test_a_channel_that_answers_and_was_not_raised_is_not_said_to_answer_to_nothing() -> None:
    # A step that is far too large leads anywhere.
    (seen,) = render(VisionModel(*networks.toy()), targets("conv2", 3), small(steps=1, learning_rate=100.0))
    assert seen.status == "dead" and seen.activation is not None and seen.activation.noise_std > 0
    assert "it answers to noise, so more steps or another preset may raise it" in seen.reason


def test_a_dead_channel_is_dead_downwards_too() -> None:
    (dead,) = render(
        VisionModel(*networks.dead()), targets("conv2", networks.DEAD), small(sign=-1, steps=2, coarse_steps=0)
    )
    assert dead.status == "dead" and dead.reason.startswith("the activation never fell below its start of -1")


def test_weights_that_are_not_finite_give_no_numbers() -> None:
    module, *rest = networks.toy()
    with torch.no_grad():
        module.get_submodule("conv2").weight[4, 0, 0, 0] = torch.nan  # type: ignore[union-attr,index,operator]
    broken, neighbour = render(VisionModel(module, *rest), targets("conv2", 4, 5), small())
    assert broken.status == "nan" and broken.attempts == 1 and broken.reason
    assert broken.activation is None and broken.curve is None
    assert neighbour.status == "nan"  # the way back leads through all weights of the layer: 0 * NaN is NaN
    assert render(VisionModel(module, *rest), targets("conv1", 5), small())[0].status == "ok"


def test_a_gradient_that_is_not_finite_is_no_picture() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(x - 100).sqrt()  # at 0 the root has an infinite slope, blocked: NaN

    module = nn.Sequential(networks.toy()[0].get_submodule("conv1"), Root())
    (found,) = render(VisionModel(module, *networks.toy()[1:]), targets("1", 0), small())
    assert found.status == "nan" and found.activation is None


@pytest.mark.parametrize("stopped", [False, True])
def test_the_callers_model_is_left_as_it_was(stopped: bool) -> None:
    model = toy()
    module = model.module.train()
    module.get_submodule("conv2").bias.requires_grad_(False)  # type: ignore[union-attr,operator]
    before = copy.deepcopy(module.state_dict())
    if stopped:
        with pytest.raises(Stopped):
            render(model, targets("conv2", 0), small(), stop=lambda: True)
    else:
        render(model, targets("conv2", 0), small())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(m.training for m in module.modules())
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == {"conv2.bias"}
    assert all(p.grad is None and p.device.type == "cpu" for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("wanted", "change", "said"),
    [
        (targets("conv9", 0), {}, r"no layer 'conv9' in this network; did you mean .*conv"),
        (targets("conv1", 3, 8), {}, r"channel 8 is out of range: layer 'conv1' has 8 channels, 0 to 7$"),
        (targets("conv1", -1), {}, r"channel -1 is out of range"),
        (targets("conv1", 8), {"objective": "layer"}, r"channel 8 is out of range"),
        (targets("conv1", 0), {"objective": "neuron", "position": (12, 0)}, r"position 12,0 .* 12 rows and 12 columns"),
        (targets("conv1", 0) + targets("conv2", 0), {}, r"targets of one render share a layer"),
    ],
)
def test_a_wrong_request_is_one_sentence(wanted: list[Target], change: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        render(toy(), wanted, small(**change))
    assert "\n" not in str(caught.value)


def test_a_network_of_one_channel_is_refused() -> None:
    model = VisionModel(nn.Sequential(nn.Conv2d(1, 4, 3)), (0.5,), (0.5,), (28, 28))
    with pytest.raises(RequestError, match=r"^the network takes 1 input channels; pictures have 3$"):
        render(model, targets("0", 0), small())


def test_a_picture_too_small_for_the_layer_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 11, padding=0), nn.MaxPool2d(8), nn.Conv2d(4, 4, 3))
    model = VisionModel(module, networks.MEAN, networks.STD, (64, 64))
    with pytest.raises(RequestError, match=r"a picture of 24 x 24 px does not pass this network up to layer '2'"):
        render(model, targets("2", 0), small())
    assert render(model, targets("0", 0), small())[0].status == "ok"


@pytest.mark.parametrize("device", ["gpu", "mps", "meta"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(RequestError, match=rf"no device '{device}': auto, cpu, cuda or cuda:N"):
        render(toy(), targets("conv1", 0), small(), device=device)


def test_a_missing_gpu_is_the_surroundings_fault() -> None:
    with pytest.raises(DeviceError, match="no device 'cuda:99'"):
        render(toy(), targets("conv1", 0), small(), device="cuda:99")


def test_nothing_wanted_is_nothing_done() -> None:
    assert render(toy(), [], small()) == []


def test_the_built_in_network_shows_something_everywhere() -> None:
    model = VisionModel(*builtin.load("demo"))
    layers = [name for name, module in model.module.named_modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        found = render(model, targets(layer, 0, 3, 6, 9), small(size=48, steps=32))
        assert [v.status for v in found] == ["ok"] * 4 and min(gains(found)) > 0, layer
        assert min(v.picture.contrast for v in found) > 0.02, layer  # none is grey
        assert np.median([v.activation.normalized for v in found if v.activation]) > 1.5, layer

"""One resampling does what its pixels, degrees and factors say; the schedule is data that depends on its seed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker.params import stream
from feature_atlas_worker.transforms import Schedule, affine, blur, held_out, matrices, padded, sampling_grid, schedule

SIZES = [(12, 12), (9, 14), (15, 8)]
Size = tuple[int, int]


def picture(size: Size, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=stream(seed, "picture"))


def move(
    image: Tensor, jitter: tuple[float, float] = (0, 0), scale: float = 1, degrees: float = 0,
    again: tuple[float, float] = (0, 0), out: Size | None = None, fill: float = 0.5,
) -> Tensor:  # fmt: skip
    """The picture after a shift (x, y), a scaling, a rotation and another shift."""
    size = (image.shape[-2], image.shape[-1])
    theta = matrices(
        size, out or size, torch.tensor([jitter], dtype=torch.float32), torch.tensor([float(scale)]),
        torch.tensor([float(degrees)]), torch.tensor([again], dtype=torch.float32),
    )  # fmt: skip
    return affine(image, theta, out or size, fill)


def geometry(recipe: Recipe, drawn: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, degrees, translation in pixels) back from the matrices of a square picture without a border."""
    linear, shift = drawn.theta[..., :2], drawn.theta[..., 2]
    scale = 1 / torch.linalg.det(linear).sqrt()
    degrees = torch.rad2deg(torch.atan2(-linear[..., 0, 1], linear[..., 0, 0]))
    return scale, degrees, -shift * recipe.size[0] / 2


@pytest.mark.parametrize("size", SIZES)
def test_nothing_moves_where_nothing_is_asked(size: Size) -> None:
    image = picture(size)
    torch.testing.assert_close(move(image), image)
    still = schedule(Recipe(size=size, steps=3), [1])
    for theta in still.theta:
        torch.testing.assert_close(affine(image, theta, size, 0.5), image)
    assert not still.blur.any() and not still.cut.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(3, 0), (0, 2), (-2, 4), (-1, -3)])
@pytest.mark.parametrize("which", ["jitter", "again"])
def test_a_shift_moves_by_pixels_and_leaves_grey(size: Size, shift: tuple[int, int], which: str) -> None:
    image, (x, y) = picture(size), shift
    expected = torch.full_like(image, 0.5)
    height, width = size
    kept = image[..., max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    expected[..., max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)] = kept
    torch.testing.assert_close(move(image, **{which: shift}), expected, rtol=0, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_that_of_affine_grid(size: Size) -> None:
    theta = torch.randn(3, 2, 3, dtype=torch.float64, generator=stream(0, "grid"))
    expected = torch.nn.functional.affine_grid(theta, [3, 3, *size], align_corners=False)
    torch.testing.assert_close(sampling_grid(theta, size), expected)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    image = picture((9, 14))
    torch.testing.assert_close(move(image, (0.5, 0))[..., 1:], (image[..., 1:] + image[..., :-1]) / 2)


@pytest.mark.parametrize("side", [8, 9])
def test_rotation_is_counter_clockwise(side: int) -> None:
    image = picture((side, side))
    torch.testing.assert_close(move(image, degrees=90), image.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(move(image, degrees=-90), image.rot90(-1, (2, 3)), rtol=0, atol=1e-5)


def test_rotating_a_wide_picture_turns_pixels_not_coordinates() -> None:
    image = picture((9, 15))
    turned = move(image, degrees=90)
    middle = image[..., 3:12]  # the central square fills all rows of the turned picture
    torch.testing.assert_close(turned[..., 3:12], middle.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    assert (turned[..., :3] == 0.5).all() and (turned[..., 12:] == 0.5).all()


@pytest.mark.parametrize("size", [(8, 12), (9, 15)])
def test_scaling_down_gathers_about_the_centre(size: Size) -> None:
    rows, columns = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    ramp = (0.5 + 0.01 * rows + 0.02 * columns).expand(1, 3, -1, -1)  # linear, so that bilinear is exact
    shrunk, grown = move(ramp, scale=0.5), move(ramp, scale=2)
    inner = (rows.abs() < size[0] / 4 - 1) & (columns.abs() < size[1] / 4 - 1)
    torch.testing.assert_close((shrunk - 0.5)[..., inner], 2 * (ramp - 0.5)[..., inner])
    torch.testing.assert_close((grown - 0.5)[..., 1:-1, 1:-1], 0.5 * (ramp - 0.5)[..., 1:-1, 1:-1])
    outer = (rows.abs() > size[0] / 4 + 1) | (columns.abs() > size[1] / 4 + 1)
    assert (shrunk[..., outer] == 0.5).all()


def test_one_resampling_equals_its_parts_one_after_the_other() -> None:
    jitter, again = (3.0, -2.0), (1.0, 2.0)  # whole pixels and a right angle: the parts lose nothing either
    image = picture((21, 21))
    parts = move(move(move(image, jitter), degrees=90), again)
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(move(image, jitter, 1, 90, again)[inside], parts[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(21, 21), (20, 26)])
def test_a_bump_lands_where_geometry_says(size: Size) -> None:
    y, x = (torch.arange(n) - (n - 1) / 2 for n in size)
    bump = torch.exp(-((y[:, None] - 1) ** 2 + (x - 2) ** 2) / 4).expand(1, 3, -1, -1)
    moved = move(bump, (1.5, -0.5), 0.8, 30, (-2, 1), fill=0.0)[0, 0]
    found = torch.stack(((moved.sum(0) * x).sum(), (moved.sum(1) * y).sum())) / moved.sum()
    cos, sin, right, down = 0.75**0.5, 0.5, 2 + 1.5, 1 - 0.5
    expected = torch.tensor([0.8 * (cos * right + sin * down) - 2, 0.8 * (-sin * right + cos * down) + 1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("fill", [0.5, 0.2])
@pytest.mark.parametrize("size", SIZES)
def test_one_fill_on_every_border(size: Size, fill: float) -> None:
    image = torch.ones(1, 3, *size)
    out = padded(size, 4)
    assert out == (size[0] + 8, size[1] + 8)
    framed = move(image, out=out, fill=fill)
    torch.testing.assert_close(framed[..., 4:-4, 4:-4], image)
    framed[..., 4:-4, 4:-4] = fill
    torch.testing.assert_close(framed, torch.full_like(framed, fill))
    for change in ({"jitter": (3, -3)}, {"scale": 0.5}, {"degrees": 45}, {"again": (-3, 3)}):
        moved: Tensor = move(image, fill=fill, out=out, **change)  # type: ignore[arg-type]
        assert moved.min() >= fill - 1e-5 and moved.max() <= 1 + 1e-5  # nothing darker leaks in
        assert ((moved - fill).abs() < 1e-5).any()


def test_padding_shrinks_with_a_coarse_picture() -> None:
    assert padded((64, 64), 12, 0.5) == (76, 76)
    assert padded((33, 21), 5, 0.5) == (39, 27)


@pytest.mark.parametrize("name", ["post", "lucid", "distill"])
def test_choices_cover_exactly_the_published_lists(name: str) -> None:
    recipe = preset(name, {"size": 32, "pad": 0, "steps": 400, "jitter": (0, 0)})
    assert recipe.draw == "choice"
    scale, degrees, _ = geometry(recipe, schedule(recipe, [1, 2]))
    for found, listed in ((scale, recipe.scale), (degrees, recipe.rotate)):
        assert {round(float(v), 3) + 0.0 for v in found.flatten()} == {round(v, 3) for v in listed}


def test_uniform_draws_fill_the_range_and_no_more() -> None:
    recipe = Recipe(size=32, steps=500, scale=(0.9, 1.1), rotate=(-10, 10), jitter=(6.0, 0.0))
    scale, degrees, moved = geometry(recipe, schedule(recipe, [1, 2]))
    for found, low, high in ((scale, 0.9, 1.1), (degrees, -10, 10)):
        assert low - 1e-4 <= found.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < found.max() <= high + 1e-4
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    level = recipe.model_copy(update={"scale": (1.0,), "rotate": (0.0,)})
    _, _, moved = geometry(level, schedule(level, [1, 2]))
    for axis in range(2):
        assert -6 - 1e-4 <= moved[..., axis].min() < -5.8 and 5.8 < moved[..., axis].max() <= 6 + 1e-4
        assert abs(moved[..., axis].mean()) < 0.5  # unbiased: to all four sides alike
    assert len(moved.flatten().unique()) > 1500


def test_both_shifts_are_drawn() -> None:
    recipe = Recipe(size=32, steps=500, jitter=(4.0, 2.0))
    _, _, moved = geometry(recipe, schedule(recipe, [1]))
    assert 5 < moved.abs().max() <= 6 + 1e-4


def test_transforms_may_grow_over_the_steps() -> None:
    recipe = Recipe(size=32, steps=101, rotate=(10.0, 10.0), scale=(1.2, 1.2), transform_ramp=(0.0, 1.0))
    scale, degrees, _ = geometry(recipe, schedule(recipe, [1]))
    assert degrees[:, 0].tolist() == pytest.approx([0.1 * t for t in range(101)], abs=1e-3)
    assert scale[:, 0].tolist() == pytest.approx([1 + 0.002 * t for t in range(101)], abs=1e-4)


def test_blurs_are_annealed_drawn_and_added_in_quadrature() -> None:
    annealed = schedule(Recipe(size=16, steps=5, blur=(2.0, 0.0), cut=(1.0, 0.5)), [1])
    assert annealed.blur[:, 0].tolist() == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert annealed.cut.tolist() == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5])
    drawn = schedule(Recipe(size=16, steps=500, blur_random=(0.5, 1.5)), [1]).blur
    assert 0.5 <= drawn.min() < 0.52 and 1.48 < drawn.max() <= 1.5
    both = schedule(Recipe(size=16, steps=500, blur=(2.0, 2.0), blur_random=(0.5, 1.5)), [1]).blur
    torch.testing.assert_close(both, (4 + drawn**2).sqrt())


def test_one_step_is_a_schedule_too() -> None:
    drawn = schedule(preset("regularised", {"steps": 1, "coarse_steps": 0}), [1])
    assert len(drawn.theta) == len(drawn.blur) == len(drawn.cut) == 1
    assert drawn.theta.isfinite().all()


def test_a_schedule_depends_on_its_own_seed_only() -> None:
    recipe = Recipe(
        size=(20, 30), steps=7, images=2, pad=3, jitter=(4, 2), rotate=(-9, 9), scale=(0.9, 1.1), blur_random=(0, 1)
    )
    together, alone = schedule(recipe, [7, 8, 9]), schedule(recipe, [8])
    assert together.theta.shape == (7, 6, 2, 3) and together.blur.shape == (7, 6)
    assert torch.equal(together.theta[:, 2:4], alone.theta) and torch.equal(together.blur[:, 2:4], alone.blur)
    for one, other in itertools.combinations(range(6), 2):
        assert not torch.equal(together.theta[:, one], together.theta[:, other])
    for one, other in itertools.combinations(range(7), 2):
        assert not torch.equal(together.theta[one], together.theta[other])
    torch.manual_seed(0)  # the global stream plays no part
    assert torch.equal(schedule(recipe, [8]).theta, alone.theta)


def test_held_out_views_are_fixed_and_within_their_bounds() -> None:
    recipe = Recipe(size=64)
    views = held_out(recipe, 64)
    assert torch.equal(views.theta, held_out(recipe.model_copy(update={"seed": 5}), 64).theta)
    assert torch.equal(held_out(recipe, 8).theta, views.theta[:8])
    scale, degrees, _ = geometry(recipe, views)
    assert scale.min() >= 0.9 - 1e-4 and scale.max() <= 1.1 + 1e-4 and scale.std() > 0.04
    assert degrees.abs().max() <= 10 + 1e-3 and degrees.std() > 4
    assert (views.blur == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_blur_zero_leaves_every_bit(size: Size) -> None:
    image = picture(size)
    assert torch.equal(blur(image, torch.zeros(1)), image)


@pytest.mark.parametrize("sigma", [0.6, 1.3, 2.5])
def test_blur_spreads_a_dot_to_a_gaussian(sigma: float) -> None:
    image = torch.zeros(1, 3, 41, 37)
    image[..., 20, 18] = 1
    rows, columns = (torch.exp(-0.5 * ((torch.arange(n) - n // 2) / sigma) ** 2) for n in (41, 37))
    expected = rows[:, None] / rows.sum() * columns / columns.sum()
    torch.testing.assert_close(blur(image, torch.tensor([sigma]))[0, 1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_blur_keeps_the_brightness_of_a_plain_picture_up_to_its_border(size: Size) -> None:
    plain = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(blur(plain, torch.tensor([3.0])), plain)


@pytest.mark.parametrize("size", [(128, 128), (24, 37), (7, 9)])
def test_a_blur_known_to_be_little_is_the_same(size: tuple[int, int]) -> None:
    image = torch.rand(4, 3, *size, generator=stream(0, "image")).requires_grad_()
    sigma = torch.tensor([0.0, 0.3, 1.1, 0.7])
    weights = torch.randn(image.shape, generator=stream(0, "weights"))
    quick, slow = blur(image, sigma, 1.1), blur(image, sigma)
    torch.testing.assert_close(quick, slow, rtol=0, atol=2e-5)  # what is left of a Gaussian at 4.5 sigma
    for one, other in zip(*(torch.autograd.grad((b * weights).sum(), image) for b in (quick, slow)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    assert torch.equal(blur(image[2:3], sigma[2:3], 1.1), quick[2:3])  # whatever lies beside it


def test_each_image_has_its_own_blur() -> None:
    image = picture((12, 12)).expand(3, -1, -1, -1)
    together = blur(image, torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(together[0], image[0])
    torch.testing.assert_close(together[2:], blur(image[:1], torch.tensor([2.0])))
    assert together[0].std() > together[1].std() > together[2].std()


def test_gradients_pass_through_exactly() -> None:
    image = picture((6, 8)).double().requires_grad_()
    sigma = torch.tensor([0.8], dtype=torch.float64)
    theta = matrices(
        (6, 8), (8, 10), torch.tensor([[0.7, -0.3]]), torch.tensor([1.1]), torch.tensor([12.0]), torch.zeros(1, 2)
    ).double()
    assert torch.autograd.gradcheck(lambda x: blur(affine(x, theta, (8, 10), 0.5), sigma), (image,), fast_mode=True)

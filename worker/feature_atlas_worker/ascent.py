"""The loop: Adam on the spectrum under a schedule that was drawn before it.

No policy, no random state; history and the best picture stay on the device.  Signs: ``loss = -score + weighted
penalties`` and no other minus sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker import measure, objectives, params, regularizers, transforms
from feature_atlas_worker.graphs import Watch
from feature_atlas_worker.network import Network

#: How often a blocked gradient is looked for after the first ``redirect`` steps.
WATCH = 8


@dataclass(frozen=True)
class Trace:
    """What came out of one batch.  B images: ``recipe.images`` consecutive ones per job."""

    image: Tensor  # [B, 3, H, W] in [0, 1], the chosen one
    initial: Tensor  # [B, 3, H, W]
    last: Tensor  # [B, 3, H, W]
    best_step: Tensor  # [B]
    history: Tensor  # [steps, B, 4]: loss, mean, max, min of the values seen
    blocked: Tensor  # [B] True where the last gradient was all zero


class Stopped(Exception):
    """The caller asked to stop between two steps; nothing is lost but the batch in hand."""


def learning_rates(recipe: Recipe) -> list[float]:
    """Adam's step size at every step: a cosine from the first to ``learning_rate_end`` of it."""
    last = max(1, recipe.steps - 1)
    low = recipe.learning_rate_end
    shares = (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * t / last)) for t in range(recipe.steps))
    return [recipe.learning_rate * share for share in shares]


def _numbers(recipe: Recipe) -> list[tuple[float, float, float]]:
    """(rate, correction, decay) of every step, see :class:`Now`."""
    one, two = recipe.betas
    return [
        (rate / (1 - one ** (step + 1)), math.sqrt(1 - two ** (step + 1)), rate * recipe.frequency_penalty)
        for step, rate in enumerate(learning_rates(recipe))
    ]


def peaks(gradient: Tensor) -> Tensor:
    """Each image's greatest magnitude.  [B, 3, h, w] -> [B, 1, 1, 1]"""
    return gradient.abs().amax((1, 2, 3), keepdim=True)


def unit_rms(gradient: Tensor, peak: Tensor | None = None) -> Tensor:
    """Each image's gradient at unit root mean square; an all-zero one stays zero.  [B, 3, h, w].

    Divides by the greatest magnitude first (``peak``, where it is known), so that neither 1e-30 nor 1e30 is lost in
    the square, and a factor of two in the network's weights changes no bit.
    """
    peak = peaks(gradient) if peak is None else peak
    gradient = gradient / torch.where(peak > 0, peak, torch.ones_like(peak))
    # Axis by axis: one sum over all would take another order in another batch.
    rms = (gradient**2).mean(3, keepdim=True).mean((1, 2), keepdim=True).sqrt()
    return gradient / torch.where(rms > 0, rms, torch.ones_like(rms))


@dataclass(frozen=True)
class Now:
    """What one step takes from the schedule: numbers and slices, or where it is recorded, tensors on the device."""

    theta: Tensor  # [B, 2, 3]
    blur: Tensor  # [B]
    cut: Tensor  # []
    rate: float | Tensor  # Adam's, first moment's bias corrected
    correction: float | Tensor  # of the second moment's root
    decay: float | Tensor


class Ascent:
    """One batch of independent optimisations of one layer."""

    def __init__(self, network: Network, recipe: Recipe, channels: Sequence[int], seeds: Sequence[int]) -> None:
        self.network, self.recipe, device = network, recipe, network.device
        self.channels = torch.tensor(list(channels), device=device).repeat_interleave(recipe.images)  # [B]
        drawn = transforms.schedule(recipe, seeds)
        self.schedule = transforms.Schedule(drawn.theta.to(device), drawn.blur.to(device), drawn.cut.to(device))
        self.parameters = params.init(recipe, seeds).to(device)
        self.first_moment = torch.zeros_like(self.parameters)
        shared = recipe.adapt == "frequency" and recipe.parameterization == "fourier"
        self.bands = params.Bands(recipe.size, device) if shared else None
        self.second_moment = torch.zeros_like(self.parameters[:, :1] if shared else self.parameters)
        self.fine = params.Parameterization(recipe, recipe.size, device)
        coarse = params.coarse_size(recipe.size, recipe.coarse)
        self.coarse = params.Parameterization(recipe, coarse, device) if recipe.coarse_steps else self.fine
        count = len(self.channels)
        self.history = torch.zeros(recipe.steps, count, 4, device=device)
        self.blocked = torch.zeros(count, dtype=torch.bool, device=device)
        self.best = torch.full((count,), -math.inf, device=device)
        # Nothing: a picture that is finite at no checkpoint must not pass for one.
        self.best_image = torch.full((count, 3, *recipe.size), math.nan, device=device)
        self.best_step = torch.zeros(count, dtype=torch.long, device=device)
        self.numbers = _numbers(recipe)

    def run(self, stop: Callable[[], bool] | None = None, on_step: Callable[[int, int], None] | None = None) -> Trace:
        """The whole optimisation.

        Raises:
            Stopped: ``stop()`` said so between two steps.
        """
        recipe = self.recipe
        initial = params.to_image(self.parameters, recipe)
        judged = self._checkpoints()
        allow: Tensor | None = None
        watch = Watch(self.network.device)
        for step in range(recipe.steps):
            if stop is not None and stop():
                raise Stopped
            if step == 0 or step == recipe.redirect or (step > recipe.redirect and step % WATCH == 0):
                allow = self._allowed(step, watch)
            if step in judged:
                self._judge(step)
            self._advance(step, allow)
            if on_step is not None:
                on_step(step + 1, recipe.steps)
        last = params.to_image(self.parameters, recipe)
        if recipe.pick == "best":
            self._judge(recipe.steps)
        else:
            self.best_image, self.best_step = last, torch.full_like(self.best_step, recipe.steps)
        return Trace(self.best_image, initial, last, self.best_step, self.history.clone(), self.blocked.clone())

    def _advance(self, step: int, allow: Tensor | None) -> None:
        """One step; those images in ``allow`` may redirect blocked gradients."""
        self._climb(self._now(step), step < self.recipe.coarse_steps, allow, self.history[step])

    def _now(self, step: int) -> Now:
        schedule = self.schedule
        return Now(schedule.theta[step], schedule.blur[step], schedule.cut[step], *self.numbers[step])

    def _climb(self, now: Now, coarse: bool, allow: Tensor | None, row: Tensor) -> None:
        """One step; its numbers go into ``row`` [B, 4]."""
        parameters = self.parameters.detach().requires_grad_()
        picture = self._picture(now, coarse, parameters)
        shown = picture.detach().requires_grad_()
        gradient = self._objective_gradient(now, coarse, shown, allow, row) + self._smoothness_gradient(shown)
        # Back through colour and Fourier.
        (gradient,) = torch.autograd.grad(picture, parameters, gradient)
        self._update(now, gradient)

    def _checkpoints(self) -> set[int]:
        if self.recipe.pick == "last":
            return set()
        # With a decaying step size the end is nearly always best; one earlier look guards against a late collapse.
        return {max(1, round(self.recipe.steps * 0.8))}

    def _allowed(self, step: int, watch: Watch) -> Tensor | None:
        """The images that may redirect blocked gradients in the next steps; None where none may.  [B]

        An image's permission depends on its own past only: the batch does not show in the picture.
        """
        if step < self.recipe.redirect:
            return torch.ones_like(self.blocked)
        # A GPU is not made to wait: it answers what it was asked the last time.
        answer = watch.answer() if self.network.device.type == "cuda" else None
        watch.ask(self.blocked)
        if self.network.device.type != "cuda":
            answer = watch.answer()
        return answer if self.recipe.redirect_always else None

    def _basis(self, coarse: bool) -> tuple[params.Parameterization, float]:
        if coarse:
            return self.coarse, self.coarse.size[0] / self.recipe.size[0]
        return self.fine, 1.0

    def _cut(self, now: Now) -> Tensor | None:
        return now.cut[None] if any(self.recipe.cut) else None

    def _picture(self, now: Now, coarse: bool, parameters: Tensor) -> Tensor:
        return self._basis(coarse)[0](parameters, self._cut(now))

    def _view(self, now: Now, coarse: bool, picture: Tensor) -> Tensor:
        """What the network sees at this step.  [B, 3, h, w] -> [B, 3, h', w']."""
        recipe, (basis, share) = self.recipe, self._basis(coarse)
        out = transforms.padded(basis.size, recipe.pad, share)
        view = transforms.affine(picture, now.theta, out, recipe.fill)
        if any(recipe.blur) or any(recipe.blur_random):
            view = transforms.blur(view, now.blur * share, transforms.most_blur(recipe))
        return view

    def _objective_gradient(self, now: Now, coarse: bool, picture: Tensor, allow: Tensor | None, row: Tensor) -> Tensor:
        """d loss / d picture without the smoothness penalty; at unit RMS where penalties are relative."""
        recipe = self.recipe
        own = self.channels if objectives.looks_at_one_channel(recipe) else None
        activations = self.network(self._view(now, coarse, picture), allow, climbing=True, own=own)
        chosen = objectives.values(activations, self.channels if own is None else torch.zeros_like(own), recipe)
        loss = -objectives.score(chosen, recipe)
        relative = recipe.penalties == "relative"
        sameness = regularizers.similarity(activations, recipe.images) if recipe.diversity else None
        if sameness is not None and not relative:
            loss = loss + recipe.diversity * sameness.repeat_interleave(recipe.images) / recipe.images
        gradient, *_ = torch.autograd.grad(
            loss.sum(), (picture, *self.network.trained), retain_graph=sameness is not None and relative,
            allow_unused=bool(self.network.trained),
        )  # fmt: skip
        self._record(row, loss, chosen)
        gradient, peak = self._unit_rms(gradient) if relative else (gradient, peaks(gradient))
        self.blocked.copy_(peak.flatten() == 0)
        if not relative:
            return gradient
        if sameness is not None:
            (apart,) = torch.autograd.grad(sameness.sum(), picture)
            weight = recipe.diversity * sameness.detach().clamp(min=0).repeat_interleave(recipe.images)
            gradient = gradient + weight[:, None, None, None] * unit_rms(apart)
        return gradient

    def _unit_rms(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """(:func:`unit_rms`, :func:`peaks`)."""
        peak = peaks(gradient)
        return unit_rms(gradient, peak), peak

    @torch.no_grad()
    def _smoothness_gradient(self, picture: Tensor) -> Tensor | float:
        """d weighted total variation / d picture.  [B, 3, h, w]"""
        recipe = self.recipe
        if not recipe.total_variation:
            return 0.0
        relative = recipe.penalties == "relative"
        slope = regularizers.total_variation_gradient if relative else regularizers.total_variation_mean_gradient
        return slope(picture).mul_(recipe.total_variation)

    @torch.no_grad()
    def _update(self, now: Now, gradient: Tensor) -> None:
        """Adam (Kingma & Ba 2015), epsilon 1e-8 outside the bias correction's root; then the frequency penalty.

        The penalty decays the coefficients themselves (Loshchilov & Hutter 2019): sent through Adam, it would be
        divided by the gradient's size and no longer mean the same everywhere.
        """
        one, two = self.recipe.betas
        self.first_moment.lerp_(gradient, 1 - one)
        square = self.bands.mean_square(gradient) if self.bands is not None else gradient**2
        self.second_moment.lerp_(square, 1 - two)
        root = self.second_moment.sqrt().div_(now.correction).add_(1e-8)
        if isinstance(now.rate, Tensor):
            self.parameters.sub_(self.first_moment / root * now.rate)
        else:
            self.parameters.addcdiv_(self.first_moment, root, value=-now.rate)
        if self.fine.spectrum is not None and self.recipe.frequency_penalty:
            self.parameters.mul_(self.fine.spectrum.kept(now.decay))

    @torch.no_grad()
    def _record(self, row: Tensor, loss: Tensor, chosen: Tensor) -> None:
        row.copy_(torch.stack((loss, objectives.measure(chosen, self.recipe), chosen.amax(1), chosen.amin(1)), 1))

    @torch.no_grad()
    def _judge(self, step: int) -> None:
        """Keeps this picture where it beats the kept one on the clean view and fixed held-out views."""
        image = params.to_image(self.parameters, self.recipe)
        seen = self.network, image, self.channels, self.recipe
        # Only which is the greater counts: no number of a manifest comes from here.
        clean = measure.activation(*seen, exact=False)
        merit = self.recipe.sign * (clean + measure.robust(*seen, measure.JUDGES, exact=False).mean(1))
        better = merit > self.best
        self.best = torch.where(better, merit, self.best)
        self.best_image = torch.where(better[:, None, None, None], image, self.best_image)
        self.best_step = torch.where(better, step, self.best_step)

"""The ascent on a CPU: the same step as :class:`feature_atlas_worker.ascent.Ascent` takes, by kernels of our own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from feature_atlas.spec import Recipe
from feature_atlas_worker import kernels, transforms
from feature_atlas_worker.ascent import Ascent, Now
from feature_atlas_worker.network import Network

#: The greatest sigma, in pixels, for which a kernel blurs; above, products with matrices are faster.
_MOST_BLUR = 12.0


class KernelAscent(Ascent):
    """One batch of independent optimisations; :func:`kernels.available` must be true."""

    def __init__(self, network: Network, recipe: Recipe, channels: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__(network, recipe, channels, seeds)
        if self.bands is not None and self.fine.spectrum is not None:
            both = self.fine.spectrum.fineness.shape
            #: Of both parts of every coefficient.  [H, W//2+1, 2]
            self._band = self.bands.band.view(both[:2]).to(torch.int32)[..., None].expand(both).contiguous()

    def _climb(self, now: Now, coarse: bool, allow: Tensor | None, row: Tensor) -> None:
        recipe, (basis, _) = self.recipe, self._basis(coarse)
        parameters = self.parameters.detach().requires_grad_()
        planes = basis.uncoloured(parameters, self._cut(now))
        shown = torch.sigmoid(basis.coloured(planes.detach())).requires_grad_()
        gradient = self._objective_gradient(now, coarse, shown, allow, row)
        smooth = recipe.total_variation / (1 if recipe.penalties == "relative" else shown[0].numel())
        colour = basis.colour if basis.colour is not None else torch.eye(3, out=shown.new_empty(3, 3))
        gradient = kernels.picture_back(gradient, shown.detach(), colour, smooth)
        (gradient,) = torch.autograd.grad(planes, parameters, gradient)
        self._update(now, gradient)

    def _view(self, now: Now, coarse: bool, picture: Tensor) -> Tensor:
        recipe, (basis, share) = self.recipe, self._basis(coarse)
        most = transforms.most_blur(recipe)
        if most > _MOST_BLUR:
            return super()._view(now, coarse, picture)
        out = transforms.padded(basis.size, recipe.pad, share)
        return kernels.view(picture, now.theta, now.blur * share, out, recipe.fill, most)

    def _unit_rms(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.unit_rms(gradient)

    @torch.no_grad()
    def _update(self, now: Now, gradient: Tensor) -> None:
        if self.bands is None or self.fine.spectrum is None:
            return super()._update(now, gradient)
        numbers = (float(now.rate), float(now.correction), float(now.decay))
        kernels.update(
            gradient, self.first_moment, self.second_moment, self.parameters, self._band, self.bands.members,
            self.fine.spectrum.fineness, numbers, self.recipe.betas,
        )  # fmt: skip

"""What a network's program is made of: each operation goes ahead, and back without autograd.

``ahead(way, *values)`` gives a value and what the way back needs; ``back(way, gradient, kept)`` gives the
gradients of the operation's varying inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from feature_atlas_worker.activations import tensors
from feature_atlas_worker.convolutions import FrozenConv2d
from feature_atlas_worker.gradients import redirected, redirecting

_aten = torch.ops.aten


class Unsuitable(Exception):
    """The network has no program; it runs as it is."""


@dataclass(frozen=True)
class Way:
    """How one pass goes."""

    #: What convolutions compute in, where not in their input's precision.
    half: torch.dtype | None = None
    #: The images that may redirect blocked gradients.  [B], bool
    allow: Tensor | None = None
    #: Whether there is a way back.
    returns: bool = False


class Gradient(NamedTuple):
    """A gradient on its way back."""

    of: Tensor
    #: Whether it may be written over: nobody else reads it.
    owned: bool = True

    def to(self, precision: torch.dtype) -> Gradient:
        """The same in a precision."""
        return self if self.of.dtype == precision else Gradient(self.of.to(precision))

    def plus(self, other: Gradient) -> Gradient:
        """The sum of two of one value."""
        if self.owned:
            return Gradient(self.of.add_(other.of))
        return other.plus(self) if other.owned else Gradient(self.of + other.of)


class Operation:
    """One operation."""

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:
        """(value, what the way back needs)."""
        raise NotImplementedError

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:
        """The gradients of the inputs that vary."""
        raise NotImplementedError


class Convolve(Operation):
    """A frozen convolution, with the sum and the ReLU behind it where nothing else reads what is between."""

    def __init__(self, layer: FrozenConv2d, *, added: bool = False) -> None:
        #: ``added``: a second input is added.
        self.layer, self.added, self.rectified = layer, added, False
        #: What comes back is masked already: a max pooling behind it lets nothing else through.
        self.masked = False

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        x, *others = values
        precision, added = x.dtype, others[0] if others else None
        if way.half is not None and precision != way.half:
            x = x.to(way.half)
        if added is None or added.dtype == x.dtype:
            out = self.layer.ahead(x, added, self.rectified)
        else:  # autocast left the other in fp32
            out = self.layer.ahead(x) + added
            out = out.relu_() if self.rectified else out
        if added is not None and out.shape != added.shape:
            raise Unsuitable("a sum of unlike maps")
        others_own = added.dtype if added is not None else None
        masking = self.rectified and not (self.masked and way.allow is None)
        return out, (x.shape[-2:], precision, x.dtype, others_own, out if masking else None)

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        gradient = self._before(way, gradient, kept)
        size, precision, half, others_own, _ = kept
        found = Gradient(self.layer.back(gradient.to(half).of, size)).to(precision)
        return (found,) if others_own is None else (found, gradient.to(others_own))

    def back_onto(self, way: Way, gradient: Gradient, kept: Any, onto: Gradient) -> Gradient:
        """The gradient of the only input, and ``onto``."""
        gradient = self._before(way, gradient, kept)
        size, precision, half, _, _ = kept
        if onto.of.dtype != half:
            return Gradient(self.layer.back(gradient.to(half).of, size)).to(precision).plus(onto)
        return Gradient(self.layer.back(gradient.to(half).of, size, onto.of)).to(precision)

    def _before(self, way: Way, gradient: Gradient, kept: Any) -> Gradient:
        out = kept[-1]
        return gradient if out is None else unrectified(way, gradient, out)


class Rectify(Operation):
    """A ReLU, or a ReLU6."""

    def __init__(self, ceiling: float | None, over: bool) -> None:
        #: ``over``: nothing else reads the input, which may be written over.
        self.ceiling, self.over = ceiling, over
        #: As of a convolution.
        self.rectified, self.masked = ceiling is None, False

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        (x,) = values
        out = x.clamp_(0, self.ceiling) if self.over else x.clamp(0, self.ceiling)
        return out, out

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        if self.masked and way.allow is None:
            return (gradient,)
        return (unrectified(way, gradient, kept, self.ceiling),)


def unrectified(way: Way, gradient: Gradient, out: Tensor, ceiling: float | None = None) -> Gradient:
    """Back through a clamp to [0, ceiling] that gave ``out``."""
    of, owned = gradient.of, gradient.owned
    if of.ndim == 4 and (of.stride(1) != 1 or way.allow is not None):
        # As everything behind it, and a map of its own; a part of a greater one will do where nobody looks into it.
        whole = of.contiguous(memory_format=torch.channels_last)
        of, owned = whole, owned or whole is not of
    if way.allow is not None and out.shape[0] % len(way.allow) == 0:
        # Where other axes were folded into the first, only whole images can be told apart.
        times = out.shape[0] // len(way.allow)
        return Gradient(redirected(of, out, way.allow if times == 1 else way.allow.repeat_interleave(times), ceiling))
    if ceiling is not None:
        return Gradient(_aten.hardtanh_backward.default(of, out, 0.0, ceiling))
    if owned:
        return Gradient(_aten.threshold_backward.grad_input(of, out, 0.0, grad_input=of))
    return Gradient(_aten.threshold_backward.default(of, out, 0.0))


class Add(Operation):
    """The sum of two maps of one shape."""

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        one, other = values
        if one.shape != other.shape:
            raise Unsuitable("a sum of unlike maps")
        return one + other, (one.dtype, other.dtype)

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        shared = Gradient(gradient.of, owned=False)
        return [shared.to(precision) for precision in kept]


class Concatenate(Operation):
    """Maps one behind the other along their channels."""

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        if any(value.ndim != 4 for value in values):
            raise Unsuitable("a concatenation of no maps")
        return torch.cat(values, 1), [(value.shape[1], value.dtype) for value in values]

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        parts = gradient.of.split([width for width, _ in kept], 1)
        # Not owned: they lie in the whole.
        return [Gradient(part, owned=False).to(precision) for part, (_, precision) in zip(parts, kept, strict=True)]


class Rescale(Operation):
    """Each channel times a number plus a number."""

    def __init__(self, factors: Sequence[float], summands: Sequence[float]) -> None:
        self._factors, self._summands = torch.tensor(factors), torch.tensor(summands)

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        (x,) = values
        if x.ndim != 4 or x.shape[1] != len(self._factors):
            raise Unsuitable("a part of a map is rescaled")
        # Rounded twice, as the network does it: another last digit here turns signs in the layers behind.
        out = (self._rows(x) * self._row(self._factors, x)).add_(self._row(self._summands, x))
        return self._map(out, x), None

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        of = gradient.of
        return (Gradient(self._map(self._rows(of) * self._row(self._factors, of), of)),)

    # Row by row: PyTorch would go channel by channel, three numbers at a time.

    @staticmethod
    def _rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(2)  # [B, h, w * C]

    @staticmethod
    def _row(numbers: Tensor, x: Tensor) -> Tensor:
        return numbers.to(x.dtype).repeat(x.shape[3])  # [w * C]

    @staticmethod
    def _map(rows: Tensor, like: Tensor) -> Tensor:
        return rows.unflatten(2, (like.shape[3], like.shape[1])).permute(0, 3, 1, 2)


class Other(Operation):
    """Anything else, by autograd."""

    def __init__(self, call: Callable[..., Any], varies: Sequence[bool]) -> None:
        self.call, self.varies = call, tuple(varies)

    def ahead(self, way: Way, *values: Any) -> tuple[Any, Any]:  # noqa: D102
        if not way.returns:
            return self.call(*values), None
        leaves = [
            value.detach().requires_grad_() if varies and _differentiable(value) else value
            for value, varies in zip(values, self.varies, strict=True)
        ]
        with torch.enable_grad(), redirecting(way.allow):
            out = self.call(*leaves)
        if not isinstance(out, Tensor):
            if any(tensor.requires_grad for tensor in tensors(out)):
                raise Unsuitable("an operation gives several maps")
            return out, None
        return out.detach(), (out, leaves)

    def back(self, way: Way, gradient: Gradient, kept: Any) -> Sequence[Gradient | None]:  # noqa: D102
        out, leaves = kept
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not out.requires_grad or not wanted:
            return [None] * sum(self.varies)
        found = iter(torch.autograd.grad(out, wanted, gradient.of, retain_graph=True, allow_unused=True))
        parts = [
            next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None
            for leaf, varies in zip(leaves, self.varies, strict=True)
            if varies
        ]
        # Not owned: autograd may give back what it was given.
        return [Gradient(part, owned=False) if part is not None else None for part in parts]


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

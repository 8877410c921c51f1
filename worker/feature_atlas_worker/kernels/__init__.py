"""A CPU's own kernels: what a step does outside the network's convolutions, each in one pass over memory.

The same sums as PyTorch's operations, in fp32 and image by image, so that a picture has the same bits in any batch.
For convolutions themselves see :mod:`feature_atlas_worker.kernels.products`.
They are compiled when the package is installed (``build.py``); where there was no compiler, PyTorch does the work.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feature_atlas_worker.kernels import team
from feature_atlas_worker.kernels.build import fingerprint, generations, library

log = logging.getLogger(__name__)

_POINTER, _INT, _FLOAT, _RANGE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, [ctypes.c_int64] * 2
_CONVOLUTIONS = ("fa_pointwise_bf16", "fa_winograd_bf16", "fa_winograd_fp32")
#: What each function takes: pointers, the range of images, and the rest.
_SIGNATURES = {
    "fa_view": [*[_POINTER] * 4, *_RANGE, *[_INT] * 5, _FLOAT],
    "fa_view_back": [*[_POINTER] * 4, *_RANGE, *[_INT] * 5, _FLOAT],
    "fa_normalise": [*[_POINTER] * 4, *_RANGE, _INT, ctypes.c_int],
    "fa_columns": [*[_POINTER] * 2, *_RANGE, *[_INT] * 7],
    "fa_rows": [*[_POINTER] * 2, *_RANGE, ctypes.c_int, *[_INT] * 8],
    "fa_unit_rms": [*[_POINTER] * 3, *_RANGE, _INT],
    "fa_picture_back": [*[_POINTER] * 4, *_RANGE, *[_INT] * 2, _FLOAT],
    "fa_update": [*[_POINTER] * 7, *_RANGE, *[_INT] * 2, *[_FLOAT] * 5],
    "fa_pool": [*[_POINTER] * 3, *_RANGE, ctypes.c_int, *[_INT] * 11, ctypes.c_int],
    "fa_pool_back": [*[_POINTER] * 3, *_RANGE, ctypes.c_int, *[_INT] * 11, ctypes.c_int],
    **{name: [*[_POINTER] * 5, *_RANGE, *[_INT] * 7, *[ctypes.c_int] * 2] for name in _CONVOLUTIONS},
    "fa_team": [*[_POINTER] * 7, *[_INT] * 9, *[ctypes.c_int] * 2],
}
#: PyTorch's name of what a processor can do -> the latest generation whose code it runs.
_CAPABILITIES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
#: What a kernel reads and writes.
_PRECISIONS = (torch.float32, torch.bfloat16, torch.int16, torch.int32)
#: Places in a window that is pooled.
MOST_PLACES = 256


@functools.cache
def _library() -> ctypes.CDLL | None:
    kinds = generations()
    own = _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), kinds[-1]) if len(kinds) > 1 else kinds[0]
    paths = [library(kind) for kind in kinds[kinds.index(own) :]]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        log.info("no kernels were compiled for this processor (%s): PyTorch does their work, more slowly", own)
        return None
    try:
        found = ctypes.CDLL(str(path))
        found.fa_fingerprint.restype = ctypes.c_char_p
        made_of = found.fa_fingerprint().decode()
        for name, takes in _SIGNATURES.items():
            getattr(found, name).argtypes = takes
    except (OSError, AttributeError) as error:
        log.warning("%s cannot be used (%s): PyTorch does its work, more slowly", path, error)
        return None
    if made_of != fingerprint():
        log.warning(
            "%s was made of other sources: PyTorch does its work, more slowly, until"
            " `python -m feature_atlas_worker.kernels` has made it anew",
            path,
        )
        return None
    return found


def available() -> bool:
    """Whether there are kernels for this processor."""
    return _library() is not None


def multiplies_half() -> bool:
    """Whether there are those for products of bf16 numbers (:mod:`feature_atlas_worker.kernels.products`)."""
    found = _library()
    return found is not None and bool(found.fa_multiplies_half())


def group() -> int:
    """Numbers in a register; 0 where there are no kernels."""
    found = _library()
    return int(found.fa_group()) if found is not None else 0


def suits(*tensors: Tensor) -> bool:
    """Whether kernels can work on these: fp32 on a CPU."""
    return available() and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def run(name: str, images: int, tensors: Sequence[Tensor], *rest: float, least: int = 1) -> None:
    """A kernel over all images, or other parts, by as many threads as PyTorch would take, ``least`` for each.

    Raises:
        MemoryError: there is none for its rows.
    """
    library = _library()
    assert library is not None
    function: Any = getattr(library, name)
    if not all(tensor.device.type == "cpu" and tensor.dtype in _PRECISIONS for tensor in tensors):
        raise TypeError(f"{name} takes numbers of 16 or 32 bits on a CPU")

    def part(first: int, last: int) -> int:
        # Holds the tensors: a thread goes on when the one that waits for it is interrupted.
        return function(*[tensor.data_ptr() for tensor in tensors], first, last, *rest)

    threads = max(1, min(torch.get_num_threads(), images // least))
    if threads == 1:
        failed = part(0, images)
    elif name in _CONVOLUTIONS and team.parallel() is not None:  # many and short: Python's own part is left out
        kernel = ctypes.cast(function, _POINTER)
        pointers = [tensor.data_ptr() for tensor in tensors]
        failed = library.fa_team(team.parallel(), kernel, *pointers, threads, images, *rest)
    else:
        bounds = [images * i // threads for i in range(threads + 1)]
        failed = any(team.share(list(itertools.pairwise(bounds)), part))
    if failed:
        raise MemoryError(f"not enough memory for {name}")


def beside(map: Tensor) -> Tensor:
    """The same, its channels side by side in memory."""
    return map.contiguous(memory_format=torch.channels_last)


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[B, C, h, w], its channels side by side in memory."""
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device="cpu", memory_format=torch.channels_last)


class _View(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, picture: Tensor, theta: Tensor, sigma: Tensor, out: tuple[int, int], fill: float, reach: int
    ) -> Tensor:
        picture, ctx.theta, ctx.sigma = picture.contiguous(), theta.contiguous(), sigma.contiguous()
        view = empty((len(picture), 3, *out), picture)
        ctx.rest = (*picture.shape[2:], *out, reach, fill)
        run("fa_view", len(picture), (picture, ctx.theta, ctx.sigma, view), *ctx.rest)
        return view

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = beside(grads[0])
        picture = gradient.new_empty(len(gradient), 3, *ctx.rest[:2])
        run("fa_view_back", len(gradient), (gradient, ctx.theta, ctx.sigma, picture), *ctx.rest)
        return picture, None, None, None, None, None


def view(picture: Tensor, theta: Tensor, sigma: Tensor, out: tuple[int, int], fill: float, most: float) -> Tensor:
    """:func:`transforms.affine`, then :func:`transforms.blur`.  [B, 3, h, w], [B, 2, 3], [B] -> [B, 3, *out].

    No sigma is above ``most``; 0 blurs nothing.  The channels of a pixel lie side by side.
    """
    found: Tensor = _View.apply(picture, theta, sigma, out, fill, math.ceil(4.5 * most))
    return found


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, picture: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        ctx.std = std
        return _normalised(picture, mean, std)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _normalised(grads[0], torch.zeros_like(ctx.std), ctx.std), None, None


def _normalised(picture: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    beside = picture.is_contiguous(memory_format=torch.channels_last)
    picture = picture if beside else picture.contiguous()
    out = empty(picture.shape, picture)
    run("fa_normalise", len(picture), (picture, out, mean, std), picture.shape[2] * picture.shape[3], beside)
    return out


def normalised(picture: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(picture - mean) / std``, the channels of a pixel side by side.  [B, 3, h, w], [3 numbers] twice."""
    found: Tensor = _Normalised.apply(picture, mean.contiguous(), std.contiguous())
    return found


def columns(picture: Tensor, count: int, step: int, padding: int) -> Tensor:
    """What each column of a kernel of ``count`` sees, as channels; one of zeros more where that makes them even.

    [B, 3, h, w], bf16 -> [B, 3 * count (+ 1), h, w'], as wide as what a convolution of that ``step`` gives.
    """
    picture = beside(picture)
    (batch, _, height, width), channels = picture.shape, 3 * count + count % 2
    out = empty((batch, channels, height, (width + 2 * padding - count) // step + 1), picture)
    run("fa_columns", batch, (picture, out), height, width, out.shape[3], count, step, padding, channels)
    return out


def rows(maps: Tensor, count: int, step: int, padding: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The sum of what each row of a kernel of ``count`` gives, where it belongs; in fp32.

    [B, count * step * 3, h, w], fp32 or bf16, channels by row, pixel of the step and colour -> [B, 3, *size]
    """
    maps = beside(maps)
    out = empty((len(maps), 3, *size), maps, torch.float32)
    half = maps.dtype == torch.bfloat16
    run("fa_rows", len(maps), (maps, out), half, *maps.shape[2:], count, step, *padding, *size)
    return out


def unit_rms(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(each image's gradient at unit root mean square, its greatest magnitude).  [B, 3, h, w] -> the same, [B]."""
    gradient = gradient.contiguous()
    unit, peak = torch.empty_like(gradient), gradient.new_empty(len(gradient))
    run("fa_unit_rms", len(gradient), (gradient, unit, peak), math.prod(gradient.shape[1:]))
    return unit, peak


def picture_back(gradient: Tensor, picture: Tensor, colour: Tensor, smooth: float) -> Tensor:
    """Back from a picture to its planes, ``picture = sigmoid(colour @ planes)``; the gradient gets total variation's.

    ``smooth`` times :func:`regularizers.total_variation_gradient`.  [B, 3, h, w] twice, [3, 3] -> [B, 3, h, w]
    """
    gradient, picture, planes = gradient.contiguous(), picture.contiguous(), picture.new_empty(picture.shape)
    run("fa_picture_back", len(picture), (gradient, picture, colour, planes), *picture.shape[2:], smooth)
    return planes


def update(
    gradient: Tensor, moment: Tensor, second: Tensor, spectrum: Tensor, band: Tensor, members: Tensor, fineness: Tensor,
    numbers: tuple[float, float, float], betas: tuple[float, float],
) -> None:  # fmt: skip
    """A step of Adam whose second moment is a band's mean, then the decay of fine coefficients; in place.

    ``gradient``, ``moment``, ``spectrum`` [B, 3, H, W//2+1, 2]; ``second`` [B, 1, H, W//2+1, 2]; ``band``, int32, and
    ``fineness`` [H, W//2+1, 2]; ``members`` [bands]; ``numbers``: rate, correction and decay of :class:`ascent.Now`.
    """
    tensors = gradient.contiguous(), moment, second, spectrum, band, members, fineness
    run("fa_update", len(gradient), tensors, second[0].numel(), len(members), *numbers, *betas)


def pool(map: Tensor, geometry: Sequence[int], out: tuple[int, int], rectified: bool) -> tuple[Tensor, Tensor]:
    """(greatest of every window, which it was).  [B, C, h, w], fp32 or bf16 -> [B, C, *out] twice.

    ``geometry``: height and width of the window, of its stride and of the padding.  ``rectified``: the map is a
    ReLU's, and nothing will go back through windows without anything above zero.
    """
    found = empty((*map.shape[:2], *out), map)
    which = empty(found.shape, map, torch.int16 if map.dtype == torch.bfloat16 else torch.int32)
    run("fa_pool", len(map), (map, found, which), *_pooled(map.shape, map.dtype, out, geometry), rectified)
    return found, which


def pool_back(gradient: Tensor, which: Tensor, size: torch.Size, geometry: Sequence[int]) -> Tensor:
    """The way back through :func:`pool` to a map of ``size`` [B, C, h, w]."""
    gradient = beside(gradient)
    gradient = gradient.to(torch.bfloat16 if which.dtype == torch.int16 else torch.float32)
    map, out = empty(size, gradient), (gradient.shape[2], gradient.shape[3])
    run("fa_pool_back", len(map), (gradient, which, map), *_pooled(size, gradient.dtype, out, geometry), False)
    return map


def _pooled(size: torch.Size, dtype: torch.dtype, out: tuple[int, int], geometry: Sequence[int]) -> tuple[int, ...]:
    return dtype == torch.bfloat16, *size[2:], size[1], *out, *geometry


def can_pool(map: Tensor, geometry: Sequence[int]) -> bool:
    """Whether :func:`pool` can work on such a map."""
    fitting = map.dtype in (torch.float32, torch.bfloat16) and map.device.type == "cpu" and map.ndim == 4
    return (
        fitting and available() and map.shape[1] >= 32 and geometry[0] * geometry[1] <= MOST_PLACES
        and map.is_contiguous(memory_format=torch.channels_last)
    )  # fmt: skip

"""Fractional max pooling: maxima of windows of one size that begin at random, as evenly as can be.

Graham, "Fractional Max-Pooling", 2014 (arXiv:1412.6071). Sizes need not shrink by whole numbers, and the windows are
other ones in each call and for each channel of each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchnn.ops._common import empty_as, operation, remembered
from scratchnn.ops.pool._arguments import batch, check_not_empty, exactly, float32_under_autocast, integers, unbatch
from scratchnn.ops.pool.max import MaxPool, offset_dtype, pool_with_indices

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::fractional_max_pool")
def _(input, samples, kernel, output_size):
    output = empty_as(input, (*input.shape[:2], *output_size))
    return output, torch.empty_like(output, dtype=offset_dtype(kernel))


@torch.library.register_fake("scratchnn::fractional_max_pool_backward")
def _(grad, offsets, samples, size, kernel):
    return empty_as(offsets, (*offsets.shape[:2], *size)).to(grad.dtype)


@torch.library.register_fake("scratchnn::fractional_max_pool_gather")
def _(input, offsets, samples, kernel):
    return empty_as(offsets, offsets.shape).to(input.dtype)


@torch.library.register_fake("scratchnn::fractional_max_pool_indices")
def _(offsets, samples, size, kernel):
    return empty_as(offsets, offsets.shape).to(torch.int64)


_fractional_max_pool_with_offsets = operation("fractional_max_pool")


class Fractional(NamedTuple):
    """Windows of one size; the random numbers that place them are the ``samples``."""

    kernel: list[int]
    output_size: list[int]

    def pool(self, input: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima, and which tap of its window each is."""
        return _fractional_max_pool_with_offsets(input, samples, self.kernel, self.output_size)

    def backward(self, grad: Tensor, offsets: Tensor, samples: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of the input, of ``size``."""
        return _ops.fractional_max_pool_backward(grad, offsets, samples, size, self.kernel)

    def gather(self, input: Tensor, offsets: Tensor, samples: Tensor) -> Tensor:
        """The input at the taps that were chosen."""
        return _ops.fractional_max_pool_gather(input, offsets, samples, self.kernel)

    def indices(self, offsets: Tensor, samples: Tensor, size: Sequence[int]) -> Tensor:
        """The taps as indices into the flattened plane."""
        return _ops.fractional_max_pool_indices(offsets, samples, size, self.kernel)


def _fractional_max_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Tensor | None,
) -> Any:
    function = f"fractional_max_pool{rank}d"
    if output_size is None and output_ratio is None:
        raise ValueError(f"{function} requires specifying either an output_size or an output_ratio")
    if output_size is None:
        if rank == 2 and len(output_ratio) > 2:
            raise ValueError(f"{function}: output_ratio must be a pair of numbers, but got {output_ratio}")
        ratios = output_ratio if isinstance(output_ratio, Iterable) else (output_ratio,) * rank
        output_size = [int(input.size(dim - rank) * ratios[dim]) for dim in range(rank)]
    if samples is None:
        images = 1 if input.dim() == rank + 1 else input.size(0)
        samples = torch.rand(images, input.size(-1 - rank), rank, dtype=input.dtype, device=input.device)
    kernel_size, output_size = _whole(kernel_size, "kernel_size"), _whole(output_size, "output_size")
    x = batch(input, function, rank)
    windows = _windows(rank, function, kernel_size, output_size)
    if samples.requires_grad:
        raise RuntimeError(f"{function} is not differentiable with respect to _random_samples")
    if rank == 3 and any([o + k > n for o, k, n in zip(windows.output_size, windows.kernel, x.shape[2:], strict=True)]):
        raise RuntimeError(
            f"{function}: windows of kernel_size {windows.kernel} are too large for output size "
            f"{windows.output_size} of an input of size {list(x.shape[2:])}"
        )
    x, samples = float32_under_autocast(x, samples)
    check_not_empty(function, input)
    if return_indices:
        return pool_with_indices(x, input, rank, samples, windows)
    return unbatch(MaxPool.call(x, samples, windows)[0], input, rank)


@remembered
def _whole(value: Any, name: str) -> int | tuple[int, ...]:
    value = integers(value, name)
    return tuple(value) if isinstance(value, list) else value


@remembered
def _windows(
    rank: int, function: str, kernel_size: int | Sequence[int], output_size: int | Sequence[int]
) -> Fractional:
    return Fractional(
        exactly(kernel_size, rank, function, "kernel_size"), exactly(output_size, rank, function, "output_size")
    )


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maxima of windows at random places of a plane: ``y[n, c, o] = max over k < K of x[n, c, begin(o) + k]``.

    Along each dimension window o begins at ``floor((o + u) a) - floor(u a)`` with ``a = (I - K) / (O - 1)``, and a
    random u in [0, 1) for each channel of each sample; the last window ends where the input does. NaN and ties are as
    in :func:`max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types; under autocast it runs in float32.
        kernel_size: K, in pixels, one number or one for each dimension.
        output_size: O, one number or one for each dimension.
        output_ratio: O as a part of I, instead, between 0 and 1.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64.
        _random_samples: the random numbers u, ``(N, C, 2)`` in the order width, height; by default drawn
            from torch's generator.

    Returns:
        ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``, in the memory format of the input; with ``return_indices`` a pair,
        the indices of the same shape.

    Raises:
        ValueError: for neither an output size nor a ratio.
        TypeError: for sizes that are not integers.
        IndexError: for an input of fewer than three dimensions.
        RuntimeError: for an input of more than four or with empty channels or planes, windows that do not fit, and
            random numbers of another shape or type, or that put a window outside the input.
        NotImplementedError: for types that are not floating.

    Source: Graham 2014, "Fractional Max-Pooling".
    """
    return _fractional_max_pool(2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maxima of windows at random places of a volume: ``y[n, c, o] = max over k < K of x[n, c, begin(o) + k]``.

    Along each dimension window o begins at ``floor((o + u) a) - floor(u a)`` with ``a = (I - K) / (O - 1)``, and a
    random u in [0, 1) for each channel of each sample; the last window ends where the input does. As in torch ``O + K``
    must be at most the input size, one less than two dimensions allow. NaN and ties are as in :func:`max_pool3d`.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Floating types; under autocast it runs in float32.
        kernel_size: K, in voxels, one number or one for each dimension.
        output_size: O, one number or one for each dimension.
        output_ratio: O as a part of I, instead, between 0 and 1.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64.
        _random_samples: the random numbers u, ``(N, C, 3)`` in the order depth, height, width; by default drawn
            from torch's generator.

    Returns:
        ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``, in the memory format of the input; with ``return_indices``
        a pair, the indices of the same shape.

    Raises:
        ValueError: for neither an output size nor a ratio.
        TypeError: for sizes that are not integers.
        IndexError: for an input of fewer than four dimensions.
        RuntimeError: for an input of more than five or with empty channels or volumes, windows that do not fit, and
            random numbers of another shape or type, or that put a window outside the input.
        NotImplementedError: for types that are not floating.

    Source: Graham 2014, "Fractional Max-Pooling".
    """
    return _fractional_max_pool(3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples)


def fractional_max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fractional_max_pool2d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`fractional_max_pool2d`.
        kernel_size, output_size, output_ratio, _random_samples: as in :func:`fractional_max_pool2d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`fractional_max_pool2d` gives.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError, NotImplementedError: as :func:`fractional_max_pool2d`.

    Source: as of :func:`fractional_max_pool2d`.
    """
    return fractional_max_pool2d(input, kernel_size, output_size, output_ratio, True, _random_samples)


def fractional_max_pool3d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fractional_max_pool3d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`fractional_max_pool3d`.
        kernel_size, output_size, output_ratio, _random_samples: as in :func:`fractional_max_pool3d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`fractional_max_pool3d` gives.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError, NotImplementedError: as :func:`fractional_max_pool3d`.

    Source: as of :func:`fractional_max_pool3d`.
    """
    return fractional_max_pool3d(input, kernel_size, output_size, output_ratio, True, _random_samples)

"""Power-average pooling: the p-norm of each window, between a sum (p = 1) and a maximum (p = infinity).

Composed of an average pooling and elementwise functions, the derivative with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops.pool.average import avg_pool1d, avg_pool2d, avg_pool3d
from scratchnn.ops.pool.max import max_pool1d, max_pool2d, max_pool3d

_AVERAGE = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}
_MAXIMUM = {1: max_pool1d, 2: max_pool2d, 3: max_pool3d}


def _lp_pool(rank: int, input: Tensor, p: float, kernel_size: Any, stride: Any, ceil_mode: bool) -> Tensor:
    sides = (kernel_size,) if rank == 1 else _sides(kernel_size, rank)
    if isinstance(p, (int, float)):
        if p == 0:
            raise ValueError(f"norm_type must be a non-zero value, but got {p}")
        if p == float("inf"):
            return _MAXIMUM[rank](input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        if p == -float("inf"):
            return -_MAXIMUM[rank](-input.abs(), kernel_size, stride, 0, 1, ceil_mode)
    mean = _AVERAGE[rank](input.pow(p), kernel_size, stride, 0, ceil_mode)
    # The root of 0 has no derivative, and as in torch none is passed on.
    return torch.where(mean == 0, torch.zeros_like(mean), mean).mul(math.prod(sides)).pow(1.0 / p)


def _sides(kernel_size: Any, rank: int) -> tuple:
    sides = tuple(kernel_size) if isinstance(kernel_size, Iterable) else (kernel_size,) * rank
    if len(sides) != rank:
        raise ValueError(f"lp_pool{rank}d: expected kernel_size of one number or {rank}, but got {kernel_size}")
    return sides


def lp_pool1d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: int,
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of a signal: ``y[n, c, o] = (sum over k of x[n, c, o S + k]^p)^(1/p)``.

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types.
        norm_type: p, the power.
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Returns:
        ``(N, C, L')`` or ``(C, L')`` with ``L' = floor((L - K) / S) + 1``.

    Raises:
        ValueError: for p = 0.
        Exception: what :func:`avg_pool1d` raises, or for infinite p :func:`max_pool1d`.

    Source: Sermanet, Chintala & LeCun 2012, "Convolutional Neural Networks Applied to House Numbers Digit
    Classification".
    """
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of a plane: ``y[n, c, o] = (sum over k of x[n, c, o S + k]^p)^(1/p)``.

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types.
        norm_type: p, the power.
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Returns:
        ``(N, C, H', W')`` or ``(C, H', W')`` with ``H' = floor((H - K) / S) + 1``, W' alike.

    Raises:
        ValueError: for p = 0.
        Exception: what :func:`avg_pool2d` raises, or for infinite p :func:`max_pool2d`.

    Source: Sermanet, Chintala & LeCun 2012, "Convolutional Neural Networks Applied to House Numbers Digit
    Classification".
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of a volume: ``y[n, c, o] = (sum over k of x[n, c, o S + k]^p)^(1/p)``.

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. float32 and float64; under autocast it runs in float32.
        norm_type: p, the power.
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Returns:
        ``(N, C, D', H', W')`` or ``(C, D', H', W')`` with ``H' = floor((H - K) / S) + 1``, D' and W' alike.

    Raises:
        ValueError: for p = 0.
        Exception: what :func:`avg_pool3d` raises, or for infinite p :func:`max_pool3d`.

    Source: Sermanet, Chintala & LeCun 2012, "Convolutional Neural Networks Applied to House Numbers Digit
    Classification".
    """
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)

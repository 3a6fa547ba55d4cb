"""Average pooling: the average of each window.

Averaging whole planes in place of a fully connected head ("global average pooling", here :func:`global_avg_pool`, or
:func:`adaptive_avg_pool2d` to size 1) is due to Lin, Chen & Yan, "Network In Network", ICLR 2014 (arXiv:1312.4400,
December 2013). For its backward pass an average pooling keeps shapes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchnn.ops._common import Function, empty_as, integer, remembered
from scratchnn.ops.pool._arguments import (
    adaptive_size,
    batch,
    check_not_empty,
    flag,
    float32_under_autocast,
    fold,
    is_channels_last,
    pooled_size,
    sliding,
    unbatch,
    unfold,
    with_row,
)

_ops = torch.ops.scratchnn


# Fake kernels: shapes, symbolic ones too


def _empty_images(grad: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.contiguous_format
    if channels_last and len(size) > 1:
        memory_format = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    return torch.empty((*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=memory_format)


@torch.library.register_fake("scratchnn::avg_pool")
def _(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
    if len(kernel) == 3 and any(n < k for n, k in zip(input.shape[2:], kernel, strict=True)):
        raise RuntimeError(f"avg_pool: expected input of at least kernel_size {kernel}, but got {list(input.shape)}")
    size = pooled_size(input.shape[2:], kernel, stride, padding, [1] * len(kernel), ceil_mode)
    return empty_as(input, (*input.shape[:2], *size))


@torch.library.register_fake("scratchnn::avg_pool_backward")
def _(grad, size, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override, channels_last):
    return _empty_images(grad, size, channels_last)


@torch.library.register_fake("scratchnn::adaptive_avg_pool")
def _(input, output_size):
    return empty_as(input, (*input.shape[:2], *output_size))


@torch.library.register_fake("scratchnn::adaptive_avg_pool_backward")
def _(grad, size, channels_last):
    return _empty_images(grad, size, channels_last)


# Derivatives


class Windows(NamedTuple):
    """The operator's arguments after the input: numbers for each spatial dimension, and what divides their sums."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None

    def fit(self, x: Tensor) -> Windows:
        """The windows for what ``batch`` made of the input."""
        if x.dim() - 2 == len(self.kernel):
            return self
        lists = (with_row(x, self.kernel), with_row(x, self.stride), with_row(x, self.padding, 0))
        return Windows(*lists, *self[3:])


class AvgPool(Function, operator="avg_pool"):
    """``y[o] = (sum of x over window o) / divisor(o)``: linear, so it needs to remember shapes alone."""

    @staticmethod
    def forward(input: Tensor, windows: Windows) -> Tensor:
        return _ops.avg_pool(input, *windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.windows = inputs
        ctx.size = input.shape[2:]
        ctx.channels_last = is_channels_last(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AvgPoolBackward.call(grad, ctx.size, ctx.windows, ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AvgPool.call(tangent, ctx.windows)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, windows: Windows) -> tuple:
        return unfold(info, AvgPool.call(*fold(info, in_dims, input), windows)), 0


class AvgPoolBackward(Function, operator="avg_pool_backward"):
    """``dx[i] = sum of dy[o] / divisor(o) over the windows o that hold i``."""

    @staticmethod
    def forward(grad: Tensor, size: Sequence[int], windows: Windows, channels_last: bool) -> Tensor:
        return _ops.avg_pool_backward(grad, size, *windows, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, ctx.windows, ctx.channels_last = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AvgPool.call(grad, ctx.windows), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AvgPoolBackward.call(tangent, ctx.size, ctx.windows, ctx.channels_last)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, size: Any, windows: Windows, channels_last: bool) -> tuple:
        (grad,) = fold(info, in_dims, grad)
        return unfold(info, AvgPoolBackward.call(grad, size, windows, channels_last)), 0


class AdaptiveAvgPool(Function, operator="adaptive_avg_pool"):
    """``y[o] = mean of x[floor(o I / O) : ceil((o + 1) I / O)]`` along each dimension."""

    @staticmethod
    def forward(input: Tensor, output_size: Sequence[int]) -> Tensor:
        return _ops.adaptive_avg_pool(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.output_size = inputs
        ctx.size = input.shape[2:]
        ctx.channels_last = is_channels_last(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AdaptiveAvgPoolBackward.call(grad, ctx.size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AdaptiveAvgPool.call(tangent, ctx.output_size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, output_size: Sequence[int]) -> tuple:
        return unfold(info, AdaptiveAvgPool.call(*fold(info, in_dims, input), output_size)), 0


class AdaptiveAvgPoolBackward(Function, operator="adaptive_avg_pool_backward"):
    """``dx[i] = sum of dy[o] / (size of window o) over the windows o that hold i``."""

    @staticmethod
    def forward(grad: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
        return _ops.adaptive_avg_pool_backward(grad, size, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, ctx.size, ctx.channels_last = inputs
        ctx.output_size = grad.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AdaptiveAvgPool.call(grad, ctx.output_size), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AdaptiveAvgPoolBackward.call(tangent, ctx.size, ctx.channels_last)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, size: Any, channels_last: bool) -> tuple:
        (grad,) = fold(info, in_dims, grad)
        return unfold(info, AdaptiveAvgPoolBackward.call(grad, size, channels_last)), 0


# Functionals

_NAMES = {rank: f"avg_pool{rank}d" for rank in (1, 2, 3)}
_ADAPTIVE_NAMES = {rank: f"adaptive_avg_pool{rank}d" for rank in (1, 2, 3)}


def pool_average(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Average pooling of any rank: what :func:`avg_pool2d` and its relatives are."""
    function = _NAMES[rank]
    windows = _windows(rank, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    x = batch(input, function, rank, IndexError if rank == 2 else RuntimeError)
    if rank == 3:
        x = _single_or_double(x, function)
    return unbatch(AvgPool.call(x, windows.fit(x)), input, rank)


@remembered
def _windows(
    rank: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Windows:
    function = f"avg_pool{rank}d"
    flag(ceil_mode, function, "ceil_mode")
    flag(count_include_pad, function, "count_include_pad")
    if divisor_override is not None:
        divisor_override = integer(divisor_override, "divisor_override")
    kernel, stride, padding, _ = sliding(rank, kernel_size, stride, padding)
    return Windows(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _single_or_double(x: Tensor, function: str) -> Tensor:
    """A volume as torch averages it: in float32 under autocast, and not in half precision."""
    if torch._C._is_any_autocast_enabled():
        (x,) = float32_under_autocast(x)
    if x.itemsize == 2 and x.is_floating_point() and x.device.type == "cpu":
        raise NotImplementedError(f"{function}: not implemented for {x.dtype} outside of autocast")
    return x


def avg_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The average of each window of a signal: ``y[n, c, o] = (sum over k of x[n, c, o S - P + k]) / divisor``.

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding; without those in the
    padding either if not ``count_include_pad``. Padding counts as 0.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types and int64.
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        padding: P, positions on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.

    Returns:
        ``(N, C, L')`` or ``(C, L')`` with ``L' = floor((L + 2 P - K) / S) + 1``, in the memory
        format of the input.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank, or with empty channels or signals, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4.
    """
    return pool_average(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of a plane: ``y[n, c, o] = (sum over k of x[n, c, o S - P + k]) / divisor``.

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding; without those in the
    padding either if not ``count_include_pad``; or ``divisor_override``. Padding counts as 0.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types and int64.
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        padding: P, pixels on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.
        divisor_override: divide by this number instead.

    Returns:
        ``(N, C, H', W')`` or ``(C, H', W')`` with ``H' = floor((H + 2 P - K) / S) + 1``, W' alike, in the memory
        format of the input.

    Raises:
        TypeError: for arguments that are not integers.
        IndexError: for an input of fewer than three dimensions.
        RuntimeError: for an input of another rank, or with empty channels or planes, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4.

    Example:
        >>> import scratchnn.functional as F
        >>> F.avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), kernel_size=2)
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """
    return pool_average(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of a volume: ``y[n, c, o] = (sum over k of x[n, c, o S - P + k]) / divisor``.

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding; without those in the
    padding either if not ``count_include_pad``; or ``divisor_override``. Padding counts as 0.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``, no smaller than the kernel. float32, float64 and int64; under
            autocast it runs in float32.
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        padding: P, voxels on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.
        divisor_override: divide by this number instead.

    Returns:
        ``(N, C, D', H', W')`` or ``(C, D', H', W')`` with ``H' = floor((H + 2 P - K) / S) + 1``, D' and W' alike, in
        the memory format of the input.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank, or with empty channels or volumes, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4.
    """
    return pool_average(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_avg_pool(rank: int, input: Tensor, output_size: Any) -> Tensor:
    function = _ADAPTIVE_NAMES[rank]
    size = adaptive_size(function, rank, input, output_size)
    x = batch(input, function, rank)
    if rank == 3:
        (x,) = float32_under_autocast(x)
        if any(o != 1 for o in size):
            check_not_empty(function, input)
    return unbatch(AdaptiveAvgPool.call(x, with_row(x, size)), input, rank)


def adaptive_avg_pool1d(input: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """The average of as many windows of a signal as the output is to have positions, whatever the input size.

    Along each dimension, ``y[o] = mean of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    Size 1 averages everything: global average pooling.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types.
        output_size: O, the output's size.

    Returns:
        ``(N, C, O)`` or ``(C, O)``, in the memory format of the input.

    Raises:
        TypeError: for sizes that are not integers.
        RuntimeError: for an input of another rank or with empty signals, for several sizes, or a
            negative one.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    """
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The average of as many windows of a plane as the output is to have pixels, whatever the input size.

    Along each dimension, ``y[o] = mean of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    Size 1 averages everything: global average pooling.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types.
        output_size: O, one number or one for each dimension; None keeps that dimension.

    Returns:
        ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``, in the memory format of the input.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty planes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    """
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The average of as many windows of a volume as the output is to have voxels, whatever the input size.

    Along each dimension, ``y[o] = mean of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    Size 1 averages everything: global average pooling.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Floating types. Under autocast it runs in float32.
        output_size: O, one number or one for each dimension; None keeps that dimension.

    Returns:
        ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``, in the memory format of the input.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty volumes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    """
    return _adaptive_avg_pool(3, input, output_size)


def global_avg_pool(input: Tensor, keepdim: bool = False) -> Tensor:
    """The average of each channel of each sample, of any number of spatial dimensions; not in torch.

    ``y[n, c] = mean over the pixels i of x[n, c, i]``.

    It serves as the head of a network of any input size, without parameters.

    Args:
        input: ``(N, C, *)`` with at least one more dimension.
        keepdim: keep the spatial dimensions, of size 1.

    Returns:
        ``(N, C)``; with ``keepdim`` ``(N, C, 1, ...)``.

    Raises:
        RuntimeError: for an input of fewer than three dimensions or with empty planes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network"; lecture, section 7.4.
    """
    if input.dim() < 3:
        raise RuntimeError(f"global_avg_pool: expected input of at least 3 dimensions, but got {list(input.shape)}")
    x = input if input.dim() <= 5 else input.flatten(2, -3)
    output = AdaptiveAvgPool.call(x, [1] * (x.dim() - 2))
    return output.reshape(*input.shape[:2], *[1] * (input.dim() - 2)) if keepdim else output.flatten(1)

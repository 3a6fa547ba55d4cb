"""Max unpooling: the maxima go back to where they came from, and everything else is zero.

Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv:1311.2901).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, empty_as, integer
from scratchnn.ops.pool._arguments import (
    batch,
    check_not_empty,
    float32_under_autocast,
    fold,
    integers,
    unbatch,
    unfold,
    with_row,
)

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::max_unpool")
def _(input, indices, output_size):
    return empty_as(input, (*input.shape[:2], *output_size))


@torch.library.register_fake("scratchnn::max_unpool_backward")
def _(grad, indices):
    return empty_as(indices, indices.shape).to(grad.dtype)


class MaxUnpool(Function, operator="max_unpool"):
    """``y[index[i]] = x[i]``: linear."""

    @staticmethod
    def forward(input: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
        return _ops.max_unpool(input, indices, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, indices, ctx.output_size = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        return MaxUnpoolBackward.call(grad, indices), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return MaxUnpool.call(tangent, indices, ctx.output_size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, indices: Tensor, output_size: Sequence[int]) -> tuple:
        return unfold(info, MaxUnpool.call(*fold(info, in_dims, input, indices), output_size)), 0


class MaxUnpoolBackward(Function, operator="max_unpool_backward"):
    """``dx[i] = dy[index[i]]``; inputs that share an index all get the gradient, as in torch."""

    @staticmethod
    def forward(grad: Tensor, indices: Tensor) -> Tensor:
        return _ops.max_unpool_backward(grad, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, indices = inputs
        ctx.shape = grad.shape
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """The transpose: here the gradients of inputs that share an index add up."""
        (indices,) = ctx.saved_tensors
        planes = (*ctx.shape[:2], -1)
        sums = grad.new_zeros(ctx.shape).reshape(planes)
        return sums.scatter_add(2, indices.reshape(planes), grad.reshape(planes)).reshape(ctx.shape), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return MaxUnpoolBackward.call(tangent, indices)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, indices: Tensor) -> tuple:
        return unfold(info, MaxUnpoolBackward.call(*fold(info, in_dims, grad, indices))), 0


def _tuple(value: Any, rank: int) -> tuple:
    return tuple(value) if isinstance(value, Iterable) else (value,) * rank


def _unpooled_size(
    function: str, input: Tensor, kernel: tuple, stride: tuple, padding: tuple, output_size: Any
) -> list[int]:
    """The size whose pooling has the input's: several have, and ``output_size`` may choose one."""
    rank = len(kernel)
    default = [(input.shape[d - rank] - 1) * stride[d] + kernel[d] - 2 * padding[d] for d in range(rank)]
    if output_size is not None:
        if len(output_size) == rank + 2:
            output_size = output_size[2:]
        if len(output_size) != rank:
            raise ValueError(
                f"{function}: output_size should be a sequence containing {rank} or {rank + 2} elements, but it has "
                f"a length of {len(output_size)}"
            )
        for d in range(rank):
            least, most = default[d] - stride[d], default[d] + stride[d]
            if not least < output_size[d] < most:
                raise ValueError(
                    f"{function}: invalid output_size {output_size} (dim {d} must be between {least} and {most})"
                )
    size = default if output_size is None else list(output_size)
    if any(n < 0 for n in size):
        raise ValueError(f"{function}: output_size must not be negative, but got {size}")
    return [integer(n, "output_size") for n in size]


def _max_unpool(
    rank: int, input: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Tensor:
    function = f"max_unpool{rank}d"
    kernel = _tuple(kernel_size, rank)
    stride = kernel if stride is None else _tuple(stride, rank)
    size = _unpooled_size(function, input, kernel, stride, _tuple(padding, rank), output_size)
    steps = integers(stride, "stride") if rank == 3 else []
    if len(size) != rank:
        raise RuntimeError(f"{function}: expected output_size of {rank} elements, but got {size}")
    x = batch(input, function, rank)
    if not isinstance(indices, Tensor):
        raise TypeError(f"{function}(): argument 'indices' must be Tensor, not {type(indices).__name__}")
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{function}: expected indices of the input's shape {list(input.shape)}, but got {list(indices.shape)}"
        )
    if any(step <= 0 for step in steps):
        raise RuntimeError(f"{function}: strides should be greater than zero, but got {steps}")
    check_not_empty(function, input)
    (x,) = float32_under_autocast(x)
    if rank == 1:
        x = x.contiguous()  # as torch has it
    return unbatch(MaxUnpool.call(x, indices.reshape(x.shape), with_row(x, size)), input, rank)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The maxima of a signal back in their places, zero elsewhere: ``y[n, c, indices[n, c, i]] = x[n, c, i]``.

    Of inputs with the same index the last wins, in row-major order; in the backward pass each of them gets the output's
    gradient, as in torch.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types; under autocast it runs in float32.
        indices: of the same shape, int64: those that :func:`max_pool1d` gives for these windows.
        kernel_size: K of the pooling, in positions.
        stride: S of the pooling, in positions; K if not given.
        padding: P of the pooling, in positions.
        output_size: another of the sizes that the pooling takes to the input's, less than S away from the one below.

    Returns:
        ``(N, C, L')`` or ``(C, L')`` with ``L' = (L - 1) S - 2 P + K``, in the memory format of
        the input.

    Raises:
        TypeError: where the indices are not a tensor.
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or signals, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks".
    """
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The maxima of a plane back in their places, zero elsewhere: ``y[n, c, indices[n, c, i]] = x[n, c, i]``.

    Of inputs with the same index the last wins, in row-major order; in the backward pass each of them gets the output's
    gradient, as in torch.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types; under autocast it runs in float32.
        indices: of the same shape, int64: those that :func:`max_pool2d` gives for these windows.
        kernel_size: K of the pooling, in pixels, one number or one for each dimension.
        stride: S of the pooling, in pixels; K if not given.
        padding: P of the pooling, in pixels.
        output_size: another of the sizes that the pooling takes to the input's, less than S away from the one below.

    Returns:
        ``(N, C, H', W')`` or ``(C, H', W')`` with ``H' = (H - 1) S - 2 P + K``, W' alike, in the memory format of
        the input.

    Raises:
        TypeError: where the indices are not a tensor.
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or planes, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks".
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The maxima of a volume back in their places, zero elsewhere: ``y[n, c, indices[n, c, i]] = x[n, c, i]``.

    Of inputs with the same index the last wins, in row-major order; in the backward pass each of them gets the output's
    gradient, as in torch.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Floating types; under autocast it runs in float32.
        indices: of the same shape, int64: those that :func:`max_pool3d` gives for these windows.
        kernel_size: K of the pooling, in voxels, one number or one for each dimension.
        stride: S of the pooling, in voxels; K if not given.
        padding: P of the pooling, in voxels.
        output_size: another of the sizes that the pooling takes to the input's, less than S away from the one below.

    Returns:
        ``(N, C, D', H', W')`` or ``(C, D', H', W')`` with ``H' = (H - 1) S - 2 P + K``, D' and W' alike, in the memory
        format of the input.

    Raises:
        TypeError: where the indices are not a tensor.
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or volumes, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks".
    """
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)

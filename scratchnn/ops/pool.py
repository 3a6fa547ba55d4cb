"""Pooling: each output pixel is the maximum, or the average, of a window of its channel's plane.

Lecture, section 7.4. Averaging whole planes in place of a fully connected head ("global average pooling",
here :func:`adaptive_avg_pool2d` to size 1) is due to Lin, Chen & Yan, "Network In Network", ICLR 2014
(arXiv:1312.4400, December 2013).

A max pooling keeps, for its backward pass, where within its window each maximum was: one byte an output (four
beyond 256 taps), where torch keeps eight. An average pooling keeps shapes alone. The operators work on any
spatial rank from 1 to 3; so far the functionals are those of two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchnn.ops._common import Function, empty_as, expand, integer, output_size

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices"]

_ops = torch.ops.scratchnn

_RANK = 2  # spatial dimensions of the functionals
_BYTE_TAPS = 256  # windows of up to this many taps have offsets of one byte (csrc/pool/pool.cpp)


# Fake kernels: shapes, symbolic ones too


def _pooled_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Spatial output size of sliding windows, the arguments checked: ``pooled_size`` of csrc/pool/pool.cpp.

    Ceil mode adds a window where one covers what is left over, provided it starts inside the input or its
    left padding.
    """
    out = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        if k <= 0 or s <= 0 or p < 0 or d <= 0 or p > k // 2:
            raise RuntimeError(
                "expected kernel_size, stride and dilation greater than zero and padding of at most half of "
                f"kernel_size, but got kernel_size {kernel}, stride {stride}, padding {padding}, "
                f"dilation {dilation}"
            )
        o = output_size(n, k, 2 * p + (s - 1 if ceil_mode else 0), s, d)
        if ceil_mode and (o - 1) * s >= n + p:
            o -= 1
        if n == 0 or o <= 0:
            raise RuntimeError(f"given input size {list(size)} the calculated output size is too small")
        out.append(o)
    return out


def _offset_dtype(kernel: Sequence[int]) -> torch.dtype:
    taps = 1
    for k in kernel:
        taps *= k
    return torch.uint8 if taps <= _BYTE_TAPS else torch.int32


def _empty_images(grad: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.contiguous_format
    if channels_last and len(size) > 1:
        memory_format = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    return torch.empty((*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=memory_format)


@torch.library.register_fake("scratchnn::max_pool")
def _(input, kernel, stride, padding, dilation, ceil_mode):
    size = _pooled_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    return empty_as(input, (*input.shape[:2], *size))


@torch.library.register_fake("scratchnn::max_pool_with_offsets")
def _(input, kernel, stride, padding, dilation, ceil_mode):
    size = _pooled_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    output = empty_as(input, (*input.shape[:2], *size))
    return output, torch.empty_like(output, dtype=_offset_dtype(kernel))


@torch.library.register_fake("scratchnn::max_pool_backward")
def _(grad, offsets, size, kernel, stride, padding, dilation):
    return empty_as(offsets, (*offsets.shape[:2], *size)).to(grad.dtype)


@torch.library.register_fake("scratchnn::max_pool_gather")
def _(input, offsets, kernel, stride, padding, dilation):
    return empty_as(offsets, offsets.shape).to(input.dtype)


@torch.library.register_fake("scratchnn::max_pool_indices")
def _(offsets, size, kernel, stride, padding, dilation):
    return empty_as(offsets, offsets.shape).to(torch.int64)


@torch.library.register_fake("scratchnn::avg_pool")
def _(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
    size = _pooled_size(input.shape[2:], kernel, stride, padding, [1] * len(kernel), ceil_mode)
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


def _fold(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """The mapped dimension of each tensor made part of its batch: pooling treats samples alike."""
    folded = []
    for tensor, dim in zip(tensors, in_dims, strict=False):
        batched = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(batched.flatten(0, 1))
    return folded


def _unfold(info: Any, tensor: Tensor) -> Tensor:
    return tensor.unflatten(0, (info.batch_size, tensor.shape[0] // info.batch_size))


def _is_channels_last(output: Tensor) -> bool:
    """Whether an operator's output, always without gaps, is channels_last: no columns side by side."""
    return output.stride(-1) != 1


class Windows(NamedTuple):
    """Sliding windows, one number per spatial dimension."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]


class MaxPool(Function):
    """``y[o] = max over k of x[o S - P + k D]``, with the offsets ``k`` of the maxima.

    Which input is the maximum stays fixed under small changes, so the derivative is a selection: backward,
    each gradient goes to the input pixel it was chosen from.
    """

    @staticmethod
    def forward(input: Tensor, windows: Windows, ceil_mode: bool) -> tuple[Tensor, Tensor]:
        return _ops.max_pool_with_offsets(input, *windows, ceil_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        input, ctx.windows, _ = inputs
        _, offsets = output
        ctx.size = input.shape[2:]
        ctx.mark_non_differentiable(offsets)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(offsets)
        ctx.save_for_forward(offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple:
        if grad is None:
            return None, None, None
        (offsets,) = ctx.saved_tensors
        return MaxPoolBackward.call(grad, offsets, ctx.size, ctx.windows), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return MaxPoolGather.call(tangent, offsets, ctx.windows), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, windows: Windows, ceil_mode: bool) -> tuple:
        outputs = MaxPool.call(*_fold(info, in_dims, input), windows, ceil_mode)
        return tuple(_unfold(info, output) for output in outputs), (0, 0)


class MaxPoolBackward(Function):
    """``dL/dx[i] = sum of dL/dy[o] over the windows o whose maximum is x[i]``: linear in ``dL/dy``."""

    @staticmethod
    def forward(grad: Tensor, offsets: Tensor, size: Sequence[int], windows: Windows) -> Tensor:
        return _ops.max_pool_backward(grad, offsets, size, *windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, offsets, ctx.size, ctx.windows = inputs
        ctx.save_for_backward(offsets)
        ctx.save_for_forward(offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (offsets,) = ctx.saved_tensors
        return MaxPoolGather.call(grad, offsets, ctx.windows), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (offsets,) = ctx.saved_tensors
        return MaxPoolBackward.call(tangent, offsets, ctx.size, ctx.windows)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, offsets: Tensor, size: Any, windows: Windows) -> tuple:
        folded = _fold(info, in_dims, grad, offsets)
        return _unfold(info, MaxPoolBackward.call(*folded, size, windows)), 0


class MaxPoolGather(Function):
    """``y[o] = x[o S - P + k D]`` for given offsets ``k``: :class:`MaxPoolBackward` transposed."""

    @staticmethod
    def forward(input: Tensor, offsets: Tensor, windows: Windows) -> Tensor:
        return _ops.max_pool_gather(input, offsets, *windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, offsets, ctx.windows = inputs
        ctx.size = input.shape[2:]
        ctx.save_for_backward(offsets)
        ctx.save_for_forward(offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (offsets,) = ctx.saved_tensors
        return MaxPoolBackward.call(grad, offsets, ctx.size, ctx.windows), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (offsets,) = ctx.saved_tensors
        return MaxPoolGather.call(tangent, offsets, ctx.windows)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, offsets: Tensor, windows: Windows) -> tuple:
        return _unfold(info, MaxPoolGather.call(*_fold(info, in_dims, input, offsets), windows)), 0


class AvgPool(Function):
    """``y[o] = (sum of x over window o) / divisor(o)``: linear, so it needs to remember shapes alone.

    ``options`` are the operator's arguments after the input.
    """

    @staticmethod
    def forward(input: Tensor, options: tuple) -> Tensor:
        return _ops.avg_pool(input, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.options = inputs
        ctx.size = input.shape[2:]
        ctx.channels_last = _is_channels_last(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AvgPoolBackward.call(grad, ctx.size, ctx.options, ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AvgPool.call(tangent, ctx.options)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, options: tuple) -> tuple:
        return _unfold(info, AvgPool.call(*_fold(info, in_dims, input), options)), 0


class AvgPoolBackward(Function):
    """``dL/dx[i] = sum of dL/dy[o] / divisor(o) over the windows o that hold i``."""

    @staticmethod
    def forward(grad: Tensor, size: Sequence[int], options: tuple, channels_last: bool) -> Tensor:
        return _ops.avg_pool_backward(grad, size, *options, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, ctx.options, ctx.channels_last = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AvgPool.call(grad, ctx.options), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AvgPoolBackward.call(tangent, ctx.size, ctx.options, ctx.channels_last)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, size: Any, options: tuple, channels_last: bool) -> tuple:
        (grad,) = _fold(info, in_dims, grad)
        return _unfold(info, AvgPoolBackward.call(grad, size, options, channels_last)), 0


class AdaptiveAvgPool(Function):
    """``y[o] = mean of x[floor(o I / O) : ceil((o + 1) I / O)]`` along each dimension."""

    @staticmethod
    def forward(input: Tensor, output_size: Sequence[int]) -> Tensor:
        return _ops.adaptive_avg_pool(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.output_size = inputs
        ctx.size = input.shape[2:]
        ctx.channels_last = _is_channels_last(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return AdaptiveAvgPoolBackward.call(grad, ctx.size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return AdaptiveAvgPool.call(tangent, ctx.output_size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, output_size: Sequence[int]) -> tuple:
        return _unfold(info, AdaptiveAvgPool.call(*_fold(info, in_dims, input), output_size)), 0


class AdaptiveAvgPoolBackward(Function):
    """``dL/dx[i] = sum of dL/dy[o] / (size of window o) over the windows o that hold i``."""

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
        (grad,) = _fold(info, in_dims, grad)
        return _unfold(info, AdaptiveAvgPoolBackward.call(grad, size, channels_last)), 0


# Functionals


def _flag(value: Any, function: str, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{function}(): argument '{name}' must be bool, not {type(value).__name__} {value!r}")
    return value


def _batch(input: Any, function: str, rank: int = _RANK, error: type[Exception] = RuntimeError) -> Tensor:
    """The input with a batch dimension, contiguous where that had to be added, as torch has it."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}(): argument 'input' must be Tensor, not {type(input).__name__}")
    if input.dim() == rank + 2:
        return input
    if input.dim() == rank + 1:
        return input.unsqueeze(0).contiguous()
    kind = error if input.dim() <= rank else RuntimeError
    raise kind(
        f"{function}: expected input of {rank + 1} dimensions, or {rank + 2} with a batch, but got {list(input.shape)}"
    )


def _windows(function: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Windows:
    kernel = expand(kernel_size, _RANK, "kernel_size")
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    return Windows(
        kernel,
        kernel if no_stride else expand(stride, _RANK, "stride"),
        expand(padding, _RANK, "padding"),
        expand(dilation, _RANK, "dilation"),
    )


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window: ``y[n, c, o] = max over k of x[n, c, o S - P + k D]``.

    Windows of ``kernel_size`` K taps, D (``dilation``) apart, start S (``stride``, by default K) apart;
    padding counts as minus infinity. NaN is the largest value of all. Of equal maxima, the first in row-major
    order gets the gradient.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)``; each spatial size W becomes
    ``floor((W + 2 P - D (K - 1) - 1) / S) + 1``. With ``ceil_mode`` the quotient is rounded up, provided the
    last window starts inside the input or its left padding. The memory format is kept. Any floating or
    integer dtype.

    Args:
        return_indices: also return the positions of the maxima, as indices into the flattened plane (-1 for a
            window that dilation puts wholly into the padding), as :func:`torch.nn.functional.max_unpool2d`
            takes them.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or planes, sizes that are not
            positive, padding of more than half of ``kernel_size``, or an output that would be empty.
    """
    function = "max_pool2d"
    x = _batch(input, function)
    windows = _windows(function, kernel_size, stride, padding, dilation)
    _flag(ceil_mode, function, "ceil_mode")
    if return_indices:
        output, offsets = MaxPool.call(x, windows, ceil_mode)
        indices = _ops.max_pool_indices(offsets, x.shape[2:], *windows)
        return (output, indices) if x.dim() == input.dim() else (output.squeeze(0), indices.squeeze(0))
    if x.requires_grad or torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        output, _ = MaxPool.call(x, windows, ceil_mode)
    else:
        output = _ops.max_pool(x, *windows, ceil_mode)  # nobody will ask where the maxima were
    return output if x.dim() == input.dim() else output.squeeze(0)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with its indices, whatever ``return_indices`` says, as in torch."""
    return max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window: ``y[n, c, o] = (sum over k of x[n, c, o S - P + k]) / divisor``.

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding; without
    those in the padding either if not ``count_include_pad``; or ``divisor_override``. Padding counts as 0.

    Shape: as in :func:`max_pool2d`, with dilation 1. The memory format is kept. Floating dtypes and int64.

    Raises:
        TypeError: for arguments that are not integers.
        IndexError: for an input of fewer than three dimensions.
        RuntimeError: for an input of more than four, or with empty channels or planes, sizes that are not
            positive, padding of more than half of ``kernel_size``, an output that would be empty, or a
            divisor of zero.
    """
    function = "avg_pool2d"
    x = _batch(input, function, error=IndexError)
    kernel, stride, padding, _ = _windows(function, kernel_size, stride, padding, 1)
    _flag(ceil_mode, function, "ceil_mode")
    _flag(count_include_pad, function, "count_include_pad")
    if divisor_override is not None:
        divisor_override = integer(divisor_override, "divisor_override")
    output = AvgPool.call(x, (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override))
    return output if x.dim() == input.dim() else output.squeeze(0)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The averages of as many windows as the output is to have pixels, whatever the input size.

    Along each dimension, output o of O is the mean of inputs ``floor(o I / O)`` to
    ``ceil((o + 1) I / O) - 1``.
    Size 1 averages whole planes: global average pooling (Lin, Chen & Yan 2013).

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to ``output_size``, one number or one for each dimension; None
    keeps that dimension. The memory format is kept. Floating dtypes.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        RuntimeError: for an input of another rank or with empty planes, or negative sizes.
    """
    function = "adaptive_avg_pool2d"
    x = _batch(input, function)
    if isinstance(output_size, (tuple, list)):
        if len(output_size) != 2:
            raise RuntimeError(f"{function}: output_size must have 2 elements, but got {output_size}")
        size = [n if o is None else o for o, n in zip(output_size, x.shape[2:], strict=True)]
    else:
        size = output_size
    output = AdaptiveAvgPool.call(x, expand(size, _RANK, "output_size"))
    return output if x.dim() == input.dim() else output.squeeze(0)

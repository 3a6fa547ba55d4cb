"""Max pooling: the maximum of each window, and where it was.

Windows slide (:func:`max_pool2d`), divide the input into a given number (:func:`adaptive_max_pool2d`), or lie at random
(:mod:`scratchnn.ops.pool.fractional`). In all three the forward pass keeps where within its window each maximum was,
one byte an output (four beyond 256 taps), where torch keeps eight: its offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scratchnn.ops._common import Function, empty_as, operation, remembered
from scratchnn.ops.pool._arguments import (
    adaptive_size,
    batch,
    check_not_empty,
    flag,
    float32_under_autocast,
    fold,
    pooled_size,
    sliding,
    unbatch,
    unfold,
    with_row,
)

_ops = torch.ops.scratchnn

_BYTE_TAPS = 256  # windows of up to this many taps have offsets of one byte (csrc/pool/max.cpp)


# Fake kernels: shapes, symbolic ones too


def offset_dtype(taps: Sequence[int]) -> torch.dtype:
    """The narrowest type that numbers the taps of a window."""
    product = 1
    for number in taps:
        product *= number
    return torch.uint8 if product <= _BYTE_TAPS else torch.int32


def _adaptive_taps(size: Sequence[int], output_size: Sequence[int]) -> list[int]:
    """No window is longer; the same numbers in C++ are in ``WindowTables::adaptive`` of csrc/pool/relation.cpp."""
    return [1 if o == 0 else n // o if n % o == 0 else n // o + 2 for n, o in zip(size, output_size, strict=True)]


@torch.library.register_fake("scratchnn::max_pool")
def _(input, kernel, stride, padding, dilation, ceil_mode):
    size = pooled_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    return empty_as(input, (*input.shape[:2], *size))


@torch.library.register_fake("scratchnn::max_pool_with_offsets")
def _(input, kernel, stride, padding, dilation, ceil_mode):
    size = pooled_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    output = empty_as(input, (*input.shape[:2], *size))
    return output, torch.empty_like(output, dtype=offset_dtype(kernel))


@torch.library.register_fake("scratchnn::max_pool_backward")
def _(grad, offsets, size, kernel, stride, padding, dilation):
    return empty_as(offsets, (*offsets.shape[:2], *size)).to(grad.dtype)


@torch.library.register_fake("scratchnn::max_pool_gather")
def _(input, offsets, kernel, stride, padding, dilation):
    return empty_as(offsets, offsets.shape).to(input.dtype)


@torch.library.register_fake("scratchnn::max_pool_indices")
def _(offsets, size, kernel, stride, padding, dilation):
    return empty_as(offsets, offsets.shape).to(torch.int64)


@torch.library.register_fake("scratchnn::adaptive_max_pool")
def _(input, output_size):
    return empty_as(input, (*input.shape[:2], *output_size))


@torch.library.register_fake("scratchnn::adaptive_max_pool_with_offsets")
def _(input, output_size):
    output = empty_as(input, (*input.shape[:2], *output_size))
    return output, torch.empty_like(output, dtype=offset_dtype(_adaptive_taps(input.shape[2:], output_size)))


@torch.library.register_fake("scratchnn::adaptive_max_pool_backward")
def _(grad, offsets, size):
    return empty_as(offsets, (*offsets.shape[:2], *size)).to(grad.dtype)


@torch.library.register_fake("scratchnn::adaptive_max_pool_gather")
def _(input, offsets):
    return empty_as(offsets, offsets.shape).to(input.dtype)


@torch.library.register_fake("scratchnn::adaptive_max_pool_indices")
def _(offsets, size):
    return empty_as(offsets, offsets.shape).to(torch.int64)


# Windows: what a pooling is told besides its input, and the operators of its kind

_max_pool_alone = operation("max_pool")
_max_pool_with_offsets = operation("max_pool_with_offsets")
_max_pool_backward = operation("max_pool_backward")
_adaptive_max_pool_alone = operation("adaptive_max_pool")
_adaptive_max_pool_with_offsets = operation("adaptive_max_pool_with_offsets")
_adaptive_max_pool_backward = operation("adaptive_max_pool_backward")


class Sliding(NamedTuple):
    """Windows of a fixed size, one number per spatial dimension."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool

    def fit(self, x: Tensor) -> Sliding:
        """The windows for what ``batch`` made of the input."""
        if x.dim() - 2 == len(self.kernel):
            return self
        lists = (with_row(x, self.kernel), with_row(x, self.stride), with_row(x, self.padding, 0))
        return Sliding(*lists, with_row(x, self.dilation), self.ceil_mode)

    def pool(self, input: Tensor, samples: None) -> tuple[Tensor, Tensor]:
        """The maxima, and which tap of its window each is."""
        return _max_pool_with_offsets(input, *self)

    def backward(self, grad: Tensor, offsets: Tensor, samples: None, size: Sequence[int]) -> Tensor:
        """The gradient of the input, of ``size``."""
        return _max_pool_backward(grad, offsets, size, *self[:4])

    def gather(self, input: Tensor, offsets: Tensor, samples: None) -> Tensor:
        """The input at the taps that were chosen."""
        return _ops.max_pool_gather(input, offsets, *self[:4])

    def indices(self, offsets: Tensor, samples: None, size: Sequence[int]) -> Tensor:
        """The taps as indices into the flattened plane."""
        return _ops.max_pool_indices(offsets, size, *self[:4])


class Adaptive(NamedTuple):
    """As many windows as the output is to have pixels."""

    output_size: list[int]

    def pool(self, input: Tensor, samples: None) -> tuple[Tensor, Tensor]:
        """The maxima, and which tap of its window each is."""
        return _adaptive_max_pool_with_offsets(input, self.output_size)

    def backward(self, grad: Tensor, offsets: Tensor, samples: None, size: Sequence[int]) -> Tensor:
        """The gradient of the input, of ``size``."""
        return _adaptive_max_pool_backward(grad, offsets, size)

    def gather(self, input: Tensor, offsets: Tensor, samples: None) -> Tensor:
        """The input at the taps that were chosen."""
        return _ops.adaptive_max_pool_gather(input, offsets)

    def indices(self, offsets: Tensor, samples: None, size: Sequence[int]) -> Tensor:
        """The taps as indices into the flattened plane."""
        return _ops.adaptive_max_pool_indices(offsets, size)


# Derivatives


class MaxPool(Function):
    """``y[o] = max over k of x[begin(o) + k D]``, with the offsets ``k`` of the maxima.

    Which input is the maximum stays fixed under small changes, so the derivative is a selection: backward,
    each gradient goes to the input pixel it was chosen from. ``samples`` are the random numbers of fractional
    pooling, otherwise None.
    """

    @staticmethod
    def forward(input: Tensor, samples: Tensor | None, windows: Any) -> tuple[Tensor, Tensor]:
        return windows.pool(input, samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        input, samples, ctx.windows = inputs
        _, offsets = output
        ctx.size = input.shape[2:]
        ctx.mark_non_differentiable(offsets)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(offsets, samples)
        ctx.save_for_forward(offsets, samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple:
        if grad is None:
            return None, None, None
        return MaxPoolBackward.call(grad, *ctx.saved_tensors, ctx.size, ctx.windows), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        return MaxPoolGather.call(tangent, *ctx.saved_tensors, ctx.windows), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, samples: Tensor | None, windows: Any) -> tuple:
        outputs = MaxPool.call(*fold(info, in_dims, input, samples), windows)
        return tuple(unfold(info, output) for output in outputs), (0, 0)


class MaxPoolBackward(Function):
    """``dx[i] = sum of dy[o] over the windows o whose maximum is x[i]``: linear in ``dy``."""

    @staticmethod
    def forward(grad: Tensor, offsets: Tensor, samples: Tensor | None, size: Sequence[int], windows: Any) -> Tensor:
        return windows.backward(grad, offsets, samples, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, offsets, samples, ctx.size, ctx.windows = inputs
        ctx.save_for_backward(offsets, samples)
        ctx.save_for_forward(offsets, samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return MaxPoolGather.call(grad, *ctx.saved_tensors, ctx.windows), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return MaxPoolBackward.call(tangent, *ctx.saved_tensors, ctx.size, ctx.windows)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, grad: Tensor, offsets: Tensor, samples: Tensor | None, size: Any, windows: Any
    ) -> tuple:
        folded = fold(info, in_dims, grad, offsets, samples)
        return unfold(info, MaxPoolBackward.call(*folded, size, windows)), 0


class MaxPoolGather(Function):
    """``y[o] = x[begin(o) + k D]`` for given offsets ``k``: :class:`MaxPoolBackward` transposed."""

    @staticmethod
    def forward(input: Tensor, offsets: Tensor, samples: Tensor | None, windows: Any) -> Tensor:
        return windows.gather(input, offsets, samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, offsets, samples, ctx.windows = inputs
        ctx.size = input.shape[2:]
        ctx.save_for_backward(offsets, samples)
        ctx.save_for_forward(offsets, samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return MaxPoolBackward.call(grad, *ctx.saved_tensors, ctx.size, ctx.windows), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return MaxPoolGather.call(tangent, *ctx.saved_tensors, ctx.windows)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, offsets: Tensor, samples: Tensor | None, windows: Any) -> tuple:
        folded = fold(info, in_dims, input, offsets, samples)
        return unfold(info, MaxPoolGather.call(*folded, windows)), 0


class MaxPoolIndices(Function):
    """torch's indices, into the flattened plane, from offsets: integers, without derivatives."""

    @staticmethod
    def forward(offsets: Tensor, samples: Tensor | None, size: Sequence[int], windows: Any) -> Tensor:
        return windows.indices(offsets, samples, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple:
        return None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: None) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, offsets: Tensor, samples: Tensor | None, size: Any, windows: Any) -> tuple:
        folded = fold(info, in_dims, offsets, samples)
        return unfold(info, MaxPoolIndices.call(*folded, size, windows)), 0


# Functionals

_NAMES = {rank: f"max_pool{rank}d" for rank in (1, 2, 3)}
_ADAPTIVE_NAMES = {rank: f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)}


def _is_differentiated(input: Tensor) -> bool:
    """Whether someone may ask where the maxima were."""
    return (
        (input.requires_grad and torch.is_grad_enabled())
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def pool_with_indices(
    x: Tensor, input: Tensor, rank: int, samples: Tensor | None, windows: Any
) -> tuple[Tensor, Tensor]:
    """The maxima of a batch ``x`` and their indices, with the dimensions of ``input``."""
    output, offsets = MaxPool.call(x, samples, windows)
    indices = MaxPoolIndices.call(offsets, samples, x.shape[2:], windows)
    return unbatch(output, input, rank), unbatch(indices, input, rank)


def pool_max(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    """Maximum pooling of any rank: what :func:`max_pool2d` and its relatives are."""
    function = _NAMES[rank]
    windows = _sliding_windows(rank, kernel_size, stride, padding, dilation, ceil_mode)
    x = batch(input, function, rank)
    if x is not input:
        windows = windows.fit(x)
    if return_indices:
        return pool_with_indices(x, input, rank, None, windows)
    if rank == 1 and not x.is_floating_point():
        raise NotImplementedError(f"{function}: not implemented for {x.dtype} without return_indices")
    if rank == 3:
        (x,) = float32_under_autocast(x)
    if _is_differentiated(x):
        output, _ = MaxPool.call(x, None, windows)
    else:
        output = _max_pool_alone(x, *windows)
    return output if x is input else unbatch(output, input, rank)


@remembered
def _sliding_windows(rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Sliding:
    flag(ceil_mode, f"max_pool{rank}d", "ceil_mode")
    return Sliding(*sliding(rank, kernel_size, stride, padding, dilation), ceil_mode)


def max_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a signal: ``y[n, c, o] = max over k of x[n, c, o S - P + k D]``.

    Windows of ``kernel_size`` K taps, D (``dilation``) apart, start S (``stride``, by default K) apart; padding counts
    as minus infinity. NaN is the largest value of all. Of equal maxima, the first in row-major order gets the gradient.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types; with ``return_indices`` integers too.
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        padding: P, positions on both sides, which count as minus infinity.
        dilation: D, positions between neighbouring taps of a window.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        return_indices: also return the positions of the maxima, as indices into the flattened signal, int64 (-1 for a
            window that dilation puts wholly into the padding), as :func:`max_unpool1d` takes them.

    Returns:
        ``(N, C, L')`` or ``(C, L')`` with ``L' = floor((L + 2 P - D (K - 1) - 1) / S) + 1``, in
        the memory format of the input; with ``return_indices`` a pair, the indices of the same shape.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or signals, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors; without ``return_indices`` for integers.

    Source: lecture, section 7.4.
    """
    return pool_max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a plane: ``y[n, c, o] = max over k of x[n, c, o S - P + k D]``.

    Windows of ``kernel_size`` K taps, D (``dilation``) apart, start S (``stride``, by default K) apart; padding counts
    as minus infinity. NaN is the largest value of all. Of equal maxima, the first in row-major order gets the gradient.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating and integer types.
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        padding: P, pixels on both sides, which count as minus infinity.
        dilation: D, pixels between neighbouring taps of a window.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64 (-1 for a
            window that dilation puts wholly into the padding), as :func:`max_unpool2d` takes them.

    Returns:
        ``(N, C, H', W')`` or ``(C, H', W')`` with ``H' = floor((H + 2 P - D (K - 1) - 1) / S) + 1``, W' alike, in
        the memory format of the input; with ``return_indices`` a pair, the indices of the same shape.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or planes, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors.

    Source: lecture, section 7.4.

    Example:
        >>> import scratchnn.functional as F
        >>> F.max_pool2d(torch.arange(16.0).reshape(1, 4, 4), kernel_size=2)
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """
    return pool_max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a volume: ``y[n, c, o] = max over k of x[n, c, o S - P + k D]``.

    Windows of ``kernel_size`` K taps, D (``dilation``) apart, start S (``stride``, by default K) apart; padding counts
    as minus infinity. NaN is the largest value of all. Of equal maxima, the first in row-major order gets the gradient.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Floating and integer types; under autocast it runs in float32,
            unless it returns indices.
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        padding: P, voxels on both sides, which count as minus infinity.
        dilation: D, voxels between neighbouring taps of a window.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64 (-1 for a
            window that dilation puts wholly into the padding), as :func:`max_unpool3d` takes them.

    Returns:
        ``(N, C, D', H', W')`` or ``(C, D', H', W')`` with ``H' = floor((H + 2 P - D (K - 1) - 1) / S) + 1``, D' and W'
        alike, in the memory format of the input; with ``return_indices`` a pair, the indices of the same shape.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or volumes, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors.

    Source: lecture, section 7.4.
    """
    return pool_max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool1d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`max_pool1d`.
        kernel_size, stride, padding, dilation, ceil_mode: as in :func:`max_pool1d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`max_pool1d` gives.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`max_pool1d`.

    Source: as of :func:`max_pool1d`.
    """
    return max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`max_pool2d`.
        kernel_size, stride, padding, dilation, ceil_mode: as in :func:`max_pool2d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`max_pool2d` gives.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`max_pool2d`.

    Source: as of :func:`max_pool2d`.
    """
    return max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool3d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`max_pool3d`.
        kernel_size, stride, padding, dilation, ceil_mode: as in :func:`max_pool3d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`max_pool3d` gives.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`max_pool3d`.

    Source: as of :func:`max_pool3d`.
    """
    return max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def _adaptive_max_pool(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    function = _ADAPTIVE_NAMES[rank]
    size = adaptive_size(function, rank, input, output_size)
    x = batch(input, function, rank)
    windows = Adaptive(with_row(x, size))
    check_not_empty(function, input)
    if rank == 3:
        (x,) = float32_under_autocast(x)
    if return_indices:
        return pool_with_indices(x, input, rank, None, windows)
    if _is_differentiated(x):
        output, _ = MaxPool.call(x, None, windows)
    else:
        output = _adaptive_max_pool_alone(x, windows.output_size)
    return unbatch(output, input, rank)


def adaptive_max_pool1d(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of as many windows of a signal as the output is to have positions, whatever the input size.

    Along each dimension, ``y[o] = max of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    NaN and ties are as in :func:`max_pool1d`.

    Args:
        input: ``(N, C, L)`` or ``(C, L)``. Floating types.
        output_size: O, the output's size.
        return_indices: also return the positions of the maxima, as indices into the flattened signal, int64.

    Returns:
        ``(N, C, O)`` or ``(C, O)``, in the memory format of the input; with ``return_indices`` a pair, the indices
        of the same shape.

    Raises:
        TypeError: for sizes that are not integers.
        RuntimeError: for an input of another rank or with empty channels or signals, for several sizes, or a
            negative one.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    """
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of as many windows of a plane as the output is to have pixels, whatever the input size.

    Along each dimension, ``y[o] = max of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    NaN and ties are as in :func:`max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``. Floating types.
        output_size: O, one number or one for each dimension; None keeps that dimension.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64.

    Returns:
        ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``, in the memory format of the input; with ``return_indices`` a pair,
        the indices of the same shape.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty channels or planes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of as many windows of a volume as the output is to have voxels, whatever the input size.

    Along each dimension, ``y[o] = max of x[i] for floor(o I / O) <= i < ceil((o + 1) I / O)``.
    NaN and ties are as in :func:`max_pool3d`.

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Floating types. Under autocast it runs in float32.
        output_size: O, one number or one for each dimension; None keeps that dimension.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64.

    Returns:
        ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``, in the memory format of the input; with ``return_indices``
        a pair, the indices of the same shape.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty channels or volumes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    """
    return _adaptive_max_pool(3, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool1d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`adaptive_max_pool1d`.
        output_size: as in :func:`adaptive_max_pool1d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`adaptive_max_pool1d` gives.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`adaptive_max_pool1d`.

    Source: as of :func:`adaptive_max_pool1d`.
    """
    return adaptive_max_pool1d(input, output_size, True)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool2d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`adaptive_max_pool2d`.
        output_size: as in :func:`adaptive_max_pool2d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`adaptive_max_pool2d` gives.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as :func:`adaptive_max_pool2d`.

    Source: as of :func:`adaptive_max_pool2d`.
    """
    return adaptive_max_pool2d(input, output_size, True)


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool3d` with its indices, whatever ``return_indices`` says, as in torch.

    ``y[o] = max of x over window o``, and an index is the place of that maximum.

    Args:
        input: as in :func:`adaptive_max_pool3d`.
        output_size: as in :func:`adaptive_max_pool3d`.
        return_indices: ignored.

    Returns:
        the maxima and their indices, both of the shape that :func:`adaptive_max_pool3d` gives.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as :func:`adaptive_max_pool3d`.

    Source: as of :func:`adaptive_max_pool3d`.
    """
    return adaptive_max_pool3d(input, output_size, True)

r"""Convolution: fake kernels, derivatives and the functional entry. Lecture, section 7.2.

.. math::
    y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

with tap :math:`t`, output pixel :math:`o`, stride :math:`S`, padding :math:`P`, dilation :math:`D`; :math:`c` runs
over the input channels of the group of :math:`k`, and :math:`x` is zero outside of the image.

Without its bias the convolution is bilinear, ``y = conv(x, w)``, and so are its two gradients. Each is linear in
two of the three tensors x, w, y and gives the third, which makes the three of them each other's derivatives:

=====================  ==================================  ==========================================
operation              derivative in its first argument    derivative in its second argument
=====================  ==================================  ==========================================
``conv(x, w)``         ``input_grad(g, w)``                ``weight_grad(g, x)``
``input_grad(g, w)``   ``conv(u, w)``                      ``weight_grad(g, u)``
``weight_grad(g, x)``  ``conv(x, u)``                      ``input_grad(g, u)``
=====================  ==================================  ==========================================

(``u``: the gradient that arrives.) Derivatives of any order follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchnn.ops._common import (
    Function,
    autocast,
    bilinear_tangent,
    expand,
    integer,
    output_size,
    suggest_memory_format,
)
from scratchnn.ops._sum import ChannelSum

__all__ = ["conv2d"]

_ops = torch.ops.scratchnn

CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


class Window(NamedTuple):
    """How the kernel moves over the input. ``padding`` has the pixels before and after each dimension in turn."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _is_channels_last(*tensors: Tensor) -> bool:
    return any(suggest_memory_format(tensor) in CHANNELS_LAST for tensor in tensors)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.contiguous_format
    if channels_last and len(shape) in (4, 5):
        memory_format = CHANNELS_LAST[len(shape) - 4]
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("scratchnn::conv")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    torch._check(
        input.dim() == weight.dim() and input.shape[1] == weight.shape[1] * groups,
        lambda: (
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected input{list(input.shape)} to have "
            f"{weight.shape[1] * groups} channels, but got {input.shape[1]} channels instead"
        ),
    )
    spatial = [
        output_size(size, kernel, before + after, step, spread)
        for size, kernel, before, after, step, spread in zip(
            input.shape[2:], weight.shape[2:], padding[::2], padding[1::2], stride, dilation, strict=True
        )
    ]
    torch._check(
        all(size > 0 for size in spatial),
        lambda: (
            f"Kernel size can't be greater than actual input size: input {list(input.shape)}, "
            f"padding {list(padding)}, weight {list(weight.shape)}, dilation {list(dilation)}"
        ),
    )
    return _empty(input, (input.shape[0], weight.shape[0], *spatial), _is_channels_last(input, weight))


@torch.library.register_fake("scratchnn::conv_input_grad")
def _(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return _empty(grad, (grad.shape[0], weight.shape[1] * groups, *input_size), _is_channels_last(grad, weight))


@torch.library.register_fake("scratchnn::conv_weight_grad")
def _(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    return _empty(grad, (grad.shape[1], input.shape[1] // groups, *kernel_size), channels_last)


def _fold_batch(tensor: Tensor, dim: int) -> Tensor:
    """The mapped dimension becomes part of the batch."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def _fold_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension becomes part of the channels; an unmapped tensor is repeated."""
    if dim is None:
        return tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:]).flatten(1, 2)
    return tensor.movedim(dim, 1).flatten(1, 2)


def _fold_filters(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension becomes part of the output channels, group by group."""
    if dim is None:
        tensor, dim = tensor.expand(size, *tensor.shape), 0
    return tensor.movedim(dim, 0).flatten(0, 1)


class Conv(Function):
    """``y = conv(x, w) + b``."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        return _ops.conv(input, weight, bias, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _, ctx.window = inputs
        # x is needed for dw alone, w for dx alone.
        needs_input, needs_weight, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.save_for_forward(input, weight)
        ctx.input_size = input.shape[2:]
        ctx.kernel_size = weight.shape[2:]
        ctx.channels_last = _is_channels_last(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx = ConvInputGrad.call(grad, weight, ctx.input_size, ctx.window) if needs_input else None
        dw = None
        if needs_weight:
            dw = ConvWeightGrad.call(grad, input, ctx.kernel_size, ctx.window, ctx.channels_last)
        db = ChannelSum.call(grad) if needs_bias else None
        return dx, dw, db, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        x, w = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(Conv.call(dx, w, None, ctx.window))
        if dw is not None:
            terms.append(Conv.call(x, dw, None, ctx.window))
        if db is not None:
            terms.append(db.reshape(-1, *(1 for _ in ctx.kernel_size)))
        dy = sum(terms[1:], terms[0])
        if dx is None and dw is None:  # the bias alone: the same at every image and pixel
            dy = dy + torch.zeros_like(Conv.call(x, w, None, ctx.window))
        return dy

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, input: Tensor, weight: Tensor, bias: Tensor | None, window: Window
    ) -> tuple[Tensor, int]:
        input_dim, weight_dim, bias_dim, _ = in_dims
        size = info.batch_size
        if weight_dim is None and bias_dim is None:
            return Conv.call(_fold_batch(input, input_dim), weight, bias, window).unflatten(0, (size, -1)), 0
        # Each mapped convolution becomes groups of its own.
        folded_bias = None
        if bias is not None:
            folded_bias = (bias.expand(size, -1) if bias_dim is None else bias.movedim(bias_dim, 0)).flatten()
        output = Conv.call(
            _fold_channels(input, input_dim, size),
            _fold_filters(weight, weight_dim, size),
            folded_bias,
            window._replace(groups=window.groups * size),
        )
        return output.unflatten(1, (size, -1)), 1


class ConvInputGrad(Function):
    """``dx[n, c, i] = sum over k, t of w[k, c, t] dy[n, k, o]``, for the o with ``i = o S - P + t D``."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, input_size: Sequence[int], window: Window) -> Tensor:
        return _ops.conv_input_grad(grad, weight, input_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, weight, ctx.input_size, ctx.window = inputs
        ctx.save_for_backward(grad, weight)
        ctx.save_for_forward(grad, weight)
        ctx.channels_last = _is_channels_last(weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad, weight = ctx.saved_tensors
        needs_grad, needs_weight, *_ = ctx.needs_input_grad
        d_grad = Conv.call(u, weight, None, ctx.window) if needs_grad else None
        d_weight = None
        if needs_weight:
            d_weight = ConvWeightGrad.call(grad, u, weight.shape[2:], ctx.window, ctx.channels_last)
        return d_grad, d_weight, None, None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_weight: Tensor | None, *_: None) -> Tensor:
        return bilinear_tangent(ConvInputGrad, ctx.saved_tensors, (d_grad, d_weight), ctx.input_size, ctx.window)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, grad: Tensor, weight: Tensor, input_size: Sequence[int], window: Window
    ) -> tuple[Tensor, int]:
        grad_dim, weight_dim, *_ = in_dims
        size = info.batch_size
        if weight_dim is None:
            dx = ConvInputGrad.call(_fold_batch(grad, grad_dim), weight, input_size, window)
            return dx.unflatten(0, (size, -1)), 0
        dx = ConvInputGrad.call(
            _fold_channels(grad, grad_dim, size),
            _fold_filters(weight, weight_dim, size),
            input_size,
            window._replace(groups=window.groups * size),
        )
        return dx.unflatten(1, (size, -1)), 1


class ConvWeightGrad(Function):
    """``dw[k, c, t] = sum over n, o of x[n, c, o S - P + t D] dy[n, k, o]``."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor, kernel_size: Sequence[int], window: Window, channels_last: bool) -> Tensor:
        return _ops.conv_weight_grad(grad, input, kernel_size, *window, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, input, ctx.kernel_size, ctx.window, ctx.channels_last = inputs
        ctx.save_for_backward(grad, input)
        ctx.save_for_forward(grad, input)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad, input = ctx.saved_tensors
        needs_grad, needs_input, *_ = ctx.needs_input_grad
        d_grad = Conv.call(input, u, None, ctx.window) if needs_grad else None
        d_input = ConvInputGrad.call(grad, u, input.shape[2:], ctx.window) if needs_input else None
        return d_grad, d_input, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_input: Tensor | None, *_: None) -> Tensor:
        return bilinear_tangent(
            ConvWeightGrad, ctx.saved_tensors, (d_grad, d_input), ctx.kernel_size, ctx.window, ctx.channels_last
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        grad: Tensor,
        input: Tensor,
        kernel_size: Sequence[int],
        window: Window,
        channels_last: bool,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        dw = ConvWeightGrad.call(
            _fold_channels(grad, in_dims[0], size),
            _fold_channels(input, in_dims[1], size),
            kernel_size,
            window._replace(groups=window.groups * size),
            channels_last,
        )
        return dw.unflatten(0, (size, -1)), 0


def _conv(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Tensor:
    """Any rank: unbatched inputs, autocast, and the window's numbers, one for each dimension."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and (tensor is not None or name != "bias"):
            raise TypeError(f"conv{rank}d(): argument '{name}' must be Tensor, not {type(tensor).__name__}")
    if weight.dim() != rank + 2:
        raise RuntimeError(
            f"conv{rank}d: expected weight to have {rank + 2} dimensions, but got weight of size {list(weight.shape)}"
        )
    input, weight, bias = autocast(input, weight, bias)
    stride = expand(stride, rank, "stride")
    dilation = expand(dilation, rank, "dilation")
    if isinstance(padding, str):
        amounts = _named_padding(padding, weight.shape[2:], stride, dilation)
    else:
        amounts = [amount for amount in expand(padding, rank, "padding") for _ in range(2)]
    window = Window(stride, amounts, dilation, integer(groups, "groups"))
    if input.dim() == rank + 1:
        return Conv.call(input.unsqueeze(0), weight, bias, window).squeeze(0)
    if input.dim() != rank + 2:
        raise RuntimeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to conv{rank}d, but got input of "
            f"size: {list(input.shape)}"
        )
    return Conv.call(input, weight, bias, window)


def _named_padding(name: str, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """``"valid"``: none. ``"same"``: as much as keeps the size, the odd pixel after the image."""
    if name == "valid":
        return [0] * (2 * len(kernel_size))
    if name != "same":
        raise RuntimeError(f"Invalid padding string: {name!r}; it is 'same' or 'valid'")
    if any(step != 1 for step in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={list(stride)}")
    amounts = []
    for kernel, spread in zip(kernel_size, dilation, strict=True):
        total = spread * (kernel - 1)
        amounts += [total // 2, total - total // 2]
    return amounts


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Two-dimensional convolution (cross-correlation): each output is a filter's match with a patch of the input.

    .. math::
        y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: ``(K, C / groups, R, S)``.
        bias: ``(K)``, or none.
        stride: pixels between neighbouring outputs, for both dimensions or ``(height, width)``.
        padding: zeros on both sides, in pixels; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: pixels between neighbouring taps of the kernel.
        groups: the channels are split into as many independent convolutions.

    Returns:
        ``(N, K, H', W')`` with ``H' = floor((H + 2 P - D (R - 1) - 1) / S) + 1``, channels_last where the input
        or the weight is.

    Raises:
        RuntimeError: where shapes, types or numbers do not fit, with the numbers; before anything is computed.
        TypeError: where input, weight or bias is not a tensor, or a number is not whole.

    Source: lecture, section 7.2.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)

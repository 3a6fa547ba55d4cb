r"""Convolution and its derivatives: fake kernels and Functions. Lecture, section 7.2.

.. math::
    y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

with tap :math:`t`, output pixel :math:`o`, stride :math:`S`, padding :math:`P`, dilation :math:`D`; :math:`c` runs over
the input channels of the group of :math:`k`. ``x`` is ``(N, C, *)``, ``w`` ``(K, C / groups, *)``, ``b`` ``(K)`` and
``y`` ``(N, K, *)``, with one, two or three dimensions of pixels or taps in place of the star. Outside of the image
:math:`x` is zero, or continues the image as the padding mode says.

The convolution moves numbers from input pixels :math:`i = o S - P + t D` to output pixels :math:`o`. The *transposed*
convolution moves them back along the same links with the same weights,

.. math::
    x'[n, c, i] = b[c] + \sum_{k, (o, t)\,:\, o S - P + t D = i} w[k, c, t] \; y'[n, k, o]

It is the gradient of the convolution with respect to its input, and a layer of its own. Pixels :math:`i` that no tap
met have no links, and the last ones may be among them: the size of :math:`x'` does not follow from that of
:math:`y'`, so it is an argument.

Without their biases both are bilinear, and so is the gradient with respect to the weight. Each is linear in two of the
three tensors x, w, y and gives the third, which makes the three of them each other's derivatives:

=====================  ==================================  ==========================================
operation              derivative in its first argument    derivative in its second argument
=====================  ==================================  ==========================================
``conv(x, w)``         ``transpose(u, w)``                 ``weight_grad(u, x)``
``transpose(g, w)``    ``conv(u, w)``                      ``weight_grad(g, u)``
``weight_grad(g, x)``  ``conv(x, u)``                      ``transpose(g, u)``
=====================  ==================================  ==========================================

(``u``: the gradient that arrives, ``dy`` where it arrives at y.) Derivatives of any order follow. Complex numbers enter
a derivative conjugated, all but u: torch's gradients are those with respect to the conjugate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchnn.ops._common import Function, bilinear_tangent, output_size, suggest_memory_format, unfold
from scratchnn.ops._recompute import is_recorded, way_to
from scratchnn.ops._sum import ChannelSum, expand_channels

__all__ = ["Conv", "ConvTranspose", "ConvWeightGrad", "Window"]

_ops = torch.ops.scratchnn

CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


class Window(NamedTuple):
    """How the kernel moves over the image, for the transposed convolution over its output.

    ``padding`` has the pixels before and after each dimension in turn; a negative number leaves out as many pixels of
    the image. ``padding_mode`` says what they are: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    padding_mode: str = "zeros"


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
    padding_mode: str,
) -> Tensor:
    torch._check(
        input.dim() == weight.dim() and input.shape[1] == weight.shape[1] * groups,
        lambda: (
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected input{list(input.shape)} to have "
            f"{weight.shape[1] * groups} channels, but got {input.shape[1]} channels instead"
        ),
    )
    _check_border(input, padding, padding_mode)
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


def _check_border(input: Tensor, padding: Sequence[int], padding_mode: str) -> None:
    """A border continues the image by no more pixels than the image has to give."""
    spare = {"reflect": 1, "circular": 0}.get(padding_mode)
    if spare is None:
        return
    for position, amount in enumerate(padding):
        torch._check(
            amount + spare <= input.shape[2 + position // 2],
            lambda: f"padding {list(padding)} is more than input {list(input.shape)} can be continued by",
        )


@torch.library.register_fake("scratchnn::conv_transpose")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    torch._check(
        input.dim() == weight.dim() and input.shape[1] == weight.shape[0],
        lambda: (
            f"Given transposed=1, weight of size {list(weight.shape)}, expected input{list(input.shape)} to have "
            f"{weight.shape[0]} channels, but got {input.shape[1]} channels instead"
        ),
    )
    torch._check(
        all(size > 0 for size in output_size),
        lambda: f"Calculated output size per channel: {list(output_size)}. Output size is too small",
    )
    shape = (input.shape[0], weight.shape[1] * groups, *output_size)
    return _empty(input, shape, _is_channels_last(input, weight))


@torch.library.register_fake("scratchnn::conv_weight_grad")
def _(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    channels_last: bool,
) -> Tensor:
    return _empty(grad, (grad.shape[1], input.shape[1] // groups, *kernel_size), channels_last)


def _conj(tensor: Tensor) -> Tensor:
    return tensor.conj() if tensor.is_complex() else tensor


def _tangent(
    function: type[Function], ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *rest: Any
) -> Tensor:
    """The forward derivative of ``f(x, w) + b``: ``f(dx, w) + f(x, dw) + db``; no tangent counts as zero."""
    x, w = ctx.saved_tensors
    terms = []
    if dx is not None:
        terms.append(function.call(dx, w, None, *rest))
    if dw is not None:
        terms.append(function.call(x, dw, None, *rest))
    if db is not None:  # the same at every image and pixel
        terms.append(expand_channels(db, ctx.output_shape))
    return sum(terms[1:], terms[0])


def _fold_batch(tensor: Tensor, dim: int) -> Tensor:
    """The mapped dimension becomes part of the batch."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def _fold_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension becomes part of the channels; an unmapped tensor is repeated."""
    if dim is None:
        return tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:]).flatten(1, 2)
    return tensor.movedim(dim, 1).flatten(1, 2)


def _fold_filters(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension becomes part of the first dimension of a weight or bias, group by group."""
    if dim is None:
        tensor, dim = tensor.expand(size, *tensor.shape), 0
    return tensor.movedim(dim, 0).flatten(0, 1)


def _vmap(
    function: type[Function],
    size: int,
    in_dims: tuple,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, int]:
    """``Conv`` or ``ConvTranspose`` over ``size`` inputs, weights, biases at once, as a single call."""
    input_dim, weight_dim, bias_dim, *_ = in_dims
    if weight_dim is None and bias_dim is None:
        return unfold(function.call(_fold_batch(input, input_dim), weight, bias, *rest), 0, size), 0
    # Each mapped convolution becomes groups of its own.
    *rest, window = rest
    output = function.call(
        _fold_channels(input, input_dim, size),
        _fold_filters(weight, weight_dim, size),
        None if bias is None else _fold_filters(bias, bias_dim, size),
        *rest,
        window._replace(groups=window.groups * size),
    )
    return unfold(output, 1, size), 1


def _operands(ctx: Any) -> tuple[Tensor | None, Tensor | None]:
    """The x and w of a convolution, as far as they are needed; x may have to be computed again."""
    w, *saved = ctx.saved_tensors
    needs_input, needs_weight, *_ = ctx.needs_input_grad
    if not needs_weight or ctx.way is None:
        return saved[0], w
    return ctx.way.input(saved, needs_input), w


class Conv(Function, operator="conv"):
    """``y = conv(x, w) + b``."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        return _ops.conv(input, weight, bias, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _, ctx.window = inputs
        # x is needed for dw alone, w for dx alone.
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.way, saved = None, (input if needs_weight else None,)
        if needs_weight and is_recorded(ctx, input):
            ctx.way, saved = way_to(input, output.numel() * weight[0].numel() / input.numel())
        ctx.save_for_backward(weight if needs_input else None, *saved)
        ctx.save_for_forward(input, weight)
        ctx.input_size = input.shape[2:]
        ctx.kernel_size = weight.shape[2:]
        ctx.output_shape = output.shape
        ctx.channels_last = _is_channels_last(weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, w = _operands(ctx)
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx = ConvTranspose.call(dy, _conj(w), None, ctx.input_size, ctx.window) if needs_input else None
        dw = None
        if needs_weight:
            dw = ConvWeightGrad.call(dy, _conj(x), ctx.kernel_size, ctx.window, ctx.channels_last)
        db = ChannelSum.call(dy) if needs_bias else None
        return dx, dw, db, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        return _tangent(Conv, ctx, dx, dw, db, ctx.window)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, input: Tensor, weight: Tensor, bias: Tensor | None, window: Window
    ) -> tuple[Tensor, int]:
        return _vmap(Conv, info.batch_size, in_dims, input, weight, bias, window)


class ConvTranspose(Function, operator="conv_transpose"):
    """``x' = transpose(y', w) + b``, of the given size; without bias also the gradient ``dx`` of ``Conv`` from dy."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int], window: Window
    ) -> Tensor:
        return _ops.conv_transpose(input, weight, bias, output_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _, ctx.output_size, ctx.window = inputs
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.save_for_forward(input, weight)
        ctx.kernel_size = weight.shape[2:]
        ctx.output_shape = output.shape
        ctx.channels_last = _is_channels_last(weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        g, w = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dg = Conv.call(u, _conj(w), None, ctx.window) if needs_input else None
        dw = None
        if needs_weight:  # u takes the place of the image
            dw = ConvWeightGrad.call(_conj(g), u, ctx.kernel_size, ctx.window, ctx.channels_last)
        db = ChannelSum.call(u) if needs_bias else None
        return dg, dw, db, None, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dw: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        return _tangent(ConvTranspose, ctx, dg, dw, db, ctx.output_size, ctx.window)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output_size: Sequence[int],
        window: Window,
    ) -> tuple[Tensor, int]:
        return _vmap(ConvTranspose, info.batch_size, in_dims, input, weight, bias, output_size, window)


class ConvWeightGrad(Function, operator="conv_weight_grad"):
    """``dw[k, c, t] = sum over n, o of x[n, c, o S - P + t D] dy[n, k, o]``."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor, kernel_size: Sequence[int], window: Window, channels_last: bool) -> Tensor:
        return _ops.conv_weight_grad(grad, input, kernel_size, *window, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, input, ctx.kernel_size, ctx.window, ctx.channels_last = inputs
        needs_grad, needs_input, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad if needs_input else None, input if needs_grad else None)
        ctx.save_for_forward(grad, input)
        ctx.input_size = input.shape[2:]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        g, x = ctx.saved_tensors
        needs_grad, needs_input, *_ = ctx.needs_input_grad
        dg = Conv.call(_conj(x), u, None, ctx.window) if needs_grad else None
        dx = ConvTranspose.call(_conj(g), u, None, ctx.input_size, ctx.window) if needs_input else None
        return dg, dx, None, None, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, *_: None) -> Tensor:
        return bilinear_tangent(
            ConvWeightGrad, ctx.saved_tensors, (dg, dx), ctx.kernel_size, ctx.window, ctx.channels_last
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
        return unfold(dw, 0, size), 0

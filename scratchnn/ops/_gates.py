r"""Activations of more than an element each: GLU, PReLU, the random RReLU and maxout.

Fake kernels and derivatives; the functions that users call are in :mod:`scratchnn.ops.activation`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, suggest_memory_format

_ops = torch.ops.scratchnn


def _mapped_first(info: Any, in_dims: tuple, *tensors: Tensor) -> list[Tensor]:
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


# GLU: y = a sigmoid(b), (a, b) the halves of the input along a dimension.


@torch.library.register_fake("scratchnn::glu")
def _(input: Tensor, dim: int) -> Tensor:
    dense = torch.empty_like(input)
    size = [size // 2 if i == dim else size for i, size in enumerate(dense.shape)]
    stride = [stride // 2 if stride > dense.stride(dim) else stride for stride in dense.stride()]
    return dense.new_empty_strided(size, stride)


@torch.library.register_fake("scratchnn::glu_backward")
def _(grad: Tensor, input: Tensor, dim: int) -> Tensor:
    return torch.empty_like(input)


class Glu(Function, operator="glu"):
    """``y = a sigmoid(b)``."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return _ops.glu(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.dim = inputs
        ctx.save_for_backward(input)
        ctx.save_for_forward(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return GluGradient.call(grad, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        a, b = ctx.saved_tensors[0].chunk(2, ctx.dim)
        da, db = tangent.chunk(2, ctx.dim)
        s = b.sigmoid()
        return da * s + a * s * (1 - s) * db

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, dim: int) -> tuple[Tensor, int]:
        return Glu.call(input.movedim(in_dims[0], 0), dim + 1), 0


class GluGradient(Function, operator="glu_backward"):
    """``da = dy s, db = dy a s (1 - s)``, s = sigmoid(b)."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor, dim: int) -> Tensor:
        return _ops.glu_backward(grad, input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, input, ctx.dim = inputs
        ctx.save_for_backward(grad, input)
        ctx.save_for_forward(grad, input)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dy, x = ctx.saved_tensors
        (a, b), (ua, ub) = x.chunk(2, ctx.dim), u.chunk(2, ctx.dim)
        s = b.sigmoid()
        slope = s * (1 - s)
        d_grad = ua * s + ub * a * slope
        d_a = ub * dy * slope
        d_b = ua * dy * slope + ub * dy * a * slope * (1 - 2 * s)
        return d_grad, torch.cat([d_a, d_b], ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_input: Tensor | None, _: None) -> Tensor:
        dy, x = ctx.saved_tensors
        dx = torch.zeros_like(x) if d_grad is None else GluGradient.call(d_grad, x, ctx.dim)
        if d_input is not None:
            (a, b), (ta, tb) = x.chunk(2, ctx.dim), d_input.chunk(2, ctx.dim)
            s = b.sigmoid()
            slope = s * (1 - s)
            dx = dx + torch.cat([dy * slope * tb, dy * slope * (ta + a * (1 - 2 * s) * tb)], ctx.dim)
        return dx

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, input: Tensor, dim: int) -> tuple[Tensor, int]:
        return GluGradient.call(*_mapped_first(info, in_dims, grad, input), dim + 1), 0


# PReLU: y = x for x > 0, else w x, with one w or one for each channel.


@torch.library.register_fake("scratchnn::prelu")
def _(input: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("scratchnn::prelu_backward")
def _(grad: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _along_channels(weight: Tensor, like: Tensor) -> Tensor:
    """The slopes in a shape that broadcasts over ``like``."""
    return weight.reshape(-1, *(1 for _ in like.shape[2:])) if weight.numel() != 1 else weight.reshape(())


def _sum_over(values: Tensor, weight: Tensor) -> Tensor:
    """What is left of ``values`` for each slope."""
    return values.sum_to_size(_along_channels(weight, values).shape).reshape(weight.shape)


class Prelu(Function, operator="prelu"):
    """``y = x`` for ``x > 0``, else ``w x``."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor) -> Tensor:
        return _ops.prelu(input, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return PreluGradient.call(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_weight: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        terms = []
        if d_input is not None:
            terms.append(PreluGradient.call(d_input, x, weight)[0])
        if d_weight is not None:
            terms.append(torch.where(x > 0, 0, x * _along_channels(d_weight, x)))
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is None and weight.numel() == 1:
            return Prelu.call(input, weight), in_dims[0]
        if in_dims[1] is None:
            # The mapped dimension becomes part of the batch.
            folded = input.movedim(in_dims[0], 0)
            return Prelu.call(folded.flatten(0, 1), weight).unflatten(0, folded.shape[:2]), 0
        x, weights = _mapped_first(info, in_dims, input, weight)
        return torch.stack([Prelu.call(each, w) for each, w in zip(x.unbind(0), weights.unbind(0), strict=True)]), 0


class PreluGradient(Function, operator="prelu_backward"):
    """``dx = dy`` for ``x > 0``, else ``w dy``; ``dw`` is the sum of ``dy x`` where ``x <= 0``."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.prelu_backward(grad, input, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dy, x, weight = ctx.saved_tensors
        w, v = _along_channels(weight, x), _along_channels(v, x)
        d_grad = torch.where(x > 0, u, w * u + v * x)
        d_input = torch.where(x > 0, 0, v * dy)
        d_weight = _sum_over(torch.where(x > 0, 0, u * dy), weight)
        return d_grad, d_input, d_weight

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_input: Tensor | None, d_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        dy, x, weight = ctx.saved_tensors
        dx, dw = torch.zeros_like(x), torch.zeros_like(weight)
        if d_grad is not None:
            dx, dw = PreluGradient.call(d_grad, x, weight)
        if d_input is not None:
            dw = dw + _sum_over(torch.where(x > 0, 0, dy * d_input), weight)
        if d_weight is not None:
            dx = dx + torch.where(x > 0, 0, dy * _along_channels(d_weight, x))
        return dx, dw

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        columns = zip(*(tensor.unbind(0) for tensor in _mapped_first(info, in_dims, *tensors)), strict=True)
        results = [PreluGradient.call(*each) for each in columns]
        dx, dw = (torch.stack(values) for values in zip(*results, strict=True))
        return (dx, dw), (0, 0)


# RReLU in training: y = x for x > 0, else r x, r drawn for each x.


@torch.library.register_fake("scratchnn::rrelu_train")
def _(input: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    format = suggest_memory_format(input)
    return torch.empty_like(input, memory_format=format), torch.empty_like(input, memory_format=format)


class Rrelu(Function, operator="rrelu_train"):
    """``y = x`` for ``x > 0``, else ``r x``. Gives y and the slopes, 1 and r, which are all a derivative needs."""

    @staticmethod
    def forward(input: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
        return _ops.rrelu_train(input, lower, upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, slopes = output
        ctx.mark_non_differentiable(slopes)
        ctx.save_for_backward(slopes)
        ctx.save_for_forward(slopes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        return tangent * ctx.saved_tensors[0], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, lower: float, upper: float) -> tuple[tuple, tuple[int, int]]:
        if info.randomness != "different":
            raise RuntimeError(
                f"vmap: rrelu draws a slope for each number; got randomness={info.randomness!r}, use 'different'"
            )
        return Rrelu.call(input.movedim(in_dims[0], 0), lower, upper), (0, 0)


# Maxout: the largest of `pieces` neighbours along a dimension.


def _resized(tensor: Tensor, dim: int, size: int) -> list[int]:
    return [size if i == dim else old for i, old in enumerate(tensor.shape)]


@torch.library.register_fake("scratchnn::maxout")
def _(input: Tensor, pieces: int, dim: int) -> tuple[Tensor, Tensor]:
    output = input.new_empty(_resized(input, dim, input.shape[dim] // pieces))
    output = output.contiguous(memory_format=suggest_memory_format(input))
    return output, torch.empty_like(output, dtype=torch.int16)


@torch.library.register_fake("scratchnn::maxout_backward")
def _(grad: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
    result = grad.new_empty(_resized(grad, dim, grad.shape[dim] * pieces))
    return result.contiguous(memory_format=suggest_memory_format(winners))


@torch.library.register_fake("scratchnn::maxout_gather")
def _(input: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
    result = input.new_empty(winners.shape)
    return result.contiguous(memory_format=suggest_memory_format(winners))


class Maxout(Function, operator="maxout"):
    """``y_k = max over p of x_(k pieces + p)``. Gives y and which piece won, a 16-bit number for each output."""

    @staticmethod
    def forward(input: Tensor, pieces: int, dim: int) -> tuple[Tensor, Tensor]:
        return _ops.maxout(input, pieces, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, ctx.pieces, ctx.dim = inputs
        _, winners = output
        ctx.mark_non_differentiable(winners)
        ctx.save_for_backward(winners)
        ctx.save_for_forward(winners)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
        return MaxoutGradient.call(grad, *ctx.saved_tensors, ctx.pieces, ctx.dim), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        return MaxoutGather.call(tangent, *ctx.saved_tensors, ctx.pieces, ctx.dim), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, pieces: int, dim: int) -> tuple[tuple, tuple[int, int]]:
        return Maxout.call(input.movedim(in_dims[0], 0), pieces, dim + 1), (0, 0)


class MaxoutGradient(Function, operator="maxout_backward"):
    """``dx`` is ``dy`` where a piece won, else 0."""

    @staticmethod
    def forward(grad: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
        return _ops.maxout_backward(grad, winners, pieces, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, winners, ctx.pieces, ctx.dim = inputs
        ctx.save_for_backward(winners)
        ctx.save_for_forward(winners)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None, None]:
        return MaxoutGather.call(u, *ctx.saved_tensors, ctx.pieces, ctx.dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return MaxoutGradient.call(tangent, *ctx.saved_tensors, ctx.pieces, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, winners: Tensor, *rest: int) -> tuple[Tensor, int]:
        pieces, dim = rest
        return MaxoutGradient.call(*_mapped_first(info, in_dims, grad, winners), pieces, dim + 1), 0


class MaxoutGather(Function, operator="maxout_gather"):
    """The numbers of the pieces that won: the adjoint of the gradient."""

    @staticmethod
    def forward(input: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
        return _ops.maxout_gather(input, winners, pieces, dim)

    setup_context = MaxoutGradient.setup_context

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None, None]:
        return MaxoutGradient.call(u, *ctx.saved_tensors, ctx.pieces, ctx.dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return MaxoutGather.call(tangent, *ctx.saved_tensors, ctx.pieces, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, winners: Tensor, *rest: int) -> tuple[Tensor, int]:
        pieces, dim = rest
        return MaxoutGather.call(*_mapped_first(info, in_dims, input, winners), pieces, dim + 1), 0

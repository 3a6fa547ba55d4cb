r"""The fully-connected layers: fake kernels, derivatives and the functional entries. Lecture, section 7.1.

.. math:: y[n, k] = b[k] + \sum_c x[n, c] \; w[k, c]

with ``x`` of shape ``(*, C)``, ``w`` ``(K, C)``, ``b`` ``(K)`` and ``y`` ``(*, K)``. Like the convolution it is
bilinear without its bias, and it and its two gradients are each other's derivatives: each multiplies two of the
matrices x, w, y into the third. Of complex numbers the gradients multiply by the conjugate.

The bilinear layer of two inputs x and z is trilinear without its bias,

.. math:: y[n, k] = b[k] + \sum_{i, j} w[k, i, j] \; x[n, i] \; z[n, j],

with ``x`` of shape ``(*, I)``, ``z`` ``(*, J)`` and ``w`` ``(K, I, J)``, and so symmetric in x, z and y that the
gradients of its inputs are the same layer with the weight's dimensions exchanged; only that of the weight is another
operator.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, autocast, bilinear_tangent
from scratchnn.ops._sum import ChannelSum

__all__ = ["bilinear", "linear"]

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::linear")
def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    torch._check(
        input.shape[-1] == weight.shape[1],
        lambda: (
            f"linear: mat1 and mat2 shapes cannot be multiplied: input {list(input.shape)}, weight {list(weight.shape)}"
        ),
    )
    return input.new_empty(*input.shape[:-1], weight.shape[0])


@torch.library.register_fake("scratchnn::linear_input_grad")
def _(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


@torch.library.register_fake("scratchnn::linear_weight_grad")
def _(grad: Tensor, input: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[-1], input.shape[-1])


def _mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _each(function: Any, info: Any, in_dims: tuple, *tensors: Tensor | None) -> tuple[Tensor, int]:
    """One call for each entry of the mapped dimension: products with a weight of their own cannot be merged."""
    size = info.batch_size
    columns = [
        [None] * size if tensor is None else _mapped_first(tensor, dim, size).unbind(0)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
    return torch.stack([function.call(*row) for row in zip(*columns, strict=True)]), 0


class Linear(Function, operator="linear"):
    """``y = x w^T + b``."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _ops.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _ = inputs
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        dx = LinearInputGrad.call(grad, weight) if needs_input else None
        dw = LinearWeightGrad.call(grad, input) if needs_weight else None
        db = None
        if needs_bias:
            db = ChannelSum.call(grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1]))
        return dx, dw, db

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Tensor:
        x, w = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(Linear.call(dx, w, None))
        if dw is not None:
            terms.append(Linear.call(x, dw, None))
        if db is not None:
            terms.append(db.expand(*x.shape[:-1], db.shape[0]))
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        if in_dims[1] is None and in_dims[2] is None:
            return Linear.call(input.movedim(in_dims[0], 0), weight, bias), 0
        return _each(Linear, info, in_dims, input, weight, bias)


class LinearInputGrad(Function, operator="linear_input_grad"):
    """``dx = dy w``."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor) -> Tensor:
        return _ops.linear_input_grad(grad, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad, weight = ctx.saved_tensors
        needs_grad, needs_weight = ctx.needs_input_grad
        d_grad = Linear.call(u, weight, None) if needs_grad else None
        d_weight = LinearWeightGrad.call(grad, u) if needs_weight else None
        return d_grad, d_weight

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_weight: Tensor | None) -> Tensor:
        return bilinear_tangent(LinearInputGrad, ctx.saved_tensors, (d_grad, d_weight))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            return LinearInputGrad.call(grad.movedim(in_dims[0], 0), weight), 0
        return _each(LinearInputGrad, info, in_dims, grad, weight)


class LinearWeightGrad(Function, operator="linear_weight_grad"):
    """``dw = dy^T x``."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor) -> Tensor:
        return _ops.linear_weight_grad(grad, input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad, input = ctx.saved_tensors
        needs_grad, needs_input = ctx.needs_input_grad
        d_grad = Linear.call(input, u, None) if needs_grad else None
        d_input = LinearInputGrad.call(grad, u) if needs_input else None
        return d_grad, d_input

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_input: Tensor | None) -> Tensor:
        return bilinear_tangent(LinearWeightGrad, ctx.saved_tensors, (d_grad, d_input))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, input: Tensor) -> tuple[Tensor, int]:
        return _each(LinearWeightGrad, info, in_dims, grad, input)


@torch.library.register_fake("scratchnn::bilinear")
def _(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input1.new_empty(*input1.shape[:-1], weight.shape[0])


@torch.library.register_fake("scratchnn::bilinear_weight_grad")
def _(grad: Tensor, input1: Tensor, input2: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[-1], input1.shape[-1], input2.shape[-1])


def _exchanged(weight: Tensor, a: int, b: int) -> Tensor:
    """The weight of the gradient of an input: output and input exchanged, conjugate."""
    return weight.transpose(a, b).conj()


class Bilinear(Function, operator="bilinear"):
    """``y[n, k] = b[k] + sum over i, j of w[k, i, j] x[n, i] z[n, j]``."""

    @staticmethod
    def forward(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _ops.bilinear(x, z, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        needs_x, needs_z, needs_weight, _ = ctx.needs_input_grad
        x, z, weight, _ = inputs
        ctx.save_for_backward(  # each is needed for the gradients of the two others
            x if needs_z or needs_weight else None,
            z if needs_x or needs_weight else None,
            weight if needs_x or needs_z else None,
        )
        ctx.save_for_forward(x, z, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight = ctx.saved_tensors
        needs_x, needs_z, needs_weight, needs_bias = ctx.needs_input_grad
        dx = Bilinear.call(grad, z.conj(), _exchanged(weight, 0, 1), None) if needs_x else None
        dz = Bilinear.call(x.conj(), grad, _exchanged(weight, 0, 2), None) if needs_z else None
        dw = BilinearWeightGrad.call(grad, x.conj(), z.conj()) if needs_weight else None
        db = None
        if needs_bias:
            db = ChannelSum.call(grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1]))
        return dx, dz, dw, db

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dz: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Tensor:
        x, z, weight = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(Bilinear.call(dx, z, weight, None))
        if dz is not None:
            terms.append(Bilinear.call(x, dz, weight, None))
        if dw is not None:
            terms.append(Bilinear.call(x, z, dw, None))
        if db is not None:
            terms.append(db.expand(*x.shape[:-1], db.shape[0]))
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor | None) -> tuple[Tensor, int]:
        x, z, weight, bias = tensors
        if in_dims[2] is None and in_dims[3] is None:
            x, z = (_mapped_first(tensor, dim, info.batch_size) for tensor, dim in zip((x, z), in_dims, strict=False))
            return Bilinear.call(x, z, weight, bias), 0
        return _each(Bilinear, info, in_dims, *tensors)


class BilinearWeightGrad(Function, operator="bilinear_weight_grad"):
    """``dw[k, i, j] = sum over n of dy[n, k] x[n, i] z[n, j]``."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return _ops.bilinear_weight_grad(grad, x, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, z = ctx.saved_tensors
        needs_grad, needs_x, needs_z = ctx.needs_input_grad
        d_grad = Bilinear.call(x.conj(), z.conj(), u, None) if needs_grad else None
        dx = Bilinear.call(grad.conj(), z.conj(), u.transpose(0, 1), None) if needs_x else None
        dz = Bilinear.call(x.conj(), grad.conj(), u.transpose(0, 2), None) if needs_z else None
        return d_grad, dx, dz

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        saved = ctx.saved_tensors
        terms = []
        for position, tangent in enumerate(tangents):
            if tangent is not None:
                terms.append(BilinearWeightGrad.call(*saved[:position], tangent, *saved[position + 1 :]))
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[Tensor, int]:
        return _each(BilinearWeightGrad, info, in_dims, *tensors)


def _check_tensors(function: str, optional: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) and (value is not None or name != optional):
            raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(value).__name__}")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Fully-connected layer: every output is a weighted sum of all inputs.

    .. math:: y[n, k] = b[k] + \sum_c x[n, c] \; w[k, c]

    Args:
        input: ``(*, C)`` with any number of leading dimensions, none included.
        weight: ``(K, C)``, or ``(C)`` for a single output without a dimension of its own.
        bias: ``(K)``, or none; like torch, also what broadcasts to the output's shape, such as a single number.

    Returns:
        ``(*, K)``.

    Raises:
        RuntimeError: where shapes or types do not fit, with the numbers.
        TypeError: where input, weight or bias is not a tensor.

    Source: lecture, section 7.1.

    Example:
        >>> import scratchnn.functional as F
        >>> F.linear(torch.tensor([1.0, 2.0]), weight=torch.tensor([[3.0, 4.0]]), bias=torch.tensor([0.5]))
        tensor([11.5000])
    """
    _check_tensors("linear", "bias", input=input, weight=weight, bias=bias)
    input, weight, bias = autocast(input, weight, bias)
    if weight.dim() == 1:
        if bias is not None and bias.dim() != 0:
            raise RuntimeError(
                f"linear: weight of shape {list(weight.shape)} has a single output, so bias must be a number "
                f"without dimensions, but got shape {list(bias.shape)}"
            )
        return linear(input, weight.unsqueeze(0), bias).squeeze(-1)
    if bias is not None and (bias.dim() != 1 or bias.shape[0] == 1 != weight.shape[0]):
        output = Linear.call(input, weight, None)
        return output + bias.expand(output.shape)
    return Linear.call(input, weight, bias)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A layer that is linear in each of two inputs.

    .. math:: y[n, k] = b[k] + \sum_{i, j} w[k, i, j] \; x[n, i] \; z[n, j]

    Args:
        input1: x, ``(*, I)`` with any number of leading dimensions, none included.
        input2: z, ``(*, J)`` with the same leading dimensions.
        weight: ``(K, I, J)``.
        bias: ``(K)``, or none.

    Returns:
        ``(*, K)``.

    Raises:
        RuntimeError: where shapes or types do not fit, with the numbers.
        TypeError: where an argument is not a tensor.

    Source: Tenenbaum and Freeman, 2000.
    """
    _check_tensors("bilinear", "bias", input1=input1, input2=input2, weight=weight, bias=bias)
    return Bilinear.call(input1, input2, weight, bias)

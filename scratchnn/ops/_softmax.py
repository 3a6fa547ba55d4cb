r"""Softmax, softmin and log-softmax along a dimension: fake kernels and derivatives.

.. math:: y_i = \frac{e^{x_i}}{\sum_j e^{x_j}} \qquad
          dx_i = y_i \Bigl(dy_i - \sum_j dy_j \; y_j\Bigr)

Softmin is the softmax of :math:`-x`. Of the logarithm the gradient is :math:`dy_i - e^{y_i} \sum_j dy_j`. All are
computed from the output alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, suggest_memory_format

_ops = torch.ops.scratchnn


def _vmapped(function: Any, info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
    *tensors, dim = arguments
    first = [
        tensor.expand(info.batch_size, *tensor.shape) if mapped is None else tensor.movedim(mapped, 0)
        for tensor, mapped in zip(tensors, in_dims, strict=False)
    ]
    if first[0].dim() == 1:  # scalars: rows of one number
        return function.call(*(tensor.unsqueeze(1) for tensor in first), 1).squeeze(1), 0
    return function.call(*first, dim + 1), 0


def _function(name: str) -> tuple[type[Function], type[Function]]:
    """The Functions of softmax or softmin, and of its gradient."""
    operator, operator_backward = getattr(_ops, name).default, getattr(_ops, name + "_backward").default
    sign = -1 if name == "softmin" else 1

    class Gradient(Function):
        """``dx = y (dy - sum dy y)``: a symmetric matrix times dy, so the derivative forward too."""

        @staticmethod
        def forward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
            return operator_backward(grad, output, dim)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            grad, saved, ctx.dim = inputs
            ctx.save_for_backward(grad, saved)
            ctx.save_for_forward(grad, saved)

        @staticmethod
        def by_output(u: Tensor, grad: Tensor, y: Tensor, dim: int) -> Tensor:
            return sign * (u * (grad - (grad * y).sum(dim, keepdim=True)) - grad * (u * y).sum(dim, keepdim=True))

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
            grad, y = ctx.saved_tensors
            d_grad = Gradient.call(u, y, ctx.dim) if ctx.needs_input_grad[0] else None
            d_output = Gradient.by_output(u, grad, y, ctx.dim) if ctx.needs_input_grad[1] else None
            return d_grad, d_output, None

        @staticmethod
        def jvp(ctx: Any, d_grad: Tensor | None, d_output: Tensor | None, _: None) -> Tensor:
            grad, y = ctx.saved_tensors
            dx = torch.zeros_like(y) if d_grad is None else Gradient.call(d_grad, y, ctx.dim)
            if d_output is not None:
                inner = (grad * y).sum(ctx.dim, keepdim=True)
                moved = (grad * d_output).sum(ctx.dim, keepdim=True)
                dx = dx + sign * (d_output * (grad - inner) - y * moved)
            return dx

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
            return _vmapped(Gradient, info, in_dims, *arguments)

    class Softmax(Function):
        @staticmethod
        def forward(input: Tensor, dim: int) -> Tensor:
            return operator(input, dim)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            _, ctx.dim = inputs
            ctx.save_for_backward(output)
            ctx.save_for_forward(output)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return Gradient.call(grad, *ctx.saved_tensors, ctx.dim), None

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
            return Gradient.call(tangent, *ctx.saved_tensors, ctx.dim)

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
            return _vmapped(Softmax, info, in_dims, *arguments)

    return Softmax, Gradient


Softmax, SoftmaxGradient = _function("softmax")
Softmin, SoftminGradient = _function("softmin")


class LogSoftmax(Function):
    """``y_i = x_i - log sum_j e^(x_j)``."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return _ops.log_softmax(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dim = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return LogSoftmaxGradient.call(grad, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return tangent - (y.exp() * tangent).sum(ctx.dim, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(LogSoftmax, info, in_dims, *arguments)


class LogSoftmaxGradient(Function):
    """``dx = dy - e^y sum dy``."""

    @staticmethod
    def forward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
        return _ops.log_softmax_backward(grad, output, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, saved, ctx.dim = inputs
        ctx.save_for_backward(grad, saved)
        ctx.save_for_forward(grad, saved)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad, y = ctx.saved_tensors
        needs_grad, needs_output, _ = ctx.needs_input_grad
        weighted = u * y.exp()
        d_grad = u - weighted.sum(ctx.dim, keepdim=True) if needs_grad else None
        d_output = -weighted * grad.sum(ctx.dim, keepdim=True) if needs_output else None
        return d_grad, d_output, None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_output: Tensor | None, _: None) -> Tensor:
        grad, y = ctx.saved_tensors
        dx = torch.zeros_like(y) if d_grad is None else LogSoftmaxGradient.call(d_grad, y, ctx.dim)
        if d_output is not None:
            dx = dx - d_output * y.exp() * grad.sum(ctx.dim, keepdim=True)
        return dx

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(LogSoftmaxGradient, info, in_dims, *arguments)


def _register_fakes() -> None:
    def output(input: Tensor, dim: int) -> Tensor:
        return torch.empty_like(input, memory_format=suggest_memory_format(input))

    def gradient(grad: Tensor, output: Tensor, dim: int) -> Tensor:
        return torch.empty_like(output)

    for name in ("softmax", "softmin", "log_softmax"):
        torch.library.register_fake(f"scratchnn::{name}", output)
        torch.library.register_fake(f"scratchnn::{name}_backward", gradient)


_register_fakes()

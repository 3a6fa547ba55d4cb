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


def _by_output(u: Tensor, grad: Tensor, y: Tensor, dim: int) -> Tensor:
    """What ``u``, arriving at ``y (grad - sum grad y)``, gives to y."""
    return u * (grad - (grad * y).sum(dim, keepdim=True)) - grad * (u * y).sum(dim, keepdim=True)


def _along_output(dy: Tensor, grad: Tensor, y: Tensor, dim: int) -> Tensor:
    """How ``y (grad - sum grad y)`` changes with y."""
    return dy * (grad - (grad * y).sum(dim, keepdim=True)) - y * (grad * dy).sum(dim, keepdim=True)


class Softmax(Function, operator="softmax"):
    """``y_i = e^(x_i) / sum_j e^(x_j)``."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return _ops.softmax(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dim = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return SoftmaxGradient.call(grad, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return SoftmaxGradient.call(tangent, *ctx.saved_tensors, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(Softmax, info, in_dims, *arguments)


class SoftmaxGradient(Function, operator="softmax_backward"):
    """``dx = y (dy - sum dy y)``: a symmetric matrix times dy, and so the derivative forward too."""

    @staticmethod
    def forward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
        return _ops.softmax_backward(grad, output, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, saved, ctx.dim = inputs
        ctx.save_for_backward(grad, saved)
        ctx.save_for_forward(grad, saved)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad, y = ctx.saved_tensors
        d_grad = SoftmaxGradient.call(u, y, ctx.dim) if ctx.needs_input_grad[0] else None
        d_output = _by_output(u, grad, y, ctx.dim) if ctx.needs_input_grad[1] else None
        return d_grad, d_output, None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_output: Tensor | None, _: None) -> Tensor:
        grad, y = ctx.saved_tensors
        dx = torch.zeros_like(y) if d_grad is None else SoftmaxGradient.call(d_grad, y, ctx.dim)
        return dx if d_output is None else dx + _along_output(d_output, grad, y, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(SoftmaxGradient, info, in_dims, *arguments)


class Softmin(Function, operator="softmin"):
    """The softmax of ``-x``."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return _ops.softmin(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dim = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return SoftminGradient.call(grad, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return SoftminGradient.call(tangent, *ctx.saved_tensors, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(Softmin, info, in_dims, *arguments)


class SoftminGradient(Function, operator="softmin_backward"):
    """``dx = -y (dy - sum dy y)``: a symmetric matrix times dy, and so the derivative forward too."""

    @staticmethod
    def forward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
        return _ops.softmin_backward(grad, output, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, saved, ctx.dim = inputs
        ctx.save_for_backward(grad, saved)
        ctx.save_for_forward(grad, saved)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad, y = ctx.saved_tensors
        d_grad = SoftminGradient.call(u, y, ctx.dim) if ctx.needs_input_grad[0] else None
        d_output = -_by_output(u, grad, y, ctx.dim) if ctx.needs_input_grad[1] else None
        return d_grad, d_output, None

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_output: Tensor | None, _: None) -> Tensor:
        grad, y = ctx.saved_tensors
        dx = torch.zeros_like(y) if d_grad is None else SoftminGradient.call(d_grad, y, ctx.dim)
        return dx if d_output is None else dx - _along_output(d_output, grad, y, ctx.dim)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(SoftminGradient, info, in_dims, *arguments)


class LogSoftmax(Function, operator="log_softmax"):
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


class LogSoftmaxGradient(Function, operator="log_softmax_backward"):
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

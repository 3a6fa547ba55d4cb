"""Activations: functions of each element by itself, and their derivatives.

Lecture, section 7.3: without a non-linearity between them, two linear layers are one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function

__all__ = ["relu"]

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::relu")
def _(input: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("scratchnn::relu_")
def _(input: Tensor) -> None:
    return None


@torch.library.register_fake("scratchnn::relu_backward")
def _(grad: Tensor, output: Tensor) -> Tensor:
    return torch.empty_like(output)


class Relu(Function):
    """``y = max(x, 0)``. The derivative is a step, known from ``y`` alone, so ``x`` need not be kept."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return _ops.relu(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return ReluBackward.call(grad, output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return ReluBackward.call(tangent, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor) -> tuple[Tensor, int]:
        return Relu.call(input), in_dims[0]


class ReluInplace(Function):
    """``x = max(x, 0)`` in place."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        _ops.relu_(input)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return ReluBackward.call(grad, output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return tangent.copy_(ReluBackward.call(tangent, output))  # in place, as autograd demands here

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor) -> tuple[Tensor, int]:
        return ReluInplace.call(input), in_dims[0]


class ReluBackward(Function):
    """``dL/dx = dL/dy [y > 0]``: linear in ``dL/dy``, and flat in ``y`` wherever it has a derivative."""

    @staticmethod
    def forward(grad: Tensor, output: Tensor) -> Tensor:
        return _ops.relu_backward(grad, output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, relu_output = inputs
        ctx.save_for_backward(relu_output)
        ctx.save_for_forward(relu_output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return ReluBackward.call(grad, output), None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, output_tangent: Tensor | None) -> Tensor:
        (output,) = ctx.saved_tensors
        if grad_tangent is None:
            return torch.zeros_like(output)
        return ReluBackward.call(grad_tangent, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, output: Tensor) -> tuple[Tensor, int]:
        grad, output = (
            tensor.movedim(dim, 0) if dim is not None else tensor.expand(info.batch_size, *tensor.shape)
            for tensor, dim in zip((grad, output), in_dims, strict=True)
        )
        return ReluBackward.call(grad, output), 0


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Rectified linear unit, ``y = max(x, 0)``, element by element.

    Shape: any, kept; so is the memory format. NaN stays NaN. The derivative at 0 is taken as 0.

    Raises:
        RuntimeError: for boolean or complex tensors.
    """
    return ReluInplace.call(input) if inplace else Relu.call(input)

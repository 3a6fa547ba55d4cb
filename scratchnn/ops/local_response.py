"""Local response normalization: a number over a power of the squares around it, in neighbouring channels.

With ``s_c = k + alpha / size * (the sum of x^2 over a window of channels around c)``, ``y = x s^-beta``. AlexNet's
normalization, before there was batch normalization. Inputs and outputs are N x C x pixels; ``g`` is the gradient that
arrives at ``y``, and ``x_`` in code the tangent ``x'`` of forward differentiation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, integer
from scratchnn.ops._norm_terms import like

__all__ = ["local_response_norm"]

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::local_response_norm")
def _(input: Tensor, before: int, after: int, scale: float, beta: float, k: float) -> Tensor:
    return like(input)


@torch.library.register_fake("scratchnn::local_response_norm_backward")
def _(grad: Tensor, input: Tensor, before: int, after: int, scale: float, beta: float, k: float) -> Tensor:
    return like(input)


def _window_sums(x: Tensor, before: int, after: int) -> Tensor:
    """The sums over channels c - before to c + after, in differentiable operations."""
    channels = x.shape[1]
    padded = torch.nn.functional.pad(x.movedim(1, -1), (min(before, channels), min(after, channels)))
    return padded.unfold(-1, min(before, channels) + min(after, channels) + 1, 1).sum(-1).movedim(-1, 1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class LocalResponseNorm(Function, operator="local_response_norm"):
    """``y = x s^-beta``, ``s = k + scale * (sum of x^2 over the window)``."""

    @staticmethod
    def forward(input: Tensor, before: int, after: int, scale: float, beta: float, k: float) -> Tensor:
        return _ops.local_response_norm(input, before, after, scale, beta, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, *ctx.options = inputs
        ctx.save_for_backward(input)
        ctx.save_for_forward(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        return LocalResponseNormBackward.call(grad, input, *ctx.options), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_: Tensor, *_: None) -> Tensor:
        """``y' = x' s^-beta - 2 scale beta x s^(-beta - 1) (sum of x x' over the window)``."""
        (input,) = ctx.saved_tensors
        before, after, scale, beta, k = ctx.options
        x, x_ = _wide(input), _wide(x_)
        s = k + scale * _window_sums(x * x, before, after)
        y_ = x_ * s**-beta - 2 * scale * beta * x * s ** (-beta - 1) * _window_sums(x * x_, before, after)
        return y_.to(input.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor, *options: Any) -> tuple[Tensor, int]:
        folded = input.movedim(in_dims[0], 0)
        output = LocalResponseNorm.call(folded.flatten(0, 1), *options)
        return output.unflatten(0, folded.shape[:2]), 0


class LocalResponseNormBackward(Function, operator="local_response_norm_backward"):
    """``dx = g s^-beta - 2 scale beta x (sum of g x s^(-beta - 1) over the channels whose window one is in)``."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor, before: int, after: int, scale: float, beta: float, k: float) -> Tensor:
        return _ops.local_response_norm_backward(grad, input, before, after, scale, beta, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, input, *ctx.options = inputs
        ctx.save_for_backward(grad, input)
        ctx.save_for_forward(grad, input)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        """``dx`` is linear in g, its Jacobian J(x) transposed: that of g is ``J u``, the forward derivative.

        In x: with W the sums over windows and W' those over the windows one is in, ``q = s^(-beta - 1)`` and
        ``a = W(u x)``, ``<u, dx> = <g u, s^-beta> - 2 scale beta <g x q, a>``, whose derivative is written out below.
        """
        grad, input = ctx.saved_tensors
        before, after, scale, beta, k = ctx.options
        g, x, u = _wide(grad), _wide(input), _wide(u)
        s = k + scale * _window_sums(x * x, before, after)
        q = s ** (-beta - 1)
        a = _window_sums(u * x, before, after)
        factor = 2 * scale * beta
        dg = u * s**-beta - factor * x * q * a
        ds = -beta * g * u * q + factor * (beta + 1) * g * x * q / s * a
        dx = 2 * scale * x * _window_sums(ds, after, before)
        dx = dx - factor * (g * q * a + u * _window_sums(g * x * q, after, before))
        return dg.to(grad.dtype), dx.to(input.dtype), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, g_: Tensor | None, x_: Tensor | None, *_: None) -> Tensor:
        grad, input = ctx.saved_tensors
        before, after, scale, beta, k = ctx.options
        result = torch.zeros_like(input)
        if g_ is not None:
            result = result + LocalResponseNormBackward.call(g_, input, *ctx.options)
        if x_ is not None:
            g, x, x_ = _wide(grad), _wide(input), _wide(x_)
            s = k + scale * _window_sums(x * x, before, after)
            s_ = 2 * scale * _window_sums(x * x_, before, after)
            q = s ** (-beta - 1)
            q_ = -(beta + 1) * q / s * s_
            change = -beta * g * q * s_ - 2 * scale * beta * (
                x_ * _window_sums(g * x * q, after, before) + x * _window_sums(g * (x_ * q + x * q_), after, before)
            )
            result = result + change.to(input.dtype)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        both = [
            x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(args[:2], in_dims[:2], strict=True)
        ]
        output = LocalResponseNormBackward.call(*(x.flatten(0, 1) for x in both), *args[2:])
        return output.unflatten(0, both[0].shape[:2]), 0


def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Tensor:
    """Local response normalization, ``y_c = x_c / (k + alpha / size * sum of x_c'^2)^beta``.

    The sum runs over ``size`` neighbouring channels: ``size // 2`` before ``c``, ``(size - 1) // 2`` after it, and
    itself; beyond the first and the last channel there are zeros, and they count in the average.

    Args:
        input: ``(N, C, *)`` with at least three dimensions. Under autocast the powers are taken in float32, as torch's
            are. Of whole numbers the average is rounded towards zero, as torch's is.
        size: the number of channels in the sum.
        alpha, beta, k: of the formula.

    Returns:
        like the input, with its memory format.

    Raises:
        ValueError: for less than three dimensions.
        RuntimeError: for a window that is not positive.
        TypeError: where ``size`` is not a whole number.

    Source: Krizhevsky, Sutskever & Hinton 2012, section 3.3.
    """
    if input.dim() < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {input.dim()} dimensions)")
    if input.numel() == 0:
        return input
    size = integer(size, "size")
    if size <= 0:
        raise RuntimeError(f"local_response_norm: expected a window of a positive number of channels, but got {size}")
    before, after = size // 2, (size - 1) // 2
    if not input.is_floating_point():
        return _of_integers(input, before, after, size, alpha, beta, k)
    device = input.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        input = input.float()
    return LocalResponseNorm.call(input, before, after, alpha / size, beta, k)


def _of_integers(input: Tensor, before: int, after: int, size: int, alpha: float, beta: float, k: float) -> Tensor:
    if input.dtype != torch.int64:
        raise NotImplementedError(f"local_response_norm: not implemented for {input.dtype} tensors")
    average = _window_sums(input * input, before, after).div(size, rounding_mode="trunc")
    return input / average.mul(alpha).add(k).pow(beta)

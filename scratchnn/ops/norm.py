"""Normalization: subtract a mean, divide by a standard deviation; and the derivatives.

Lecture, section 7.5. Batch normalization (Ioffe & Szegedy 2015) measures both over all samples and pixels of
a channel. Training uses the batch's own statistics and keeps a running average of them; testing uses the
running ones, and the layer is then a fixed linear map of each channel.

Names below: ``mu`` and ``v`` the mean and variance, ``r = 1 / sqrt(v + eps)``, ``x_hat = (x - mu) r``, and
``P(u) = u - E[u] - x_hat E[u x_hat]``, the part of ``u`` that a change of the statistics does not undo. ``P``
is its own adjoint, and the derivative of ``x_hat`` is ``r P``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, suggest_memory_format

__all__ = ["batch_norm"]

_ops = torch.ops.scratchnn


def _like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=suggest_memory_format(input))


@torch.library.register_fake("scratchnn::batch_norm_train")
def _(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = input.new_empty(input.shape[1], dtype=torch.float64)
    return _like(input), mean, torch.empty_like(mean)


@torch.library.register_fake("scratchnn::batch_norm_update_")
def _(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, count: int) -> None:
    return None


@torch.library.register_fake("scratchnn::batch_norm_eval")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Tensor:
    return _like(input)


@torch.library.register_fake("scratchnn::batch_norm_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _parameter_dtype(input) if weight is None else weight.dtype
    grad_weight = input.new_empty(input.shape[1], dtype=dtype)
    return _like(input), grad_weight, torch.empty_like(grad_weight)


def _parameter_dtype(input: Tensor) -> torch.dtype:
    return input.dtype if input.dtype == torch.float64 else torch.float32


class _Terms:
    """The names of the derivation as differentiable tensors, in float32 at the least."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        training: bool,
    ) -> None:
        self.shape = (-1, *[1] * (input.dim() - 2))  # of a number per channel, beside the input
        self.dims = [d for d in range(input.dim()) if d != 1]
        self.dtype = _parameter_dtype(input)
        self.training = training
        self.r = self.per_channel((var.double() + eps).rsqrt())
        self.x_hat = ((input - mean.double().reshape(self.shape)) * self.r).to(self.dtype)
        self.w = 1.0 if weight is None else self.per_channel(weight)

    def per_channel(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.dtype).reshape(self.shape)

    def sum(self, u: Tensor) -> Tensor:
        return u.sum(self.dims)

    def E(self, u: Tensor) -> Tensor:
        return u.mean(self.dims, keepdim=True)

    def P(self, u: Tensor) -> Tensor:
        """The identity where the statistics are constants."""
        return u - self.E(u) - self.x_hat * self.E(u * self.x_hat) if self.training else u


class BatchNormTrain(Function):
    """``y = w x_hat + b`` with the batch's own mean and variance, which are results too, without derivatives.

    The running statistics, where given, are updated on the way: they are no result.
    """

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, mean, var = _ops.batch_norm_train(input, weight, bias, eps)
        if running_mean is not None:
            _update(running_mean, running_var, mean, var, momentum, input)
        return output, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        input, weight, bias, ctx.eps, *_ = inputs
        _, mean, var = output
        ctx.bias = bias is not None
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, mean, var)
        ctx.save_for_forward(input, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        input, weight, mean, var = ctx.saved_tensors
        dx, dw, db = BatchNormBackward.call(grad, input, weight, mean, var, ctx.eps, True)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, w: Tensor | None, b: Tensor | None, *_: None) -> tuple[Tensor, None, None]:
        input, weight, mean, var = ctx.saved_tensors
        return (
            _forward_derivative(_Terms(input, weight, mean, var, ctx.eps, True), input, x, w, b),
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        input, weight, bias, eps, running_mean, _, momentum = args
        if running_mean is not None and None in in_dims[4:6]:
            raise RuntimeError(
                "batch_norm: the running statistics would be updated in place by every sample of a vmap; "
                "give each its own (torch.func.stack_module_state), or use track_running_stats=False"
            )
        fold = _Fold(info.batch_size)
        running = [fold.parameter(r, d) for r, d in zip(args[4:6], in_dims[4:6], strict=True)]
        output, mean, var = BatchNormTrain.call(
            fold.input(input, in_dims[0]),
            fold.parameter(weight, in_dims[1]),
            fold.parameter(bias, in_dims[2]),
            eps,
            *running,
            momentum,
        )
        for new, old, dim in zip(running, args[4:6], in_dims[4:6], strict=True):
            if new is not None:
                old.copy_(fold.split(new, 0).movedim(0, dim))
        return (fold.split(output, 1), fold.split(mean, 0), fold.split(var, 0)), (1, 0, 0)


class BatchNormEval(Function):
    """``y = w (x - mu) r + b`` with given statistics: a fixed linear map of each channel."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> Tensor:
        return _ops.batch_norm_eval(input, weight, bias, running_mean, running_var, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, bias, running_mean, running_var, ctx.eps = inputs
        ctx.bias = bias is not None
        ctx.save_for_backward(input, weight, running_mean, running_var)
        ctx.save_for_forward(input, weight, running_mean, running_var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        dx, dw, db = BatchNormBackward.call(grad, input, weight, mean, var, ctx.eps, False)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, w: Tensor | None, b: Tensor | None, *_: None) -> Tensor:
        input, weight, mean, var = ctx.saved_tensors
        return _forward_derivative(_Terms(input, weight, mean, var, ctx.eps, False), input, x, w, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        input, *parameters, eps = args
        fold = _Fold(info.batch_size)
        folded = [fold.parameter(p, dim) for p, dim in zip(parameters, in_dims[1:], strict=False)]
        return fold.split(BatchNormEval.call(fold.input(input, in_dims[0]), *folded, eps), 1), 1


class BatchNormBackward(Function):
    """``dx = w r P(g)``, ``dw = sum of g x_hat``, ``db = sum of g``; with given statistics ``P = 1``.

    In training the mean and the variance follow from ``x``, and a derivative by ``x`` includes theirs.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.batch_norm_backward(grad, input, weight, mean, var, eps, training)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.eps, ctx.training = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, a: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        """For the gradients ``u`` of dx, ``a`` of dw and ``c`` of db, those of g, x and w.

        With ``<u, dx> = w r <u, P(g)>`` and ``dr/dx = -r^2 x_hat / n`` one finds
        ``-w r^2 (P(u) E[g x_hat] + P(g) E[u x_hat] + E[u P(g)] x_hat)`` for x, and from dw, ``a r P(g)``.
        """
        grad, input, weight, mean, var = ctx.saved_tensors
        t = _Terms(input, weight, mean, var, ctx.eps, ctx.training)
        g = grad.to(t.dtype)
        dg, dx, dw = torch.zeros_like(g), torch.zeros_like(g), None
        if u is not None:
            u = u.to(t.dtype)
            dg = dg + t.w * t.r * t.P(u)
            if weight is not None:
                dw = t.sum(t.r * u * t.P(g)).to(weight.dtype)
            if ctx.training:
                change = t.P(u) * t.E(g * t.x_hat) + t.P(g) * t.E(u * t.x_hat) + t.E(u * t.P(g)) * t.x_hat
                dx = dx - t.w * t.r * t.r * change
        if a is not None:
            a = t.per_channel(a)
            dg = dg + a * t.x_hat
            dx = dx + a * t.r * t.P(g)
        if c is not None:
            dg = dg + t.per_channel(c)
        return dg.to(grad.dtype), dx.to(input.dtype), dw, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, g_: Tensor | None, x_: Tensor | None, w_: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tangents of dx, dw and db along those of g, x and w: the adjoint of ``backward``."""
        grad, input, weight, mean, var = ctx.saved_tensors
        t = _Terms(input, weight, mean, var, ctx.eps, ctx.training)
        g = grad.to(t.dtype)
        dx, dw, db = torch.zeros_like(g), torch.zeros_like(t.sum(g)), torch.zeros_like(t.sum(g))
        if g_ is not None:
            g_ = g_.to(t.dtype)
            dx = dx + t.w * t.r * t.P(g_)
            dw = dw + t.sum(g_ * t.x_hat)
            db = db + t.sum(g_)
        if x_ is not None:
            x_ = x_.to(t.dtype)
            if ctx.training:
                change = t.P(x_) * t.E(g * t.x_hat) + t.P(g) * t.E(x_ * t.x_hat) + t.E(x_ * t.P(g)) * t.x_hat
                dx = dx - t.w * t.r * t.r * change
            dw = dw + t.sum(t.r * t.P(g) * x_)
        if w_ is not None:
            dx = dx + t.per_channel(w_) * t.r * t.P(g)
        parameter = t.dtype if weight is None else weight.dtype
        return dx.to(input.dtype), dw.to(parameter), db.to(parameter)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad, input, weight, mean, var, eps, training = args
        fold = _Fold(info.batch_size)
        dx, dw, db = BatchNormBackward.call(
            fold.input(grad, in_dims[0]),
            fold.input(input, in_dims[1]),
            fold.parameter(weight, in_dims[2]),
            fold.parameter(mean, in_dims[3]),
            fold.parameter(var, in_dims[4]),
            eps,
            training,
        )
        return (fold.split(dx, 1), fold.split(dw, 0), fold.split(db, 0)), (1, 0, 0)


class _Fold:
    """Folds a vmapped dimension of size ``b`` into the channels: N x C x * becomes N x b C x *."""

    def __init__(self, size: int) -> None:
        self.size = size

    def _lead(self, tensor: Tensor, dim: int | None, position: int) -> Tensor:
        if dim is not None:
            return tensor.movedim(dim, position)
        return tensor.unsqueeze(position).expand(*tensor.shape[:position], self.size, *tensor.shape[position:])

    def input(self, tensor: Tensor, dim: int | None) -> Tensor:
        return self._lead(tensor, dim, 1).flatten(1, 2)

    def parameter(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        return None if tensor is None else self._lead(tensor, dim, 0).flatten(0, 1)

    def split(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.unflatten(dim, (self.size, tensor.shape[dim] // self.size))


def _forward_derivative(t: _Terms, input: Tensor, x: Tensor | None, w: Tensor | None, b: Tensor | None) -> Tensor:
    """``y' = w r P(x') + w' x_hat + b'``."""
    y = torch.zeros_like(t.x_hat)
    if x is not None:
        y = y + t.w * t.r * t.P(x.to(t.dtype))
    if w is not None:
        y = y + t.per_channel(w) * t.x_hat
    if b is not None:
        y = y + t.per_channel(b)
    return y.to(input.dtype)


def _update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, input: Tensor
) -> None:
    _ops.batch_norm_update_(running_mean, running_var, mean, var, momentum, input.numel() // input.shape[1])


def _check_dtype(input: Tensor, parameter: Tensor, name: str) -> None:
    """As for every parameter: the dtype of the input, or float32 beside a narrower one."""
    dtype = parameter.dtype
    if dtype != input.dtype and (dtype != torch.float32 or input.dtype == torch.float64):
        raise RuntimeError(
            f"batch_norm: expected {name} to have the dtype of the input, {input.dtype}, but got {dtype}"
        )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization, ``y = w (x - mu) / sqrt(v + eps) + b``, channel by channel.

    In training ``mu`` and ``v`` are the mean and the (biased) variance of the channel over all samples and
    pixels of the batch, and the running statistics, where given, move towards them:
    ``running = (1 - momentum) running + momentum batch``, with the unbiased variance ``v n / (n - 1)``.
    Otherwise ``mu`` and ``v`` are the running statistics.

    Shapes: input N x C x * with any number of dimensions from 2 on, all else C; the output is like the input,
    with its memory format. Beside a bfloat16 or float16 input, weight, bias and statistics may be float32.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5.

    Raises:
        ValueError: training on a single number per channel, with ``eps <= 0``, or with one of the two running
            statistics only.
        RuntimeError: parameters or statistics that do not fit the channels or the dtype; evaluation without
            running statistics.
    """
    if training:
        return _batch_norm_train(input, running_mean, running_var, weight, bias, momentum, eps)
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if running_mean is None or running_var is None:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"batch_norm: {missing} must be defined in evaluation mode")
    return BatchNormEval.call(input, weight, bias, running_mean, running_var, eps)


def _batch_norm_train(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    shape = input.shape
    if input.dim() >= 2 and input.numel() == shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {shape}")
    if eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if running_mean is not None:
        _check_dtype(input, running_mean, "running_mean")
        _check_dtype(input, running_var, "running_var")
    return BatchNormTrain.call(input, weight, bias, eps, running_mean, running_var, momentum)[0]

"""Batch normalization: statistics over all samples and pixels of a channel; and the derivatives.

Lecture, section 7.5. Training uses the batch's own statistics and keeps a running average of them; testing uses the
running ones, and the layer is then a fixed linear map of each channel. Names as in ``_norm_terms``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, suggest_memory_format
from scratchnn.ops._norm_terms import Fold, Terms, kept, like, parameter_dtype
from scratchnn.ops._recompute import is_computed_again, is_recorded, normalized

__all__ = ["batch_norm"]

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::batch_norm_train")
def _(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, in_double: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    mean = input.new_empty(input.shape[1], dtype=torch.float64 if in_double else parameter_dtype(input))
    return like(input), mean, torch.empty_like(mean)


@torch.library.register_fake("scratchnn::batch_norm_statistics")
def _(input: Tensor) -> tuple[Tensor, Tensor]:
    mean = input.new_empty(input.shape[1], dtype=torch.float64)
    return mean, torch.empty_like(mean)


@torch.library.register_fake("scratchnn::batch_norm_update_")
def _(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, count: int) -> None:
    return None


def _update_each(info: Any, in_dims: tuple, running_mean: Tensor, running_var: Tensor, *rest: Any) -> tuple[None, None]:
    """Each sample of a vmap updates running statistics of its own, all of them as if they were channels."""
    if None in in_dims[:2]:
        raise RuntimeError(
            "batch_norm: the running statistics would be updated in place by every sample of a vmap; give each its own "
            "(torch.func.stack_module_state), or use track_running_stats=False"
        )
    mean, var, momentum, count = rest
    fold = Fold(info.batch_size)
    tensors = zip((running_mean, running_var, mean, var), in_dims, strict=False)
    new_mean, new_var, *measured = (fold.parameter(tensor, dim) for tensor, dim in tensors)
    new_mean, new_var = new_mean.clone(), new_var.clone()
    _ops.batch_norm_update_(new_mean, new_var, *measured, momentum, count)
    for old, new, dim in zip((running_mean, running_var), (new_mean, new_var), in_dims, strict=False):
        old.copy_(fold.split(new, 0).movedim(0, dim))
    return None, None


torch.library.register_vmap("scratchnn::batch_norm_update_", _update_each)


@torch.library.register_fake("scratchnn::batch_norm_eval")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Tensor:
    return like(input)


def _parameter_gradients(input: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the gradients of weight and bias look like: both of the weight's type."""
    grad_weight = input.new_empty(input.shape[1], dtype=parameter_dtype(input) if weight is None else weight.dtype)
    return grad_weight, torch.empty_like(grad_weight)


@torch.library.register_fake("scratchnn::batch_norm_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return like(input), *_parameter_gradients(input, weight)


@torch.library.register_fake("scratchnn::batch_norm_backward_")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    return _parameter_gradients(input, weight)


@torch.library.register_fake("scratchnn::batch_norm_add_clamp_train")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = input.new_empty(input.shape[1], dtype=torch.float64)
    return like(input), mean, torch.empty_like(mean)


@torch.library.register_fake("scratchnn::batch_norm_add_clamp")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    eps: float,
    low: float,
    high: float,
) -> Tensor:
    return like(input)


@torch.library.register_fake("scratchnn::batch_norm_add_clamp_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    output: Tensor | None,
    eps: float,
    low: float,
    high: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    limited = low > -math.inf or high < math.inf
    stored = limited and not (residual is None and output is None)
    return like(input), *_parameter_gradients(input, weight), like(input) if stored else input.new_empty(0)


@torch.library.register_fake("scratchnn::batch_norm_add_clamp_backward_")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    eps: float,
    low: float,
    high: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    return _parameter_gradients(input, weight)


def count_of(input: Tensor) -> int:
    """How many numbers each channel has."""
    return input.numel() // max(input.shape[1], 1)


def _check_statistics(needs_grad: tuple[bool, ...]) -> None:
    if any(needs_grad):
        raise RuntimeError("batch_norm is not differentiable by running_mean and running_var: they require a gradient")


def _terms(input: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor, eps: float, training: bool) -> Terms:
    pixels = 1
    for size in input.shape[2:]:
        pixels *= size
    shape = (input.shape[0], input.shape[1], 1, pixels)
    return Terms(input, weight, mean, var, eps, shape, (0, 2, 3), constant=not training)


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
        output, mean, var = _ops.batch_norm_train(input, weight, bias, eps, is_computed_again(input))
        if running_mean is not None:
            batch = (mean, var)
            if torch.compiler.is_exporting():  # there the operators are called bare, and this one refuses gradients
                batch = (mean.detach(), var.detach())
            _ops.batch_norm_update_(running_mean, running_var, *batch, momentum, count_of(input))
        return output, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        input, weight, bias, ctx.eps, *_ = inputs
        _, mean, var = output
        _check_statistics(ctx.needs_input_grad[4:6])
        ctx.bias = bias is not None
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        if is_recorded(ctx, input):
            normalized(output[0], input, mean, var, weight, bias, ctx.eps)
        if mean.dtype != parameter_dtype(input):
            mean, var = (numbers.to(parameter_dtype(input)) for numbers in (mean, var))
        mean = kept(input, mean)
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
    def overwriting(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        dx, dw, db = _gradients_over(grad, input, weight, mean, var, ctx.eps, True)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_: Tensor | None, w_: Tensor | None, b_: Tensor | None, *_: None) -> tuple[Tensor, None, None]:
        return _terms(*ctx.saved_tensors, ctx.eps, True).output_tangent(x_, w_, b_), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        input, weight, bias, eps, running_mean, running_var, momentum = args
        fold = Fold(info.batch_size)
        input = fold.input(input, in_dims[0])
        output, mean, var = BatchNormTrain.call(
            input, fold.parameter(weight, in_dims[1]), fold.parameter(bias, in_dims[2]), eps, None, None, momentum
        )
        mean, var = fold.split(mean, 0), fold.split(var, 0)
        if running_mean is not None:
            dims = (*in_dims[4:6], 0, 0)
            _update_each(info, dims, running_mean, running_var, mean, var, momentum, count_of(input))
        return (fold.split(output, 1), mean, var), (1, 0, 0)


class BatchNormEval(Function, operator="batch_norm_eval"):
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
        _check_statistics(ctx.needs_input_grad[3:5])
        ctx.bias = bias is not None
        ctx.save_for_backward(input, weight, running_mean, running_var)
        ctx.save_for_forward(input, weight, running_mean, running_var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        dx, dw, db = BatchNormBackward.call(grad, input, weight, mean, var, ctx.eps, False)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None

    @staticmethod
    def overwriting(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        dx, dw, db = _gradients_over(grad, input, weight, mean, var, ctx.eps, False)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_: Tensor | None, w_: Tensor | None, b_: Tensor | None, *_: None) -> Tensor:
        return _terms(*ctx.saved_tensors, ctx.eps, False).output_tangent(x_, w_, b_)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        input, *parameters, eps = args
        fold = Fold(info.batch_size)
        folded = [fold.parameter(p, dim) for p, dim in zip(parameters, in_dims[1:], strict=False)]
        return fold.split(BatchNormEval.call(fold.input(input, in_dims[0]), *folded, eps), 1), 1


class BatchNormBackward(Function, operator="batch_norm_backward"):
    """``dx = r P(w g)``, ``dw = sum of g x_hat``, ``db = sum of g``; with given statistics ``P = 1``.

    In training the mean and the variance follow from ``x``, and a derivative by ``x`` includes theirs.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor | None,
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
        grad, *saved = ctx.saved_tensors
        return *_terms(*saved, ctx.eps, ctx.training).second_gradients(grad, u, a, c), None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, g_: Tensor | None, x_: Tensor | None, w_: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, *saved = ctx.saved_tensors
        return _terms(*saved, ctx.eps, ctx.training).gradient_tangents(grad, g_, x_, w_)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad, input, weight, mean, var, eps, training = args
        fold = Fold(info.batch_size)
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


def _gradients_over(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``dx``, ``dw`` and ``db``, the first in the memory of ``dy`` if that is laid out as the input."""
    if grad.stride() != input.stride():
        return BatchNormBackward.call(grad, input, *rest)
    return grad, *_ops.batch_norm_backward_(grad, input, *rest)


def check_dtype(input: Tensor, parameter: Tensor, name: str) -> None:
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

    Args:
        input: ``(N, C, *)`` with any number of dimensions from 2 on; floating types.
        running_mean, running_var: ``(C)``, or none; in training they are updated in place.
        weight, bias: w and b, ``(C)``, or none. Beside a bfloat16 or float16 input, these and the statistics may be
            float32.
        training: normalize by the batch's own statistics.
        momentum: of the running statistics.
        eps: added to the variance.

    Returns:
        like the input, with its memory format.

    Raises:
        ValueError: training on a single number per channel, with ``eps <= 0``, or with one of the two running
            statistics only.
        RuntimeError: parameters or statistics that do not fit the channels or the dtype; evaluation without
            running statistics.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5.

    Example:
        >>> import scratchnn.functional as F
        >>> F.batch_norm(torch.tensor([[1.0], [3.0]]), None, None, training=True)
        tensor([[-1.0000],
                [ 1.0000]])
    """
    if input.dim() == 1 and input.numel() == 0:  # torch takes this for a batch without samples and channels
        input = input.reshape(0, 0)
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps).reshape(0)
    if training:
        check_training(input, running_mean, running_var, eps)
    else:
        check_evaluation(input, running_mean, running_var, weight, eps)
    if input.numel() == 0:
        return _of_nothing(input, weight, bias)
    if training:
        return BatchNormTrain.call(input, weight, bias, eps, running_mean, running_var, momentum)[0]
    return BatchNormEval.call(input, weight, bias, running_mean, running_var, eps)


def _of_nothing(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Without numbers torch takes parameters of any size, and learns nothing: their gradients are zeros."""
    output = input.clone(memory_format=suggest_memory_format(input))
    for parameter in (weight, bias):
        if parameter is not None:
            output = output + (0 * parameter.sum()).to(input.dtype)
    return output


def check_training(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, eps: float) -> None:
    """What the batch's own statistics ask of the batch and of the running ones: raises as :func:`batch_norm`."""
    shape = input.shape
    numbers = shape[0]
    for size in shape[2:]:
        numbers = numbers * size
    if numbers == 1 and input.dim() >= 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {shape}")
    if eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if running_mean is not None:
        check_dtype(input, running_mean, "running_mean")
        check_dtype(input, running_var, "running_var")


def check_evaluation(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, eps: float
) -> None:
    """What given statistics must be: raises as :func:`batch_norm`."""
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if running_mean is None or running_var is None:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"batch_norm: {missing} must be defined in evaluation mode")
    check_dtype(input, running_mean, "running_mean")
    check_dtype(input, running_var, "running_var")
    if weight is not None and weight.dtype != running_mean.dtype:
        raise RuntimeError(
            f"batch_norm: expected weight and running_mean to have the same dtype, but got {weight.dtype} and "
            f"{running_mean.dtype}"
        )

r"""Convolution, batch normalization, an addition and an activation as one operation.

.. math::
    z = \mathrm{conv}(x, w) + b, \qquad y = f\bigl(\gamma\, \hat z + \beta + r\bigr)

with :math:`\hat z` the normalized z, a residual r where there is one, and an activation f where there is one.

Layer by layer, autograd keeps x, z and y, and y again as the next x. Of all these the backward pass needs one: y
follows from z element by element, so a block keeps z, and the next block, which needs y for the gradient of its
weight, computes it from the z of this one (:mod:`scratchnn.ops._recompute`), unless its convolution is depthwise or
does as little with it. The addition and the limits of relu and hardtanh are part of the passes that batch norm takes
over z anyway.

With given statistics (evaluation) the normalization is linear. Where nothing follows, it goes into the weights,
:math:`w' = \gamma r w`, :math:`b' = \gamma r (b - \mu) + \beta` with :math:`r = 1 / \sqrt{v + \epsilon}`, provided
that an image has more pixels than a filter has weights. These are computed at each call, in double precision, and
rounded once: each is off by at most half a unit in its last place, and the output by at most :math:`\epsilon_m / 2 \,
(\sum |w'| |x| + |b'|)` for it, beside the convolution's own rounding; the rounding of z, of which :math:`\mu` was
then subtracted, is gone. Where something follows there is a pass over the output in any case, and batch norm is part
of it: the numbers are those of the layers one by one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from scratchnn import _C
from scratchnn.ops._common import autocast, operation, output_size
from scratchnn.ops._conv import Conv, ConvTranspose, ConvWeightGrad, Window, _is_channels_last
from scratchnn.ops._elementwise import GRADIENTS, ROWS, Activation
from scratchnn.ops._recompute import (
    MOST_STEPS,
    NO_LIMITS,
    Source,
    Step,
    batch_norm_add_clamp,
    history,
    kept,
    recall,
    remember,
    split,
)
from scratchnn.ops._sum import ChannelSum
from scratchnn.ops.batch_norm import (
    BatchNormBackward,
    BatchNormEval,
    BatchNormTrain,
    batch_norm,
    check_evaluation,
    check_training,
    count_of,
)

__all__ = ["Activation", "conv_batch_norm"]

_add_clamp_train = operation("batch_norm_add_clamp_train")
_add_clamp_backward = operation("batch_norm_add_clamp_backward")
_add_clamp_overwrite = torch.ops.scratchnn.batch_norm_add_clamp_backward_.default
_ROWS = {row.name: row for row in ROWS}

# A convolution that multiplies each number of its input by fewer weights, as a depthwise one does, keeps it: computing
# it again would take about as long as the gradient of the weights.
_FEWEST_PRODUCTS = 32


class _Call(NamedTuple):
    """What of a call is not a tensor that may have a gradient."""

    window: Window
    step: Step
    momentum: float
    input: Source
    residual: Source | None
    histories: tuple[Tensor | None, Tensor | None]  # of input and residual
    recompute: bool
    training: bool


def _from_output(activation: Activation) -> bool:
    """Whether the derivative of an activation can be had from its output."""
    row = _ROWS[activation.name]
    return row.saves_output or (row.in_place == "output" and row.from_output(*activation.parameters))


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    call: _Call,
) -> tuple[Tensor, ...]:
    """y and z, and in training the mean and the variance that z was normalized by."""
    z = Conv.call(input, weight, bias, call.window)  # gradients are off here: it records nothing
    eps = call.step.eps
    limits, rest = split(call.step.activation)
    if call.training:
        check_training(z, running_mean, running_var, eps)
        y, mean, var = _add_clamp_train(z, norm_weight, norm_bias, residual, eps, *limits)
        if running_mean is not None:
            torch.ops.scratchnn.batch_norm_update_(running_mean, running_var, mean, var, call.momentum, count_of(z))
        statistics = (mean, var)
    else:
        check_evaluation(z, running_mean, running_var, norm_weight, eps)
        y = batch_norm_add_clamp(z, norm_weight, norm_bias, running_mean, running_var, residual, eps, *limits)
        statistics = ()
    return y if rest is None else rest.overwrite(y), z, *statistics


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    input, weight, bias, norm_weight, norm_bias, residual, running_mean, running_var, call = inputs
    y, z, *statistics = output
    mean, var = statistics or (running_mean, running_var)
    if any(ctx.needs_input_grad[6:8]):
        raise RuntimeError("batch_norm is not differentiable by running_mean and running_var: they require a gradient")
    ctx.mark_non_differentiable(z, *statistics)
    ctx.set_materialize_grads(False)
    activation = call.step.activation
    output_kept = added = None
    if residual is None:
        source = Source(None, (call.step,), (z, mean, var, norm_weight, norm_bias))
    else:
        source = None
        if call.residual is not None and len(call.residual.steps) < MOST_STEPS:
            source = call.residual.then(call.step, z, mean, var, norm_weight, norm_bias)
        if activation is not None:
            if source is not None:
                added = call.residual
            elif _from_output(activation):
                output_kept = y
            else:
                added = Source(residual)
    if source is not None and call.recompute:
        remember(y, source)
    if not call.input.steps:
        kept(input)
    ctx.window, ctx.step, ctx.histories, ctx.training = call.window, call.step, call.histories, call.training
    ctx.memo = None if source is None else source.memo
    ctx.input = call.input.without_tensors()
    ctx.residual = None if added is None else added.without_tensors()
    ctx.input_size, ctx.kernel_size, ctx.channels_last = input.shape[2:], weight.shape[2:], _is_channels_last(weight)
    ctx.save_for_backward(
        weight,
        bias,
        z,
        mean,
        var,
        norm_weight,
        norm_bias,
        output_kept,
        *call.input.saved(),
        *(() if added is None else added.saved()),
    )


def _backward(ctx: Any, gradients: list[Tensor | None], sole: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    grad, overwritable = gradients[0], sole[0]
    gradients.clear()
    if grad is None:
        return (None,) * 9
    weight, bias, z, mean, var, norm_weight, norm_bias, output, *sources = ctx.take_saved_tensors()
    count = ctx.input.count
    input = ctx.input.restored(*sources[:count])
    residual = None if ctx.residual is None else ctx.residual.restored(*sources[count:])
    del sources
    needs = ctx.needs_input_grad
    twice = torch.is_grad_enabled()
    if ctx.memo is not None and not twice:
        ctx.memo.value = None  # all that ask for it have been served
    x = None
    if twice:  # all that follows is to be differentiated by x and by the weights, on which z depends
        x = _connected(input, ctx.histories[0])
        z = Conv.call(x, weight, bias, ctx.window)
    eps, activation = ctx.step
    limits, rest = split(activation)
    within_kernel = activation is not None and rest is None
    if within_kernel and not twice and not torch._C._are_functorch_transforms_active():
        norm = (norm_weight, norm_bias, mean, var)
        overwritable = overwritable and output is None and grad.stride() == z.stride()
        added = None
        if residual is not None:
            overwritable = overwritable and len(residual.steps) > 0
            added = residual.fresh() if overwritable else residual.value()
            overwritable = overwritable and added.stride() == z.stride()
        if overwritable:
            dz, g = grad, added
            d_norm_weight, d_norm_bias = _add_clamp_overwrite(dz, z, *norm, g, eps, *limits, ctx.training)
        else:
            dz, d_norm_weight, d_norm_bias, g = _add_clamp_backward(
                grad, z, *norm, added, output, eps, *limits, ctx.training
            )
        del added
    elif activation is None:
        g = grad
        dz, d_norm_weight, d_norm_bias = BatchNormBackward.call(g, z, norm_weight, mean, var, eps, ctx.training)
    else:
        saved = output
        if saved is None:
            added = None
            if residual is not None:
                added = _connected(residual, ctx.histories[1]) if twice else residual.value()
            saved = _before_activation(ctx, z, mean, var, norm_weight, norm_bias, added, twice)
            if _ROWS[activation.name].saves_output:
                saved = activation(saved)
        g = GRADIENTS[f"{activation.name}_backward"].call(grad, saved, *activation.parameters)
        del saved
        dz, d_norm_weight, d_norm_bias = BatchNormBackward.call(g, z, norm_weight, mean, var, eps, ctx.training)
    d_residual = g if needs[5] else None
    del z, output, g, grad, residual
    dw = None
    if needs[1]:  # before dx, which takes the memory of x
        x = input.value() if x is None else x
        dw = ConvWeightGrad.call(dz, x, ctx.kernel_size, ctx.window, ctx.channels_last)
    del x, input
    return (
        ConvTranspose.call(dz, weight, None, ctx.input_size, ctx.window) if needs[0] else None,
        dw,
        ChannelSum.call(dz) if needs[2] else None,
        d_norm_weight if needs[3] else None,
        d_norm_bias if needs[4] else None,
        d_residual,
        None,
        None,
        None,
    )


def _connected(source: Source, past: Tensor | None) -> Tensor:
    """The value of a source, differentiable by what it came from."""
    value = source.value()
    return value if past is None or not source.steps else value + past


def _before_activation(
    ctx: Any,
    z: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    twice: bool,
) -> Tensor:
    eps = ctx.step.eps
    if not twice:
        return batch_norm_add_clamp(z, weight, bias, mean, var, residual, eps, *NO_LIMITS)
    if ctx.training:
        normalized = BatchNormTrain.call(z, weight, bias, eps, None, None, 0.0)[0]
    else:
        normalized = BatchNormEval.call(z, weight, bias, mean, var, eps)
    return normalized if residual is None else normalized + residual


def _separately(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    call: _Call,
) -> tuple[Tensor]:
    """One operation after the other: for all that is not ordinary, such as transforms and forward-mode derivatives."""
    z = Conv.call(input, weight, bias, call.window)
    statistics = (running_mean, running_var)
    y = batch_norm(z, *statistics, norm_weight, norm_bias, call.training, call.momentum, call.step.eps)
    return (_added_and_activated(y, residual, call.step.activation),)


def _added_and_activated(y: Tensor, residual: Tensor | None, activation: Activation | None) -> Tensor:
    if residual is not None:
        y = y + residual
    return y if activation is None else activation(y)


_conv_batch_norm = _C.Function("ConvBatchNorm", _forward, _setup_context, _backward, _separately, None, hands_over=True)


def conv_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    recompute: bool = True,
) -> Tensor:
    """``y = f(w' z_hat + b' + r)``, z the convolution of the input.

    Args:
        input: ``(N, C, *)``.
        weight, bias, window: of the convolution.
        running_mean, running_var, norm_weight, norm_bias, training, momentum, eps: of the normalization, as for
            :func:`scratchnn.functional.batch_norm`.
        residual: what is added to the normalized output, or none.
        activation: f, or none.
        recompute: compute the output again in the backward passes of those it is given to, rather than keep it.

    Raises:
        ValueError, RuntimeError: as the operations one by one.
    """
    if not training and residual is None and activation is None and _folding_pays(input, weight, window):
        check_evaluation(input, running_mean, running_var, norm_weight, eps)
        folded = _folded(weight, bias, running_mean, running_var, norm_weight, norm_bias, eps)
        input, weight, bias = autocast(input, *folded)
        return Conv.call(input, weight, bias, window)
    input, weight, bias = autocast(input, weight, bias)
    if residual is not None and not _adds_up(input, weight, window, residual):
        norm = (running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
        return _added_and_activated(conv_batch_norm(input, weight, bias, window, *norm), residual, activation)
    tensors = (input, weight, bias, norm_weight, norm_bias, residual, running_mean, running_var)
    call = _Call(window, Step(eps, activation), momentum, Source(input), None, (None, None), False, training)
    # Where the weight has no gradient, less is needed than would be kept here.
    if is_dynamo_compiling() or (torch.is_grad_enabled() and not weight.requires_grad):
        return _separately(*tensors, call)[0]
    if torch.is_grad_enabled():
        call = _linked(call, input, weight, residual)._replace(recompute=recompute)
    return _conv_batch_norm(*tensors, call)[0]


def _linked(call: _Call, input: Tensor, weight: Tensor, residual: Tensor | None) -> _Call:
    """The call, with what is known of where its input and residual come from."""
    # Saved tensors in other hands are gone, or differ from one forward pass to its repetition (checkpointing).
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return call
    pixels, outputs = math.prod(input.shape[2:]), math.prod(_output_sizes(input, weight, call.window))
    kept_anyway = outputs * weight.numel() < _FEWEST_PRODUCTS * pixels * input.shape[1]
    source = None if kept_anyway else recall(input)
    added = None if residual is None else recall(residual)
    histories = (
        None if source is None or not source.steps or not input.requires_grad else history(input),
        None if added is None or not added.steps or not residual.requires_grad else history(residual),
    )
    return call._replace(input=source or call.input, residual=added, histories=histories)


def _adds_up(input: Tensor, weight: Tensor, window: Window, residual: Tensor) -> bool:
    """Whether the convolution's output is of the residual's shape and type: nothing is to be expanded or converted."""
    if residual.dtype != input.dtype or residual.shape[:2] != (input.shape[0], weight.shape[0]):
        return False
    return list(residual.shape[2:]) == _output_sizes(input, weight, window)


def _output_sizes(input: Tensor, weight: Tensor, window: Window) -> list[int]:
    stride, padding, dilation, *_ = window
    return [
        output_size(input.shape[2 + i], weight.shape[2 + i], padding[2 * i] + padding[2 * i + 1], stride[i], spread)
        for i, spread in enumerate(dilation)
    ]


def _folding_pays(input: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether scaling the weights is less than scaling the outputs of one image: not a matter of how many there are."""
    pixels = 1
    for size in _output_sizes(input, weight, window):
        pixels *= size
    return pixels >= weight[0].numel()


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``w' = gamma r w`` and ``b' = gamma r (b - mu) + beta``."""
    scale = (var.double() + eps).rsqrt()
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm_bias is not None:
        shift = shift + norm_bias
    scale = scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    return (weight * scale).to(weight.dtype), shift.to(weight.dtype)

"""The normalizations, from their formulas. Names as in :mod:`scratchnn.ops._norm_terms`.

Where torch has the layer as one operator, that computes the output: whoever reads the graph knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from scratchnn.decompositions._table import decomposes, is_half
from scratchnn.ops._functionalize import batch_norm_update

_aten = torch.ops.aten


def _dtype(input: Tensor) -> torch.dtype:
    """What is computed in: float32 at the least."""
    return torch.float32 if is_half(input) else input.dtype


def _to(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _finish(result: Tensor, input: Tensor) -> Tensor:
    """With the shape, the type and the memory format of the input."""
    result = result if result.shape == input.shape else result.reshape(input.shape)
    return result.to(input.dtype).contiguous(memory_format=suggest_memory_format(input))


def _statistics(x: Tensor, over: Sequence[int], centred: bool = True) -> tuple[Tensor, Tensor]:
    """The mean and the (biased) variance; where the mean counts as zero, that and ``E[x^2]``; of nothing, zeros."""
    if x.numel() == 0:
        mean = var = x.sum(over)
    elif centred:
        mean, var = x.mean(over), x.var(over, correction=0)
    else:
        mean, var = x.new_empty(0), x.square().mean(over)
    return mean if centred else x.new_empty(0), var


def _gradients(
    g: Tensor,
    x_hat: Tensor,
    r: Tensor,
    weight: Tensor | None,
    over: Sequence[int],
    parameter: Sequence[int],
    centred: bool,
    constant: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx = r P(w g)``, ``dw = sum of g x_hat``, ``db = sum of g``.

    Statistics are taken over the dimensions ``over``, and a parameter is shared by those of ``parameter``. ``constant``
    statistics do not follow from the input.
    """
    wg = g if weight is None else g * weight
    dx = wg
    if not constant:
        dx = dx - x_hat * (wg * x_hat).mean(over, keepdim=True)
        dx = dx - wg.mean(over, keepdim=True) if centred else dx
    return r * dx, (g * x_hat).sum(parameter), g.sum(parameter)


# Batch norm


def _per_channel(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each channel, to be broadcast."""
    return numbers.reshape(-1, *(1 for _ in x.shape[2:]))


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


@decomposes("batch_norm_statistics")
def batch_norm_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _statistics(input.to(_dtype(input)), _all_but_channels(input))
    return mean.double(), var.double()


@decomposes("batch_norm_train")
def batch_norm_train(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, in_double: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if in_double else _dtype(input)
    if input.numel() == 0:
        return _finish(input.clone(), input), *(s.to(dtype) for s in batch_norm_statistics(input))
    x, w, b = (_to(_dtype(input), tensor) for tensor in (input, weight, bias))
    y, mean, r = _aten._native_batch_norm_legit.no_stats(x, w, b, True, 0.0, eps)
    return _finish(y, input), mean.to(dtype), (r.double() ** -2 - eps).clamp(min=0).to(dtype)


@decomposes("batch_norm_eval")
def batch_norm_eval(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> Tensor:
    x, w, b, mean, var = (_to(_dtype(input), tensor) for tensor in (input, weight, bias, running_mean, running_var))
    return _finish(_aten._native_batch_norm_legit_no_training(x, w, b, mean, var, 0.0, eps)[0], input)


decomposes("batch_norm_update_")(batch_norm_update)


@decomposes("batch_norm_backward")
def batch_norm_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor, eps: float, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, dims = _dtype(input), _all_but_channels(input)
    r = _per_channel((var.double() + eps).rsqrt().to(dtype), input)
    x = input.to(dtype)
    x = x if mean is None else x - _per_channel(mean.to(dtype), input)
    if training and (mean is None or mean.dtype != torch.float64):  # twice: the mean was rounded when it was kept
        x = x - x.mean(dims, keepdim=True)
    x_hat = x * r
    w = None if weight is None else _per_channel(weight.to(dtype), input)
    dx, dw, db = _gradients(grad.to(dtype), x_hat, r, w, dims, dims, centred=True, constant=not training)
    parameter = dtype if weight is None else weight.dtype
    return _finish(dx, input), dw.to(parameter), db.to(parameter)


def _ended(normalized: Tensor, residual: Tensor | None, low: float, high: float) -> Tensor:
    """``min(max(n + r, low), high)``."""
    total = normalized if residual is None else normalized + residual
    return total if low == -math.inf and high == math.inf else total.clamp(low, high)


def _wide(input: Tensor) -> Tensor:
    return input.to(_dtype(input))


@decomposes("batch_norm_backward_")
def batch_norm_backward_in_place(grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dx, dw, db = batch_norm_backward(grad, *rest)
    grad.copy_(dx)
    return dw, db


@decomposes("batch_norm_add_clamp_train")
def batch_norm_add_clamp_train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, *statistics = batch_norm_train(_wide(input), *(_to(_dtype(input), p) for p in (weight, bias)), eps, True)
    return _finish(_ended(y, residual, low, high), input), *statistics


@decomposes("batch_norm_add_clamp")
def batch_norm_add_clamp(
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
    y = batch_norm_eval(_wide(input), *(_to(_dtype(input), p) for p in (weight, bias)), mean, var, eps)
    return _finish(_ended(y, residual, low, high), input)


@decomposes("batch_norm_add_clamp_backward")
def batch_norm_add_clamp_backward(
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
    g = grad
    if limited:
        seen = output
        if seen is None:
            no = (-math.inf, math.inf)
            seen = batch_norm_add_clamp(_wide(input), weight, bias, mean, var, residual, eps, *no)
        g = torch.where((seen <= low) | (seen >= high) if high < math.inf else seen <= low, 0, grad)
        mean = mean.double()  # under limits it counts as exact
    gradients = batch_norm_backward(g, input, weight, mean, var, eps, training)
    stored = limited and not (residual is None and output is None)
    return *gradients, _finish(g, input) if stored else input.new_empty(0)


@decomposes("batch_norm_add_clamp_backward_")
def batch_norm_add_clamp_backward_in_place(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    *rest: float,
) -> tuple[Tensor, Tensor]:
    dx, dw, db, g = batch_norm_add_clamp_backward(grad, input, weight, bias, mean, var, residual, None, *rest)
    grad.copy_(dx)
    if residual is not None and g.numel() > 0:
        residual.copy_(g)
    return dw, db


# By statistics of a sample alone: of N x G x K x P, these dimensions share a mean and a variance.

_OVER = {"row": [2, 3], "group": [2, 3], "pixel": [2]}


def _over_sets(statistics: Tensor, shape: Sequence[int], sharing: str) -> Tensor:
    """One number for each set, to be broadcast over N x G x K x P."""
    return statistics.reshape(shape[0], 1, 1, shape[3]) if sharing == "pixel" else statistics.reshape(*shape[:2], 1, 1)


def _over_parameters(numbers: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    return None if numbers is None else numbers.to(dtype).reshape(1, shape[1], shape[2], 1)


def _flat(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.flatten()


@decomposes("normalize")
def normalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    sharing: str,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    samples, groups, channels, pixels = shape
    dtype = _dtype(input)
    x = input.to(dtype).reshape(shape)
    mean, var = _statistics(x, _OVER[sharing], centred)
    if centred and sharing == "row":
        rows = input.reshape(samples, channels)
        y = torch.layer_norm(rows, (channels,), _flat(weight), _flat(bias), eps)
    elif centred and sharing == "group":
        y = torch.group_norm(input, groups, _flat(weight), _flat(bias), eps)
    else:
        y = x - _over_sets(mean, shape, sharing) if centred else x
        y = y * (_over_sets(var, shape, sharing) + eps).rsqrt()
        w, b = (_over_parameters(numbers, shape, dtype) for numbers in (weight, bias))
        y = y if w is None else y * w
        y = y if b is None else y + b
    sets = (samples, pixels if sharing == "pixel" else groups)
    return _finish(y, input), mean.reshape(sets) if centred else mean, var.reshape(sets)


@decomposes("normalize_backward")
def normalize_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    shape: Sequence[int],
    sharing: str,
    centred: bool,
    eps: float,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _dtype(input)
    x = input.to(dtype).reshape(shape)
    if centred:  # twice: the mean was rounded when it was kept
        x = x if mean is None else x - _over_sets(mean, shape, sharing).to(dtype)
        x = x - x.mean(_OVER[sharing], keepdim=True)
    r = (_over_sets(var, shape, sharing) + eps).rsqrt().to(dtype)
    w, g = _over_parameters(weight, shape, dtype), grad.to(dtype).reshape(shape)
    dx, dw, db = _gradients(g, x * r, r, w, _OVER[sharing], [0, 3], centred=centred, constant=False)
    parameter = dtype if weight is None else weight.dtype
    dw, db = ((s.flatten() if parameters else s.new_empty(0)).to(parameter) for s in (dw, db))
    return _finish(dx, input), dw, db


# Local response norm


def _window_sums(x: Tensor, before: int, after: int) -> Tensor:
    """The sums over channels c - before to c + after of N x C x P: what an average pooling does not divide."""
    before, after = min(before, x.shape[1]), min(after, x.shape[1])
    padded = _aten.constant_pad_nd(x.unsqueeze(1), [0, 0, before, after])
    window = [before + after + 1, 1]
    return torch.nn.functional.avg_pool2d(padded, window, stride=1, divisor_override=1).squeeze(1)


def _as_planes(x: Tensor) -> Tensor:
    return x.to(_dtype(x)).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


@decomposes("local_response_norm")
def local_response_norm(input: Tensor, before: int, after: int, scale: float, beta: float, k: float) -> Tensor:
    """``y = x s^-beta``, ``s = k + scale * (sum of x^2 over the window)``."""
    x = _as_planes(input)
    return _finish(x * (k + scale * _window_sums(x * x, before, after)) ** -beta, input)


@decomposes("local_response_norm_backward")
def local_response_norm_backward(
    grad: Tensor, input: Tensor, before: int, after: int, scale: float, beta: float, k: float
) -> Tensor:
    """``dx = g s^-beta - 2 scale beta x (sum of g x s^(-beta - 1) over the channels whose window one is in)``."""
    x, g = _as_planes(input), _as_planes(grad)
    s = k + scale * _window_sums(x * x, before, after)
    others = _window_sums(g * x * s ** (-beta - 1), after, before)
    return _finish(g * s**-beta - 2 * scale * beta * x * others, input)

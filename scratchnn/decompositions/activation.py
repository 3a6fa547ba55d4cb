"""The activations, by the formulas of ``csrc/activation/functions.h``. Names as in
:mod:`scratchnn.ops._elementwise`, :mod:`scratchnn.ops._softmax` and :mod:`scratchnn.ops._gates`.

Values are torch's own operator where that computes the same numbers in every type. Gradients are written out: some of
torch's have float32 constants in float64 too, some no complex numbers, and at kinks they differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional

from scratchnn.decompositions._table import decomposes, laid_out_like, rounded_once

_aten = torch.ops.aten

_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


# Elementwise: y = f(x)


@rounded_once
def _log_sigmoid(x: Tensor) -> Tensor:
    return x.clamp(max=0) - (-x.abs()).exp().log1p()


@rounded_once
def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, x, (z.clamp(min=0) + (-z.abs()).exp().log1p()) / beta)


VALUES: dict[str, Callable[..., Tensor]] = {
    "relu": _aten.relu,
    "leaky_relu": _aten.leaky_relu,
    "threshold": rounded_once(_aten.threshold),
    "hardtanh": _aten.hardtanh,
    "hardsigmoid": _aten.hardsigmoid,
    "hardswish": _aten.hardswish,
    "elu": lambda x, alpha: _aten.elu(x, alpha, 1, 1),
    "celu": lambda x, alpha: _aten.elu(x, alpha, 1, 1 / alpha),
    "selu": lambda x: _aten.elu(x, *_SELU, 1),
    "silu": _aten.silu,
    "mish": _aten.mish,
    "hardshrink": rounded_once(_aten.hardshrink),
    "softshrink": rounded_once(_aten.softshrink),
    "sigmoid": _aten.sigmoid,
    "log_sigmoid": _log_sigmoid,
    "tanh": _aten.tanh,
    "tanhshrink": rounded_once(lambda x: x - x.tanh()),
    "softsign": rounded_once(lambda x: x / (1 + x.abs())),
    "softplus": _softplus,
    "gelu": _aten.gelu,
    "gelu_tanh": lambda x: _aten.gelu(x, approximate="tanh"),
}


# dx = dy conj(f'(x)), from g = dy and what is saved, x or y


def _hardswish(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0, torch.where(x < 3, g * (x / 3 + 0.5), g))


def _exponential_unit(g: Tensor, x: Tensor, alpha: float, scale: float = 1.0, width: float = 1.0) -> Tensor:
    return torch.where(x <= 0, g * (alpha * scale / width) * (x.clamp(max=0) / width).exp(), g * scale)


def _exponential_unit_output(g: Tensor, y: Tensor, alpha: float, scale: float = 1.0, width: float = 1.0) -> Tensor:
    return torch.where(y <= 0, g * (y + alpha * scale) / width, g * scale)


def _silu(g: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()
    return g * (s * (1 + x * (1 - s))).conj()


def _softsign(g: Tensor, x: Tensor) -> Tensor:
    size = 1 + x.abs()
    if not x.is_complex():
        return g / size / size
    along = (x.conj() * g).real / (x.abs() * size * size)
    return g / size - x * torch.where(x == 0, 0, along)


def _softplus_gradient(g: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, g, g * z.sigmoid())


GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "relu_backward": lambda g, y: torch.where(y <= 0, 0, g),
    "leaky_relu_backward": lambda g, x, slope: torch.where(x > 0, g, g * slope),
    "threshold_backward": lambda g, x, limit, _: torch.where(x <= limit, 0, g),
    "hardtanh_backward": lambda g, x, least, most: torch.where((x <= least) | (x >= most), 0, g),
    "hardsigmoid_backward": lambda g, x: torch.where((x > -3) & (x < 3), g / 6, 0),
    "hardswish_backward": _hardswish,
    "elu_backward": _exponential_unit,
    "celu_backward": lambda g, x, alpha: _exponential_unit(g, x, alpha, width=alpha),
    "selu_backward": lambda g, x: _exponential_unit(g, x, *_SELU),
    "elu_output_backward": _exponential_unit_output,
    "celu_output_backward": lambda g, y, alpha: _exponential_unit_output(g, y, alpha, width=alpha),
    "selu_output_backward": lambda g, y: _exponential_unit_output(g, y, *_SELU),
    "silu_backward": _silu,
    "mish_backward": _aten.mish_backward,
    "hardshrink_backward": lambda g, x, limit: torch.where((x >= -limit) & (x <= limit), 0, g),
    "softshrink_backward": lambda g, x, limit: torch.where((x >= -limit) & (x <= limit), 0, g),
    "sigmoid_backward": lambda g, y: g * ((1 - y) * y).conj(),
    "log_sigmoid_backward": lambda g, x: g * (-x).sigmoid(),
    "tanh_backward": lambda g, y: g * (1 - y * y).conj(),
    "tanhshrink_backward": lambda g, x: g * x.tanh().square().conj(),
    "softsign_backward": _softsign,
    "softplus_backward": _softplus_gradient,
    "gelu_backward": _aten.gelu_backward,
    "gelu_tanh_backward": lambda g, x: _aten.gelu_backward(g, x, approximate="tanh"),
}


def _value(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *parameters: laid_out_like(formula(x, *parameters), x)


def _in_place(formula: Callable[..., Tensor]) -> Callable[..., None]:
    def write(x: Tensor, *parameters: float) -> None:
        x.copy_(formula(x, *parameters))

    return write


def _gradient(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    rounded = rounded_once(formula)
    return lambda g, saved, *parameters: laid_out_like(rounded(g, saved, *parameters), saved)


for _name, _formula in VALUES.items():
    decomposes(_name)(_value(_formula))
    if hasattr(torch.ops.scratchnn, _name + "_"):
        decomposes(_name + "_")(_in_place(_formula))
for _name, _formula in GRADIENTS.items():
    decomposes(_name)(_gradient(_formula))
    decomposes(_name + "_")(_in_place(rounded_once(_formula)))


# Along a dimension


def _in_format(result: Tensor, input: Tensor) -> Tensor:
    return result.contiguous(memory_format=suggest_memory_format(input))


@decomposes("softmax")
def softmax(input: Tensor, dim: int) -> Tensor:
    return _in_format(functional.softmax(input, dim), input)


@decomposes("softmin")
def softmin(input: Tensor, dim: int) -> Tensor:
    return softmax(-input, dim)


@decomposes("log_softmax")
def log_softmax(input: Tensor, dim: int) -> Tensor:
    return _in_format(functional.log_softmax(input, dim), input)


@rounded_once
def _softmax_gradient(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    return y * (grad - (grad * y).sum(dim, keepdim=True))


@decomposes("softmax_backward")
def softmax_backward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
    return laid_out_like(_softmax_gradient(grad, output, dim), output)


@decomposes("softmin_backward")
def softmin_backward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
    return -softmax_backward(grad, output, dim)


@decomposes("log_softmax_backward")
def log_softmax_backward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
    gradient = rounded_once(lambda g, y: g - y.exp() * g.sum(dim, keepdim=True))
    return laid_out_like(gradient(grad, output), output)


@decomposes("glu")
def glu(input: Tensor, dim: int) -> Tensor:
    return _aten.glu(input, dim)


@decomposes("glu_backward")
def glu_backward(grad: Tensor, input: Tensor, dim: int) -> Tensor:
    return laid_out_like(_aten.glu_backward(grad, input, dim), input)


# PReLU, RReLU, maxout


def _along_channels(weight: Tensor, x: Tensor) -> Tensor:
    return weight.reshape(()) if weight.numel() == 1 else weight.reshape(-1, *(1 for _ in x.shape[2:]))


@decomposes("prelu")
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    return laid_out_like(torch.where(input > 0, input, _along_channels(weight, input) * input), input)


@decomposes("prelu_backward")
def prelu_backward(grad: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    w = _along_channels(weight, input)
    dx = torch.where(input > 0, grad, w * grad)
    terms = rounded_once(lambda g, x: torch.where(x > 0, 0, g * x).sum_to_size(w.shape))
    return laid_out_like(dx, input), terms(grad, input).reshape(weight.shape)


@decomposes("rrelu_train")
def rrelu_train(input: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    """The slopes are torch's, but its product is not: that has a wrong derivative."""
    noise = torch.zeros_like(input, memory_format=torch.contiguous_format)
    _, slopes = _aten.rrelu_with_noise_functional(input.contiguous(), noise, lower, upper, True)
    slopes = _in_format(slopes, input)
    return _in_format(input * slopes, input), slopes


@decomposes("maxout")
def maxout(input: Tensor, pieces: int, dim: int) -> tuple[Tensor, Tensor]:
    output, winners = input.unflatten(dim, (input.shape[dim] // pieces, pieces)).max(dim + 1)
    return _in_format(output, input), _in_format(winners.to(torch.int16), input)


@decomposes("maxout_backward")
def maxout_backward(grad: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
    shape = (*grad.shape[: dim + 1], pieces, *grad.shape[dim + 1 :])
    which = winners.long().unsqueeze(dim + 1)
    dx = grad.new_zeros(shape).scatter(dim + 1, which, grad.unsqueeze(dim + 1)).flatten(dim, dim + 1)
    return _in_format(dx, winners)


@decomposes("maxout_gather")
def maxout_gather(input: Tensor, winners: Tensor, pieces: int, dim: int) -> Tensor:
    x = input.unflatten(dim, (winners.shape[dim], pieces))
    return _in_format(x.gather(dim + 1, winners.long().unsqueeze(dim + 1)).squeeze(dim + 1), winners)

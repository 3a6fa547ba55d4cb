"""The fully-connected layers as products of matrices. Names as in :mod:`scratchnn.ops.linear`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scratchnn.decompositions._table import decomposes, rounded_once


def _matrix(tensor: Tensor) -> Tensor:
    """All leading dimensions, none included, as one."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


@decomposes("linear")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(input, weight, bias)


@decomposes("linear_input_grad")
def linear_input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    return (_matrix(grad) @ weight).reshape(*grad.shape[:-1], weight.shape[1])


@decomposes("linear_weight_grad")
def linear_weight_grad(grad: Tensor, input: Tensor) -> Tensor:
    return _matrix(grad).t() @ _matrix(input)


@decomposes("bilinear")
@rounded_once
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``y[n, k] = b[k] + sum over j of (x w[k])[n, j] z[n, j]``."""
    x, z = _matrix(input1), _matrix(input2)
    outputs, i, j = weight.shape
    product = x @ weight.movedim(1, 0).reshape(i, outputs * j)
    y = (product.reshape(x.shape[0], outputs, j) * z.unsqueeze(1)).sum(-1)
    y = y if bias is None else y + bias
    return y.reshape(*input1.shape[:-1], outputs)


@decomposes("bilinear_weight_grad")
@rounded_once
def bilinear_weight_grad(grad: Tensor, input1: Tensor, input2: Tensor) -> Tensor:
    """``dw[k, i, j] = sum over n of (dy[n, k] x[n, i]) z[n, j]``."""
    dy, x, z = _matrix(grad), _matrix(input1), _matrix(input2)
    scaled = (dy.unsqueeze(2) * x.unsqueeze(1)).reshape(x.shape[0], dy.shape[1] * x.shape[1])
    return (scaled.t() @ z).reshape(dy.shape[1], x.shape[1], z.shape[1])

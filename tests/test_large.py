"""Tensors of more than 2^31 elements: positions are counted in 64 bits everywhere.

The inputs are zeros, which take no memory until they are written to, but for the last few numbers. The end of what
comes out must be that of a small input's. Outputs and gradients take 9 GB each, and the test 20 at most.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import numpy
import pytest
import torch
from torch import Tensor

import scratchnn.functional as F

MANY = 2**31 + 4096
SMALL = 4096  # the length of the small input, a part of whose end is compared

Function = Callable[[Tensor], Tensor]


def conv(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, 3 * x.shape[1]).reshape(1, x.shape[1], *[1] * (x.dim() - 3), 3)
    return getattr(F, f"conv{x.dim() - 2}d")(x, weight, padding=[0] * (x.dim() - 3) + [1])


def depthwise(x: Tensor) -> Tensor:
    return F.conv1d(x, torch.linspace(-1, 1, 3 * x.shape[1]).reshape(-1, 1, 3), padding=1, groups=x.shape[1])


def transposed(x: Tensor) -> Tensor:
    return F.conv_transpose1d(x, torch.linspace(-1, 1, 3).reshape(1, 1, 3), padding=1)


def evaluated(x: Tensor) -> Tensor:
    channels = x.shape[1]
    return F.batch_norm(x, torch.linspace(0, 1, channels), torch.linspace(1, 2, channels))


# name -> (function, the shape with one long dimension, marked -1)
CASES: dict[str, tuple[Function, tuple[int, ...]]] = {
    "conv1d": (conv, (1, 1, -1)),
    "conv2d": (conv, (1, 2, 1, -1)),
    "depthwise": (depthwise, (1, 2, -1)),
    "conv_transpose1d": (transposed, (1, 1, -1)),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, padding=1), (1, -1, 64)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (1, -1, 64)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (1, -1, 8, 8)),
    "batch_norm": (evaluated, (1, 2, -1)),
    "layer_norm": (lambda x: F.layer_norm(x, (64,)), (-1, 64)),
    "rms_norm": (lambda x: F.rms_norm(x, (64,)), (-1, 64)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 3, alpha=0.5), (1, 3, -1)),
    "linear": (lambda x: F.linear(x, torch.linspace(-1, 1, 64)[None]), (-1, 64)),
    "relu": (F.relu, (-1,)),
    "gelu": (F.gelu, (-1,)),
    "softmax": (lambda x: F.softmax(x, -1), (-1, 64)),
}


def zeros(shape: tuple[int, ...], elements: int) -> Tensor:
    """Zeros whose dimension of length -1 is as long as it takes; the last numbers of every row along it are others."""
    dim = shape.index(-1)
    others = -torch.Size(shape).numel()
    length = elements // others + (elements // others) % 2
    x = untouched_zeros([length if size == -1 else size for size in shape])
    end = x.narrow(dim, length - 16, 16)
    end.copy_(torch.linspace(-2, 2, end.numel()).reshape(end.shape))
    return x


def untouched_zeros(shape: Sequence[int]) -> Tensor:
    """Zeros that the system gives out when they are read; torch writes its own at once."""
    return torch.from_numpy(numpy.zeros(shape, numpy.float32))


def end(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    dim = shape.index(-1)
    return x.narrow(dim, x.shape[dim] - 8, 8).clone()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_more_elements_than_32_bits_count(name: str) -> None:
    function, shape = CASES[name]
    results = []
    for elements in (SMALL, MANY):
        x = zeros(shape, elements).requires_grad_()
        assert elements == SMALL or x.numel() > 2**31
        y = function(x)
        grad = untouched_zeros(y.shape)
        end_of_grad = grad.narrow(shape.index(-1), y.shape[shape.index(-1)] - 8, 8)
        end_of_grad.copy_(torch.linspace(-1, 1, end_of_grad.numel()).reshape(end_of_grad.shape))
        (dx,) = torch.autograd.grad(y, x, grad)
        results.append((end(y.detach(), shape), end(dx, shape)))
        del x, y, grad, end_of_grad, dx
        gc.collect()
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(large, small, rtol=1e-5, atol=1e-6)

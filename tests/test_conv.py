"""Convolution against torch, float64 truth and its formula."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from common import (
    ALL_DTYPES,
    COMPLEX_DTYPES,
    FAST_DTYPES,
    HALF_DTYPES,
    assert_as_accurate,
    assert_rounded_once,
    check_against_torch,
    exact,
    gradients,
    layouts,
    relative_error,
    same_error,
    strides,
)
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn

_ops = torch.ops.scratchnn

# Error allowed, as a multiple of torch's own. Sums in another order are as good as torch's, up to chance.
DIRECT = 2.0
# Winograd's transforms (3x3 in height and width, stride 1) trade a little accuracy for fewer multiplications: up to two
# and a half times the error of a direct sum, somewhat more without fused multiply-add.
WINOGRAD = 4.0


def allowed(kernel_size: Any, options: dict[str, Any], dtype: torch.dtype) -> float:
    half = dtype in (torch.bfloat16, torch.float16)  # rounded once at the end, which is more
    winograd = tuple(kernel_size)[-2:] == (3, 3) and options.get("stride", 1) == 1 and not half
    return WINOGRAD if winograd else DIRECT


def formats(rank: int) -> list[torch.memory_format]:
    """The memory formats that images of a rank come in."""
    return [torch.contiguous_format, *{2: [torch.channels_last], 3: [torch.channels_last_3d]}.get(rank, [])]


def samples_of(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: tuple, channels_last: bool = False
) -> tuple[Tensor, Tensor, Tensor, tuple]:
    """Input, weight and incoming gradient of one convolution, and its window."""
    x, w = torch.randn(x_shape), torch.randn(w_shape)
    if channels_last:
        x, w = (tensor.to(memory_format=torch.channels_last) for tensor in (x, w))
    y = _ops.conv(x, w, None, *window)
    return x, w, torch.randn_like(y), window


def operator_samples() -> list[tuple[Tensor, Tensor, Tensor, tuple]]:
    return [
        samples_of((2, 4, 6, 5), (6, 2, 3, 2), ([2, 1], [1, 1, 0, 2], [1, 2], 2, "zeros")),
        samples_of((2, 4, 6, 5), (6, 4, 3, 3), ([1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros"), channels_last=True),
        samples_of((2, 3, 9), (4, 3, 3), ([2], [1, 1], [1], 1, "zeros")),
        samples_of((2, 3, 9), (4, 3, 3), ([1], [0, 2], [1], 1, "circular")),
        samples_of((1, 2, 4, 3, 5), (2, 2, 3, 1, 2), ([1, 1, 1], [1, 1, 0, 0, 1, 0], [1, 1, 1], 1, "zeros")),
        samples_of((1, 2, 4, 3, 5), (2, 1, 3, 1, 2), ([2, 1, 1], [1, 1, 0, -1, 1, 0], [1, 1, 2], 2, "reflect")),
    ]


OPERATOR_SAMPLES = {
    "conv": lambda: [
        (x, w, bias, *window) for x, w, _, window in operator_samples() for bias in (None, torch.randn(w.shape[0]))
    ],
    "conv_transpose": lambda: [
        (dy, w, bias, x.shape[2:], *window)
        for x, w, dy, window in operator_samples()
        for bias in (None, torch.randn(x.shape[1]))
    ],
    "conv_weight_grad": lambda: [
        (dy, x, w.shape[2:], *window, channels_last)
        for x, w, dy, window in operator_samples()
        for channels_last in (False, True)
    ],
    "channel_sum": lambda: [
        (torch.randn(2, 3, 5),),
        (torch.randn(4, 3),),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),),
        (torch.randn(2, 3, 4, dtype=torch.complex64),),
    ],
}


# The ladder: formula, naive loops, fast kernels.


def conv_formula(x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, dilation: int, groups: int) -> Tensor:
    """``y[n, k, o] = b[k] + sum over c, t of w[k, c, t] x[n, c, o S - P + t D]``, one number at a time."""
    N, _, H, W = x.shape
    K, group_in, R, S = w.shape
    height, width = ((size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1 for size, taps in ((H, R), (W, S)))
    y = torch.zeros(N, K, height, width, dtype=torch.float64)
    for n, k, i, j in itertools.product(range(N), range(K), range(height), range(width)):
        y[n, k, i, j] = b[k]
        first = k // (K // groups) * group_in
        for c, r, s in itertools.product(range(group_in), range(R), range(S)):
            h, v = i * stride - padding + r * dilation, j * stride - padding + s * dilation
            if 0 <= h < H and 0 <= v < W:
                y[n, k, i, j] += w[k, c, r, s].double() * x[n, first + c, h, v].double()
    return y


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 4)])
def test_the_ladder_formula_naive_fast(stride: int, padding: int, dilation: int, groups: int) -> None:
    x, w, b = torch.randn(2, 4, 5, 6), torch.randn(4, 4 // groups, 3, 2), torch.randn(4)
    formula = conv_formula(x, w, b, stride, padding, dilation, groups)
    with scratchnn.kernels("naive"):
        naive = F.conv2d(x, w, b, stride, padding, dilation, groups)
    torch.testing.assert_close(naive.double(), formula, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(F.conv2d(x, w, b, stride, padding, dilation, groups), naive, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_gradients_are_the_adjoints_of_the_formula(rank: int) -> None:
    """``<dy, conv(x, w)> = <transpose(dy, w), x> = <weight_grad(dy, x), w>``, exact for whole numbers."""
    sizes, kernel = (7, 5, 6)[:rank], (3, 2, 3)[:rank]
    window = ([2, 1, 1][:rank], [1, 0, 2, 1, 0, 3][: 2 * rank], [1, 2, 1][:rank], 2, "zeros")

    def whole(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape).double()

    x, w = whole(2, 4, *sizes), whole(6, 2, *kernel)
    for which in ("naive", "fast"):
        with scratchnn.kernels(which):
            y = _ops.conv(x, w, None, *window)
            dy = whole(*y.shape)
            dx = _ops.conv_transpose(dy, w, None, sizes, *window)
            dw = _ops.conv_weight_grad(dy, x, kernel, *window, False)
        assert (dy * y).sum() == (dx * x).sum() == (dw * w).sum()


# Values and gradients.

GEOMETRIES = [
    # input, output channels, kernel, options
    ((2, 3, 9, 7), 4, (3, 3), {}),
    ((2, 16, 12, 13), 24, (3, 3), {"padding": 1}),
    ((1, 33, 17, 19), 17, (3, 3), {"padding": 1}),
    ((3, 5, 8, 9), 7, (3, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 23, 21), 8, (7, 7), {"stride": 2, "padding": 3}),
    ((2, 8, 9, 6), 5, (1, 1), {}),
    ((2, 8, 9, 6), 5, (1, 1), {"stride": 2}),
    ((2, 8, 9, 6), 5, (1, 1), {"padding": 1}),
    ((2, 4, 8, 9), 6, (3, 2), {"stride": (2, 1), "padding": (0, 1)}),
    ((2, 4, 11, 12), 6, (3, 3), {"dilation": 2, "padding": 2}),
    ((2, 4, 11, 12), 6, (2, 3), {"dilation": (3, 1), "stride": (1, 3)}),
    ((2, 6, 8, 7), 9, (3, 3), {"groups": 3, "padding": 1}),
    ((2, 40, 6, 7), 80, (3, 3), {"groups": 2, "padding": 1}),
    ((2, 6, 8, 7), 6, (3, 3), {"groups": 6, "padding": 1}),
    ((2, 6, 8, 7), 12, (5, 5), {"groups": 6, "padding": 2, "stride": 2}),
    ((2, 20, 8, 7), 20, (3, 3), {"groups": 20, "padding": 1, "dilation": 2}),
    ((2, 3, 9, 7), 4, (3, 3), {"padding": "same"}),
    ((2, 3, 9, 7), 4, (2, 4), {"padding": "same"}),
    ((2, 3, 9, 7), 4, (4, 2), {"padding": "same", "dilation": (1, 3)}),
    ((2, 3, 9, 7), 4, (3, 2), {"padding": "valid", "stride": 2}),
    ((2, 3, 1, 1), 4, (1, 1), {}),
    ((2, 3, 1, 1), 4, (3, 3), {"padding": 1}),
    ((2, 3, 2, 3), 4, (3, 3), {"padding": 5}),  # more padding than image
    ((2, 3, 2, 3), 4, (2, 2), {"padding": 4, "stride": 3}),
    ((2, 3, 10, 10), 4, (2, 2), {"stride": 5}),  # pixels no tap meets
    ((2, 3, 7, 7), 4, (7, 7), {}),  # the kernel covers the image
    ((0, 3, 7, 6), 4, (3, 3), {"padding": 1}),
    ((1, 1, 5, 5), 1, (3, 3), {}),
    ((2, 1, 8, 8), 1, (3, 3), {"padding": 1}),
    ((1, 70, 3, 3), 66, (3, 3), {"padding": 1}),
    ((1, 2, 30, 500), 3, (3, 3), {"padding": 1}),  # rows longer than a block of pixels
    # First layers, whose weight gradient has outputs in the lanes: a vector of them, less than two, more.
    ((2, 3, 19, 21), 16, (3, 3), {"padding": 1}),
    ((2, 3, 19, 21), 24, (3, 3), {"padding": 1}),
    ((2, 3, 19, 21), 41, (5, 5), {"padding": 2, "stride": 2}),
    # Groups of few channels, by how many there are in and out: as many as a vector has room for and some more, groups
    # that fill their lanes and groups that do not, a vector each and several.
    ((2, 10, 9, 11), 10, (3, 3), {"groups": 5, "padding": 1}),  # 2, 2
    ((2, 9, 8, 7), 12, (3, 3), {"groups": 3, "padding": 1}),  # 3, 4
    ((2, 36, 12, 23), 36, (3, 3), {"groups": 9, "padding": 1}),  # 4, 4
    ((2, 15, 7, 12), 25, (3, 3), {"groups": 5, "padding": 1, "stride": 2}),  # 3, 5
    ((3, 24, 6, 9), 24, (3, 3), {"groups": 3, "padding": 1, "stride": (2, 1)}),  # 8, 8
    ((2, 20, 9, 8), 32, (5, 5), {"groups": 2, "padding": 4, "dilation": 2}),  # 10, 16
    ((1, 48, 10, 13), 36, (3, 3), {"groups": 3}),  # 16, 12
    ((3, 32, 8, 8), 6, (2, 4), {"groups": 2, "stride": (1, 3), "padding": 2}),  # 16, 3
    ((2, 4, 9, 9), 28, (3, 3), {"groups": 2}),  # 2, 14
    ((2, 5, 9, 10), 15, (3, 3), {"groups": 5, "padding": 1}),  # 1, 3
    ((2, 22, 9, 10), 11, (3, 3), {"groups": 11, "padding": 1}),  # 2, 1
    ((2, 24, 5, 6), 24, (1, 1), {"groups": 6}),
    ((2, 24, 5, 6), 24, (1, 1), {"groups": 6, "stride": 2}),  # pixels no tap meets
    ((1, 16, 20, 26), 16, (3, 3), {"groups": 4, "padding": 2, "dilation": 2, "stride": 2}),
    ((1, 16, 25, 30), 16, (7, 7), {"groups": 4, "padding": 3}),
    ((1, 8, 3, 500), 8, (3, 3), {"groups": 2, "padding": 1}),
    ((40, 16, 3, 2), 16, (3, 3), {"groups": 4, "padding": 1}),  # small images share a band
    ((0, 8, 7, 6), 8, (3, 3), {"groups": 2, "padding": 1}),
]


def conv_operands(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: tuple[int, int],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    group_in = shape[1] // options.get("groups", 1)
    x = torch.randn(shape, dtype=dtype)
    w = torch.randn(out_channels, group_in, *kernel, dtype=dtype) / (group_in * kernel[0] * kernel[1]) ** 0.5
    return x, w, torch.randn(out_channels, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), GEOMETRIES)
def test_values_and_gradients(
    shape: tuple, out_channels: int, kernel: tuple, options: dict, dtype: torch.dtype, bias: bool
) -> None:
    x, w, b = conv_operands(shape, out_channels, kernel, options, dtype)
    for x_format, w_format in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        operands = [x.to(memory_format=x_format), w.to(memory_format=w_format), *([b] if bias else [])]
        check_against_torch(
            lambda *operands: F.conv2d(*operands, **options),
            lambda *operands: torch.conv2d(*operands, **options),
            operands,
            allowed(kernel, options, dtype),
        )


# Small images of many channels. The points of all filters would not fit in the cache: Winograd takes its tiles in one
# round, or in several.
WIDE_GEOMETRIES = [
    ((3, 352, 6, 5), 352, (3, 3), {"padding": 1}),
    ((1, 1024, 46, 46), 128, (3, 3), {}),
    ((21, 260, 4, 4), 130, (3, 3), {"padding": 1, "stride": 2}),
    ((5, 300, 3, 3), 200, (1, 1), {"padding": 1}),
    ((3, 40, 20, 30), 500, (1, 1), {}),
]


@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), WIDE_GEOMETRIES)
def test_many_channels(shape: tuple, out_channels: int, kernel: tuple, options: dict) -> None:
    operands = conv_operands(shape, out_channels, kernel, options, torch.float32)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        check_against_torch(
            lambda *operands: F.conv2d(*operands, **options),
            lambda *operands: torch.conv2d(*operands, **options),
            [x.to(memory_format=memory_format) if x.dim() == 4 else x for x in operands],
            allowed(kernel, options, torch.float32),
        )


@pytest.mark.parametrize("shape", [(5, 6, 3, 4, 5), (2, 6, 9, 12, 13), (7, 6, 1, 6, 6)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_small_volumes_share_bands(shape: tuple, memory_format: torch.memory_format) -> None:
    x, w, b = torch.randn(shape).to(memory_format=memory_format), torch.randn(9, 6, 3, 2, 3) / 10, torch.randn(9)
    for options in ({"padding": 1}, {"padding": 1, "stride": 2}, {"padding": (1, 2, 0), "stride": (1, 2, 1)}):
        check_against_torch(
            functools.partial(F.conv3d, **options), functools.partial(torch.conv3d, **options), [x, w, b], DIRECT
        )


# Runs of taps of every length, alone and in pieces; tiles that lose pixels on either side or on both; the last block of
# channels full, in whole vectors and in a part of one.
DEPTHWISE_GEOMETRIES = [
    *(((2, 20, 40), (k,), {"padding": k // 2}) for k in (1, 2, 3, 4, 5, 6, 7, 9, 11, 31)),
    *(((2, 24, 37), (k,), {"padding": k // 2, "stride": 2}) for k in (2, 3, 5, 7, 8, 9)),
    ((2, 32, 50), (5,), {"padding": 12, "stride": 3, "dilation": 2}),
    ((3, 19, 7, 7), (3, 3), {"padding": 1}),
    ((3, 32, 14, 14), (7, 7), {"padding": 3}),
    ((2, 36, 5, 9), (5, 5), {"padding": 7}),  # outputs that see no pixel
    ((2, 128, 9, 8), (3, 3), {"padding": 1, "stride": (2, 1)}),  # pixels a power of two apart
    ((2, 17, 60, 60), (3, 5), {"padding": (1, 2), "padding_mode": "reflect"}),
    ((2, 40, 11, 12), (3, 3), {"padding": 2, "dilation": 2}),
    ((2, 20, 17, 9, 10), (3, 3, 3), {"padding": 1}),
    ((1, 24, 9, 8, 7), (3, 1, 5), {"padding": (1, 0, 2), "stride": (2, 1, 2)}),
    ((0, 20, 6, 6), (3, 3), {"padding": 1}),
    # Three columns a row, which channels_last images go through row by row.
    *(((2, 32, 11, width), (3, 3), {"padding": 1, "stride": s}) for width in (1, 2, 3, 4, 14, 29) for s in (1, 2)),
    *(((2, 40, 9, 8), (3, 3), {"padding": p, "stride": s}) for p in (0, 2, (3, 4)) for s in (1, 2)),
    *(((2, 32, 8, 9), (rows, 3), {"padding": (0, 1), "stride": s}) for rows in (1, 2) for s in (1, 2)),
    ((2, 48, 10, 17), (3, 3), {"padding": (2, 1), "dilation": (2, 1)}),
    ((3, 384, 14, 14), (3, 3), {"padding": 1}),
    # Planes of several bands
    ((2, 20, 130, 66), (5, 3), {"padding": (2, 1)}),
    ((1, 17, 90, 70), (3, 3), {"padding": (4, 2), "dilation": (4, 2)}),
    # Rows of planes that share pixels: any number of them, kernels of any height, vectors side by side and the last
    *(((2, 5, rows, 37), (7, 7), {"padding": 3}) for rows in (1, 2, 3, 4, 6, 23)),
    *(((2, 3, 11, width), (5, 5), {"padding": 2}) for width in (16, 17, 33, 64, 70, 150)),
    *(((2, 3, 10, width), (3, 3), {"padding": 1}) for width in (16, 40, 100, 150)),
    *(((2, 3, 9, 24), (rows, 2), {"padding": (rows - 1, 1)}) for rows in (2, 4, 6, 8)),
    ((2, 3, 5, 20), (4, 3), {"padding": (9, 2), "dilation": (6, 2)}),
    # Gradients down the rows of planes: fewer rows than the kernel has and more, columns of taps together and alone
    *(((2, 3, rows, 40), (5, 5), {"padding": 2}) for rows in (1, 2, 4, 5, 9, 10, 26)),
    *(((2, 3, 13, 33), (r, c), {"padding": (r // 2, c // 2)}) for r in (3, 5, 7) for c in (1, 2, 4, 5, 7, 8)),
]


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *HALF_DTYPES])
@pytest.mark.parametrize(("shape", "kernel", "options"), DEPTHWISE_GEOMETRIES)
def test_depthwise(shape: tuple, kernel: tuple, options: dict, dtype: torch.dtype) -> None:
    rank, channels = len(kernel), shape[1]
    ours, theirs = (
        getattr(module, f"Conv{rank}d")(channels, channels, kernel, groups=channels, dtype=dtype, **options)
        for module in (nn, torch.nn)
    )
    # torch gives volumes back contiguous in all types but float32.
    for memory_format in formats(rank) if rank < 3 or dtype == torch.float32 else formats(1):
        x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
        check_against_torch(
            lambda x, w, b: functional_call(ours, {"weight": w, "bias": b}, (x,)),
            lambda x, w, b: functional_call(theirs, {"weight": w, "bias": b}, (x,)),
            [x, theirs.weight.detach(), theirs.bias.detach()],
            DIRECT,
        )


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("dilation", [(2, 1), (3, 1), (5, 1), (1, 3), (1, 9)])
def test_depthwise_planes_with_dilation(dilation: tuple[int, int], dtype: torch.dtype) -> None:
    """Rows that are a dilation apart are summed together. (torch's gradients of this in bfloat16 are not numbers.)"""
    x, w = torch.randn(2, 3, 26, 33, dtype=dtype), torch.randn(3, 1, 5, 3, dtype=dtype)
    options = {"padding": (2 * dilation[0], dilation[1]), "dilation": dilation, "groups": 3}
    check_against_torch(
        functools.partial(F.conv2d, **options), functools.partial(torch.conv2d, **options), [x, w], DIRECT
    )


def test_depthwise_outputs_larger_than_the_cache() -> None:
    """They are stored past it."""
    x, w = torch.randn(2, 32, 260, 260).to(memory_format=torch.channels_last), torch.randn(32, 1, 3, 3)
    for options in ({"padding": 1}, {"padding": 1, "stride": 2}):
        check_against_torch(
            functools.partial(F.conv2d, groups=32, **options), functools.partial(torch.conv2d, groups=32, **options),
            [x, w], DIRECT,
        )  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_meets_only_pixels_that_are_there(stride: int) -> None:
    """What lies beside an edge in memory has no part in it, whatever it is."""
    x, w = torch.randn(2, 32, 6, 7).to(memory_format=torch.channels_last), torch.randn(32, 1, 3, 3)
    x[0, 3, :, 0] = x[1, 5, :, -1] = x[0, 7, -1] = torch.inf
    w[9] = torch.inf

    def gradients(module: Any) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        y = module.conv2d(*leaves, padding=1, stride=stride, groups=32)
        grad = torch.ones_like(y)
        grad[0, 11, :, 0] = grad[1, 12, -1] = torch.inf
        return y.detach(), *torch.autograd.grad(y, leaves, grad)

    for mine, theirs in zip(gradients(F), gradients(torch.nn.functional), strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.equal(mine.isfinite(), theirs.isfinite())


def test_depthwise_rows_do_not_depend_on_the_batch() -> None:
    x, w = torch.randn(41, 24, 13, 14).to(memory_format=torch.channels_last), torch.randn(24, 1, 3, 3)
    for stride in (1, 2):
        y = F.conv2d(x, w, padding=1, stride=stride, groups=24)
        assert torch.equal(y[17:18], F.conv2d(x[17:18], w, padding=1, stride=stride, groups=24))


HALF_GEOMETRIES = [
    *GEOMETRIES,
    ((2, 32, 9, 7), 32, (3, 3), {"padding": 1}),  # Winograd
    ((1, 64, 14, 5), 96, (3, 3), {}),
    ((2, 400, 5, 6), 40, (1, 1), {}),  # several slices of the reduction
    ((1, 3, 40, 41), 40, (7, 7), {"stride": 2, "padding": 3}),
    ((1, 96, 20, 20), 96, (3, 3), {"groups": 96, "padding": 1}),
    ((1, 20, 5, 50), 20, (7, 7), {"groups": 20, "padding": 3, "stride": 2}),
    # Those of a matrix unit: the rows of an image as one, or one by one, or in patches
    ((2, 64, 23, 20), 72, (3, 3), {"padding": 1}),
    ((2, 32, 21, 30), 40, (3, 3), {"padding": 1, "stride": 2}),
    ((3, 64, 7, 7), 33, (3, 3), {"stride": 2}),
    ((2, 48, 13, 14), 80, (5, 5), {"padding": 2}),
    ((2, 32, 15, 17), 96, (3, 2), {"dilation": 2, "padding": 2}),
    ((2, 96, 14, 14), 120, (3, 3), {"padding": 1, "groups": 3}),
    ((2, 2048, 3, 4), 40, (1, 1), {}),
]


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), HALF_GEOMETRIES)
def test_half_precision(shape: tuple, out_channels: int, kernel: tuple, options: dict, dtype: torch.dtype) -> None:
    def ours(*operands: Tensor) -> Tensor:
        return F.conv2d(*operands, **options)

    def theirs(*operands: Tensor) -> Tensor:
        return torch.conv2d(*operands, **options)

    x, w, b = conv_operands(shape, out_channels, kernel, options, dtype)
    for memory_format in formats(2):
        operands = [x.to(memory_format=memory_format), w.to(memory_format=memory_format), b]
        check_against_torch(ours, theirs, operands, DIRECT)
        assert_rounded_once(ours, operands)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("out_channels", "options"),
    [(32, {"padding": 1}), (40, {"stride": 2}), (32, {"groups": 32}), (32, {"groups": 8})],
)
def test_half_precision_makes_no_float32_copies(
    out_channels: int, options: dict, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """The only tensors made are the results."""
    x, w, b = conv_operands((2, 32, 24, 24), out_channels, (3, 3), options, dtype)
    x, w = (tensor.to(memory_format=memory_format).requires_grad_() for tensor in (x, w))
    b.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as forward:
        y = F.conv2d(x, w, b, **options)
    dy = torch.randn_like(y)
    with torch.profiler.profile(profile_memory=True) as backward:
        torch.autograd.grad(y, (x, w, b), dy)
    for profile, results in ((forward, [y]), (backward, [x, w, b])):
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        assert allocated == sum(tensor.nbytes for tensor in results)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_torch_may_use_the_same_unit(dtype: torch.dtype) -> None:
    """Neither library minds how the other one set up the processor's matrix unit."""
    x, w, b = conv_operands((2, 64, 10, 12), 48, (3, 3), {"padding": 1}, dtype)
    functions = (F.conv2d, torch.conv2d)
    alone = [f(x, w, b, padding=1) for f in functions]
    for _ in range(3):
        for f, expected in zip(functions, alone, strict=True):
            assert torch.equal(f(x, w, b, padding=1), expected)


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *HALF_DTYPES])
def test_nothing_is_left_of_earlier_calls(dtype: torch.dtype) -> None:
    """Scratch memory is filled anew: what was not a number in one call is none of the next one's."""
    for channels, kernel, options in (
        (3, (7, 7), {"padding": 3, "stride": 2}),
        (40, (3, 3), {"padding": 1}),
        (64, (3, 3), {"padding": 1}),
        (5, (1, 1), {}),
    ):
        x, w, b = conv_operands((2, channels, 13, 11), 20, kernel, options, dtype)

        def conv(*operands: Tensor, options: dict = options) -> Tensor:
            return F.conv2d(*operands, **options)

        for memory_format in formats(2):
            operands = [x.to(memory_format=memory_format), w, b]
            dy = torch.randn_like(conv(*operands))
            expected = gradients(conv, operands, dy)
            gradients(conv, [torch.full_like(tensor, torch.nan) for tensor in operands], torch.full_like(dy, torch.nan))
            assert all(map(torch.equal, gradients(conv, operands, dy), expected))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision_knows_no_neighbours(dtype: torch.dtype) -> None:
    """Neither an output nor dx depends on the rest of the batch."""
    for channels, stride in ((64, 1), (64, 2), (48, 1), (3, 2)):
        x, w, b = conv_operands((5, channels, 11, 9), 40, (3, 3), {"padding": 1, "stride": stride}, dtype)

        def conv(*operands: Tensor, stride: int = stride) -> Tensor:
            return F.conv2d(*operands, padding=1, stride=stride)

        for memory_format in formats(2):
            x = x.to(memory_format=memory_format)
            dy = torch.randn_like(conv(x, w, b))
            y, dx, *_ = gradients(conv, [x, w, b], dy)
            for n in range(5):
                y_alone, dx_alone, *_ = gradients(conv, [x[n : n + 1], w, b], dy[n : n + 1])
                assert torch.equal(y_alone, y[n : n + 1])
                assert torch.equal(dx_alone, dx[n : n + 1])


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *HALF_DTYPES])
@pytest.mark.parametrize(("group_in", "group_out"), [(4, 4), (3, 2), (1, 2), (2, 1), (16, 8), (5, 16)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_small_groups(rank: int, group_in: int, group_out: int, dtype: torch.dtype) -> None:
    """Every rank and stride; and a group knows nothing of another: not even an infinity spreads."""
    functions = [getattr(namespace, f"conv{rank}d") for namespace in (F, torch.nn.functional)]
    groups = 5
    x = torch.randn(2, groups * group_in, *(5, 7, 11)[-rank:], dtype=dtype)
    w = torch.randn(groups * group_out, group_in, *(2, 3, 3)[-rank:], dtype=dtype) / 4
    b = torch.randn(groups * group_out, dtype=dtype)
    for memory_format, stride in itertools.product(formats(rank), (1, 2)):
        ours, theirs = (
            lambda *operands, f=f, stride=stride: f(*operands, stride=stride, padding=1, groups=groups).contiguous()
            for f in functions  # torch's output is not always in the input's layout
        )
        operands = [x.clone(memory_format=memory_format), w.to(memory_format=memory_format), b]
        check_against_torch(ours, theirs, operands, DIRECT)
        dy = torch.ones_like(ours(*operands))
        clean = gradients(ours, operands, dy)
        operands[0][:, :group_in] = torch.inf
        spoilt = gradients(ours, operands, dy)
        assert not spoilt[0][:, :group_out].isfinite().all()
        assert torch.equal(spoilt[0][:, group_out:], clean[0][:, group_out:])
        assert torch.equal(spoilt[1], clean[1])
        assert torch.equal(spoilt[2][group_out:], clean[2][group_out:])


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision_sums_no_pixel_twice(dtype: torch.dtype) -> None:
    """An infinity in the last of an odd number of pixels: infinite, and not zero times infinity."""
    x, w = torch.ones(1, 4, 3, 3, dtype=dtype), torch.ones(2, 4, 1, 1, dtype=dtype)
    x[:, :, -1, -1] = torch.inf
    for memory_format in formats(2):
        operands = [x.to(memory_format=memory_format), w]
        *_, dw = gradients(F.conv2d, operands, torch.ones(1, 2, 3, 3, dtype=dtype))
        assert dw.isposinf().all()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_types(dtype: torch.dtype, which: str) -> None:
    for shape, out_channels, kernel, options in [
        ((2, 3, 7, 6), 4, (3, 3), {"padding": 1}),
        ((2, 4, 6, 5), 6, (2, 3), {"stride": 2, "groups": 2, "padding": "valid"}),
        ((2, 3, 5, 5), 4, (2, 2), {"padding": "same", "dilation": 3}),
    ]:
        operands = conv_operands(shape, out_channels, kernel, options, dtype)
        with scratchnn.kernels(which):
            check_against_torch(
                lambda *operands, options=options: F.conv2d(*operands, **options),
                lambda *operands, options=options: torch.conv2d(*operands, **options),
                operands,
                allowed(kernel, options, dtype),
            )


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "groups": 2}], ids=str)
def test_layouts(dtype: torch.dtype, which: str, options: dict) -> None:
    """Inputs, weights and incoming gradients in every layout: dense, with gaps, overlapping."""
    groups = options.get("groups", 1)

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, **options)

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return torch.conv2d(x, w, **options)

    x, w = torch.randn(2, 4, 6, 7, dtype=dtype), torch.randn(6, 4 // groups, 3, 3, dtype=dtype)
    factor = allowed((3, 3), options, dtype)
    with scratchnn.kernels(which):
        for _, view in layouts((2, 4, 6, 7), dtype):
            check_against_torch(ours, theirs, [view, w], factor)
        for _, view in layouts((6, 4 // groups, 3, 3), dtype):
            check_against_torch(ours, theirs, [x, view], factor)
        y = torch.conv2d(x, w, **options)
        for _, dy in layouts(tuple(y.shape), dtype):
            results = (gradients(f, [x, w], dy) for f in (ours, theirs))
            truth = gradients(theirs, [x.double(), w.double()], dy.double())
            assert_as_accurate(*results, truth, factor)


def test_gradients_keep_the_layout_of_what_they_belong_to() -> None:
    for x_format, w_format in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        x = torch.randn(2, 4, 6, 7).to(memory_format=x_format)
        w = torch.randn(6, 4, 3, 3).to(memory_format=w_format)
        dy = torch.randn_like(F.conv2d(x, w))
        (_, dx, dw), (_, torch_dx, _) = (gradients(f, [x, w], dy) for f in (F.conv2d, torch.conv2d))
        assert strides(dx) == strides(torch_dx)
        assert strides(dw) == strides(w)


def test_unbatched() -> None:
    x, w, b = torch.randn(3, 8, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    for options in ({}, {"stride": 2, "padding": 1}):
        check_against_torch(
            lambda *operands, options=options: F.conv2d(*operands, **options),
            lambda *operands, options=options: torch.conv2d(*operands, **options),
            [x, w, b],
            WINOGRAD,
        )


def test_one_gradient_at_a_time() -> None:
    operands = [torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(4)]
    for wanted in range(3):
        results = []
        for conv2d in (F.conv2d, torch.conv2d):
            leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(operands)]
            conv2d(*leaves, padding=1).square().sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
            results.append(leaves[wanted].grad)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_sums_are_as_accurate_as_torchs(memory_format: torch.memory_format) -> None:
    x = torch.randn(8, 32, 40, 40).to(memory_format=memory_format) + 1
    w = torch.randn(32, 32, 3, 3)
    for options in ({"padding": 1}, {"padding": 1, "stride": 2}):
        check_against_torch(
            lambda x, w, options=options: F.conv2d(x, w, **options),
            lambda x, w, options=options: torch.conv2d(x, w, **options),
            [x, w],
            allowed((3, 3), options, torch.float32),
        )


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *COMPLEX_DTYPES])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank(rank: int, dtype: torch.dtype, which: str) -> None:
    ours, theirs = (getattr(namespace, f"conv{rank}d") for namespace in (F, torch.nn.functional))
    for size, kernel, stride, padding, dilation, groups in [
        (6, 3, 1, 1, 1, 1),
        (7, 2, 2, 0, 1, 2),
        (8, 3, 1, 2, 2, 1),
        (5, 3, 3, 3, 1, 4),
        (4, 1, 1, 0, 1, 1),
        (5, 4, 1, "same", 1, 1),
    ]:
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x = torch.randn(2, 4, *range(size - rank + 1, size + 1), dtype=dtype)
        w = torch.randn(8, 4 // groups, *(kernel,) * rank, dtype=dtype)
        b = torch.randn(8, dtype=dtype)
        for memory_format in formats(rank) if which == "fast" else formats(rank)[-1:]:
            operands = [x.to(memory_format=memory_format), w.to(memory_format=memory_format), b]
            with scratchnn.kernels(which):
                assert ours(*operands, **options).is_contiguous(memory_format=memory_format)
                check_against_torch(
                    lambda *operands, options=options: ours(*operands, **options).contiguous(),
                    lambda *operands, options=options: theirs(*operands, **options).contiguous(),  # not always so
                    operands,
                    allowed((kernel,) * rank, options, dtype),
                )
            unbatched = ours(x[0], w, b, **options)
            torch.testing.assert_close(unbatched, ours(x, w, b, **options)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["fast", "naive"])
def test_complex_layers(which: str) -> None:
    for options in ({"padding": 1}, {"stride": 2, "groups": 2}, {"padding": 1, "groups": 4}):
        ours, theirs = (n.Conv2d(4, 8, 3, dtype=torch.complex64, **options) for n in (nn, torch.nn))
        theirs.load_state_dict(ours.state_dict())
        weights = [weight.detach() for weight in ours.parameters()]
        with scratchnn.kernels(which):
            for _, x in layouts((2, 4, 6, 5), torch.complex64):
                for image in (x, x.conj()):  # a conjugate that torch has not computed yet
                    check_against_torch(
                        lambda *o, options=options: F.conv2d(*o, **options),
                        lambda *o, options=options: torch.conv2d(*o, **options),
                        [image, *weights],
                        WINOGRAD,
                    )
                torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [*ALL_DTYPES, *COMPLEX_DTYPES])
def test_channel_sum(dtype: torch.dtype) -> None:
    views = [view for shape in [(3, 5, 7, 9), (2, 40, 30, 20), (0, 3, 2, 2)] for _, view in layouts(shape, dtype)]
    views += [torch.randn(300, 17, dtype=dtype), torch.randn(4, 3, 50, dtype=dtype)]
    for view in views:
        dims = [dim for dim in range(view.dim()) if dim != 1]
        truth = exact(view).sum(dims)
        for which in ("fast", "naive"):
            with scratchnn.kernels(which):
                ours = _ops.channel_sum(view)
            assert_as_accurate([ours], [view.sum(dims)], [truth])


# Derivatives and transforms.

DERIVATIVE_OPTIONS = [{"padding": 1}, {"stride": 2, "groups": 2}, {"padding": "same", "dilation": (1, 2)}]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("options", DERIVATIVE_OPTIONS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_derivatives(options: dict, channels_last: bool, dtype: torch.dtype) -> None:
    def leaf(*shape: int) -> Tensor:
        x = torch.randn(shape, dtype=dtype)
        if channels_last and len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
        return x.requires_grad_()

    groups = options.get("groups", 1)
    operands = (leaf(1, 2, 4, 3), leaf(2, 2 // groups, 2, 3), leaf(2))

    def function(*operands: Tensor) -> Tensor:
        return F.conv2d(*operands, **options)

    fast = dtype.is_complex  # a random projection of the derivatives, instead of all of them
    assert torch.autograd.gradcheck(function, operands, fast_mode=fast, check_forward_ad=True)
    assert torch.autograd.gradcheck(function, operands, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("rank", [1, 3])
def test_derivatives_of_other_ranks(rank: int) -> None:
    conv = getattr(F, f"conv{rank}d")
    operands = [torch.randn(1, 2, *(3, 4, 2)[:rank]), torch.randn(2, 1, *(2, 3, 1)[:rank]), torch.randn(2)]
    operands = [x.double().requires_grad_() for x in operands]

    def function(*operands: Tensor) -> Tensor:
        return conv(*operands, stride=2, padding=1, groups=2)

    assert torch.autograd.gradcheck(function, operands, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True, check_fwd_over_rev=True)


def test_forward_derivative_of_each_operand() -> None:
    operands = (torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for wanted in itertools.product((False, True), repeat=3):
        results = []
        for conv2d in (F.conv2d, torch.conv2d):
            with torch.autograd.forward_ad.dual_level():
                duals = [
                    torch.autograd.forward_ad.make_dual(x, tangent) if want else x
                    for x, tangent, want in zip(operands, tangents, wanted, strict=True)
                ]
                y = conv2d(*duals, padding=1)
                results.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
        assert (results[0] is None) == (results[1] is None)
        if results[0] is not None:
            assert results[0].shape == results[1].shape
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "groups": 2}], ids=str)
@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((None, 0, 1), repeat=3) if any(d is not None for d in m)]
)
def test_vmap(options: dict, mapped: tuple) -> None:
    groups = options.get("groups", 1)
    shapes = [(2, 4, 5, 6), (6, 4 // groups, 3, 3), (6,)]
    operands = []
    for shape, dim in zip(shapes, mapped, strict=True):
        x = torch.randn(shape if dim is None else (3, *shape))
        operands.append(x if dim is None else x.movedim(0, dim).contiguous())

    def value(conv2d: Any) -> Any:
        return lambda *operands: conv2d(*operands, **options)

    def gradient(conv2d: Any) -> Any:
        return grad(lambda *operands: conv2d(*operands, **options).square().sum(), argnums=(0, 1, 2))

    for transform in (value, gradient):
        ours, theirs = (vmap(transform(f), in_dims=mapped)(*operands) for f in (F.conv2d, torch.conv2d))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_vmap_of_nothing_and_nested() -> None:
    w = torch.randn(4, 3, 3, 3)
    x = torch.randn(2, 3, 2, 3, 5, 5)
    ours, theirs = (vmap(vmap(lambda x, f=f: f(x, w)))(x) for f in (F.conv2d, torch.conv2d))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    empty = x[:, :, :0]
    ours, theirs = (vmap(vmap(lambda x, f=f: f(x, w)))(empty) for f in (F.conv2d, torch.conv2d))
    assert ours.shape == theirs.shape


def test_per_sample_gradients() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    x = torch.randn(5, 3, 6, 6)

    def loss(weights: dict, image: Tensor) -> Tensor:
        return functional_call(model, weights, (image.unsqueeze(0),)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(5):
        alone = grad(loss)(weights, x[i])
        for name in weights:
            torch.testing.assert_close(together[name][i], alone[name], rtol=1e-4, atol=1e-3)


def test_jvp_and_jacobian() -> None:
    operands = (torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(3))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for transform in (
        lambda f: jvp(f, operands, tangents),
        lambda f: jacrev(f, argnums=(0, 1, 2))(*operands),
        lambda f: torch.func.jacfwd(f, argnums=(0, 1, 2))(*operands),
        lambda f: torch.func.hessian(lambda x, w: f(x, w).square().sum())(*operands[:2]),
    ):
        torch.testing.assert_close(transform(F.conv2d), transform(torch.conv2d), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same", "groups": 2}, {"stride": 2}], ids=str)
def test_compile(dynamic: bool, options: dict) -> None:
    torch._dynamo.reset()
    layer = nn.Conv2d(4, 6, 3, **options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (8, 9, 11):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 4, size, size + 1).to(memory_format=memory_format).requires_grad_()
            results = []
            for function in (compiled, layer):
                y = function(x)
                leaves = [x, *layer.parameters()]
                results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
            torch.testing.assert_close(*results, rtol=0, atol=0)
            assert strides(results[0][0]) == strides(results[1][0])


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1).eval()
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(
        layer, (x,), dynamic_shapes={"input": {0: torch.export.Dim("batch", min=2)}}, strict=strict
    )
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(exported.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    for x_dtype in (torch.float32, torch.float64, dtype):
        results = []
        x = torch.randn(2, 3, 6, 6).to(x_dtype)
        for namespace in (nn, torch.nn):
            torch.manual_seed(1)
            layer = namespace.Conv2d(3, 4, 3)
            if x_dtype == torch.float64:
                layer = layer.double()
            with torch.autocast("cpu", dtype=dtype):
                y = layer(x)
            y.sum().backward()
            results.append([y.detach(), layer.weight.grad, layer.bias.grad])
        for ours, theirs in zip(*results, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


# Reproducible to the bit.

BITWISE = [
    ((8, 16, 14, 14), 24, (3, 3), {"padding": 1}),
    ((8, 16, 14, 14), 24, (3, 3), {"padding": 1, "stride": 2}),
    ((8, 16, 14, 13), 24, (1, 1), {}),
    ((8, 3, 30, 30), 8, (7, 7), {"padding": 3, "stride": 2}),
    ((8, 12, 14, 14), 12, (3, 3), {"padding": 1, "groups": 12}),
    ((8, 12, 14, 14), 24, (5, 5), {"padding": 2, "groups": 3}),
    ((9, 72, 14, 13), 72, (3, 3), {"padding": 1, "groups": 18}),
    ((9, 72, 14, 13), 24, (3, 3), {"padding": 1, "groups": 6, "stride": 2}),
    ((9, 64, 7, 7), 64, (3, 3), {"padding": 1, "groups": 4}),
    ((9, 64, 7, 7), 64, (3, 3), {"padding": 1}),
    ((9, 352, 5, 5), 352, (3, 3), {"padding": 1}),
    ((9, 200, 4, 4), 100, (3, 3), {"padding": 1, "stride": 2}),
    ((9, 40, 6, 6), 300, (1, 1), {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), BITWISE)
def test_the_rest_of_the_batch_changes_no_bit(
    shape: tuple,
    out_channels: int,
    kernel: tuple,
    options: dict,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    x, w, b = conv_operands(shape, out_channels, kernel, options, dtype)
    x = x.to(memory_format=memory_format)
    dy = torch.randn_like(F.conv2d(x, w, b, **options))

    def run(rows: slice) -> tuple[Tensor, Tensor]:
        part = x[rows].detach().requires_grad_()
        y = F.conv2d(part, w, b, **options)
        return y.detach(), torch.autograd.grad(y, part, dy[rows])[0]

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
        for ours, expected in zip(run(rows), whole, strict=True):
            assert torch.equal(ours, expected[rows])


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), BITWISE)
def test_the_number_of_threads_changes_no_bit(
    shape: tuple,
    out_channels: int,
    kernel: tuple,
    options: dict,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    operands = conv_operands(shape, out_channels, kernel, options, dtype)
    operands = [x.to(memory_format=memory_format) if x.dim() == 4 else x for x in operands]
    dy = torch.randn_like(F.conv2d(*operands, **options))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(lambda *operands: F.conv2d(*operands, **options), operands, dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# Errors and odd arguments.

X, W, B = torch.zeros(2, 4, 6, 6), torch.zeros(6, 4, 3, 3), torch.zeros(6)

BAD_CALLS = {
    # call, what our message must say
    "channels": (
        lambda f: f.conv2d(X[:, :3], W),
        r"groups=1.*\[6, 4, 3, 3\].*\[2, 3, 6, 6\].*4 channels.*got 3",
    ),
    "channels unbatched": (lambda f: f.conv2d(X[0, :3], W), "4 channels.*got 3"),
    "channels of groups": (lambda f: f.conv2d(X, W, groups=3), "groups=3.*12 channels.*got 4"),
    "no groups": (lambda f: f.conv2d(X, W, groups=0), "got 0"),
    "negative groups": (lambda f: f.conv2d(X, W, groups=-2), "got -2"),
    "more groups than filters": (lambda f: f.conv2d(torch.zeros(1, 32, 6, 6), W, groups=8), "at least 8"),
    "filters not divisible": (lambda f: f.conv2d(torch.zeros(1, 16, 6, 6), W, groups=4), "divisible by 4"),
    "fractional groups": (lambda f: f.conv2d(X, W, groups=1.0), r"groups.*1\.0.*float"),
    "boolean groups": (lambda f: f.conv2d(X, W, groups=True), "groups.*True.*bool"),
    "groups None": (lambda f: f.conv2d(X, W, groups=None), "groups.*None"),
    "bias size": (lambda f: f.conv2d(X, W, B[:5]), r"6 elements.*\[5\]"),
    "bias rank": (lambda f: f.conv2d(X, W, B[None]), r"1-dimensional with 6.*\[1, 6\]"),
    "bias type": (lambda f: f.conv2d(X, W, B.double()), "Float.*Double|float.*double"),
    "bias a number": (lambda f: f.conv2d(X, W, 1.0), "bias.*float"),
    "stride 0": (lambda f: f.conv2d(X, W, stride=0), r"stride.*0"),
    "stride 0 in one dimension": (lambda f: f.conv2d(X, W, stride=(1, 0)), r"stride.*\[1, 0\]"),
    "negative stride": (lambda f: f.conv2d(X, W, stride=-1), "stride.*-1"),
    "fractional stride": (lambda f: f.conv2d(X, W, stride=1.5), r"stride.*1\.5.*float"),
    "whole but floating stride": (lambda f: f.conv2d(X, W, stride=1.0), r"stride.*1\.0.*float"),
    "fractional stride in one dimension": (lambda f: f.conv2d(X, W, stride=(1, 1.5)), r"stride.*1\.5"),
    "boolean stride": (lambda f: f.conv2d(X, W, stride=True), "stride.*True"),
    "stride None": (lambda f: f.conv2d(X, W, stride=None), "stride.*None"),
    "stride of text": (lambda f: f.conv2d(X, W, stride="2"), "stride.*'2'"),
    "stride a set": (lambda f: f.conv2d(X, W, stride={2, 1}), "stride.*set"),
    "stride an array": (lambda f: f.conv2d(X, W, stride=np.array([2, 2])), "stride.*ndarray"),
    "three strides": (lambda f: f.conv2d(X, W, stride=(1, 2, 3)), r"stride.*2 values.*\[1, 2, 3\]"),
    "no strides": (lambda f: f.conv2d(X, W, stride=()), r"stride.*2 values.*\[\]"),
    "negative padding": (lambda f: f.conv2d(X, W, padding=-1), "negative padding.*-1"),
    "negative padding in one dimension": (lambda f: f.conv2d(X, W, padding=(1, -2)), "negative padding.*-2"),
    "fractional padding": (lambda f: f.conv2d(X, W, padding=0.5), r"padding.*0\.5"),
    "three paddings": (lambda f: f.conv2d(X, W, padding=(1, 2, 3)), r"padding.*2 values.*\[1, 2, 3\]"),
    "padding None": (lambda f: f.conv2d(X, W, padding=None), "padding.*None"),
    "unknown padding": (lambda f: f.conv2d(X, W, padding="full"), "padding.*'full'"),
    "upper-case padding": (lambda f: f.conv2d(X, W, padding="SAME"), "padding.*'SAME'"),
    "two padding names": (lambda f: f.conv2d(X, W, padding=("same", "same")), "padding.*'same'"),
    "same with stride": (lambda f: f.conv2d(X, W, padding="same", stride=2), r"same.*strided.*\[2, 2\]"),
    "same with a stride": (lambda f: f.conv2d(X, W, padding="same", stride=(1, 2)), r"same.*\[1, 2\]"),
    "same with dilation 0": (lambda f: f.conv2d(X, W, padding="same", dilation=0), "dilation.*0|padding.*-"),
    "dilation 0": (lambda f: f.conv2d(X, W, dilation=0), "dilation.*0"),
    "negative dilation": (lambda f: f.conv2d(X, W, dilation=-1), "dilation.*-1"),
    "fractional dilation": (lambda f: f.conv2d(X, W, dilation=1.5), r"dilation.*1\.5"),
    "three dilations": (lambda f: f.conv2d(X, W, dilation=(1, 2, 3)), r"dilation.*2 values.*\[1, 2, 3\]"),
    "kernel too large": (lambda f: f.conv2d(X, torch.zeros(6, 4, 7, 8)), r"\(6 x 6\).*\(7 x 8\)"),
    "kernel too large, spread": (lambda f: f.conv2d(X, W, padding=1, dilation=4), r"\(8 x 8\).*\(3 x 3\).*4"),
    "input of rank 2": (lambda f: f.conv2d(X[0, 0], W), r"3D.*4D.*\[6, 6\]"),
    "input of rank 5": (lambda f: f.conv2d(X[None], W), r"3D.*4D.*\[1, 2, 4, 6, 6\]"),
    "scalar input": (lambda f: f.conv2d(torch.zeros(()), W), r"3D.*4D.*\[\]"),
    "weight of rank 3": (lambda f: f.conv2d(X, W[0]), r"\[4, 3, 3\]"),
    "weight of rank 5": (lambda f: f.conv2d(X, W[None]), r"\[1, 6, 4, 3, 3\]"),
    "scalar weight": (lambda f: f.conv2d(X, torch.zeros(())), r"\[\]"),
    "types differ": (lambda f: f.conv2d(X.double(), W), "Double.*Float|double.*float"),
    "half input": (lambda f: f.conv2d(X.bfloat16(), W), "BFloat16.*Float|bfloat16.*float"),
    "whole input": (lambda f: f.conv2d(X.long(), W), "Long.*Float|int64.*float"),
    "booleans": (lambda f: f.conv2d(X.bool(), W.bool()), "conv"),
    "list for input": (lambda f: f.conv2d(X.tolist(), W), "input.*list"),
    "array for input": (lambda f: f.conv2d(X.numpy(), W), "input.*ndarray"),
    "list for weight": (lambda f: f.conv2d(X, W.tolist()), "weight.*list"),
    "no weight": (lambda f: f.conv2d(X, None), "weight.*NoneType"),
    "image without pixels": (lambda f: f.conv2d(X[:, :, :0], W, padding=3), r"\[2, 4, 0, 6\]"),
    "kernel without taps": (lambda f: f.conv2d(X, W[:, :, :0]), r"\[6, 4, 0, 3\]"),
    "unknown argument": (lambda f: f.conv2d(X, W, strides=1), "strides"),
    "weight missing": (lambda f: f.conv2d(X), "weight"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_torchs(name: str) -> None:
    call, pattern = BAD_CALLS[name]
    message = same_error(lambda: call(F), lambda: call(torch.nn.functional))
    with pytest.raises(AssertionError, match=pattern):  # the message itself, searched as pytest does
        raise AssertionError(message)


BAD_LAYERS = {
    "groups": lambda n: n.Conv2d(4, 6, 3, groups=3),
    "padding mode": lambda n: n.Conv2d(4, 6, 3, padding_mode="mirror"),
    "padding name": lambda n: n.Conv2d(4, 6, 3, padding="full"),
    "same with stride": lambda n: n.Conv2d(4, 6, 3, padding="same", stride=2),
    "channels": lambda n: n.Conv2d(4, 6, 3)(torch.zeros(1, 3, 5, 5)),
    "fractional stride": lambda n: n.Conv2d(4, 6, 3, stride=1.5)(torch.zeros(1, 4, 5, 5)),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_errors_of_the_layer_are_torchs(name: str) -> None:
    same_error(lambda: BAD_LAYERS[name](nn), lambda: BAD_LAYERS[name](torch.nn))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": [2, 1]},
        {"stride": (2,), "padding": [1], "dilation": (1,)},
        {"stride": torch.Size([2, 2])},
        {"stride": np.int64(2), "padding": np.int32(1)},
        {"stride": (np.int32(2), torch.tensor(1))},
        {"stride": torch.tensor(2)},
        {"stride": 2**40},
    ],
    ids=str,
)
def test_numbers_in_every_form_torch_takes(options: dict) -> None:
    x, w = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(F.conv2d(x, w, **options), torch.conv2d(x, w, **options), rtol=1e-4, atol=1e-4)


def test_whole_numbers() -> None:
    """Exact, or wrapped round, as torch's: in every integer type, more of them than torch has."""
    x, w, b = torch.randint(-9, 9, (2, 4, 6, 6)), torch.randint(-9, 9, (6, 4, 3, 3)), torch.arange(6)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        operands = [tensor.to(dtype) for tensor in (x.abs(), w.abs(), b)]
        assert torch.equal(F.conv2d(*operands), torch.conv2d(*operands))
        y = F.conv2d(*operands, dilation=2)
        assert torch.equal(y, torch.conv2d(*(tensor.to(torch.int64) for tensor in operands), dilation=2).to(dtype))
    assert torch.equal(F.conv2d(x, w, b, 2, 1), torch.conv2d(x, w, b, 2, 1))
    large = x * 2**55 + 1  # no float64 holds these
    assert torch.equal(F.conv2d(large, w, b), torch.conv2d(large, w, b))
    for rank in (1, 3):
        x, w = torch.randint(-9, 9, (2, 4, *[5] * rank)), torch.randint(-9, 9, (6, 4, *[3] * rank))
        ours, theirs = (getattr(n, f"conv{rank}d")(x, w, padding=1) for n in (F, torch.nn.functional))
        assert torch.equal(ours, theirs)


def test_no_channels_leave_the_bias() -> None:
    """A sum over nothing is zero. (torch gives a tensor without channels instead.)"""
    b = torch.randn(6)
    y = F.conv2d(torch.zeros(2, 0, 6, 6), torch.zeros(6, 0, 3, 3), b)
    assert torch.equal(y, b.reshape(1, 6, 1, 1).expand(2, 6, 4, 4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{"padding": 1, "stride": 2}, {"padding": 1}], ids=str)
def test_nan_and_infinity_reach_every_output_that_sees_them(
    special: float, options: dict, memory_format: torch.memory_format
) -> None:
    x = torch.randn(1, 3, 9, 9).to(memory_format=memory_format)
    x[0, 1, 4, 4] = special
    w = torch.randn(4, 3, 3, 3)
    ours, theirs = F.conv2d(x, w, **options), torch.conv2d(x, w, **options)
    assert not ours[~theirs.isfinite()].isfinite().any()
    if "stride" in options:  # Winograd's transforms spread them over a tile of outputs
        assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert ours[..., 0, 0].isfinite().all()


# The module.

LAYERS = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"padding": (2, 1), "dilation": (2, 1), "groups": 2},
    {"padding": "same", "kernel_size": (2, 4)},
    {"padding": "valid", "dtype": torch.float64},
]


def pair(options: dict) -> tuple[nn.Conv2d, torch.nn.Conv2d]:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layers.append(namespace.Conv2d(4, 6, **{"kernel_size": 3, **options}))
    return tuple(layers)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_layer_is_torchs(options: dict) -> None:
    ours, theirs = pair(options)
    assert isinstance(ours, torch.nn.Conv2d)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    dtype = options.get("dtype", torch.float32)
    names, weights = zip(*((name, weight.detach()) for name, weight in ours.named_parameters()), strict=True)

    def through(layer: torch.nn.Module) -> Any:
        return lambda x, *weights: functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    for _, x in layouts((2, 4, 7, 6), dtype):
        factor = allowed(ours.kernel_size, options, dtype)
        check_against_torch(through(ours), through(theirs), [x, *weights], factor)


@pytest.mark.parametrize("options", LAYERS[:4], ids=str)
def test_copies_and_files(options: dict) -> None:
    ours, theirs = pair(options)
    x = torch.randn(2, 4, 7, 6)
    expected = ours(x)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is nn.Conv2d
        assert torch.equal(copied(x), expected)
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    torch.nn.init.zeros_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert not theirs.weight.any()


@pytest.mark.parametrize("name", ["LazyConv1d", "LazyConv2d", "LazyConv3d"])
def test_lazy_layers_become_ours(name: str) -> None:
    x = torch.randn(2, 4, *[7] * int(name[-2]))
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(5)
        layer = getattr(namespace, name)(6, 3, stride=2)
        assert isinstance(layer, torch.nn.modules.lazy.LazyModuleMixin)
        y = layer(x)
        layers.append((layer, y))
    (ours, mine), (theirs, other) = layers
    assert type(ours) is getattr(nn, name.removeprefix("Lazy"))
    assert repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours(x), mine)


def test_meta_device() -> None:
    x = torch.randn(2, 4, 7, 6)
    for options in LAYERS[:5]:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            layer, _ = pair(options)
            image = x.to(memory_format=memory_format, dtype=layer.weight.dtype)
            on_cpu, on_meta = layer(image), layer.to("meta")(image.to("meta"))
            assert on_meta.device.type == "meta"
            assert on_meta.shape == on_cpu.shape
            assert strides(on_meta) == strides(on_cpu)
    y = nn.Conv2d(3, 4, 3, device="meta")(torch.zeros(1, 3, 5, 5, device="meta", requires_grad=True))
    y.sum().backward()


def test_meta_device_refuses_what_the_processor_refuses() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        F.conv2d(X[:, :3].to("meta"), W.to("meta"))
    with pytest.raises(RuntimeError, match="Kernel size"):
        F.conv2d(X.to("meta"), torch.zeros(6, 4, 9, 9, device="meta"))


# What lies outside of the image is zero, and is not multiplied: infinite factors leave no trace.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(9, 11), (3, 40), (30, 30)], ids=str)
def test_zeros_of_the_border_are_not_multiplied(size: tuple, layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 32, *size, dtype=dtype).to(memory_format=layout)
    w = torch.zeros(48, 32, 5, 5, dtype=dtype)
    w[:, :, 0, 0] = torch.inf
    dy = torch.randn(2, 48, *size, dtype=dtype).to(memory_format=layout)

    y, dx, _ = gradients(lambda x, w: F.conv2d(x, w, padding=2), [x, w], dy)
    below_and_right = torch.zeros(size, dtype=torch.bool)
    below_and_right[2:, 2:] = True  # of two rows and columns of the image
    assert torch.equal(y.isfinite(), ~below_and_right.expand_as(y))
    assert torch.equal(dx.isfinite(), ~below_and_right.flip(0, 1).expand_as(dx))

    dy[:, :, 0, 0] = torch.inf
    _, _, dw = gradients(lambda x, w: F.conv2d(x, w, padding=2), [x, w], dy)
    reads_image = torch.zeros(5, 5, dtype=torch.bool)
    reads_image[2:, 2:] = True  # from output pixel (0, 0)
    assert torch.equal(dw.isfinite(), ~reads_image.expand_as(dw))


# Outputs of short sums are written past the cache, as are large contiguous ones.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ins", "outs", "options"),
    [
        (3, 64, {"padding": 1}),
        (3, 48, {"padding": 1, "stride": 2}),  # half of the last panel
        (3, 44, {"padding": 1}),  # not streamed: pixels begin amid cache lines
        (6, 80, {"padding": 1, "groups": 2}),  # as do the outputs of a group
        (8, 96, {"padding": 1, "padding_mode": "circular"}),
    ],
    ids=str,
)
def test_large_outputs_are_those_of_single_images(ins: int, outs: int, options: dict, dtype: torch.dtype) -> None:
    layer = scratchnn.nn.Conv2d(ins, outs, 3, dtype=dtype, **options)
    side = 24 * options.get("stride", 1)
    x = torch.randn(5, ins, side, side + 1, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
        assert y[:1].nbytes < 512 << 10 <= y.nbytes
        assert all(torch.equal(y[i : i + 1], layer(x[i : i + 1])) for i in range(len(x)))
        truth = torch.nn.functional.conv2d(
            x[:1, :, :9].double(),
            layer.weight.double(),
            layer.bias.double(),
            **{name: option for name, option in options.items() if name != "padding_mode"},
        )
    inner = (slice(None), slice(None), slice(1, 3), slice(2, 20))  # away from the border, which has its own tests
    assert relative_error(y[:1][inner], truth[inner]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(3, 64, 3, padding=1), (256, 256)),
        (nn.Conv2d(3, 64, 3, padding=1), (256, 260)),  # not streamed: rows begin amid cache lines
        (nn.Conv2d(4, 64, 7, stride=2, padding=3), (512, 480)),
        (nn.ConvTranspose2d(6, 72, 2, stride=2), (128, 112)),
        (nn.Conv2d(72, 72, 3, padding=1, groups=72), (256, 256)),
        (nn.Conv2d(72, 72, 5, padding=2, groups=72), (250, 272)),  # bands begin amid cache lines
    ],
    ids=str,
)
def test_large_contiguous_outputs_are_those_of_single_images(
    layer: torch.nn.Module, size: tuple, dtype: torch.dtype
) -> None:
    """Whole rows are written past the cache, a line of each channel at a time."""
    layer = copy.deepcopy(layer).to(dtype)
    x = torch.randn(8, layer.in_channels, *size, dtype=dtype)
    with torch.no_grad():
        y = layer(x)
        assert y.nbytes >= 16 << 20
        assert y.is_contiguous()
        assert all(torch.equal(y[i : i + 1], layer(x[i : i + 1])) for i in range(len(x)))
        other = layer(x[:1].contiguous(memory_format=torch.channels_last))
    if layer.groups == 1:
        assert torch.equal(y[:1], other)
    else:  # depthwise, each layout adds up its taps in an order of its own
        torch.testing.assert_close(y[:1], other.contiguous())


# Winograd: 3x3, stride 1.


@pytest.fixture
def winograd_setting() -> Iterator[None]:
    yield
    scratchnn.backends.conv.allow_winograd = True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 32, 9, 7), (1, 64, 4, 33), (3, 96, 14, 14), (5, 32, 8, 8)])
def test_winograd_is_nearly_as_accurate_as_the_direct_sum(
    shape: tuple, padding: int, layout: torch.memory_format, winograd_setting: None
) -> None:
    def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, padding=padding)

    for filters in (32, 64, 160):
        x, w, b = torch.randn(shape), torch.randn(filters, shape[1], 3, 3), torch.randn(filters)
        operands = [x.to(memory_format=layout), w.to(memory_format=layout), b]
        grad = torch.randn_like(torch.conv2d(*operands, padding=padding))
        truth = gradients(convolve, [tensor.double() for tensor in operands], grad)
        results = {}
        for allow in (True, False):
            scratchnn.backends.conv.allow_winograd = allow
            results[allow] = gradients(convolve, operands, grad)
        assert not torch.equal(results[True][0], results[False][0])
        assert_as_accurate(results[True], results[False], truth, WINOGRAD)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 16, 9, 7), (1, 64, 4, 33), (3, 96, 14, 14), (1, 512, 8, 8)])
def test_winograd_in_double_precision(
    shape: tuple, padding: int, layout: torch.memory_format, winograd_setting: None
) -> None:
    """Numbers of few digits, whose products and sums are exact summed directly: what is left is Winograd's error."""

    def short(*size: int) -> Tensor:
        return torch.randint(-(1 << 12), 1 << 12, size).double().to(memory_format=layout)

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, padding=padding)

    for filters in (16, 48, 512):
        operands = [short(*shape), short(filters, shape[1], 3, 3)]
        grad = short(*torch.conv2d(*operands, padding=padding).shape)
        found = gradients(convolve, operands, grad)
        scratchnn.backends.conv.allow_winograd = False
        exact = gradients(convolve, operands, grad)
        scratchnn.backends.conv.allow_winograd = True
        for name, mine, truth in zip(("y", "dx", "dw"), found, exact, strict=True):
            assert torch.equal(truth, truth.round())
            assert 0 < relative_error(mine, truth) < 16 * 2**-53, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [(256, 256), (176, 464), (512, 528), (1040, 64)], ids=str)
def test_winograd_of_many_channels(channels: tuple[int, int], layout: torch.memory_format) -> None:
    """Filters are transformed panel by panel for few tiles, all at once for many: a sample's numbers are the same."""
    ins, outs = channels
    x = torch.randn(24, ins, 13, 14).to(memory_format=layout)  # 16 tiles a sample
    w, b = torch.randn(outs, ins, 3, 3), torch.randn(outs)
    many, few, one = (F.conv2d(x[:n], w, b, padding=1) for n in (24, 9, 1))
    assert torch.equal(many[:9], few)
    assert torch.equal(many[:1], one)
    dy = torch.randn_like(few)

    def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, padding=1)

    truth = gradients(convolve, [x[:9].double(), w.double(), b.double()], dy)
    for name, mine, wanted in zip(("y", "dx", "dw", "db"), gradients(convolve, [x[:9], w, b], dy), truth, strict=True):
        assert relative_error(mine, wanted) < 2e-6, name
    dx = torch.ops.scratchnn.conv_transpose(dy, w, None, [13, 14], [1, 1], [1] * 4, [1, 1], 1, "zeros")
    first = torch.ops.scratchnn.conv_transpose(dy[:1], w, None, [13, 14], [1, 1], [1] * 4, [1, 1], 1, "zeros")
    assert torch.equal(dx[:1], first)


def test_winograd_can_be_switched_off(winograd_setting: None) -> None:
    assert scratchnn.backends.conv.allow_winograd
    x, w = torch.randn(2, 64, 16, 16), torch.randn(64, 64, 3, 3)
    truth = torch.conv2d(x.double(), w.double(), padding=1)
    fast = F.conv2d(x, w, padding=1)
    scratchnn.backends.conv.allow_winograd = False
    assert not scratchnn.backends.conv.allow_winograd
    direct = F.conv2d(x, w, padding=1)
    assert not torch.equal(fast, direct), "the switch chose no other algorithm"
    assert relative_error(direct, truth) < relative_error(fast, truth) < WINOGRAD * relative_error(direct, truth)
    x[0, 3, 8, 8] = torch.inf  # summed directly, it reaches its nine neighbours and nobody else
    assert (~F.conv2d(x, w, padding=1)[0].isfinite()).any(0).sum() == 9


# Volumes: blocks that hold all of the depth and part of it, more depth taps than input slices, one slice, one tile; the
# last panel of channels partly empty; more points of filters than stay in the cache.
WINOGRAD_VOLUMES = [
    # input, output channels, depth of the kernel
    ((2, 64, 5, 9, 7), 64, 3),
    ((2, 64, 1, 12, 12), 64, 3),
    ((1, 32, 40, 6, 11), 32, 3),
    ((2, 48, 7, 4, 4), 144, 3),
    ((2, 96, 6, 5, 6), 48, 1),
    ((1, 32, 20, 6, 9), 32, 2),
    ((1, 64, 3, 13, 11), 32, 5),
]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("shape", "filters", "depth"), WINOGRAD_VOLUMES)
def test_winograd_of_volumes(shape: tuple, filters: int, depth: int, mode: str) -> None:
    for padding in {(depth // 2, 1, 1), (0, 1, 2), (depth, 2, 0), (depth + 2, 0, 1)}:
        most = {"reflect": shape[2] - 1, "circular": shape[2]}.get(mode, padding[0])
        if padding[0] > most or shape[2] + 2 * padding[0] < depth:
            continue
        options = {"padding": padding, "padding_mode": mode}
        # Where there is more padding than kernel, torch computes gradients by another algorithm, in shorter sums.
        factor = WINOGRAD if padding[0] < depth else 1.5 * WINOGRAD
        layers = [n.Conv3d(shape[1], filters, (depth, 3, 3), **options) for n in (nn, torch.nn)]
        assert scratchnn.explain(layers[0], shape).algorithm == "Winograd F(4x4, 3x3)"
        ours, theirs = (
            lambda x, w, b, layer=layer: functional_call(layer, {"weight": w, "bias": b}, (x,)).contiguous()
            for layer in layers
        )
        for memory_format, dtype in itertools.product(formats(3), (*FAST_DTYPES, torch.bfloat16)):
            if dtype != torch.float32 and mode != "zeros":
                continue
            x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
            w = layers[1].weight.detach().to(dtype, memory_format=memory_format)
            operands = [x, w, torch.randn(filters, dtype=dtype)]
            if dtype == torch.bfloat16:  # torch's own gradients are not always finite here
                assert_rounded_once(ours, operands)
            else:
                check_against_torch(ours, theirs, operands, factor)


@pytest.mark.parametrize(("channels", "filters", "size"), [(272, 240, (3, 6, 5)), (1040, 112, (20, 9, 9))])
def test_winograd_of_volumes_of_many_channels(channels: int, filters: int, size: tuple) -> None:
    """The points of all filters would not stay in the cache; those of the tiles come in one round and in several."""
    w, b = torch.randn(filters, channels, 3, 3, 3) / 50, torch.randn(filters)
    for memory_format in formats(3):
        x = torch.randn(1, channels, *size).to(memory_format=memory_format)
        ours, theirs = (lambda *operands, f=f: f(*operands, padding=1).contiguous() for f in (F.conv3d, torch.conv3d))
        check_against_torch(ours, theirs, [x, w, b], WINOGRAD)


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize(("channels", "filters"), [(48, 48), (48, 80), (144, 64), (304, 400)])
def test_winograd_with_a_panel_of_channels_partly_empty(channels: int, filters: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(2, channels, 9, 10, dtype=dtype), torch.randn(filters, channels, 3, 3, dtype=dtype) / 20
    assert scratchnn.explain(nn.Conv2d(channels, filters, 3, dtype=dtype), x.shape).algorithm == "Winograd F(4x4, 3x3)"
    for memory_format in formats(2):
        operands = [x.to(memory_format=memory_format), w.to(memory_format=memory_format)]
        check_against_torch(F.conv2d, torch.conv2d, operands, WINOGRAD)


# Channels of a group, groups, image: a vector of each instruction set and several, groups that share a vector, dense
# layers of the same widths; one tile, less than a block of tiles, several, and parts of one.
NARROW = [
    (8, 6, (9, 13)),
    (8, 2, (3, 4)),
    (16, 1, (33, 20)),
    (16, 3, (14, 14)),
    (32, 1, (17, 9)),
    (32, 2, (7, 7)),
    (64, 1, (12, 11)),
    (64, 2, (8, 15)),
]


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *HALF_DTYPES])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("channels", "groups", "size"), NARROW)
def test_winograd_of_few_channels(
    channels: int, groups: int, size: tuple, padding: int, dtype: torch.dtype, winograd_setting: None
) -> None:
    """In groups and dense: each against float64 as torch, and against the direct sum."""
    if padding == 0 and min(size) < 5:
        padding = 1
    all_channels = channels * groups
    options = {"padding": padding, "groups": groups}
    x, w, b = conv_operands((3, all_channels, *size), all_channels, (3, 3), options, dtype)
    for x_format, w_format in itertools.product(formats(2), repeat=2):
        operands = [x.to(memory_format=x_format), w.to(memory_format=w_format), b]
        found = {}
        for allow in (True, False):
            scratchnn.backends.conv.allow_winograd = allow
            ours = functools.partial(F.conv2d, **options)
            if dtype in HALF_DTYPES:
                assert_rounded_once(ours, operands)
            else:
                check_against_torch(ours, functools.partial(torch.conv2d, **options), operands, WINOGRAD)
            found[allow] = ours(*operands)
        if dtype == torch.float32:
            assert not torch.equal(found[True], found[False]), "Winograd did not run"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(("channels", "groups", "size"), [(8, 4, (9, 6)), (16, 1, (5, 13)), (32, 2, (8, 8))])
def test_winograd_of_few_channels_reads_borders(channels: int, groups: int, size: tuple, mode: str) -> None:
    layers = [
        n.Conv2d(channels * groups, channels * groups, 3, padding=(1, 2), groups=groups, padding_mode=mode)
        for n in (nn, torch.nn)
    ]
    ours, theirs = (
        lambda x, w, b, layer=layer: functional_call(layer, {"weight": w, "bias": b}, (x,)).contiguous()
        for layer in layers
    )
    for memory_format in formats(2):
        x = torch.randn(2, channels * groups, *size).to(memory_format=memory_format)
        check_against_torch(ours, theirs, [x, *(p.detach() for p in layers[1].parameters())], WINOGRAD)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": (0, 2)}, {"padding": 1, "padding_mode": "circular"}])
@pytest.mark.parametrize(
    ("channels", "groups", "size"),
    [
        (16, 1, (10, 530)),  # a part of a row
        (64, 1, (9, 150)),
        (8, 4, (21, 33)),  # some rows
        (32, 1, (70, 47)),
        (16, 1, (7, 9)),  # several images
        (96, 1, (6, 90)),  # and of many channels
        (160, 1, (13, 14)),
    ],
)
def test_winograd_takes_contiguous_images_in_pieces(channels: int, groups: int, size: tuple, options: dict) -> None:
    """How they are cut changes no number: outputs are those of images in channels_last, which are not copied."""
    layer = nn.Conv2d(channels * groups, channels * groups, 3, groups=groups, **options)
    x = torch.randn(5, channels * groups, *size)
    dy = torch.randn_like(layer(x))
    ours = functools.partial(functional_call, layer)
    operands = [x, layer.weight.detach(), layer.bias.detach()]
    results = []
    for memory_format in formats(2):
        x, dy = x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=memory_format)
        operands[0] = x
        results.append(gradients(lambda x, w, b: ours({"weight": w, "bias": b}, (x,)), operands, dy))
    (y, dx, dw, db), expected = results
    assert torch.equal(y, expected[0])
    assert torch.equal(dx, expected[1])
    assert relative_error(dw, expected[2].double()) < 1e-5
    assert relative_error(db, expected[3].double()) < 1e-5


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (8, 6), (32, 3)])
def test_winograd_of_few_channels_in_flat_volumes(channels: int, groups: int) -> None:
    """Kernels of 1x3x3: every slice is an image of its own."""
    all_channels, options = channels * groups, {"padding": (0, 1, 1), "groups": groups}
    w, b = torch.randn(all_channels, channels, 1, 3, 3) / 4, torch.randn(all_channels)
    for memory_format in formats(3):
        x = torch.randn(2, all_channels, 5, 9, 7).to(memory_format=memory_format)
        ours, theirs = (lambda *o, f=f: f(*o, **options).contiguous() for f in (F.conv3d, torch.conv3d))
        check_against_torch(ours, theirs, [x, w, b], WINOGRAD)


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, *HALF_DTYPES])
@pytest.mark.parametrize("channels", [8, 16, 32])
def test_winograd_of_groups_lets_no_infinity_into_another(channels: int, dtype: torch.dtype) -> None:
    x, w, _ = conv_operands((2, 6 * channels, 9, 10), 6 * channels, (3, 3), {"groups": 6}, dtype)
    conv = functools.partial(F.conv2d, padding=1, groups=6)
    for memory_format in formats(2):
        operands = [x.clone(memory_format=memory_format), w.to(memory_format=memory_format)]
        dy = torch.ones_like(conv(*operands))
        clean = gradients(conv, operands, dy)
        operands[0][:, channels : 2 * channels] = torch.inf
        dy[:, 3 * channels : 4 * channels] = torch.nan
        spoilt = gradients(conv, operands, dy)
        for result, spoils in zip(range(3), ([1], [3], [1, 3]), strict=True):
            dim = 0 if result == 2 else 1
            pairs = zip(spoilt[result].chunk(6, dim), clean[result].chunk(6, dim), strict=True)
            for group, (found, wanted) in enumerate(pairs):
                if group in spoils:
                    assert not found.isfinite().all()
                else:
                    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (16, 1), (16, 2), (32, 1), (64, 1)])
def test_winograd_of_few_channels_gives_the_same_bits(channels: int, groups: int) -> None:
    """For any batch, and any number of threads."""
    all_channels = channels * groups
    x, g = torch.randn(2, 41, all_channels, 13, 10)
    w = torch.randn(all_channels, channels, 3, 3)
    window = ([1, 1], [1] * 4, [1, 1], groups, "zeros")

    def results(x: Tensor, g: Tensor) -> list[Tensor]:
        return [_ops.conv(x, w, None, *window), _ops.conv_transpose(g, w, None, [13, 10], *window)]

    for memory_format in formats(2):
        x, g = x.contiguous(memory_format=memory_format), g.contiguous(memory_format=memory_format)
        whole, filters = results(x, g), _ops.conv_weight_grad(g, x, [3, 3], *window, False)
        torch.set_num_threads(1)
        alone, same_filters = results(x, g), _ops.conv_weight_grad(g, x, [3, 3], *window, False)
        torch.set_num_threads(2)
        parts = [torch.cat(p) for p in zip(results(x[:3], g[:3]), results(x[3:], g[3:]), strict=True)]
        assert torch.equal(filters, same_filters)
        for other in (alone, parts):
            assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("size", [(11, 10), (9, 11, 10), (40, 5, 6)])
def test_winograd_gives_the_same_bits_for_any_batch_and_threads(size: tuple) -> None:
    rank = len(size)
    x, w = torch.randn(7, 32, *size), torch.randn(64, 32, *[3] * rank)
    g = torch.randn(7, 64, *size)
    window = ([1] * rank, [1] * 2 * rank, [1] * rank, 1, "zeros")

    def results(x: Tensor, g: Tensor) -> list[Tensor]:
        return [_ops.conv(x, w, None, *window), _ops.conv_transpose(g, w, None, x.shape[2:], *window)]

    def weight_grad() -> Tensor:
        return _ops.conv_weight_grad(g, x, [3] * rank, *window, False)

    torch.set_num_threads(2)
    whole, filters = results(x, g), weight_grad()
    for threads in (8, 1):
        torch.set_num_threads(threads)
        assert torch.equal(weight_grad(), filters)
    for other in (
        results(x, g),
        [torch.cat(p) for p in zip(results(x[:3], g[:3]), results(x[3:], g[3:]), strict=True)],
    ):
        assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))

"""Pooling against torch, float64 truth and its formulas."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, FAST_DTYPES, check_against_torch, gradients, layouts, same_error, strides
from torch import Tensor

import scratchnn
import scratchnn.functional as F
from scratchnn import nn

T = torch.nn.functional

K3S2P1 = ([3, 3], [2, 2], [1, 1], [1, 1])
K2S1 = ([2, 2], [1, 1], [0, 0], [1, 1])
VOLUME = ([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])
LARGE = ([17, 17], [5, 5], [8, 8], [1, 1])


def images(*shape: int, channels_last: bool = False) -> Tensor:
    x = torch.randn(shape)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def offsets_of(x: Tensor, *windows: list[int]) -> Tensor:
    return torch.ops.scratchnn.max_pool_with_offsets(x, *windows, False)[1]


def adaptive_offsets(x: Tensor, *size: int) -> Tensor:
    return torch.ops.scratchnn.adaptive_max_pool_with_offsets(x, size)[1]


def fractional_offsets(x: Tensor, *size: int) -> tuple[Tensor, Tensor]:
    samples = torch.rand(*x.shape[:2], x.dim() - 2)
    return torch.ops.scratchnn.fractional_max_pool(x, samples, [2, 3], size)[1], samples


def places(x: Tensor) -> Tensor:
    """Indices for unpooling that name different places."""
    indices = torch.argsort(torch.rand(x.shape).flatten(2)).reshape(x.shape)
    return torch.empty_like(x, dtype=torch.int64).copy_(indices)


def max_pool_samples() -> list[tuple]:
    return [
        (images(2, 3, 7, 6), *K3S2P1, False),
        (images(2, 9, 7, 6, channels_last=True), *K3S2P1, True),
        (images(1, 2, 20, 18), *LARGE, False),
        (torch.randn(1, 2, 4, 4, 4), *VOLUME, False),
    ]


OPERATOR_SAMPLES = {
    "max_pool": max_pool_samples,
    "max_pool_with_offsets": max_pool_samples,
    "max_pool_backward": lambda: [
        (
            images(2, 3, 4, 3, channels_last=last),
            offsets_of(images(2, 3, 7, 6, channels_last=last), *K3S2P1),
            [7, 6],
            *K3S2P1,
        )
        for last in (False, True)
    ],
    "max_pool_gather": lambda: [
        (
            images(2, 3, 7, 6, channels_last=last),
            offsets_of(images(2, 3, 7, 6, channels_last=last), *K2S1),
            *K2S1,
        )
        for last in (False, True)
    ],
    "max_pool_indices": lambda: [
        (offsets_of(images(2, 3, 7, 6, channels_last=last), *K3S2P1), [7, 6], *K3S2P1) for last in (False, True)
    ],
    "avg_pool": lambda: [
        (images(2, 3, 7, 6), *K3S2P1[:3], False, True, None),
        (images(2, 9, 7, 6, channels_last=True), *K3S2P1[:3], True, False, None),
        (images(2, 3, 7, 6), *K2S1[:3], True, False, 3),
    ],
    "avg_pool_backward": lambda: [
        (images(2, 3, 4, 3), [7, 6], *K3S2P1[:3], False, True, None, False),
        (images(2, 3, 4, 3), [7, 6], *K3S2P1[:3], False, False, 3, True),
    ],
    "adaptive_max_pool": lambda: [
        (images(2, 3, 7, 6), [3, 4]),
        (images(2, 9, 17, 18, channels_last=True), [1, 1]),
    ],
    "adaptive_max_pool_with_offsets": lambda: [
        (images(2, 3, 7, 6), [3, 4]),
        (images(2, 9, 17, 18, channels_last=True), [1, 1]),
        (torch.randn(2, 3, 7), [0]),
    ],
    "adaptive_max_pool_backward": lambda: [
        (images(2, 3, 3, 4, channels_last=last), adaptive_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4), [7, 6])
        for last in (False, True)
    ],
    "adaptive_max_pool_gather": lambda: [
        (images(2, 3, 7, 6), adaptive_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4)) for last in (False, True)
    ],
    "adaptive_max_pool_indices": lambda: [
        (adaptive_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4), [7, 6]) for last in (False, True)
    ],
    "fractional_max_pool": lambda: [
        (images(2, 3, 7, 6, channels_last=last), torch.rand(2, 3, 2), [2, 3], [3, 4]) for last in (False, True)
    ],
    "fractional_max_pool_backward": lambda: [
        (images(2, 3, 3, 4), *fractional_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4), [7, 6], [2, 3])
        for last in (False, True)
    ],
    "fractional_max_pool_gather": lambda: [
        (images(2, 3, 7, 6), *fractional_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4), [2, 3])
        for last in (False, True)
    ],
    "fractional_max_pool_indices": lambda: [
        (*fractional_offsets(images(2, 3, 7, 6, channels_last=last), 3, 4), [7, 6], [2, 3]) for last in (False, True)
    ],
    "max_unpool": lambda: [
        (images(2, 3, 3, 4, channels_last=last), places(images(2, 3, 3, 4, channels_last=last)), [5, 6])
        for last in (False, True)
    ],
    "max_unpool_backward": lambda: [
        (images(2, 3, 5, 6), places(images(2, 3, 3, 4, channels_last=last))) for last in (False, True)
    ],
    "adaptive_avg_pool": lambda: [
        (images(2, 3, 7, 6), [3, 4]),
        (images(2, 9, 7, 6, channels_last=True), [1, 1]),
    ],
    "adaptive_avg_pool_backward": lambda: [
        (images(2, 3, 3, 4), [7, 6], False),
        (images(2, 3, 1, 1), [7, 6], True),
    ],
}

# (input shape, arguments): odd sizes, 1x1 maps, large padding, gaps between windows, dilation, ceil mode,
# windows of more than 256 taps, more channels than several vectors, single planes, empty batches.
MAX_CASES = [
    ((2, 3, 9, 11), {"kernel_size": 2}),
    ((2, 3, 9, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((3, 5, 8, 8), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((2, 37, 7, 6), {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)}),
    ((1, 1, 1, 1), {"kernel_size": 1}),
    ((2, 8, 1, 1), {"kernel_size": 3, "padding": 1}),
    ((2, 3, 10, 9), {"kernel_size": 2, "stride": 3}),
    ((2, 3, 10, 9), {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1}),
    ((2, 3, 10, 9), {"kernel_size": 2, "stride": 2, "dilation": (3, 1), "ceil_mode": True}),
    ((2, 17, 10, 9), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 3, 5, 5), {"kernel_size": 2, "stride": 4, "padding": 1, "ceil_mode": True}),
    ((1, 2, 24, 20), {"kernel_size": 17, "stride": 3, "padding": 8}),
    ((0, 3, 6, 6), {"kernel_size": 3, "stride": 2}),
    ((1, 20, 40, 36), {"kernel_size": 5, "stride": 2, "padding": 2}),
    ((2, 3, 5, 13), {"kernel_size": (5, 13)}),
]
AVG_OPTIONS = [{}, {"count_include_pad": False}, {"divisor_override": 7}]
AVG_CASES = [
    (shape, arguments | options)
    for (shape, arguments), options in zip(
        [case for case in MAX_CASES if "dilation" not in case[1]], itertools.cycle(AVG_OPTIONS), strict=False
    )
]
ADAPTIVE_CASES = [
    ((2, 3, 9, 11), 1),
    ((2, 3, 9, 11), (4, None)),
    ((2, 37, 7, 6), (3, 10)),
    ((2, 37, 7, 6), 1),
    ((1, 5, 33, 20), (7, 7)),
    ((1, 1, 1, 1), 2),
    ((0, 3, 6, 6), 2),
    ((3, 9, 60, 50), 1),
]
CASES = [
    *((name, shape, arguments) for shape, arguments in MAX_CASES for name in ["max_pool2d"]),
    *(("avg_pool2d", shape, arguments) for shape, arguments in AVG_CASES),
    *(("adaptive_avg_pool2d", shape, {"output_size": size}) for shape, size in ADAPTIVE_CASES),
]


def functions(name: str, arguments: dict[str, Any]) -> tuple[Callable, Callable]:
    return (
        lambda x: getattr(F, name)(x, **arguments),
        lambda x: getattr(T, name)(x, **arguments),
    )


# The ladder: formulas, naive kernels, fast kernels


def max_pool_formula(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Maxima of the windows of a plane, and the taps they were at, number by number."""
    height, width = x.shape
    values = [
        [
            max(
                (
                    x[h, w].item(),
                    -(a * kernel + b),
                )  # of equal values, that of the first tap is the largest pair
                for a, b in itertools.product(range(kernel), repeat=2)
                for h, w in [(top + a * dilation, left + b * dilation)]
                if 0 <= h < height and 0 <= w < width
            )
            for left in range(-padding, width + padding - dilation * (kernel - 1), stride)
        ]
        for top in range(-padding, height + padding - dilation * (kernel - 1), stride)
    ]
    pairs = torch.tensor(values, dtype=torch.float64)
    return pairs[..., 0].to(x.dtype), -pairs[..., 1].to(torch.uint8)


def average_formula(x: Tensor, size: int) -> Tensor:
    """Adaptive averages of a plane, number by number."""
    height, width = x.shape

    def window(o: int, n: int) -> range:
        return range(o * n // size, -((o + 1) * n // -size))

    means = [
        [
            sum(x[h, w].item() for h in rows for w in columns) / (len(rows) * len(columns))
            for columns in (window(o, width) for o in range(size))
        ]
        for rows in (window(o, height) for o in range(size))
    ]
    return torch.tensor(means, dtype=x.dtype)


@pytest.mark.parametrize("windows", [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 2)])
def test_the_ladder_of_maxima(windows: tuple[int, int, int, int]) -> None:
    x = torch.randint(-3, 4, (1, 1, 9, 8)).float()  # many ties
    formula = max_pool_formula(x[0, 0], *windows)
    arguments = [[value, value] for value in windows]
    with scratchnn.kernels("naive"):
        naive = torch.ops.scratchnn.max_pool_with_offsets(x, *arguments, False)
    fast = torch.ops.scratchnn.max_pool_with_offsets(x, *arguments, False)
    for literal, slow, quick in zip(formula, naive, fast, strict=True):
        assert torch.equal(slow[0, 0], literal)
        assert torch.equal(quick, slow)


def test_the_ladder_of_averages() -> None:
    x = torch.randn(1, 1, 9, 8, dtype=torch.float64)
    with scratchnn.kernels("naive"):
        naive = F.adaptive_avg_pool2d(x, 3)
    torch.testing.assert_close(naive[0, 0], average_formula(x[0, 0], 3))
    torch.testing.assert_close(F.adaptive_avg_pool2d(x, 3), naive)


# Against torch and truth


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_values_and_gradients(name: str, which: str, dtype: torch.dtype) -> None:
    for case, shape, arguments in CASES:
        if case != name:
            continue
        ours, theirs = functions(name, arguments)
        for layout, x in layouts(shape, dtype):
            if name == "max_pool2d":
                # Distinct numbers: a tie in half precision is none in the float64 truth's gradient.
                x = distinct_like(x) if layout != "expanded" else x.contiguous()
            try:
                with scratchnn.kernels(which):
                    if dtype == torch.float64:  # torch's own rounding is no truth for sums in another order
                        check_double(ours, theirs, x)
                    else:
                        check_against_torch(ours, theirs, [x])
            except AssertionError as error:
                raise AssertionError(f"{shape} {arguments} {layout}: {error}") from error


# Averages of 3x3 that step by one go down contiguous planes, a vector of columns at a time.


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {},
        {"padding": (1, 0), "ceil_mode": True},
        {"padding": (0, 1), "divisor_override": 4},
        {"padding": 1, "count_include_pad": False},  # divisors that differ
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(3, 18), (5, 8), (9, 35), (4, 61), (700, 19), (2, 40)], ids=str)
def test_averages_of_three_by_three(size: tuple[int, int], options: dict[str, Any], dtype: torch.dtype) -> None:
    if size[0] < 3 and options.get("padding") not in (1, (1, 0)):
        options = options | {"padding": 1}
    ours, theirs = functions("avg_pool2d", {"kernel_size": 3, "stride": 1} | options)
    x = torch.randn(3, 2, *size, dtype=dtype)
    if dtype == torch.float64:
        check_double(ours, theirs, x)
    else:
        check_against_torch(ours, theirs, [x])
    x[0, 0, -1, 0] = x[1, 1, 0, -1] = torch.inf  # beside another row, in memory
    grad = torch.randn_like(ours(x))
    assert torch.equal(ours(x).isfinite(), theirs(x).isfinite())
    grad[0, 0, -1, 0] = grad[1, 1, 0, -1] = torch.inf
    assert torch.equal(gradients(ours, [x], grad)[1].isfinite(), gradients(theirs, [x], grad)[1].isfinite())


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("size", [(35, 35), (130, 66)], ids=str)
def test_large_averages_are_those_of_single_planes(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Large results are written past the cache."""
    x = torch.randn((17 << 20) // 4 // size[0] // size[1], 1, *size, dtype=dtype)
    y, dx = gradients(lambda x: F.avg_pool2d(x, 3, 1, 1), [x], x)
    assert y.nbytes >= 16 << 20
    for i in (0, 1, len(x) // 2, len(x) - 1):
        one, its_dx = gradients(lambda x: F.avg_pool2d(x, 3, 1, 1), [x[i : i + 1]], x[i : i + 1])
        assert torch.equal(y[i : i + 1], one)
        assert torch.equal(dx[i : i + 1], its_dx)


def check_double(ours: Callable, theirs: Callable, x: Tensor) -> None:
    with torch.no_grad():
        grad = torch.randn_like(theirs(x))
    mine, other = gradients(ours, [x], grad), gradients(theirs, [x], grad)
    torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)
    assert strides(mine[0]) == strides(other[0])


def distinct_like(x: Tensor) -> Tensor:
    """As many different numbers as the type has, in the layout of x; exact in every type."""
    values = torch.randperm(x.numel()).reshape(x.shape).to(x.dtype)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(values)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_indices(which: str, dtype: torch.dtype) -> None:
    for shape, arguments in MAX_CASES:
        for _, x in layouts(shape, dtype):
            x = x.mul(2).round()  # ties
            with scratchnn.kernels(which):
                output, indices = F.max_pool2d(x, **arguments, return_indices=True)
                assert torch.equal(F.max_pool2d(x, **arguments), output)
            expected, expected_indices = T.max_pool2d(x, **arguments, return_indices=True)
            assert torch.equal(output, expected)
            assert torch.equal(indices, expected_indices)
            assert indices.dtype == torch.int64
            assert strides(indices) == strides(expected_indices)
    assert torch.equal(F.max_pool2d_with_indices(x, **arguments)[1], expected_indices)


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_special_values(which: str, dtype: torch.dtype) -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0], dtype=dtype)
    for channels_last, channels in itertools.product([False, True], [3, 16]):
        x = special[torch.randint(5, (3, channels, 9, 8))]
        x[0] = -float("inf")
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        with scratchnn.kernels(which):
            for arguments in [(2,), (3, 2, 1), (3, 1, 1), (3, 1, 1, 2)]:
                ours = F.max_pool2d(x, *arguments, return_indices=True)
                theirs = T.max_pool2d(x, *arguments, return_indices=True)
                torch.testing.assert_close(ours[0], theirs[0], equal_nan=True, rtol=0, atol=0)
                assert torch.equal(ours[1], theirs[1])
            torch.testing.assert_close(F.avg_pool2d(x, 3), T.avg_pool2d(x, 3), equal_nan=True)
            torch.testing.assert_close(F.adaptive_avg_pool2d(x, 1), T.adaptive_avg_pool2d(x, 1), equal_nan=True)


WIDTHS = [1, 5, 8, 17, 33, 40]
ROW_CASES = [  # kernel, stride, padding, dilation, ceil mode, of planes gone through row by row
    (2, 2, 0, 1, False),
    (2, 2, 1, 1, True),
    (3, 2, 1, 1, False),
    (3, 2, 1, 1, True),
    (3, 1, 1, 1, False),
    (3, 3, 0, 1, True),
    (4, 4, 2, 1, False),
    (2, 4, 0, 1, False),
    (5, 3, 2, 1, True),
    (3, 1, 1, 3, False),
    (3, 2, 1, 2, True),
    (2, 3, 1, 3, False),
    (3, 5, 1, 1, False),
    (13, 1, 6, 1, False),
]


def rows_of(rank: int, width: int, dtype: torch.dtype) -> Tensor:
    """Whole numbers, many of them equal, with an infinite row."""
    x = torch.randint(-3, 4, (2, 3, *(5, 11)[3 - rank :], width)).to(dtype)
    x[0, 1].flatten()[: width + 2] = -float("inf")
    return x


def check_maxima(x: Tensor, rank: int, *arguments: Any) -> None:
    """Values, indices and gradients of maxima are torch's, and those of the plain kernels."""
    ours, theirs = getattr(F, f"max_pool{rank}d"), getattr(T, f"max_pool{rank}d")
    try:
        expected, expected_indices = theirs(x, *arguments, return_indices=True)
    except RuntimeError:
        return  # too small for the window
    x.requires_grad_()
    output, indices = ours(x, *arguments, return_indices=True)
    torch.testing.assert_close(output.detach(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(ours(x.detach(), *arguments), expected, rtol=0, atol=0, equal_nan=True)
    if (expected_indices < 0).any() or (expected_indices >= x[0, 0].numel()).any():
        return  # a window of padding alone
    grad = torch.randint(-4, 5, output.shape).to(x.dtype)
    (dx,) = torch.autograd.grad(output, x, grad)
    places = torch.zeros_like(x, dtype=torch.float64).flatten(2)
    places.scatter_add_(2, expected_indices.flatten(2), grad.flatten(2).double())
    assert torch.equal(dx.double(), places.reshape(x.shape))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_maxima_of_rows_of_any_width(rank: int, dtype: torch.dtype) -> None:
    for case, width in itertools.product(ROW_CASES, WIDTHS):
        kernel, stride, padding, dilation, ceil_mode = case
        if padding > kernel // 2:
            continue
        check_maxima(rows_of(rank, width, dtype), rank, kernel, stride, padding, dilation, ceil_mode)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_nan_among_the_rows(dtype: torch.dtype) -> None:
    for case, width in itertools.product(ROW_CASES[:7], [9, 16, 40]):
        x = rows_of(2, width, dtype)
        x[torch.rand(x.shape) < 0.05] = float("nan")
        x[1, 2, 3, -1] = float("nan")
        check_maxima(x, 2, *case)


# Maxima of 3x3 that step by one or two go down contiguous planes, a vector of columns at a time.


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("padding", [0, 1, (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 17), (3, 18), (5, 9), (9, 35), (4, 61), (10, 64), (700, 19), (2, 1300)], ids=str)
def test_maxima_of_three_by_three(
    size: tuple[int, int], stride: int, padding: int | tuple[int, int], ceil_mode: bool, dtype: torch.dtype
) -> None:
    x = torch.randint(-3, 4, (3, 2, *size)).to(dtype)
    x[0, 1].flatten()[: size[1] + 2] = -torch.inf
    check_maxima(x.clone(), 2, 3, stride, padding, 1, ceil_mode)
    x[torch.rand(x.shape) < 0.03] = torch.nan
    x[1, 1, -1, -1] = torch.nan
    check_maxima(x, 2, 3, stride, padding, 1, ceil_mode)


@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 3, 3), (1, 3, 3), (5, 3, 3)], ids=str)
@pytest.mark.parametrize("dilation", [1, (2, 1, 1)], ids=["near", "far"])
@pytest.mark.parametrize("width", [9, 18, 40])
def test_maxima_of_three_by_three_at_any_depth(
    width: int, dilation: int | tuple[int, int, int], kernel: tuple[int, int, int], dtype: torch.dtype
) -> None:
    for stride, padding in [(1, 0), (2, (kernel[0] // 2, 1, 1)), ((3, 2, 2), (0, 1, 0)), ((2, 1, 1), (0, 0, 1))]:
        x = torch.randint(-3, 4, (2, 3, 9, 7, width)).to(dtype)
        x[0, 1].flatten()[: 20 * width] = -torch.inf
        x[1, 2, 3, 4, 5] = torch.nan
        check_maxima(x, 3, kernel, stride, padding, dilation)
        if padding and kernel[0] <= 3 and dilation == 1:
            check_maxima(x.detach()[:, :, :1].contiguous(), 3, kernel, stride, padding, dilation)  # flat images


def test_gradients_that_are_not_finite_stay_where_they_belong() -> None:
    """Windows of other rows and planes, that lie beside an edge in memory, have no part in it."""
    x = torch.arange(3 * 2 * 5 * 18.0).reshape(3, 2, 5, 18).sin()
    for stride in (1, 2):
        grad = torch.randn_like(F.max_pool2d(x, 3, stride, 1))
        grad[0, 0, -1, 0] = grad[1, 1, 0, -1] = grad[1, 0, 1, 0] = torch.nan
        ours = gradients(lambda x, stride=stride: F.max_pool2d(x, 3, stride, 1), [x], grad)
        theirs = gradients(lambda x, stride=stride: T.max_pool2d(x, 3, stride, 1), [x], grad)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_large_maxima_are_those_of_single_planes(stride: int) -> None:
    """Large results are written past the cache."""
    x = torch.randn((70 << 20) // 4 // 66 // 130, 1, 130, 66)
    with torch.no_grad():
        grad = torch.randn_like(F.max_pool2d(x, 3, stride, 1))
    assert grad.nbytes >= 16 << 20
    y, dx = gradients(lambda x: F.max_pool2d(x, 3, stride, 1), [x], grad)
    for i in (0, 1, len(x) // 2, len(x) - 1):
        one, its_dx = gradients(lambda x: F.max_pool2d(x, 3, stride, 1), [x[i : i + 1]], grad[i : i + 1])
        assert torch.equal(y[i : i + 1], one)
        assert torch.equal(dx[i : i + 1], its_dx)


def test_maxima_of_rows_in_pieces() -> None:
    """Rows too long, planes too high, and results too large for one piece of work."""
    for rank, shape in [(1, (2, 2, 1700)), (2, (1, 1, 3, 1300)), (2, (1, 1, 900, 700)), (3, (1, 2, 9, 80, 90))]:
        for arguments in [(2,), (3, 2, 1), (3, 1, 1), (4, 3, 2), (4, 4), (3, 1, 1, 5)]:
            if rank == 2 and shape[2] < arguments[0]:
                continue
            check_maxima(torch.randint(-9, 9, shape).float(), rank, *arguments)
    check_maxima(torch.randn(5, 64, 120, 121), 2, 2, 1)
    check_maxima(torch.randn(5, 64, 120, 121).bfloat16(), 2, 3, 2, 1)
    check_maxima(torch.randn(4, 64, 120, 160).to(memory_format=torch.channels_last), 2, 3, 2, 1)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_averages_of_rows_of_any_width(rank: int, dtype: torch.dtype) -> None:
    name = f"avg_pool{rank}d"
    if rank == 3 and dtype.itemsize == 2:
        pytest.skip("volumes in half precision are averaged under autocast alone")
    for (kernel, stride, padding, dilation, ceil_mode), width in itertools.product(ROW_CASES, WIDTHS):
        x = torch.randn(2, 3, *(5, 11)[3 - rank :], width).to(dtype)
        if dilation > 1 or padding > kernel // 2 or min(x.shape[2:]) < kernel:
            continue
        for count_include_pad in (True, False):
            arguments = (kernel, stride, padding, ceil_mode, count_include_pad)
            x.grad = None
            output = getattr(F, name)(x.requires_grad_(), *arguments)
            grad = torch.randn_like(output)
            (dx,) = torch.autograd.grad(output, x, grad)
            wide = x.detach().double().requires_grad_()
            expected = getattr(T, name)(wide, *arguments)
            (expected_dx,) = torch.autograd.grad(expected, wide, grad.double())
            torch.testing.assert_close(output, expected.to(dtype))
            torch.testing.assert_close(dx, expected_dx.to(dtype))


def test_averages_of_rows_in_pieces() -> None:
    for rank, shape in [(1, (2, 2, 1700)), (2, (1, 1, 900, 700)), (3, (1, 2, 9, 80, 90)), (2, (5, 64, 120, 121))]:
        for arguments in [(2,), (3, 2, 1), (3, 1, 1)]:
            x = torch.randn(shape, requires_grad=True)
            output = getattr(F, f"avg_pool{rank}d")(x, *arguments)
            grad = torch.randn_like(output)
            wide = x.detach().double().requires_grad_()
            expected = getattr(T, f"avg_pool{rank}d")(wide, *arguments)
            torch.testing.assert_close(output, expected.float())
            torch.testing.assert_close(
                torch.autograd.grad(output, x, grad)[0], torch.autograd.grad(expected, wide, grad.double())[0].float()
            )


def test_a_window_of_padding_alone() -> None:
    """Dilation can put every tap outside; torch then names, and its backward writes, memory not its own."""
    for channels in (1, 16):
        x = torch.randn(1, channels, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
        output, indices = F.max_pool2d(x, 2, 1, 1, dilation=4, return_indices=True)
        assert torch.equal(output, torch.full((1, channels, 1, 1), -float("inf")))
        assert torch.equal(indices, torch.full((1, channels, 1, 1), -1))
        (grad,) = torch.autograd.grad(output.sum(), x)
        assert torch.equal(grad, torch.zeros_like(x))


def test_offsets_of_no_window_do_no_harm() -> None:
    grad = torch.ones(1, 2, 4, 4)
    for dtype, windows in [(torch.uint8, ([2, 2], [2, 2], [0, 0], [1, 1])), (torch.int32, LARGE)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            offsets = torch.full((1, 2, 4, 4), 200, dtype=dtype).to(memory_format=layout)
            torch.ops.scratchnn.max_pool_backward(grad, offsets, [8, 8], *windows)
            torch.ops.scratchnn.max_pool_gather(images(1, 2, 8, 8), offsets, *windows)


def test_integers() -> None:
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        x = torch.randint(0, 100, (2, 3, 7, 6)).to(dtype)
        for ours, theirs in zip(
            F.max_pool2d(x, 3, 2, 1, return_indices=True),
            T.max_pool2d(x, 3, 2, 1, return_indices=True),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    x = torch.randint(-100, 100, (2, 3, 7, 6))
    assert torch.equal(F.avg_pool2d(x, 2), T.avg_pool2d(x, 2))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("max_pool2d", {"kernel_size": 3, "stride": 2, "return_indices": True}),
        ("max_pool2d", {"kernel_size": 2}),
        ("avg_pool2d", {"kernel_size": 2}),
        ("adaptive_avg_pool2d", {"output_size": (2, None)}),
    ],
)
def test_unbatched(name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = functions(name, arguments)
    for x in (torch.randn(3, 7, 6), torch.randn(7, 6, 3).permute(2, 0, 1)):
        for mine, other in zip(as_tuple(ours(x)), as_tuple(theirs(x)), strict=True):
            torch.testing.assert_close(mine, other)
            assert mine.stride() == other.stride()


def as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def test_an_empty_output() -> None:
    assert F.adaptive_avg_pool2d(images(2, 3, 5, 5), (0, 2)).shape == (2, 3, 0, 2)


def test_global_average_of_a_large_plane_is_as_accurate_as_torchs() -> None:
    for channels_last in (False, True):
        x = torch.rand(2, 8, 224, 224)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        truth = x.double().mean((2, 3), keepdim=True)
        ours = (F.adaptive_avg_pool2d(x, 1).double() - truth).abs().max()
        theirs = (T.adaptive_avg_pool2d(x, 1).double() - truth).abs().max()
        assert ours <= 2 * theirs + 2 * torch.finfo(x.dtype).eps, f"channels_last {channels_last}"


def test_gradients_keep_the_input_format() -> None:
    x = images(2, 16, 6, 6, channels_last=True).requires_grad_()
    for function in (
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 1),
    ):
        output = function(x)
        (grad,) = torch.autograd.grad(output, x, torch.randn(output.shape))
        assert grad.is_contiguous(memory_format=torch.channels_last)


def test_saved_for_backward_is_a_byte_an_output() -> None:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        output = F.max_pool2d(torch.randn(2, 3, 8, 8, requires_grad=True), 2)
        F.avg_pool2d(torch.randn(2, 3, 8, 8, requires_grad=True), 2)
        F.adaptive_avg_pool2d(torch.randn(2, 3, 8, 8, requires_grad=True), 2)
    assert [x.nbytes for x in saved] == [output.numel()]


# Derivatives and transforms

DIFFERENTIABLE = [
    lambda x: F.max_pool2d(x, 3, 2, 1),
    lambda x: F.max_pool2d(x, 2, 1, 0, 2, True),
    lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    lambda x: F.avg_pool2d(x, 2, 1, divisor_override=3),
    lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    lambda x: F.adaptive_avg_pool2d(x, 1),
]


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_derivatives(which: str, channels_last: bool) -> None:
    x = distinct_like(images(2, 2, 5, 4, channels_last=channels_last).double()).requires_grad_()
    with scratchnn.kernels(which):
        for function in DIFFERENTIABLE:
            assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
            assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_transforms(function: Callable) -> None:
    x = distinct_like(torch.empty(3, 2, 2, 6, 5))
    v = torch.randn_like(x)
    expected = torch.stack([function(sample) for sample in x])
    torch.testing.assert_close(torch.func.vmap(function)(x), expected)
    moved = torch.func.vmap(function, in_dims=2, out_dims=1)(x.movedim(0, 2))
    torch.testing.assert_close(moved, expected.movedim(0, 1))

    def loss(x: Tensor) -> Tensor:
        return function(x).square().sum()

    leaf = x[0].clone().requires_grad_()
    (expected_grad,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), expected_grad)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x)[0], expected_grad)
    tangent = torch.func.jvp(function, (x[0],), (v[0],))[1]
    _, pullback = torch.func.vjp(function, x[0])
    w = torch.randn_like(tangent)
    torch.testing.assert_close((tangent * w).sum(), (pullback(w)[0] * v[0]).sum())
    torch.testing.assert_close(torch.func.vmap(lambda x, v: torch.func.jvp(function, (x,), (v,))[1])(x, v)[0], tangent)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def function(x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 3, 2, 1)
        x = nn.AvgPool2d(2, 1)(x)
        return F.adaptive_avg_pool2d(x, (2, None))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for x in (images(2, 9, 12, 10, channels_last=True), images(3, 9, 14, 11, channels_last=True)):
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        outputs = [compiled(leaves[0]), function(leaves[1])]
        assert torch.equal(*outputs)
        assert outputs[0].stride() == outputs[1].stride()
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(leaves[0].grad, leaves[1].grad)
    indices = torch.compile(lambda x: F.max_pool2d(x, 2, return_indices=True)[1], fullgraph=True, backend="aot_eager")
    assert torch.equal(indices(x), T.max_pool2d(x, 2, return_indices=True)[1])


def test_meta() -> None:
    x = torch.empty(2, 3, 9, 8, device="meta")
    for name, arguments in [
        ("max_pool2d", (3, 2, 1)),
        ("avg_pool2d", (3, 2, 1, True)),
        ("adaptive_avg_pool2d", (2,)),
    ]:
        assert getattr(F, name)(x, *arguments).shape == getattr(T, name)(x, *arguments).shape
        assert getattr(F, name)(x, *arguments).is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_autocast_leaves_dtypes_alone(dtype: torch.dtype) -> None:
    x = images(2, 3, 8, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for function in (
            lambda M: M.max_pool2d(x, 2),
            lambda M: M.avg_pool2d(x, 2),
            lambda M: M.adaptive_avg_pool2d(x, 2),
        ):
            assert function(F).dtype == function(T).dtype == dtype


@pytest.mark.parametrize("channels_last", [False, True])
def test_reproducible(channels_last: bool) -> None:
    """Each sample's results are the same bits in any batch and on any number of threads."""
    threads = torch.get_num_threads()
    for shape in [(5, 19, 33, 30), (3, 64, 16, 16), (7, 3, 9, 9)]:
        x = images(*shape, channels_last=channels_last)
        for function in DIFFERENTIABLE:
            with torch.no_grad():
                grad = torch.randn(function(x).shape).to(
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format
                )

            def run(x: Tensor, grad: Tensor, function: Callable = function) -> tuple[Tensor, Tensor]:
                x = x.clone(memory_format=torch.preserve_format).requires_grad_()
                output = function(x)
                return output.detach(), torch.autograd.grad(output, x, grad)[0]

            try:
                torch.set_num_threads(1)
                alone = [run(x[i : i + 1], grad[i : i + 1]) for i in range(len(x))]
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    for whole, parts in zip(run(x, grad), zip(*alone, strict=True), strict=True):
                        assert torch.equal(whole, torch.cat(parts))
            finally:
                torch.set_num_threads(threads)


# Errors


WRONG_WINDOWS = [
    ((0,), {}),
    ((-1,), {}),
    ((2, 0), {}),
    ((2, -1), {}),
    ((3, 1, 2), {}),
    ((3, 1, -1), {}),
    ((9,), {}),
    (([2, 2, 2],), {}),
    (([],), {}),
    ((2, [1, 1, 1]), {}),
    ((2, 1, [1, 1, 1]), {}),
    ((2.0,), {}),
    ((2, 1.5), {}),
    (("a",), {}),
    ((None,), {}),
    ((2, 1, None), {}),
    ((True,), {}),
    ((2, True), {}),
    ((2,), {"ceil_mode": 1}),
]
WRONG_SHAPES = [(8,), (8, 8), (1, 2, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (0, 8, 8), (3, 0, 8), (3, 8, 0)]


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_errors_of_sliding_windows_are_torchs(name: str) -> None:
    ours, theirs = getattr(F, name), getattr(T, name)
    x = images(2, 3, 8, 8)
    for arguments, options in WRONG_WINDOWS:
        same_error(lambda: ours(x, *arguments, **options), lambda: theirs(x, *arguments, **options))  # noqa: B023
        if name == "max_pool2d" and arguments:
            indices = {**options, "return_indices": True}
            same_error(lambda: ours(x, *arguments, **indices), lambda: theirs(x, *arguments, **indices))  # noqa: B023
    for shape in WRONG_SHAPES:
        same_error(lambda: ours(torch.zeros(shape), 2), lambda: theirs(torch.zeros(shape), 2))  # noqa: B023
    for dtype in (torch.bool, torch.complex64):
        same_error(lambda: ours(x.to(dtype), 2), lambda: theirs(x.to(dtype), 2))  # noqa: B023
    for wrong in (None, [1, 2]):
        same_error(lambda: ours(wrong, 2), lambda: theirs(wrong, 2))  # noqa: B023


def test_errors_of_single_functions_are_torchs() -> None:
    x = images(2, 3, 8, 8)
    for dilation in (0, -1, [1, 1, 1], 1.0, 8):
        same_error(lambda: F.max_pool2d(x, 3, 1, 0, dilation), lambda: T.max_pool2d(x, 3, 1, 0, dilation))  # noqa: B023
    for options in ({"divisor_override": 0}, {"divisor_override": 1.5}, {"count_include_pad": "a"}):
        same_error(lambda: F.avg_pool2d(x, 2, **options), lambda: T.avg_pool2d(x, 2, **options))  # noqa: B023
    same_error(lambda: F.avg_pool2d(x.int(), 2), lambda: T.avg_pool2d(x.int(), 2))
    for size in (-1, (2,), None, (1, 2, 3), 1.5, (1.5, 2), "ab", [], True, (None, -1)):
        same_error(lambda: F.adaptive_avg_pool2d(x, size), lambda: T.adaptive_avg_pool2d(x, size))  # noqa: B023
        same_error(lambda: nn.AdaptiveAvgPool2d(size)(x), lambda: torch.nn.AdaptiveAvgPool2d(size)(x))  # noqa: B023
    for shape in [(8,), (8, 8), (1, 2, 3, 8, 8), (2, 3, 0, 8), (3, 0, 8)]:
        zeros = torch.zeros(shape)
        same_error(lambda: F.adaptive_avg_pool2d(zeros, 2), lambda: T.adaptive_avg_pool2d(zeros, 2))  # noqa: B023
    for dtype in (torch.bool, torch.complex64, torch.int64):
        y = x.to(dtype)
        same_error(lambda: F.adaptive_avg_pool2d(y, 2), lambda: T.adaptive_avg_pool2d(y, 2))  # noqa: B023


def test_errors_tell_the_numbers() -> None:
    x = images(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match=r"\[3, 2\].*\[2, 2\]"):
        F.max_pool2d(x, (2, 2), 1, (3, 2))
    with pytest.raises(RuntimeError, match=r"8, 8.*too small"):
        F.avg_pool2d(x, 9)
    with pytest.raises(RuntimeError, match=r"\[4, 4\]"):
        F.max_pool2d(torch.zeros(4, 4), 2)
    with pytest.raises(RuntimeError, match="-3"):
        F.adaptive_avg_pool2d(x, -3)


# Modules


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True}),
        ("MaxPool2d", {"kernel_size": (3, 2), "return_indices": True}),
        ("AvgPool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False, "divisor_override": 4}),
        ("AdaptiveAvgPool2d", {"output_size": (None, 3)}),
    ],
)
def test_modules(name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    assert not ours.state_dict()
    x = images(2, 3, 9, 8)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours)
        for mine, other in zip(as_tuple(module(x)), as_tuple(theirs(x)), strict=True):
            torch.testing.assert_close(mine, other)
    assert nn.implemented()[name] is type(ours)

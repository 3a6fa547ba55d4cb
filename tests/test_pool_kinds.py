"""Pooling of every kind and number of dimensions; what is particular to two dimensions is in ``test_pool.py``."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, FAST_DTYPES, check_against_torch, gradients, same_error, strides
from torch import Tensor

import scratchnn
import scratchnn.functional as F
from scratchnn import nn

T = torch.nn.functional

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

# (function, input shape, arguments)
CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("max_pool1d", (2, 3, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max_pool1d", (2, 19, 30), {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2}),
    ("max_pool1d", (1, 2, 40), {"kernel_size": 4, "stride": 3, "ceil_mode": True}),
    ("max_pool1d", (0, 2, 9), {"kernel_size": 2}),
    ("max_pool1d", (1, 2, 700), {"kernel_size": 300, "stride": 7}),
    ("max_pool3d", (2, 3, 6, 7, 8), {"kernel_size": 2}),
    ("max_pool3d", (2, 9, 5, 6, 7), {"kernel_size": 3, "stride": (1, 2, 2), "padding": 1}),
    ("max_pool3d", (1, 2, 7, 6, 8), {"kernel_size": (2, 3, 2), "dilation": (1, 2, 3), "ceil_mode": True}),
    ("max_pool3d", (1, 2, 9, 9, 36), {"kernel_size": 3, "stride": 2}),
    ("avg_pool1d", (2, 3, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg_pool1d", (2, 19, 30), {"kernel_size": 4, "ceil_mode": True, "count_include_pad": False, "padding": 2}),
    ("avg_pool3d", (2, 3, 6, 7, 8), {"kernel_size": 2, "ceil_mode": True}),
    ("avg_pool3d", (2, 9, 5, 6, 7), {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}),
    ("avg_pool3d", (1, 2, 5, 6, 7), {"kernel_size": (1, 2, 3), "divisor_override": 5}),
    ("adaptive_max_pool1d", (2, 3, 11), {"output_size": 4}),
    ("adaptive_max_pool1d", (2, 3, 5), {"output_size": 9}),
    ("adaptive_max_pool2d", (2, 3, 9, 11), {"output_size": (4, None)}),
    ("adaptive_max_pool2d", (2, 37, 20, 18), {"output_size": 1}),
    ("adaptive_max_pool2d", (1, 5, 3, 4), {"output_size": (7, 9)}),
    ("adaptive_max_pool2d", (0, 5, 3, 4), {"output_size": 2}),
    ("adaptive_max_pool3d", (2, 9, 5, 6, 7), {"output_size": (2, None, 3)}),
    ("adaptive_max_pool3d", (1, 2, 8, 8, 8), {"output_size": 1}),
    ("adaptive_avg_pool1d", (2, 3, 11), {"output_size": 4}),
    ("adaptive_avg_pool1d", (2, 3, 700), {"output_size": 1}),
    ("adaptive_avg_pool3d", (2, 9, 5, 6, 7), {"output_size": (2, None, 3)}),
    ("adaptive_avg_pool3d", (2, 9, 5, 6, 7), {"output_size": 1}),
]


def functions(name: str, arguments: dict[str, Any]) -> tuple[Callable, Callable]:
    return lambda x: getattr(F, name)(x, **arguments), lambda x: getattr(T, name)(x, **arguments)


def distinct(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """As many different numbers as the type has, exact in every type."""
    return torch.randperm(torch.Size(shape).numel()).reshape(shape).to(dtype)


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "contiguous", x
    yield "sliced", torch.stack([x, -x], -1).flatten(-2)[..., ::2]
    yield "transposed", x.transpose(1, -1).contiguous().transpose(1, -1)


# The ladder: formulas, naive kernels, fast kernels


def maxima_formula(x: Tensor, windows: Sequence[Sequence[range]]) -> tuple[list[float], list[int]]:
    """Maxima of a plane's windows, a range of positions for each output and dimension, and where they were."""
    values, indices = [], []
    for window in itertools.product(*windows):
        best = max((x[position].item(), -order) for order, position in enumerate(itertools.product(*window)))
        values.append(best[0])
        position = list(itertools.product(*window))[-best[1]]
        indices.append(torch.arange(x.numel()).reshape(x.shape)[position].item())
    return values, indices


@pytest.mark.parametrize("size", [(3,), (2, 5), (2, 1, 3)])
def test_the_ladder_of_adaptive_maxima(size: tuple[int, ...]) -> None:
    x = torch.randint(-3, 4, (7, 8, 6)[: len(size)]).double()  # many ties
    windows = [
        [range(o * n // count, -((o + 1) * n // -count)) for o in range(count)]
        for n, count in zip(x.shape, size, strict=True)
    ]
    values, indices = maxima_formula(x, windows)
    for which in ("naive", "fast"):
        with scratchnn.kernels(which):
            output, found = getattr(F, f"adaptive_max_pool{len(size)}d")(x[None], size, return_indices=True)
        assert output.flatten().tolist() == values
        assert found.flatten().tolist() == indices


@pytest.mark.parametrize("size", [(5, 4), (3, 4, 5)])
def test_the_ladder_of_fractional_maxima(size: tuple[int, ...]) -> None:
    rank, kernel = len(size), 2
    x = torch.randint(-3, 4, (9, 8, 10)[:rank]).double()
    samples = torch.rand(1, 1, rank, dtype=torch.float64)
    windows = []
    for n, count, u in zip(x.shape, size, samples.flatten().flip(0) if rank == 2 else samples.flatten(), strict=True):
        step = (n - kernel) / (count - 1)
        starts = [int((o + u.item()) * step) - int(u.item() * step) for o in range(count - 1)] + [n - kernel]
        windows.append([range(start, start + kernel) for start in starts])
    values, indices = maxima_formula(x, windows)
    for which in ("naive", "fast"):
        with scratchnn.kernels(which):
            output, found = getattr(F, f"fractional_max_pool{rank}d")(
                x[None], kernel, size, return_indices=True, _random_samples=samples
            )
        assert output.flatten().tolist() == values
        assert found.flatten().tolist() == indices


def test_the_ladder_of_averages() -> None:
    for rank in (1, 3):
        x = torch.randn(1, 1, *(9, 8, 7)[:rank], dtype=torch.float64)
        literal = x[0, 0]
        for dim in range(rank):
            literal = literal.unfold(dim, 3, 2)
        with scratchnn.kernels("naive"):
            naive = getattr(F, f"avg_pool{rank}d")(x, 3, 2)
        torch.testing.assert_close(naive[0, 0], literal.flatten(rank).mean(-1))
        torch.testing.assert_close(getattr(F, f"avg_pool{rank}d")(x, 3, 2), naive)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 2.5])
def test_power_averages_are_norms(rank: int, p: float) -> None:
    x = torch.rand(2, 3, *(9, 8, 7)[:rank], dtype=torch.float64)
    windows = x
    for dim in range(2, 2 + rank):
        windows = windows.unfold(dim, 3, 2)
    norms = torch.linalg.vector_norm(windows.flatten(2 + rank), p, dim=-1)
    torch.testing.assert_close(getattr(F, f"lp_pool{rank}d")(x, p, 3, 2), norms)
    largest = torch.linalg.vector_norm(windows.flatten(2 + rank), float("inf"), dim=-1)
    torch.testing.assert_close(getattr(F, f"lp_pool{rank}d")(-x, float("inf"), 3, 2), largest)


# Against torch and truth


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_values_and_gradients(name: str, which: str, dtype: torch.dtype) -> None:
    if name == "avg_pool3d" and dtype in (torch.bfloat16, torch.float16):
        same_error(lambda: F.avg_pool3d(torch.ones(1, 1, 2, 2, 2, dtype=dtype), 2), not_implemented)
        return
    for case, shape, arguments in CASES:
        if case != name:
            continue
        ours, theirs = functions(name, arguments)
        for layout, x in layouts(distinct(shape, dtype) if "max" in name else torch.randn(shape).to(dtype)):
            try:
                with scratchnn.kernels(which):
                    if dtype == torch.float64:  # torch's own rounding is no truth for sums in another order
                        check_double(ours, theirs, x)
                    else:
                        check_against_torch(ours, theirs, [x])
            except AssertionError as error:
                raise AssertionError(f"{shape} {arguments} {layout}: {error}") from error


def not_implemented() -> None:
    raise NotImplementedError


def check_double(ours: Callable, theirs: Callable, x: Tensor) -> None:
    with torch.no_grad():
        grad = torch.randn_like(theirs(x))
    mine, other = gradients(ours, [x], grad), gradients(theirs, [x], grad)
    torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)
    assert strides(mine[0]) == strides(other[0])


@pytest.mark.parametrize("dtype", [*ALL_DTYPES, torch.int64, torch.uint8])
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_indices(which: str, dtype: torch.dtype) -> None:
    for name, shape, arguments in CASES:
        if "max" not in name or (name.startswith("adaptive") and not dtype.is_floating_point):
            continue
        if dtype == torch.uint8 and torch.Size(shape[2:]).numel() > 255:
            continue  # torch counts the pixels in bytes as well
        for _, x in layouts(torch.randint(0, 9, shape).to(dtype)):  # ties
            with scratchnn.kernels(which):
                results = getattr(F, name)(x, **arguments, return_indices=True)
                assert dtype == torch.int64 or torch.equal(
                    results[0], getattr(F, f"{name}_with_indices")(x, **arguments)[0]
                )
            expected = getattr(T, name)(x, **arguments, return_indices=True)
            for ours, theirs in zip(results, expected, strict=True):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs), f"{name} {shape} {arguments}"


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_channels_last_stays(dtype: torch.dtype) -> None:
    """Also where torch gives it up: volumes, and fractional pooling. The same numbers as of contiguous inputs."""
    for name, shape, arguments in [
        *CASES,
        ("fractional_max_pool2d", (2, 9, 8, 7), {"kernel_size": 2, "output_size": (3, 5)}),
        ("fractional_max_pool3d", (2, 9, 8, 7, 6), {"kernel_size": 2, "output_size": (3, 5, 4)}),
    ]:
        rank = len(shape) - 2
        if rank == 1 or shape[0] == 0 or (name == "avg_pool3d" and dtype not in FAST_DTYPES):
            continue
        format = CHANNELS_LAST[rank]
        x = distinct(shape, dtype)
        results = []
        for leaf in (x.clone(), x.to(memory_format=format)):
            torch.manual_seed(1)
            output = getattr(F, name)(leaf.requires_grad_(), **arguments)
            results.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
        tolerance = {} if dtype in FAST_DTYPES else {"rtol": 0.02, "atol": 1.0}
        torch.testing.assert_close(*results, **tolerance)
        for result in results[1]:
            assert result.is_contiguous(memory_format=format), name


def test_long_rows_are_cut_into_pieces() -> None:
    for shape, arguments in [((3, 2, 30_001), (3, 2, 1)), ((1, 17, 9_000), (5, 1, 2)), ((2, 1, 3, 12_345), (3, 2, 1))]:
        rank = len(shape) - 2
        x = torch.randn(shape)
        for kind in ("max", "avg"):
            ours, theirs = (getattr(side, f"{kind}_pool{rank}d") for side in (F, T))
            check_against_torch(lambda x: ours(x, *arguments), lambda x: theirs(x, *arguments), [x])  # noqa: B023
        pool = f"max_pool{rank}d"
        both = [getattr(side, pool)(x, *arguments, return_indices=True)[1] for side in (F, T)]
        assert torch.equal(*both)


def test_windows_larger_than_the_input() -> None:
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    for size in (400, 20_000):
        results = []
        for side in (F, T):
            output, indices = side.max_pool2d(x, size, ceil_mode=True, return_indices=True)
            results.append((output, indices, *torch.autograd.grad(output.sum(), x)))
        torch.testing.assert_close(*results)
    for divisor in (-1, 3):
        least = torch.full((1, 1, 4), torch.iinfo(torch.int64).min)
        assert F.avg_pool2d(least[None], (1, 1), divisor_override=divisor).dtype == torch.int64  # and no crash


def test_offsets_of_no_window_do_no_harm() -> None:
    ops = torch.ops.scratchnn
    for channels_last, (size, output) in itertools.product((False, True), (((8, 8), (3, 3)), ((40, 40), (1, 1)))):
        x = torch.randn(1, 9, *size)
        dtype = ops.adaptive_max_pool_with_offsets(x, output)[1].dtype
        for number in (200, 255) if dtype == torch.uint8 else (-1, -(2**31), 2**31 - 1, 1600):
            offsets = torch.full((1, 9, *output), number, dtype=dtype)
            if channels_last:
                offsets = offsets.to(memory_format=torch.channels_last)
            for which in ("fast", "naive") if dtype == torch.uint8 else ("fast",):
                with scratchnn.kernels(which):
                    ops.adaptive_max_pool_backward(torch.ones(1, 9, *output), offsets, size)
                    ops.adaptive_max_pool_gather(x, offsets)
                    ops.adaptive_max_pool_indices(offsets, size)


# Fractional pooling


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_pooling_draws_as_torch(rank: int, dtype: torch.dtype) -> None:
    name = f"fractional_max_pool{rank}d"
    for batch in ((), (3,), (0,)):
        x = torch.randint(0, 50, (*batch, 5, *(33, 26, 21)[:rank])).to(dtype)
        for kernel, size in ((2, 13), ((3, 2, 4)[:rank], (7, 9, 1)[:rank])):
            results = []
            for side in (F, T):
                torch.manual_seed(5)
                leaf = x.clone().requires_grad_()
                output, indices = getattr(side, name)(leaf, kernel, size, return_indices=True)
                results.append((output, indices, *torch.autograd.grad(output.sum(), leaf), torch.rand(1)))
            torch.testing.assert_close(*results, rtol=0, atol=0)
            ratio = (0.5, 0.6, 0.7)[:rank]
            torch.manual_seed(5)
            module = getattr(nn, f"FractionalMaxPool{rank}d")(kernel, output_ratio=ratio)(x)
            torch.manual_seed(5)
            assert torch.equal(module, getattr(T, name)(x, kernel, output_ratio=ratio))


def test_fractional_samples_outside_the_unit_interval_are_refused() -> None:
    x = torch.randn(1, 1, 9, 9)
    for sample in (float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="random samples"):
            F.fractional_max_pool2d(x, 2, 3, _random_samples=torch.full((1, 1, 2), sample))


# Unpooling


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling(rank: int, dtype: torch.dtype) -> None:
    shape = (2, 19, *(9, 8, 7)[:rank])
    pool, unpool = f"max_pool{rank}d", f"max_unpool{rank}d"
    for channels_last in (False, True):
        x = distinct(shape, dtype)
        if channels_last and rank > 1:
            x = x.to(memory_format=CHANNELS_LAST[rank])
        maxima, indices = getattr(F, pool)(x, 2, return_indices=True)
        for size in (shape, shape[2:]):
            mine, other = (
                gradients(
                    lambda m, side=side, size=size: getattr(side, unpool)(m, indices, 2, output_size=size),  # noqa: B023
                    [maxima],
                    torch.ones(shape),
                )
                for side in (F, T)
            )
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
            assert strides(mine[0]) == strides(other[0]) or (rank == 3 and channels_last)
            again, where = getattr(F, pool)(mine[0], 2, return_indices=True)
            assert torch.equal(again, maxima)
            assert dtype not in FAST_DTYPES or torch.equal(where, indices)
        x = distinct((2, 19, *(8, 6, 4)[:rank]), dtype)
        maxima, indices = getattr(F, pool)(x, 2, return_indices=True)
        restored = getattr(F, unpool)(maxima, indices, 2)
        assert restored.shape == x.shape
        assert torch.equal(restored, getattr(T, unpool)(maxima, indices, 2))


def test_unpooling_repeated_indices() -> None:
    """The last of them wins; each gets the output's gradient, and gradients of those add up."""
    x = torch.arange(4.0, dtype=torch.float64).reshape(1, 1, 4).requires_grad_()
    indices = torch.tensor([[[1, 3, 1, 0]]])
    output = F.max_unpool1d(x, indices, 1, output_size=None)
    assert output.tolist() == [[[3.0, 2.0, 0.0, 1.0]]]
    incoming = torch.tensor([[[10.0, 20.0, 30.0, 40.0]]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(output, x, incoming, create_graph=True)
    assert grad.tolist() == [[[20.0, 40.0, 20.0, 10.0]]]
    (twice,) = torch.autograd.grad(grad, incoming, torch.ones_like(grad))
    assert twice.tolist() == [[[1.0, 2.0, 0.0, 1.0]]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_refuses_what_torch_refuses(rank: int) -> None:
    x, indices = getattr(T, f"max_pool{rank}d")(torch.randn(2, 3, *(6,) * rank), 2, return_indices=True)
    ours, theirs = getattr(F, f"max_unpool{rank}d"), getattr(T, f"max_unpool{rank}d")
    for wrong in (indices + 1000, indices - 1000, indices.int(), indices.float(), indices[:1]):
        same_error(lambda: ours(x, wrong, 2), lambda: theirs(x, wrong, 2))  # noqa: B023
    for size in ((100,) * rank, (6,) * (rank + 1), (5,) * rank, (6.0,) * rank, 6):
        same_error(lambda: ours(x, indices, 2, output_size=size), lambda: theirs(x, indices, 2, output_size=size))  # noqa: B023
    for arguments in (("a",), (2.0,), ((2,) * 4,), (2, 2, 5)):
        same_error(lambda: ours(x, indices, *arguments), lambda: theirs(x, indices, *arguments))  # noqa: B023
    for dtype in (torch.int64, torch.bool, torch.complex64):
        same_error(lambda: ours(x.to(dtype), indices, 2), lambda: theirs(x.to(dtype), indices, 2))  # noqa: B023
    with pytest.raises(RuntimeError, match=r"index: 1\d\d\d .*6\]"):
        ours(x, indices + 1000, 2)


# Power averages


def test_power_average_at_zero_has_no_gradient() -> None:
    for p in (1.0, 2.0, 3.0, 0.5):
        x = torch.zeros(1, 1, 2, 4)
        x[..., 2:] = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
        results = []
        for side in (F, T):
            leaf = x.clone().requires_grad_()
            output = side.lp_pool2d(leaf, p, 2)
            results.append((output, *torch.autograd.grad(output[..., 0].sum(), leaf)))
        torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_power_averages_are_torchs(rank: int) -> None:
    x = torch.randn(2, 3, *(9, 8, 7)[:rank])
    for p, stride, ceil_mode in itertools.product(
        (1, 2, 3.0, -2, float("inf"), -float("inf")), (None, 1, 2), (False, True)
    ):
        results = []
        for side in (F, T):
            leaf = x.clone().requires_grad_()
            output = getattr(side, f"lp_pool{rank}d")(leaf, p, 3, stride, ceil_mode)
            results.append((output, *torch.autograd.grad(output.nan_to_num().sum(), leaf)))
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-4, atol=1e-4)


# Global averages


def test_global_average() -> None:
    for dims in range(1, 6):
        x = torch.randn(2, 3, *(4, 3, 2, 3, 2)[:dims], dtype=torch.float64, requires_grad=True)
        expected = x.flatten(2).mean(2)
        torch.testing.assert_close(nn.GlobalAvgPool()(x), expected)
        kept = nn.GlobalAvgPool(keepdim=True)(x)
        assert kept.shape == (2, 3, *[1] * dims)
        torch.testing.assert_close(kept.flatten(1), expected)
        assert torch.autograd.gradcheck(F.global_avg_pool, (x,))
    for wrong in (torch.randn(2, 3), torch.randn(2, 3, 0, 4).int()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            F.global_avg_pool(wrong)
    assert repr(nn.GlobalAvgPool(True)) == "GlobalAvgPool(keepdim=True)"


# Derivatives and transforms

PLACES = torch.tensor([[[5, 0, 2], [1, 4, 3]]])

DIFFERENTIABLE: dict[str, tuple[tuple[int, ...], Callable]] = {
    "max1": ((2, 7), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max1 indices": ((2, 7), lambda x: F.max_pool1d(x, 2, return_indices=True)[0]),
    "max3": ((2, 2, 3, 3), lambda x: F.max_pool3d(x, 2, 1, (0, 1, 1))),
    "avg1": ((2, 7), lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "avg3": ((2, 2, 3, 3), lambda x: F.avg_pool3d(x, 2, 1, 1, True, False)),
    "adaptive max1": ((2, 7), lambda x: F.adaptive_max_pool1d(x, 3)),
    "adaptive max2": ((2, 5, 4), lambda x: F.adaptive_max_pool2d(x, (3, 7))),
    "adaptive max2 indices": ((2, 5, 4), lambda x: F.adaptive_max_pool2d(x, (2, 2), True)[0]),
    "adaptive max3": ((2, 3, 2, 3), lambda x: F.adaptive_max_pool3d(x, (2, None, 1))),
    "adaptive avg1": ((2, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    "adaptive avg3": ((2, 3, 2, 3), lambda x: F.adaptive_avg_pool3d(x, (2, None, 1))),
    "fractional2": (
        (2, 4, 5),
        lambda x: F.fractional_max_pool2d(x, 2, 3, _random_samples=samples_for(x, 2)),
    ),
    "fractional3": (
        (2, 3, 3, 4),
        lambda x: F.fractional_max_pool3d(x, (1, 2, 2), (2, 1, 2), _random_samples=samples_for(x, 3)),
    ),
    "lp1": ((2, 7), lambda x: F.lp_pool1d(x, 2.0, 3, 2)),
    "lp2": ((2, 4, 3), lambda x: F.lp_pool2d(x.abs() + 0.1, 2.5, 2)),
    "lp3": ((2, 2, 3, 2), lambda x: F.lp_pool3d(x, 2, 2)),
    "unpool1": ((2, 3), lambda x: F.max_unpool1d(x, like_batch(PLACES, x), 2)),
    "unpool2": ((2, 1, 3), lambda x: F.max_unpool2d(x, like_batch(PLACES.unsqueeze(2), x), (1, 2))),
    "unpool3": ((2, 1, 1, 3), lambda x: F.max_unpool3d(x, like_batch(PLACES[:, :, None, None], x), (1, 1, 2))),
}


def samples_for(x: Tensor, rank: int) -> Tensor:
    batch = x.shape[0] if x.dim() == rank + 2 else 1
    return torch.tensor([0.1, 0.7, 0.4], dtype=x.dtype)[:rank].expand(batch, 2, rank)


def like_batch(indices: Tensor, x: Tensor) -> Tensor:
    return indices[0] if x.dim() < indices.dim() else indices.expand(x.shape)


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name: str, which: str) -> None:
    shape, function = DIFFERENTIABLE[name]
    x = distinct((2, *shape), torch.float64).div(16).add(0.1).requires_grad_()
    fast = which == "fast"
    with scratchnn.kernels(which):
        assert torch.autograd.gradcheck(function, (x,), check_forward_ad=fast, check_batched_grad=fast)
        assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=fast)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_transforms(name: str) -> None:
    shape, function = DIFFERENTIABLE[name]
    x = distinct((3, 2, *shape), torch.float64).div(8)
    v = torch.randn_like(x)
    expected = torch.stack([function(sample) for sample in x])
    torch.testing.assert_close(torch.func.vmap(function)(x), expected)

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


def test_indices_under_vmap() -> None:
    x = torch.randn(3, 2, 2, 6, 5)
    for function in (
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True),
    ):
        for mapped, each in zip(torch.func.vmap(function)(x), zip(*map(function, x), strict=True), strict=True):
            assert torch.equal(mapped, torch.stack(each))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def function(x: Tensor) -> Tensor:
        x, indices = F.max_pool3d(x, 2, 1, return_indices=True)
        x = F.max_unpool3d(x, indices, 2, 1)
        x = nn.AvgPool3d(2, 1)(x) + F.lp_pool3d(x, 2, 2, 1)
        y, _ = F.adaptive_max_pool3d(x, (2, None, 3), return_indices=True)
        samples = torch.full((x.shape[0], x.shape[1], 3), 0.4)
        z = F.fractional_max_pool3d(x, (1, 2, 2), (2, 1, 2), _random_samples=samples)
        w = F.max_pool1d(x.flatten(2), 3) + F.avg_pool1d(x.flatten(2), 3)
        return F.adaptive_avg_pool3d(y, 1).sum() + z.sum() + w.sum() + nn.GlobalAvgPool()(x).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for x in (distinct((2, 3, 5, 6, 7)), distinct((3, 3, 6, 5, 8))):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [compiled(leaves[0]), function(leaves[1])]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("channels_last", [False, True])
def test_reproducible(channels_last: bool) -> None:
    """Each sample's results are the same bits in any batch and on any number of threads."""
    for shape in [(5, 19, 200), (3, 17, 8, 9, 10), (3, 19, 20, 18)]:
        rank = len(shape) - 2
        x = torch.randn(shape)
        if channels_last and rank > 1:
            x = x.to(memory_format=CHANNELS_LAST[rank])
        places = torch.argsort(torch.rand(shape).flatten(2)).reshape(shape)
        for kind in ("max", "avg", "adaptive max", "adaptive avg", "lp", "fractional", "unpool"):
            if kind == "fractional" and rank == 1:
                continue

            def run(part: slice, kind: str = kind, rank: int = rank, places: Tensor = places) -> tuple[Tensor, ...]:
                leaf = x[part].detach().requires_grad_()  # noqa: B023
                if kind == "adaptive max":
                    output = getattr(F, f"adaptive_max_pool{rank}d")(leaf, 3)
                elif kind == "adaptive avg":
                    output = getattr(F, f"adaptive_avg_pool{rank}d")(leaf, 3)
                elif kind == "lp":
                    output = getattr(F, f"lp_pool{rank}d")(leaf, 2, 3, 2)
                elif kind == "fractional":
                    samples = torch.linspace(0, 0.9, len(x)).reshape(-1, 1, 1).expand(-1, x.shape[1], rank)[part]  # noqa: B023
                    output = getattr(F, f"fractional_max_pool{rank}d")(leaf, 2, 4, _random_samples=samples)
                elif kind == "unpool":
                    output = getattr(F, f"max_unpool{rank}d")(leaf, places[part], 1)
                else:
                    output = getattr(F, f"{kind}_pool{rank}d")(leaf, 3, 2, 1)
                (grad,) = torch.autograd.grad((output * output.detach().cos()).sum(), leaf)
                return output.detach(), grad

            torch.set_num_threads(1)
            alone = [run(slice(i, i + 1)) for i in range(len(x))]
            for count in (1, 3):
                torch.set_num_threads(count)
                for whole, parts in zip(run(slice(None)), zip(*alone, strict=True), strict=True):
                    assert torch.equal(whole, torch.cat(parts)), (kind, shape)


def test_saved_for_backward_is_a_byte_an_output() -> None:
    saved = []
    x = torch.randn(2, 3, 9, 9, 9, requires_grad=True)
    samples = torch.rand(2, 3, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        outputs = [
            F.max_pool3d(x, 2),
            F.adaptive_max_pool3d(x, 3),
            F.fractional_max_pool3d(x, 2, 4, _random_samples=samples),
        ]
        F.avg_pool3d(x, 2)
        F.adaptive_avg_pool3d(x, 2)
    assert [x.nbytes for x in saved if x is not samples] == [output.numel() for output in outputs]


# Types


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_autocast_gives_torchs_types(dtype: torch.dtype) -> None:
    for name, shape, arguments in [
        *CASES,
        ("lp_pool1d", (1, 2, 9), {"norm_type": 2, "kernel_size": 2}),
        ("lp_pool2d", (1, 2, 9, 9), {"norm_type": 2, "kernel_size": 2}),
        ("lp_pool3d", (1, 2, 9, 9, 9), {"norm_type": float("inf"), "kernel_size": 2}),
        ("fractional_max_pool2d", (1, 2, 9, 9), {"kernel_size": 2, "output_size": 3}),
        ("fractional_max_pool3d", (1, 2, 9, 9, 9), {"kernel_size": 2, "output_size": 3}),
    ]:
        x = torch.randn(shape).to(dtype)
        for options in ({}, {"return_indices": True}) if "max" in name else ({},):
            with torch.autocast("cpu", torch.bfloat16):
                ours, theirs = (getattr(side, name)(x, **arguments, **options) for side in (F, T))
            first = ours[0] if options else ours
            assert first.dtype == (theirs[0] if options else theirs).dtype, (name, options)
    x = torch.randn(1, 2, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (side.max_unpool1d(x, torch.arange(3).expand(1, 2, 3), 2) for side in (F, T))
    assert ours.dtype == theirs.dtype


def test_refused_types_are_torchs() -> None:
    for name, shape, arguments in CASES:
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64):
            x = torch.ones(shape).to(dtype)
            outcomes = []
            for side in (F, T):
                try:
                    outcomes.append(getattr(side, name)(x, **arguments).dtype)
                except Exception as error:
                    outcomes.append(type(error))
            if x.numel() and arguments.get("output_size") != 1:  # in torch a mean like any other, in some versions
                assert outcomes[0] == outcomes[1], (name, dtype, arguments)


# Modules


MODULES = [
    *(
        (f"{name}{rank}d", arguments)
        for rank in (1, 2, 3)
        for name, arguments in [
            ("MaxPool", {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True}),
            ("MaxPool", {"kernel_size": 2, "return_indices": True}),
            ("AvgPool", {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
            ("LPPool", {"norm_type": 2, "kernel_size": 3, "stride": 2}),
            ("AdaptiveMaxPool", {"output_size": 3, "return_indices": True}),
            ("AdaptiveAvgPool", {"output_size": 3}),
        ]
    ),
    *(
        (f"FractionalMaxPool{rank}d", arguments)
        for rank in (2, 3)
        for arguments in [
            {"kernel_size": 2, "output_size": 3, "return_indices": True},
            {"kernel_size": 2, "output_ratio": 0.5, "_random_samples": torch.rand(2, 3, rank)},
        ]
    ),
]


@pytest.mark.parametrize(("name", "arguments"), MODULES)
def test_modules(name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert nn.implemented()[name] is type(ours)
    x = torch.rand(2, 3, *(9, 8, 7)[: int(name[-2])])
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        results = []
        for side in (module, theirs):
            torch.manual_seed(3)
            result = side(x)
            results.append(result if isinstance(result, tuple) else (result,))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_modules(rank: int) -> None:
    for arguments in ((2,), (3, 2, 1)):
        ours, theirs = (getattr(side, f"MaxUnpool{rank}d")(*arguments) for side in (nn, torch.nn))
        pool = getattr(nn, f"MaxPool{rank}d")(*arguments, return_indices=True)
        x = torch.randn(2, 3, *(9, 8, 7)[:rank])
        output, indices = pool(x)
        assert repr(ours) == repr(theirs)
        assert torch.equal(
            ours(output, indices, output_size=x.shape), theirs(output, indices, output_size=list(x.shape))
        )


def test_modules_refuse_what_torch_refuses() -> None:
    for side in (nn, torch.nn):
        for name in ("FractionalMaxPool2d", "FractionalMaxPool3d"):
            for arguments in ({}, {"output_size": 2, "output_ratio": 0.5}, {"output_ratio": 1.5}):
                with pytest.raises(ValueError, match="output"):
                    getattr(side, name)(2, **arguments)
        with pytest.raises(ValueError, match="non-zero"):
            side.LPPool2d(0, 2)

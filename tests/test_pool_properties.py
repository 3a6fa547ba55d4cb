"""Any call of any pooling function, drawn at random: torch's result, or torch's error.

Left out, because torch's own answer is none: windows that dilation puts wholly into the padding (torch names memory
that is not the input's), and adaptive averages of what is no real batch of planes: to size 1 torch averages the last
dimensions of anything, complex numbers too, and it does not mind which numbers there are none of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import strides
from hypothesis import HealthCheck, assume, event, given, settings
from torch import Tensor

import scratchnn.functional as F

T = torch.nn.functional

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHER_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

# Mostly legal numbers, now and then others.
sizes = st.integers(1, 9) | st.sampled_from([0, 1, 2, 17, 40])
kernels = st.integers(1, 4) | st.sampled_from([0, -1, 7, 2.0, None, True])
steps = st.integers(1, 4) | st.sampled_from([0, -1, 1.5])
paddings = st.sampled_from([0, 0, 0, 1, 1, 2, -1])
lengths = st.integers(1, 9) | st.sampled_from([0, -1, 1, 1, 3.0])


def one_or_each(numbers: st.SearchStrategy, rank: int) -> st.SearchStrategy:
    """One number for all dimensions, one for each, or now and then the wrong count of them."""
    elements = numbers.filter(lambda number: number is not True)  # which torch takes for 1, but not in the first place
    each = st.lists(elements, min_size=rank, max_size=rank)
    return numbers | each | each.map(tuple) | st.lists(elements, max_size=4)


@st.composite
def inputs(draw: st.DrawFn, rank: int) -> Tensor:
    shape = [draw(st.integers(1, 3) | st.sampled_from([0, 1, 20])), *(draw(sizes) for _ in range(rank))]
    if draw(st.booleans()):
        shape.insert(0, draw(st.integers(0, 3)))
    if draw(st.integers(0, 19)) == 0:
        shape = shape[1:] if draw(st.booleans()) else [1, 1, *shape]
    assume(torch.Size(shape).numel() < 40_000)
    dtype = draw(st.sampled_from(DTYPES * 4 + OTHER_DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul(8)
    if draw(st.booleans()):
        x = x.round()  # ties
    x = (x.abs() if dtype in OTHER_DTYPES else x).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"]))
    if layout == "channels_last" and rank in CHANNELS_LAST and x.dim() == rank + 2:
        x = x.to(memory_format=CHANNELS_LAST[rank])
    elif layout == "sliced":
        x = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    elif layout == "transposed" and x.dim() > 2:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if dtype.is_floating_point and x.numel() and x.is_contiguous() and draw(st.integers(0, 9)) == 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = float(draw(st.sampled_from(["nan", "inf", "-inf"])))
    return x


@st.composite
def max_calls(draw: st.DrawFn, rank: int) -> tuple:
    call = {"kernel_size": draw(one_or_each(kernels, rank))}
    optional = {
        "stride": st.none() | one_or_each(steps, rank),
        "padding": one_or_each(paddings, rank),
        "dilation": st.just(1) | one_or_each(st.integers(1, 3), rank) | one_or_each(steps, rank),
        "ceil_mode": st.booleans() | st.just(1),
        "return_indices": st.booleans(),
    }
    return f"max_pool{rank}d", call | draw_some(draw, optional)


@st.composite
def average_calls(draw: st.DrawFn, rank: int) -> tuple:
    call = {"kernel_size": draw(one_or_each(kernels, rank))}
    optional = {
        "stride": st.none() | one_or_each(steps, rank),
        "padding": one_or_each(paddings, rank),
        "ceil_mode": st.booleans() | st.just(1),
        "count_include_pad": st.booleans(),
        "divisor_override": st.none() | st.sampled_from([1, 3, -2, 0, 1.5, True]),
    }
    if rank == 1:
        del optional["divisor_override"]
    return f"avg_pool{rank}d", call | draw_some(draw, optional)


@st.composite
def adaptive_calls(draw: st.DrawFn, rank: int) -> tuple:
    size = draw(one_or_each(lengths | st.none(), rank))
    if draw(st.booleans()):
        return f"adaptive_avg_pool{rank}d", {"output_size": size}
    return f"adaptive_max_pool{rank}d", {"output_size": size} | draw_some(draw, {"return_indices": st.booleans()})


@st.composite
def lp_calls(draw: st.DrawFn, rank: int) -> tuple:
    call = {
        "norm_type": draw(st.sampled_from([1, 2, 2.0, 3, 0.5, -1.0, 0, float("inf"), -float("inf")])),
        "kernel_size": draw(kernels if rank == 1 else one_or_each(kernels, rank)),
    }
    optional = {"stride": st.none() | one_or_each(steps, rank), "ceil_mode": st.booleans()}
    return f"lp_pool{rank}d", call | draw_some(draw, optional)


@st.composite
def fractional_calls(draw: st.DrawFn, rank: int) -> tuple:
    rank = max(rank, 2)
    call = {"kernel_size": draw(one_or_each(kernels, rank))}
    ratios = st.sampled_from([0.3, 0.5, 0.9])
    optional = {
        "output_size": st.none() | one_or_each(lengths, rank),
        "output_ratio": st.none() | st.lists(ratios, min_size=rank, max_size=rank) | ratios,
        "return_indices": st.booleans(),
    }
    return f"fractional_max_pool{rank}d", call | draw_some(draw, optional)


def draw_some(draw: st.DrawFn, optional: dict[str, st.SearchStrategy]) -> dict[str, Any]:
    return {name: draw(values) for name, values in optional.items() if draw(st.booleans())}


@st.composite
def pooling_calls(draw: st.DrawFn) -> tuple[str, tuple, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    kinds = (max_calls, average_calls, adaptive_calls, lp_calls, fractional_calls)
    name, arguments = draw(draw(st.sampled_from(kinds))(rank))
    x = draw(inputs(int(name[-2])))
    return name, (x,), arguments


@st.composite
def unpooling_calls(draw: st.DrawFn) -> tuple[str, tuple, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    x = draw(inputs(rank))
    kernel = draw(one_or_each(kernels, rank))
    optional = {"stride": st.none() | one_or_each(steps, rank), "padding": one_or_each(paddings, rank)}
    call = {"kernel_size": kernel} | draw_some(draw, optional)
    if draw(st.booleans()):
        call["output_size"] = draw(st.lists(st.integers(0, 20), min_size=rank, max_size=rank))
    # Indices without repetition, of which torch promises nothing, and small enough to be legal at times.
    places = max(1, x.shape[-rank:].numel() if x.dim() >= rank else 1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    planes = [torch.randperm(places, generator=generator) for _ in range(x.numel() // places)]
    indices = torch.stack(planes).reshape(x.shape) if planes else torch.zeros(x.shape, dtype=torch.int64)
    if draw(st.integers(0, 9)) == 0:
        indices = indices + draw(st.sampled_from([-1, 1_000_000]))
    if draw(st.integers(0, 19)) == 0:
        indices = indices.to(torch.int32)
    return f"max_unpool{rank}d", (x, indices), call


def numbers(value: Any, rank: int, default: int) -> list[int]:
    if not isinstance(value, (tuple, list)):
        return [default if value is None else value] * rank
    return list(value) * rank if len(value) == 1 else list(value)


def without_answer(name: str, x: Tensor, arguments: dict[str, Any]) -> bool:
    rank = int(name[-2])
    if name.startswith("adaptive_avg"):
        size = numbers(arguments["output_size"], rank, 0)
        whole = all(n in (1, None) for n in size)
        refused = x.is_complex() or (x.numel() == 0 and not x.is_floating_point())
        return refused or (whole and x.dim() not in (rank + 1, rank + 2))
    if name.startswith("max_pool"):
        dilation = numbers(arguments.get("dilation", 1), rank, 1)
        padding = numbers(arguments.get("padding", 0), rank, 0)
        spatial = x.shape[-rank:]
        return any(p > 0 and d > n for p, d, n in zip(padding, dilation, spatial, strict=False))
    return False


def outcome(function: Callable, tensors: tuple, arguments: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """The error's type, or None, and the results: the output, its indices, the input's gradient."""
    x, *rest = tensors
    x = x.detach()
    if x.is_floating_point():
        x.requires_grad_()
    torch.manual_seed(0)  # fractional pooling draws numbers
    try:
        output = function(x, *rest, **arguments)
    except Exception as error:
        return type(error), []
    results = list(output) if isinstance(output, tuple) else [output]
    if results[0].requires_grad and results[0].numel():  # torch cannot always differentiate what is empty
        generator = torch.Generator().manual_seed(1)
        grad = torch.randint(-4, 5, results[0].shape, generator=generator).to(results[0].dtype)
        results += torch.autograd.grad(results[0], x, grad)
    return None, [result.detach() for result in results]


def check(call: tuple[str, tuple, dict[str, Any]]) -> None:
    name, tensors, arguments = call
    x = tensors[0]
    assume(not without_answer(name, x, arguments))
    expected_error, expected = outcome(getattr(T, name), tensors, arguments)
    error, results = outcome(getattr(F, name), tensors, arguments)
    event(f"{name[:-2]} {'raises' if expected_error else 'works'}")
    if NotImplementedError in (error, expected_error):
        # The dtype and something else: either may be told. torch does not look at the dtype of what is empty.
        assert None not in (error, expected_error) or 0 in (x.numel(), *(result.numel() for result in expected))
        return
    assert error is expected_error
    assert len(results) == len(expected)
    exact = "max" in name and x.dtype != torch.complex64
    for position, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        assert ours.dtype == theirs.dtype
        if position == 0 and strides(ours) != strides(theirs):
            # torch gives some volumes and fractional poolings back contiguous; ours stay as they were.
            assert name.startswith("fractional") or name.endswith("3d")
            format = CHANNELS_LAST[x.dim() - 2]
            assert strides(x) == strides(x.contiguous(memory_format=format))
            assert strides(ours) == strides(ours.contiguous(memory_format=format))
        if exact and (position == 0 or not ours.is_floating_point()):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
            continue
        # torch adds half precision gradients up in half precision, one rounding each.
        half = x.dtype in (torch.float16, torch.bfloat16)
        steps = 64 * torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0
        scale = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
        tolerance = steps * (1 + scale) if half else 1e-5 * (1 + scale)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


QUICK = settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=4000)


@QUICK
@given(pooling_calls())
def test_pooling(call: tuple) -> None:
    check(call)


@QUICK
@given(unpooling_calls())
def test_unpooling(call: tuple) -> None:
    check(call)


@pytest.mark.slow
@LONG
@given(pooling_calls())
def test_pooling_at_length(call: tuple) -> None:
    check(call)


@pytest.mark.slow
@LONG
@given(unpooling_calls())
def test_unpooling_at_length(call: tuple) -> None:
    check(call)

"""Any convolution and transposed convolution that can be asked for, legal or not: torch's result, or torch's error."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from common import exact, relative_error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.int64)
LARGEST = 200_000  # multiplications: the naive loops take part

# How far from float64 a result may be, relative to its size: sums of a few hundred products.
TOLERANCE = {torch.float32: 2e-5, torch.complex64: 2e-5, torch.float64: 1e-12, torch.int64: 0.0}


@dataclass
class Case:
    """A call: of the functional, or of the layer where there is a padding mode."""

    rank: int
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    bias: int | None
    options: dict[str, Any]
    dtype: torch.dtype
    channels_last: tuple[bool, bool]
    naive: bool
    padding_mode: str = "zeros"
    transposed: bool = False
    requires_grad: bool = field(init=False)

    def __post_init__(self) -> None:
        self.requires_grad = self.dtype != torch.int64

    def operands(self) -> list[Tensor]:
        """Whole numbers of every type: small enough that the largest sums stay exact in float64."""
        generator = torch.Generator().manual_seed(1)

        def draw(shape: tuple[int, ...], channels_last: bool) -> Tensor:
            if self.dtype == torch.int64:
                x = torch.randint(-9, 9, shape, generator=generator)
            else:
                x = torch.randn(shape, dtype=self.dtype, generator=generator)
            if channels_last and len(shape) in (4, 5):
                x = x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)])
            return x.requires_grad_(self.requires_grad)

        operands = [draw(self.shape, self.channels_last[0]), draw(self.weight, self.channels_last[1])]
        return operands if self.bias is None else [*operands, draw((self.bias,), False)]

    def call(self, ours: bool, operands: list[Tensor]) -> Tensor:
        functional, layers = (F, nn) if ours else (torch.nn.functional, torch.nn)
        input, weight, *bias = operands
        if self.transposed:
            return getattr(functional, f"conv_transpose{self.rank}d")(input, weight, *bias, **self.options)
        if self.padding_mode == "zeros":
            return getattr(functional, f"conv{self.rank}d")(input, weight, *bias, **self.options)
        groups = self.options.get("groups", 1)
        layer = getattr(layers, f"Conv{self.rank}d")(
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[2:],
            bias=bool(bias),
            padding_mode=self.padding_mode,
            **self.options,
        )
        return layer._conv_forward(input, weight, bias[0] if bias else None)


def numbers(rank: int, low: int, high: int) -> st.SearchStrategy:
    """One number for all dimensions, or one for each."""
    number = st.integers(low, high)
    return st.one_of(number, st.tuples(*[number] * rank), st.tuples(number))


@st.composite
def cases(draw: Any, transposed: bool) -> Case:
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    group_in, group_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    depthwise = draw(st.booleans()) and groups > 1
    if depthwise:
        group_in, group_out = 1, draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 4 if rank < 3 else 3)] * rank))
    options: dict[str, Any] = {
        "stride": draw(numbers(rank, 1, 3)),
        "padding": draw(numbers(rank, 0, 3)),
        "dilation": draw(numbers(rank, 1, 2)),
        "groups": groups,
    }
    mode = "zeros"
    if transposed:
        options["output_padding"] = draw(st.one_of(st.just(0), numbers(rank, 0, 2)))
    else:
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
        if mode != "zeros":  # torch's layers want a number for each dimension here
            for name in ("stride", "padding", "dilation"):
                if isinstance(options[name], tuple):
                    options[name] = (options[name] * rank)[:rank]
        if draw(st.integers(0, 3)) == 0:
            options["padding"] = draw(st.sampled_from(["same", "valid"]))
            if options["padding"] == "same":
                options["stride"] = 1
    batch = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    sizes = draw(st.tuples(*[st.integers(1, 7 if rank < 3 else 4)] * rank))
    ins, outs = groups * group_in, groups * group_out
    weight = (ins, group_out, *kernel) if transposed else (outs, group_in, *kernel)
    case = Case(
        rank=rank,
        shape=(*batch, ins, *sizes),
        weight=weight,
        bias=draw(st.sampled_from([None, outs])),
        options=options,
        dtype=draw(st.sampled_from(DTYPES)),
        channels_last=draw(st.tuples(st.booleans(), st.booleans())),
        naive=draw(st.booleans()),
        padding_mode=mode,
        transposed=transposed,
    )
    damage(draw, case)
    return case


def damage(draw: Any, case: Case) -> None:
    """One time in three something is wrong, or may be."""
    if draw(st.integers(0, 2)):
        return
    names = ["channels", "rank", "bias", "option", "kernel", "pixels", "type"]
    what = draw(st.sampled_from(names))
    if what == "channels":
        position = len(case.shape) - case.rank - 1
        case.shape = (*case.shape[:position], case.shape[position] + 1, *case.shape[position + 1 :])
    elif what == "rank":
        case.shape = draw(st.sampled_from([case.shape[1:], (2, *case.shape)]))
    elif what == "bias":
        case.bias = draw(st.integers(0, 3))
    elif what == "option":
        name = draw(st.sampled_from([name for name in case.options if name != "groups"]))
        case.options[name] = draw(st.sampled_from([-1, 0, (), (1, 1, 1, 1), 1.5, None, "full"]))
        if case.padding_mode != "zeros":
            case.padding_mode = "zeros"  # the layer's constructor has objections of its own
    elif what == "kernel":
        case.weight = (*case.weight[:-1], 9)
    elif what == "pixels":
        case.shape = (*case.shape[:-1], 0)
    else:
        case.options["groups"] = draw(st.sampled_from([0, -1, 5, 1.0, True]))
        case.padding_mode = "zeros"


def without_onednn(where: bool) -> AbstractContextManager:
    """torch's own volumes go without oneDNN, which crashes on some on AVX-512: input 2 x 2 x 3 x 4 x 1 in
    channels_last_3d, a kernel of 2, stride (3, 1, 2), padding 3, dilation 2."""
    return torch.backends.mkldnn.flags(enabled=False) if where else nullcontext()


def results(case: Case, ours: bool, wide: bool) -> list[Tensor] | Exception:
    operands = case.operands()
    if wide and case.requires_grad:
        operands = [exact(x).detach().requires_grad_() for x in operands]
    try:
        with warnings.catch_warnings(), without_onednn(not ours and case.rank == 3):
            warnings.simplefilter("ignore")
            output = case.call(ours, operands)
        if not case.requires_grad:
            return [output]
        generator = torch.Generator().manual_seed(2)
        grad = torch.randn(output.shape, dtype=case.dtype, generator=generator).to(output.dtype)
        return [output.detach(), *torch.autograd.grad(output, operands, grad)]
    except Exception as error:
        return error


def check(case: Case) -> None:
    assume(math.prod(case.weight) * math.prod(case.shape[-case.rank :]) <= LARGEST)
    with scratchnn.kernels("naive" if case.naive else "fast"):
        mine = results(case, ours=True, wide=False)
    if isinstance(mine, Exception) and case.shape[0] == 0:  # torch looks less closely at a batch of none
        case.shape = (1, *case.shape[1:])
    theirs, truth = results(case, ours=False, wide=False), results(case, ours=False, wide=True)
    if isinstance(truth, Exception) or isinstance(theirs, Exception):
        # In float32 torch lets pass an output without pixels, and refuses it in float64.
        expected = {type(error) for error in (theirs, truth) if isinstance(error, Exception)}
        assert type(mine) in expected, f"{mine!r} instead of {theirs!r}"
        return
    assert not isinstance(mine, Exception), f"{mine!r}: torch raises nothing"
    assert len(mine) == len(truth)
    for position, (value, other, true) in enumerate(zip(mine, theirs, truth, strict=True)):
        assert value.shape == other.shape, f"result {position}: {value.shape} instead of {other.shape}"
        assert value.dtype == other.dtype
        error = relative_error(value, true)
        assert error <= TOLERANCE[case.dtype], f"result {position}: error {error:.1e}"


QUICK = settings(
    max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
THOROUGH = settings(QUICK, max_examples=4000)


@QUICK
@given(cases(transposed=False))
def test_convolution(case: Case) -> None:
    check(case)


@QUICK
@given(cases(transposed=True))
def test_transposed_convolution(case: Case) -> None:
    check(case)


@pytest.mark.slow
@THOROUGH
@given(cases(transposed=False))
def test_convolution_thousands_of_times(case: Case) -> None:
    check(case)


@pytest.mark.slow
@THOROUGH
@given(cases(transposed=True))
def test_transposed_convolution_thousands_of_times(case: Case) -> None:
    check(case)

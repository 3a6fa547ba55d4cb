"""Activations against torch, float64 truth and their formulas.

Most tests walk one table, :data:`CASES`: a call of a functional, which runs on ours and on torch's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from common import (
    ALL_DTYPES,
    FAST_DTYPES,
    assert_as_accurate,
    check_against_torch,
    gradients,
    layouts,
    relative_error,
    same_error,
    strides,
)
from torch import Tensor

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn
from scratchnn.ops._elementwise import OUTPUT_ROWS, ROWS

T = torch.nn.functional

PARAMETERS = {
    "leaky_relu": (0.1,),
    "threshold": (0.3, -0.4),
    "hardtanh": (-0.7, 0.4),
    "elu": (1.5,),
    "celu": (1.5,),
    "hardshrink": (0.4,),
    "softshrink": (0.4,),
    "softplus": (1.5, 2.0),
}


def _last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def _operator_samples() -> dict[str, Callable[[], list[tuple]]]:
    samples: dict[str, Callable[[], list[tuple]]] = {}
    for row in ROWS:
        p = PARAMETERS.get(row.name, ())
        samples[row.name] = lambda p=p: [(torch.randn(3, 5), *p), (_last(2, 3, 4, 5), *p)]
        for suffix in ("_backward", "_backward_"):
            samples[row.name + suffix] = lambda p=p: [(torch.randn(3, 5), torch.randn(3, 5), *p)]
        if row.in_place:
            samples[row.name + "_"] = lambda p=p: [(torch.randn(3, 5), *p)]
    for row in OUTPUT_ROWS:
        p = PARAMETERS.get(row.name, ())
        for suffix in ("_output_backward", "_output_backward_"):
            samples[row.name + suffix] = lambda p=p: [(torch.randn(3, 5), torch.randn(3, 5), *p)]
    for name in ("softmax", "softmin", "log_softmax"):
        samples[name] = lambda: [(torch.randn(3, 5), 1), (_last(2, 3, 4, 5), 2)]
        samples[name + "_backward"] = lambda: [(torch.randn(3, 5), torch.rand(3, 5), 0)]
    return samples


def _winners(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape, dtype=torch.int16)


OPERATOR_SAMPLES = _operator_samples() | {
    "glu": lambda: [(torch.randn(3, 6), 1), (_last(2, 4, 3, 5), 1)],
    "glu_backward": lambda: [(torch.randn(3, 3), torch.randn(3, 6), 1)],
    "prelu": lambda: [(torch.randn(2, 3, 4), torch.rand(count)) for count in (1, 3)],
    "prelu_backward": lambda: [(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.rand(count)) for count in (1, 3)],
    "rrelu_train": lambda: [(torch.randn(3, 5), 0.1, 0.3)],
    "maxout": lambda: [
        (torch.randn(2, 6), 3, 1),
        (_last(2, 6, 4, 5), 3, 1),
    ],
    "maxout_backward": lambda: [(torch.randn(2, 2), _winners(2, 2), 3, 1)],
    "maxout_gather": lambda: [(torch.randn(2, 6), _winners(2, 2), 3, 1)],
}


class Case(NamedTuple):
    """A call: the function's name, its arguments after the input, and the formula for one number."""

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    formula: Callable[..., float] | None = None

    def __call__(self, functions: Any, input: Tensor, **more: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's sigmoid and tanh were deprecated once
            return getattr(functions, self.name)(input, **self.arguments, **more)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


CASES = [
    Case("relu", {}, lambda x: max(x, 0.0)),
    Case("relu6", {}, lambda x: min(max(x, 0.0), 6.0)),
    Case("leaky_relu", {}, lambda x: x if x > 0 else 0.01 * x),
    Case("leaky_relu", {"negative_slope": 0.3}),
    Case("leaky_relu", {"negative_slope": 0.0}),
    Case("threshold", {"threshold": 0.1, "value": -3.0}, lambda x: x if x > 0.1 else -3.0),
    Case("threshold", {"threshold": -0.5, "value": 20}),
    Case("hardtanh", {}, lambda x: min(max(x, -1.0), 1.0)),
    Case("hardtanh", {"min_val": -0.25, "max_val": 2}),
    Case("hardsigmoid", {}, lambda x: min(max(x + 3, 0.0), 6.0) / 6),
    Case("hardswish", {}, lambda x: x * min(max(x + 3, 0.0), 6.0) / 6),
    Case("hardshrink", {}, lambda x: x if abs(x) > 0.5 else 0.0),
    Case("hardshrink", {"lambd": 1.25}),
    Case("softshrink", {}, lambda x: math.copysign(max(abs(x) - 0.5, 0.0), x)),
    Case("softshrink", {"lambd": 0}),
    Case("elu", {}, lambda x: x if x > 0 else math.expm1(x)),
    Case("elu", {"alpha": 2.5}),
    Case("elu", {"alpha": -0.5}),
    Case("celu", {"alpha": 0.5}, lambda x: x if x > 0 else 0.5 * math.expm1(x / 0.5)),
    Case("celu", {}),
    Case("selu", {}, lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x))),
    Case("sigmoid", {}, _sigmoid),
    Case("logsigmoid", {}, lambda x: math.log(_sigmoid(x)) if x > -30 else x),
    Case("tanh", {}, math.tanh),
    Case("tanhshrink", {}, lambda x: x - math.tanh(x)),
    Case("softsign", {}, lambda x: x / (1 + abs(x))),
    Case("softplus", {}, lambda x: math.log1p(_exp(x)) if x < 20 else x),
    Case("softplus", {"beta": 2.5, "threshold": 3}),
    Case("silu", {}, lambda x: x * _sigmoid(x)),
    Case("mish", {}, lambda x: x * math.tanh(math.log1p(_exp(x)))),
    Case("gelu", {}, lambda x: x * math.erfc(-x / math.sqrt(2)) / 2),
    Case("gelu", {"approximate": "tanh"}),
]
# Along a dimension: the formula takes a row.
ALONG = [
    Case("softmax", {"dim": 1}),
    Case("softmax", {"dim": -1}),
    Case("softmax", {"dim": 0}),
    Case("softmin", {"dim": 1}),
    Case("softmin", {"dim": 3}),
    Case("log_softmax", {"dim": 1}),
    Case("log_softmax", {"dim": -1}),
    Case("log_softmax", {"dim": 2}),
    Case("glu", {"dim": 1}),
    Case("glu", {"dim": -1}),
]
IN_PLACE = {row.name for row in ROWS if row.in_place} | {"relu6"}

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_smooth_case = pytest.mark.parametrize("case", [c for c in CASES if c.name in {
    "elu", "celu", "selu", "sigmoid", "logsigmoid", "tanh", "tanhshrink", "softsign", "softplus", "silu", "mish", "gelu"
}], ids=str)  # fmt: skip
each_in_place = pytest.mark.parametrize("case", [case for case in CASES if case.name in IN_PLACE], ids=str)
everything = pytest.mark.parametrize("case", CASES + ALONG, ids=str)


def both(case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The call on ours and on torch's. Torch gives some contiguous outputs for channels_last inputs; ours are as the
    input."""

    def theirs(x: Tensor) -> Tensor:
        y = case(T, x)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return y.contiguous(memory_format=torch.channels_last) if last else y

    return lambda x: case(F, x), theirs


# Values and gradients.


@pytest.mark.parametrize("case", [case for case in CASES if case.formula], ids=str)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_the_ladder_formula_naive_fast(case: Case, which: str) -> None:
    x = torch.cat([torch.randn(57), 10 * torch.randn(40), torch.tensor([0.0, -0.5, 0.5, 3.0, -3.0, 6.0])])
    formula = torch.tensor([case.formula(value) for value in x.tolist()], dtype=torch.float64)
    with scratchnn.kernels(which):
        torch.testing.assert_close(case(F, x).double(), formula, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(case(F, x.double()), formula, rtol=1e-12, atol=1e-12)


def inexact_in_torch(case: Case) -> bool:
    """torch computes these gradients with float32 constants even for float64."""
    return case.name == "hardsigmoid" or (case.name == "celu" and bool(case.arguments))


@everything
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_values_and_gradients(case: Case, dtype: torch.dtype, which: str) -> None:
    ours, theirs = both(case)
    for name, x in layouts((3, 4, 6, 10), dtype):
        if case.name == "logsigmoid" and name == "transposed":
            continue  # torch's output is contiguous, ours as the input
        if (case.name, name) in (("softmin", "expanded"), ("glu", "expanded")):
            continue  # torch's strides are those of the gaps
        if dtype == torch.float64 and inexact_in_torch(case):
            continue
        with scratchnn.kernels(which):
            check_against_torch(ours, theirs, [x])


@everything
def test_shapes_with_little_in_them(case: Case) -> None:
    ours, theirs = both(case)
    for shape in [(0, 2, 2, 2), (2, 0, 4, 2), (2, 2, 0, 2), (2, 2, 2, 0), (2, 2, 2, 2), (4, 2, 1, 2)]:
        check_against_torch(ours, theirs, [torch.randn(shape)])
    if case in CASES:
        for shape in [(), (1,), (3,), (0,), (5, 7), (2, 3, 4, 5, 6), (200, 300)]:
            check_against_torch(ours, theirs, [torch.randn(shape)])


@everything
@pytest.mark.parametrize("scale", [0.01, 3, 30, 1000])
def test_every_magnitude(case: Case, scale: float) -> None:
    """Also where functions saturate, overflow or underflow."""
    ours, theirs = both(case)
    for dtype in (torch.float32, torch.bfloat16):
        check_against_torch(ours, theirs, [(torch.randn(8, 6, 4, 12) * scale).to(dtype)])


@each_case
def test_tails_are_as_precise_as_torchs(case: Case) -> None:
    """Number by number: never worse than torch, give or take a few steps."""
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.linspace(-1, 1, 1000), torch.linspace(-87, -30, 200)])
    exact, mine, other = case(T, x.double()), case(F, x), case(T, x)
    if case.name == "gelu":  # torch's is not exact there: 1 + erf, and 1 + tanh, cancel
        wide = x.double()
        inner = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)
        exact = wide * (inner.sigmoid() if case.arguments else torch.special.erfc(-wide / math.sqrt(2)) / 2)
    allowed = (other.double() - exact).abs() * 2 + 6 * torch.finfo(torch.float32).eps * exact.abs() + 1e-37
    if case.name == "tanhshrink":
        allowed += 2 * torch.finfo(torch.float32).eps * x.tanh().abs()  # a difference of the two
    worst = ((mine.double() - exact).abs() / allowed).max()
    assert worst <= 1, f"{worst:.2f} times what is allowed at {x[((mine.double() - exact).abs() / allowed).argmax()]}"


def test_gelu_keeps_its_precision_where_it_is_tiny() -> None:
    """torch's loses it: 1 + erf cancels."""
    x = torch.linspace(-12, -3, 1000)
    exact = x.double() * torch.special.erfc(-x.double() / math.sqrt(2)) / 2
    assert ((F.gelu(x).double() - exact) / exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_mish_far_out(dtype: torch.dtype) -> None:
    """One, for any number however large: where torch's is NaN at infinity, and the exponential overflows."""
    x = torch.tensor([25.0, 45.0, 1e15, 1e30, math.inf], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.mish(x).sum(), x)
    truth = 1 + 4 * x.detach().double() * torch.exp(-2 * x.detach().double())  # and smaller terms
    torch.testing.assert_close(gradient, truth.nan_to_num(1.0).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_float64_gradients_that_torch_rounds_to_float32() -> None:
    x = torch.linspace(-2.9, 2.9, 100, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(F.hardsigmoid(x).sum(), x)
    assert (dx - 1 / 6).abs().max() < 1e-16
    (dx,) = torch.autograd.grad(F.celu(x, 1.3).sum(), x)
    torch.testing.assert_close(dx, torch.where(x > 0, 1, (x / 1.3).exp()).detach(), rtol=1e-14, atol=0)


SPECIAL = torch.tensor(
    [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, -1e-40, 3e38, -3e38, 3.0, -3.0, 0.5, -0.5, 6.0]
)


@each_case
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_special_values(case: Case, dtype: torch.dtype) -> None:
    """In every position of a vector, signs of zeros included."""
    for shift in range(0, 14, 3):
        x = SPECIAL.to(dtype).roll(shift).repeat(3)
        mine, other = case(F, x), case(T, x)
        if case.name == "gelu":  # torch has NaN for infinity, and overflows early, in places
            usual = x.isnan() | (x.abs() < 1e30)
            x, mine, other = x[usual], mine[usual], other[usual]
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-3 if case.name == "gelu" else 1e-6)
        if case.name == "tanhshrink":  # torch rounds tanh(x) before it takes the difference
            tolerance *= 5
        torch.testing.assert_close(mine, other, equal_nan=True, rtol=tolerance, atol=1e-7)
        zeros = (mine == 0) & (other == 0) & (x == 0)
        assert torch.equal(mine[zeros].signbit(), case(F, x.double())[zeros].signbit())


@each_case
def test_gradients_at_the_kinks(case: Case) -> None:
    """The one-sided derivative that torch takes."""
    p = [value for value in case.arguments.values() if not isinstance(value, str)]
    x = torch.tensor([0.0, -0.0, 3.0, -3.0, 0.5, -0.5, 1.0, -1.0, 6.0, math.nan, *p, *(-value for value in p)])
    ours, theirs = both(case)
    torch.testing.assert_close(
        gradients(ours, [x], torch.ones_like(x)), gradients(theirs, [x], torch.ones_like(x)), equal_nan=True
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("relu", "relu6", "hardtanh", "threshold")], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers(case: Case, dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 5, 100, -3, -100, 7] if dtype.is_signed else [0, 1, 5, 100, 200]).to(dtype)
    if case.name in ("threshold", "hardtanh") and not dtype.is_signed:
        return  # torch, or some versions of it, wants parameters that are numbers of the type
    assert torch.equal(case(F, x), case(T, x))
    large = torch.tensor([2**62 + 1, -(2**62) - 1])
    assert torch.equal(F.relu(large), torch.relu(large))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "tanhshrink", "softsign"])
def test_whole_numbers_become_floating_ones(name: str) -> None:
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64):
        if dtype == torch.bool and name in ("tanhshrink", "softsign"):
            same_error(lambda: getattr(F, name)(torch.ones(3) > 0), lambda: getattr(T, name)(torch.ones(3) > 0))
            continue
        x = torch.tensor([0, 1, 5, 100]).to(dtype)
        torch.testing.assert_close(getattr(F, name)(x), getattr(T, name)(x))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "tanhshrink", "softsign", "silu"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(40, dtype=dtype)
    grad = torch.randn(40, dtype=dtype)
    torch.testing.assert_close(getattr(F, name)(x), getattr(T, name)(x))
    if name != "silu":  # torch has no derivative of it
        torch.testing.assert_close(*(gradients(getattr(f, name), [x], grad) for f in (F, T)))
    z = torch.randn(5, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(F, name), z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(getattr(F, name), z)


# Derivatives and transforms.


@everything
def test_derivatives(case: Case) -> None:
    x = (torch.randn(2, 4, 2, 4, dtype=torch.float64) + 0.05).requires_grad_()  # off the kinks
    assert torch.autograd.gradcheck(lambda x: case(F, x), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: case(F, x), x, check_fwd_over_rev=True)


@each_in_place
def test_derivatives_in_place(case: Case) -> None:
    if case.arguments.get("alpha", 1) < 0:
        return
    x = (torch.randn(4, 5, dtype=torch.float64) + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: case(F, x * 1, inplace=True), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: case(F, x * 1, inplace=True), x)


@each_smooth_case
def test_third_derivatives(case: Case) -> None:
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(case(F, x).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, x)


@everything
@pytest.mark.parametrize("inplace", [False, True])
def test_transforms(case: Case, inplace: bool) -> None:
    if inplace and (case.name not in IN_PLACE or case.arguments.get("alpha", 1) < 0):
        return
    more = {"inplace": True} if inplace else {}

    def ours(x: Tensor) -> Tensor:
        return case(F, x * 1, **more)

    def theirs(x: Tensor) -> Tensor:
        return case(T, x * 1)

    x, v = torch.randn(4, 4, 4, 2, 6).mT, torch.randn(4, 4, 4, 2, 6).mT
    close = {"rtol": 1e-4, "atol": 1e-5}
    for dim in (0, 1):
        torch.testing.assert_close(*(torch.func.vmap(f, in_dims=dim)(x) for f in (ours, theirs)), **close)
    x, v = x[0], v[0]
    torch.testing.assert_close(*(torch.func.jvp(f, (x,), (v,)) for f in (ours, theirs)), **close)

    def gradient(function: Callable) -> Callable:
        return torch.func.grad(lambda x: function(x).square().sum())

    torch.testing.assert_close(*(gradient(f)(x) for f in (ours, theirs)), **close)
    torch.testing.assert_close(
        *(torch.func.vmap(gradient(lambda x, f=f: f(x[None])))(x) for f in (ours, theirs)), **close
    )


@everything
@pytest.mark.parametrize("inplace", [False, True])
def test_compile(case: Case, inplace: bool) -> None:
    if inplace and (case.name not in IN_PLACE or case.arguments.get("alpha", 1) < 0):
        return
    more = {"inplace": True} if inplace else {}
    torch._dynamo.reset()

    def function(x: Tensor) -> Tensor:
        return case(F, x * 1, **more)

    def plain(x: Tensor) -> Tensor:
        return getattr(F, case.name)(x * 1, **case.arguments, **more)

    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 3, 6)
    dy = torch.randn_like(function(x))
    torch.testing.assert_close(gradients(compiled, [x], dy), gradients(function, [x], dy), rtol=0, atol=0)


# In place.


@each_in_place
def test_in_place_writes_to_its_input(case: Case) -> None:
    x = torch.randn(4, 6, 3)
    for view in (x, x[:, ::2], x.transpose(0, 2)):
        expected, version = case(F, view), view._version
        result = case(F, view, inplace=True)
        assert result is view
        assert torch.equal(view, expected)
        assert view._version > version


@each_in_place
def test_in_place_gradients_are_the_same(case: Case) -> None:
    if case.arguments.get("alpha", 1) < 0:
        return
    for dtype in FAST_DTYPES:
        x, dy = torch.randn(7, 9, dtype=dtype) * 2, torch.randn(7, 9, dtype=dtype)
        plain = gradients(lambda x: case(F, x * 1), [x], dy)
        in_place = gradients(lambda x: case(F, x * 1, inplace=True), [x], dy)
        torch.testing.assert_close(in_place, plain)


def test_in_place_gradient_of_a_threshold_below_its_value() -> None:
    """torch's asks whether the output is above the threshold, which the value is."""
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    (dx,) = torch.autograd.grad(F.threshold(x * 1, 1.0, 20.0, inplace=True).sum(), x)
    assert dx.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["relu_", "elu_", "celu_", "selu_", "leaky_relu_", "hardtanh_", "rrelu_"])
def test_functions_in_place(name: str) -> None:
    x = torch.randn(20)
    expected = getattr(T, name)(x.clone())
    assert getattr(F, name)(x) is x
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(F.threshold_(x, 0.5, 0.1), T.threshold_(expected, 0.5, 0.1))


@each_in_place
def test_autograd_refuses_to_overwrite(case: Case) -> None:
    """Leaves; tensors that are needed for a derivative."""
    leaf = torch.randn(3, requires_grad=True)
    before = leaf.detach().clone()
    same_error(lambda: case(F, leaf, inplace=True), lambda: case(T, leaf, inplace=True))
    assert torch.equal(leaf, before)

    def overwritten(functions: Any) -> None:
        x = torch.randn(3, requires_grad=True) * 1
        y = x.sigmoid()
        case(functions, y, inplace=True).sum().backward()

    same_error(lambda: overwritten(F), lambda: overwritten(T))
    view = torch.randn(3).expand(4, 3)
    if case.name == "threshold":
        return  # torch lets that pass
    same_error(lambda: case(F, view, inplace=True), lambda: case(T, view, inplace=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.leaky_relu_(x, -0.1),
        lambda f, x: f.elu_(x, -0.1),
        lambda f, x: f.celu_(x, -0.1),
    ],
)
def test_no_derivative_in_place_where_the_output_does_not_tell(call: Callable) -> None:
    def backward(functions: Any) -> None:
        x = torch.randn(5, requires_grad=True)
        call(functions, x * 1).sum().backward()

    same_error(lambda: backward(F), lambda: backward(T))


@everything
def test_saves_what_torch_saves(case: Case) -> None:
    """No more bytes, and a tensor torch allows to overwrite afterwards may be."""

    def saved(functions: Any) -> int:
        sizes = {}
        x = torch.randn(2, 4, 6, 8, requires_grad=True)

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = case(functions, x * 1)
        del y
        return sum(sizes.values())

    def overwritten(functions: Any) -> bool:
        x = torch.randn(2, 4, 6, 8, requires_grad=True)
        y = case(functions, x * 1)
        z = y.detach()
        z += 1
        try:
            y.sum().backward()
        except RuntimeError:
            return False
        return True

    assert saved(F) <= saved(T)
    assert overwritten(F) or not overwritten(T)


# Reproducible to the bit.


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_and_threads_change_no_bit(case: Case, dtype: torch.dtype) -> None:
    x = (torch.randn(9, 4, 50, 14) * 3).to(dtype)
    if case.arguments.get("dim") == 0:
        x = x.transpose(0, 1).contiguous()
    batch = 1 if case.arguments.get("dim") == 0 else 0
    dy = torch.randn_like(case(F, x))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(lambda x: case(F, x), [x], dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    for first, count in [(0, 1), (1, 3), (4, 5)]:
        part = gradients(lambda x: case(F, x), [x.narrow(batch, first, count)], dy.narrow(batch, first, count))
        for alone, together in zip(part, results[0], strict=True):
            assert torch.equal(alone, together.narrow(batch, first, count))
    if case in CASES:
        flat, expected = x.flatten(), results[0][0].flatten()
        for length in (1, 2, 3, 5, 7, 13, 31):
            assert torch.equal(case(F, flat[1 : 1 + length]), expected[1 : 1 + length])


# Softmax and its relatives.


def rows_of(x: Tensor, dim: int) -> Iterator[Tensor]:
    yield from x.movedim(dim, -1).reshape(-1, x.shape[dim]).unbind(0)


@pytest.mark.parametrize("which", ["fast", "naive"])
def test_softmax_by_its_formula(which: str) -> None:
    for shape, dim in [((3, 7), 1), ((3, 7), 0), ((2, 5, 3), 1), ((4, 33), 1), ((33, 9), 0)]:
        x = torch.randn(shape)
        with scratchnn.kernels(which):
            results = F.softmax(x, dim), F.softmin(x, dim), F.log_softmax(x, dim)
        for row, soft, small, log in zip(rows_of(x, dim), *(rows_of(y, dim) for y in results), strict=True):
            powers = [math.exp(value) for value in row.tolist()]
            formula = torch.tensor([power / sum(powers) for power in powers])
            torch.testing.assert_close(soft, formula)
            torch.testing.assert_close(log, formula.log(), rtol=1e-5, atol=1e-5)
            powers = [1 / power for power in powers]
            torch.testing.assert_close(small, torch.tensor([power / sum(powers) for power in powers]))


@pytest.mark.parametrize("name", ["softmax", "softmin", "log_softmax"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_softmax_of_rows_of_any_length(name: str, dtype: torch.dtype) -> None:
    for size in (1, 2, 5, 8, 17, 100, 1000):
        for shape, dim in [((3, size), 1), ((size, 3), 0), ((2, size, 19), 1)]:
            x = torch.randn(shape).to(dtype)
            case = Case(name, {"dim": dim})
            check_against_torch(*both(case), [x])


def test_softmax_of_infinities() -> None:
    x = torch.randn(6, 20)
    x[0, 3] = -math.inf
    x[1] = -math.inf
    x[2, 5] = math.inf
    x[3, 19] = math.nan
    x[4, 0] = 3e38
    for name in ("softmax", "softmin", "log_softmax"):
        for dim, y in [(1, x), (0, x.T.contiguous())]:
            ours, theirs = (getattr(f, name)(y, dim) for f in (F, T))
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_softmax_converts_first() -> None:
    x = torch.randint(0, 9, (4, 5))
    for name in ("softmax", "softmin", "log_softmax"):
        for given in (x, x.to(torch.uint8), x.half(), x > 3):
            if name == "softmin" and given.dtype == torch.bool:
                continue
            for dtype in (torch.float32, torch.float64):
                ours, theirs = (getattr(f, name)(given, 1, dtype=dtype) for f in (F, T))
                torch.testing.assert_close(ours, theirs)
        leaf = torch.randn(3, 4, dtype=torch.bfloat16)
        check_against_torch(*both(Case(name, {"dim": 1, "dtype": torch.float32})), [leaf])


@pytest.mark.parametrize("name", ["softmax", "softmin", "log_softmax"])
def test_implicit_dimension_warns_as_torch(name: str) -> None:
    layers = {"softmax": "Softmax", "softmin": "Softmin", "log_softmax": "LogSoftmax"}
    for shape in [(), (4,), (3, 4), (2, 3, 4), (2, 3, 4, 5)]:
        x = torch.randn(shape)
        results = []
        for functions, layers_of in ((F, nn), (T, torch.nn)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                results.append(getattr(functions, name)(x))
                results.append(getattr(layers_of, layers[name])()(x))
            assert [str(warning.message).split(" has")[0] for warning in caught] == [
                f"Implicit dimension choice for {name}"
            ] * 2
            assert caught[0].filename == __file__
        torch.testing.assert_close(results[0], results[2])
        torch.testing.assert_close(results[1], results[3])


def test_softmax2d() -> None:
    for shape in [(2, 3, 4, 5), (3, 4, 5)]:
        x = torch.randn(shape)
        torch.testing.assert_close(nn.Softmax2d()(x), torch.nn.Softmax2d()(x))
    same_error(lambda: nn.Softmax2d()(torch.randn(3, 4)), lambda: torch.nn.Softmax2d()(torch.randn(3, 4)))


# PReLU.

PRELU = [
    ((4, 5), 5),
    ((4, 5), 1),
    ((3, 4, 7), 4),
    ((2, 6, 5, 3), 6),
    ((2, 6, 5, 3), 1),
    ((2, 3, 2, 3, 4), 3),
    ((5,), 1),
]
PRELU += [((), 1), ((0, 3), 3), ((2, 0), 1), ((300, 33), 33), ((4, 5, 60, 60), 5), ((2, 3, 100, 101), 1)]


def check_prelu(x: Tensor, w: Tensor) -> None:
    dy = torch.randn(x.shape, dtype=x.dtype)
    truth = gradients(T.prelu, [x.double(), w.double()], dy.double())
    ours, theirs = (gradients(f, [x, w], dy) for f in (F.prelu, T.prelu))
    if x.dtype == torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    else:
        assert_as_accurate(ours, theirs, truth)


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("shape", "slopes"), PRELU)
def test_prelu(shape: tuple, slopes: int, dtype: torch.dtype, which: str) -> None:
    w = torch.rand(slopes, dtype=dtype)
    with scratchnn.kernels(which):
        check_prelu(torch.randn(shape, dtype=dtype), w)
        if len(shape) == 4:
            for _, x in layouts(shape, dtype):
                check_prelu(x, w)
        if slopes == 1:
            check_prelu(torch.randn(shape, dtype=dtype), w.reshape(()))


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_derivatives(slopes: int) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.rand(slopes, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(F.prelu, (x, w), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(F.prelu, (x, w), check_fwd_over_rev=True)


@pytest.mark.parametrize("slopes", [1, 3])
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (2, 0)])
def test_prelu_vmap(slopes: int, dims: tuple) -> None:
    x = torch.randn((2, 3, 4) if dims[0] is None else (3, 2, 3, 4)).movedim(0, dims[0] or 0)
    w = torch.rand((slopes,) if dims[1] is None else (3, slopes))
    for transform in (lambda f: f, lambda f: torch.func.grad(lambda x, w: f(x, w).square().sum(), argnums=(0, 1))):
        torch.testing.assert_close(*(torch.func.vmap(transform(f), in_dims=dims)(x, w) for f in (F.prelu, T.prelu)))


def test_prelu_compiles() -> None:
    compiled = torch.compile(F.prelu, fullgraph=True, backend="aot_eager")
    operands = [torch.randn(2, 3, 4), torch.rand(3)]
    dy = torch.randn(2, 3, 4)
    torch.testing.assert_close(gradients(compiled, operands, dy), gradients(F.prelu, operands, dy), rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "slopes"), [((300, 7), 7), ((20, 6, 30, 31), 6), ((20, 6, 30, 31), 1)])
def test_prelu_gradients_do_not_depend_on_threads(shape: tuple, slopes: int) -> None:
    operands, dy = [torch.randn(shape), torch.rand(slopes)], torch.randn(shape)
    for format in (torch.contiguous_format, torch.channels_last) if len(shape) == 4 else (torch.contiguous_format,):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(F.prelu, [operands[0].contiguous(memory_format=format), operands[1]], dy))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prelu_under_autocast(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 3), torch.rand(3)
    with torch.autocast("cpu", dtype):
        assert F.prelu(x, w).dtype == T.prelu(x, w).dtype == dtype
        for case in CASES + ALONG[:-2]:
            y = torch.randn(2, 4, 2, 2)
            assert case(F, y).dtype == case(T, y).dtype


# RReLU.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu_draws_torchs_numbers(dtype: torch.dtype, inplace: bool) -> None:
    for _, x in layouts((3, 4, 5, 7), dtype):
        results = []
        for functions in (F, T):
            leaf = x.detach().clone().requires_grad_()
            torch.manual_seed(5)
            y = functions.rrelu(leaf * 1, 0.2, 0.6, training=True, inplace=inplace)
            after = torch.rand(1)
            results.append([y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y)), after])
        for mine, other in zip(*results, strict=True):
            assert torch.equal(mine, other)


def test_rrelu_takes_the_mean_slope_otherwise() -> None:
    x = torch.randn(50)
    assert torch.equal(F.rrelu(x, 0.1, 0.5), T.rrelu(x, 0.1, 0.5))
    ours, theirs = nn.RReLU().eval(), torch.nn.RReLU().eval()
    assert torch.equal(ours(x), theirs(x))


def test_rrelu_derivatives() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return F.rrelu(x, training=True)

    assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, x)
    tripled = torch.func.vmap(lambda x: F.rrelu(x, training=True), randomness="different")(-torch.ones(3, 4))
    assert tripled.unique().numel() == 12
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: F.rrelu(x, training=True))(torch.ones(3, 4))


# Maxout.


def maxout_formula(x: Tensor, pieces: int, dim: int) -> Tensor:
    return x.unflatten(dim, (-1, pieces)).amax(dim + 1 if dim >= 0 else dim)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_maxout(dtype: torch.dtype, which: str) -> None:
    with scratchnn.kernels(which):
        for pieces, dim in [(2, 1), (3, 1), (6, 1), (1, 1), (5, 2), (2, 0), (2, -1)]:
            for name, x in layouts((4, 6, 5, 8), dtype):
                y = F.maxout(x, pieces, dim)
                assert torch.equal(y, maxout_formula(x, pieces, dim))
                if x.is_contiguous(memory_format=torch.channels_last):
                    assert y.is_contiguous(memory_format=torch.channels_last)
                dy = torch.randn_like(y)
                mine, other = (
                    gradients(f, [x], dy)[1]
                    for f in (
                        partial(F.maxout, pieces=pieces, dim=dim),
                        partial(maxout_formula, pieces=pieces, dim=dim),
                    )
                )
                if dtype.itemsize > 2 and name != "expanded":  # without ties, of which the first takes all
                    assert torch.equal(mine, other)
    x = torch.tensor([[1.0, math.nan, 2.0, 5.0, -math.inf, 5.0]], requires_grad=True)
    y = F.maxout(x, 3)
    assert y.isnan().tolist() == [[True, False]]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert torch.equal(F.maxout(torch.arange(6), 2, 0), torch.tensor([1, 3, 5]))


def test_maxout_derivatives() -> None:
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: F.maxout(x, 3), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: F.maxout(x, 3), x)
    y = torch.randn(5, 4, 6)
    torch.testing.assert_close(torch.func.vmap(lambda x: F.maxout(x, 2, -1))(y), maxout_formula(y, 2, -1))
    compiled = torch.compile(lambda x: F.maxout(x, 3), fullgraph=True, backend="aot_eager")
    dy = torch.randn(5, 4, 2)
    y = y.transpose(1, 2)
    torch.testing.assert_close(gradients(compiled, [y], dy.mT), gradients(lambda x: F.maxout(x, 3), [y], dy.mT))


def test_maxout_layer() -> None:
    torch.manual_seed(2)
    layer = nn.Maxout(7, 5, 3)
    torch.manual_seed(2)
    linear = torch.nn.Linear(7, 15)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), linear.parameters(), strict=True))
    x = torch.randn(2, 4, 7)
    torch.testing.assert_close(layer(x), linear(x).unflatten(-1, (5, 3)).amax(-1))
    assert repr(layer) == "Maxout(in_features=7, out_features=5, pieces=3, bias=True)"
    assert list(nn.Maxout(7, 5, 3, bias=False).state_dict()) == ["weight"]
    with pytest.raises(ValueError, match="piece"):
        nn.Maxout(7, 5, 0)


@pytest.mark.parametrize(
    ("call", "error", "pattern"),
    [
        (lambda: F.maxout(torch.randn(2, 5), 2), RuntimeError, r"multiple of 2.*\[2, 5\]"),
        (lambda: F.maxout(torch.randn(2, 4), 0), RuntimeError, "pieces.*0"),
        (lambda: F.maxout(torch.randn(2, 4), 40000), RuntimeError, "pieces.*40000"),
        (lambda: F.maxout(torch.randn(()), 1, 0), RuntimeError, "scalar"),
        (lambda: F.maxout(torch.randn(4), 2), IndexError, "range"),
        (lambda: F.maxout([1.0], 2), TypeError, "list"),
        (lambda: F.maxout(torch.randn(2, 4), 2.0), TypeError, "pieces"),
        (lambda: F.maxout(torch.ones(2, 4, dtype=torch.bool), 2), NotImplementedError, "Bool"),
    ],
)
def test_maxout_errors(call: Callable, error: type, pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        call()


# Errors.

X, BAD = torch.linspace(-3, 3, 14), torch.zeros(3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_that_are_not_served(case: Case) -> None:
    for dtype in (torch.bool, torch.int64, torch.complex64):
        x = torch.ones(3).to(dtype)
        try:
            case(T, x)
        except NotImplementedError:
            message = same_error(partial(case, F, x), partial(case, T, x))
            assert "not implemented" in message


BAD_CALLS = {
    "min above max": lambda f: f.hardtanh(X, 1.0, -1.0),
    "celu of width 0": lambda f: f.celu(X, 0.0),
    "celu of width 0 in place": lambda f: f.celu_(X, 0.0),
    "approximation": lambda f: f.gelu(X, approximate="x"),
    "approximation by position": lambda f: f.gelu(X, "tanh"),
    "approximation a number": lambda f: f.gelu(X, approximate=1),
    "no value": lambda f: f.threshold(X, 0),
    "negative lambda": lambda f: f.softshrink(X, -1.0),
    "lambda no number": lambda f: f.softshrink(X, math.nan),
    "odd size": lambda f: f.glu(torch.randn(3)),
    "scalar to halve": lambda f: f.glu(torch.randn(())),
    "dimension to halve": lambda f: f.glu(torch.randn(4, 2), 3),
    "dimension a float": lambda f: f.glu(torch.randn(4, 2), 0.0),
    "rows dimension": lambda f: f.softmax(X, 5),
    "rows of a scalar": lambda f: f.softmax(torch.randn(()), 1),
    "rows dimension a string": lambda f: f.softmax(X, "a"),
    "rows dimension a float": lambda f: f.log_softmax(X, 0.0),
    "rows type": lambda f: f.softmax(X, 0, dtype="a"),
    "rows of whole numbers": lambda f: f.softmax(X.long(), 0),
    "rows to whole numbers": lambda f: f.log_softmax(X, 0, dtype=torch.int32),
    "rows to complex numbers": lambda f: f.softmax(X, 0, dtype=torch.complex64),
    "rows of booleans": lambda f: f.softmin(X > 0, 0, dtype=torch.float32),
    "slopes": lambda f: f.prelu(torch.randn(2, 3), torch.ones(2)),
    "slopes of a scalar": lambda f: f.prelu(torch.randn(()), torch.ones(2)),
    "slopes of a vector": lambda f: f.prelu(torch.randn(5), torch.ones(5)),
    "slopes of rank 2": lambda f: f.prelu(torch.randn(2, 3), torch.ones(3, 1)),
    "slope type": lambda f: f.prelu(torch.randn(2, 3), torch.ones(1).double()),
    "slope a number": lambda f: f.prelu(X, 1.0),
    "no slope": lambda f: f.prelu(torch.randn(2, 3), torch.ones(0)),
    "limits": lambda f: f.rrelu(X, 0.5, 0.1),
    "limits in training": lambda f: f.rrelu(X, 0.5, 0.1, True),
    "half in training": lambda f: f.rrelu(X.half(), training=True),
    "a list": lambda f: f.elu([1.0]),
    "nothing": lambda f: f.gelu(None),
    "a float": lambda f: f.relu(3.0),
    "a list in place": lambda f: f.silu([1.0], inplace=True),
    "a float to shrink": lambda f: f.hardshrink(3.0),
    "a string for a number": lambda f: f.elu(X, "a"),
    "nothing for a number": lambda f: f.elu(X, alpha=None),
    "a vector for a number": lambda f: f.leaky_relu(X, torch.ones(2)),
    "unknown argument": lambda f: f.mish(X, beta=1),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_torchs(name: str) -> None:
    assert same_error(lambda: BAD_CALLS[name](F), lambda: BAD_CALLS[name](T))


def test_numbers_in_every_form() -> None:
    for number in (2, 2.0, True, torch.tensor(2.0), torch.tensor(2)):
        assert torch.equal(F.elu(X, number), T.elu(X, number))
        assert torch.equal(F.hardtanh(X, -1, number), T.hardtanh(X, -1, number))


@pytest.mark.parametrize(
    "name", ["relu_backward", "elu_output_backward", "softmax_backward", "glu_backward", "prelu_backward"]
)
def test_operators_check_their_gradients(name: str) -> None:
    *_, arguments = OPERATOR_SAMPLES[name]()
    operator = getattr(torch.ops.scratchnn, name)
    with pytest.raises(RuntimeError, match=r"shape"):
        operator(torch.randn(2, 2), *arguments[1:])
    with pytest.raises(RuntimeError, match=r"same dtype"):
        operator(arguments[0].double(), *arguments[1:])


# The modules.

# fmt: off
MODULES = [
    ("ReLU", {}), ("ReLU", {"inplace": True}), ("ReLU6", {}), ("ReLU6", {"inplace": True}),
    ("LeakyReLU", {"negative_slope": 0.2, "inplace": True}), ("Threshold", {"threshold": 0.1, "value": 20}),
    ("Hardtanh", {"min_val": -2.0, "max_val": 0.5}), ("Hardsigmoid", {"inplace": True}),
    ("Hardswish", {"inplace": True}), ("ELU", {"alpha": 2.0, "inplace": True}), ("CELU", {"alpha": 2.0}),
    ("SELU", {"inplace": True}), ("SiLU", {"inplace": True}),
    ("Mish", {"inplace": True}), ("Hardshrink", {"lambd": 0.2}), ("Softshrink", {"lambd": 0.2}), ("Sigmoid", {}),
    ("LogSigmoid", {}), ("Tanh", {}), ("Tanhshrink", {}), ("Softsign", {}), ("Softplus", {"beta": 2, "threshold": 3}),
    ("GELU", {}), ("GELU", {"approximate": "tanh"}), ("PReLU", {}), ("PReLU", {"num_parameters": 4, "init": 0.1}),
    ("RReLU", {"lower": 0.1, "upper": 0.9, "inplace": True}), ("GLU", {"dim": 1}), ("Softmax", {"dim": 1}),
    ("Softmin", {"dim": 1}), ("LogSoftmax", {"dim": 1}), ("Softmax2d", {}),
]
# fmt: on


@pytest.mark.parametrize(("name", "options"), MODULES, ids=str)
def test_the_layers_are_torchs(name: str, options: dict) -> None:
    ours, theirs = (getattr(n, name)(**options) for n in (nn, torch.nn))
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(3, 4, 5, 6)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(4)
        results.append(layer(x.clone()))
    torch.testing.assert_close(*results)
    meta = ours.to("meta")(x.to("meta"))
    assert (meta.shape, meta.dtype) == (results[0].shape, results[0].dtype)


def test_old_names_of_hardtanhs_limits() -> None:
    for namespace in (nn, torch.nn):
        with pytest.warns(FutureWarning, match="min_value"):
            layer = namespace.Hardtanh(min_value=-3.0, max_value=2.0)
        assert (layer.min_val, layer.max_val) == (-3.0, 2.0)


def test_accuracy_beside_torchs() -> None:
    """The whole line at once, so that a worse formula shows: relative errors in the root mean square."""
    x = torch.randn(20_000) * 3
    for case in CASES:
        exact = case(T, x.double())
        mine, other = (relative_error(case(f, x), exact) for f in (F, T))
        assert mine <= 1.6 * other + 0.3 * torch.finfo(torch.float32).eps, f"{case}: {mine:.2e}, torch's {other:.2e}"
        assert_as_accurate([case(F, x)], [case(T, x)], [exact])
        assert strides(case(F, x)) == strides(x)


@pytest.mark.parametrize("name", ["relu", "silu", "hardtanh", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_tensors_have_the_numbers_of_their_parts(name: str, dtype: torch.dtype) -> None:
    """Large ones are written past the cache, by whole lines, whatever is left at their end."""
    count = (32 << 20) // dtype.itemsize + 77
    x = torch.randn(count // 7).repeat(8)[:count].to(dtype).requires_grad_()
    function = getattr(F, name)
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    for start in range(0, count, 1_000_003):
        part = x.detach()[start : start + 1_000_003].requires_grad_()
        z = function(part)
        assert torch.equal(y[start : start + 1_000_003], z)
        assert torch.equal(dx[start : start + 1_000_003], torch.autograd.grad(z, part, part.detach())[0])

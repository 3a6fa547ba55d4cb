"""The fully-connected layer against torch, float64 truth and its formula."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, HALF_DTYPES, assert_rounded_once, check_against_torch, gradients, same_error, strides
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn

_ops = torch.ops.scratchnn

OPERATOR_SAMPLES = {
    "linear": lambda: [
        (torch.randn(*leading, 5), torch.randn(3, 5), bias)
        for leading in [(4,), (), (2, 3)]
        for bias in (None, torch.randn(3))
    ],
    "linear_input_grad": lambda: [(torch.randn(*leading, 3), torch.randn(3, 5)) for leading in [(4,), (), (2, 3)]],
    "linear_weight_grad": lambda: [
        (torch.randn(*leading, 3), torch.randn(*leading, 5)) for leading in [(4,), (), (2, 3)]
    ],
    "bilinear": lambda: [
        (torch.randn(*leading, 5), torch.randn(*leading, 4), torch.randn(3, 5, 4), bias)
        for leading in [(4,), (), (2, 3)]
        for bias in (None, torch.randn(3))
    ],
    "bilinear_weight_grad": lambda: [
        (torch.randn(*leading, 3), torch.randn(*leading, 5), torch.randn(*leading, 4)) for leading in [(4,), (), (2, 3)]
    ],
}


def matrices(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """The same kind of matrix, or stack of them, in every layout: dense, with gaps, overlapping."""
    *leading, rows, columns = shape
    yield torch.randn(shape, dtype=dtype)
    yield torch.randn(*leading, columns, rows, dtype=dtype).mT
    yield torch.randn(*leading, 2 * rows, columns + 3, dtype=dtype)[..., ::2, 1:-2]
    yield torch.randn(*leading, 1, columns, dtype=dtype).expand(shape)
    yield torch.randn(*leading, rows, 1, dtype=dtype).expand(shape)


def linear_formula(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """``y[n, k] = b[k] + sum over c of x[n, c] w[k, c]``, one number at a time."""
    rows = [[b[k] + sum(x[n][c] * w[k][c] for c in range(len(w[k]))) for k in range(len(w))] for n in range(len(x))]
    return torch.tensor(rows, dtype=torch.float64)


def test_the_ladder_formula_naive_fast() -> None:
    x, w, b = torch.randn(4, 7), torch.randn(5, 7), torch.randn(5)
    formula = linear_formula(x.double().tolist(), w.double().tolist(), b.double().tolist())
    with scratchnn.kernels("naive"):
        naive = F.linear(x, w, b)
    torch.testing.assert_close(naive.double(), formula, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(F.linear(x, w, b), naive, rtol=1e-5, atol=1e-5)


def test_the_gradients_are_the_adjoints_of_the_formula() -> None:
    """``<dy, linear(x, w)> = <input_grad(dy, w), x> = <weight_grad(dy, x), w>``, exact for whole numbers."""
    x, w, dy = (torch.randint(-4, 5, shape).double() for shape in [(9, 33), (21, 33), (9, 21)])
    for which in ("naive", "fast"):
        with scratchnn.kernels(which):
            y, dx, dw = _ops.linear(x, w, None), _ops.linear_input_grad(dy, w), _ops.linear_weight_grad(dy, x)
        assert (dy * y).sum() == (dx * x).sum() == (dw * w).sum()


# Values and gradients.

SIZES = [  # leading dimensions, features in, features out
    ((4,), 5, 3),
    ((1,), 1, 1),
    ((7,), 64, 10),
    ((33,), 129, 65),
    ((128,), 67, 100),
    ((3,), 1030, 17),  # more features than a block
    ((700,), 9, 11),
    ((16400,), 3, 2),  # more rows than are packed at a time
    ((2500,), 40, 50),  # enough for the weight gradient to be summed in chunks
    ((30,), 64, 32),  # few features: tiles of sums in place of dot products
    ((25,), 190, 101),
    ((2, 3, 4), 5, 6),
    ((), 6, 4),
    ((0,), 6, 4),
    ((2, 0), 6, 4),
    ((3,), 0, 4),
    ((3,), 6, 0),
    ((2, 3), 0, 0),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("leading", "features", "outputs"), SIZES)
def test_values_and_gradients(
    leading: tuple, features: int, outputs: int, dtype: torch.dtype, which: str, bias: bool
) -> None:
    x, w, b = (torch.randn(shape, dtype=dtype) for shape in [(*leading, features), (outputs, features), (outputs,)])
    with scratchnn.kernels(which):
        check_against_torch(F.linear, torch.nn.functional.linear, [x, w, *([b] if bias else [])])


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize(("leading", "features", "outputs"), SIZES)
def test_half_precision_is_rounded_once(leading: tuple, features: int, outputs: int, dtype: torch.dtype) -> None:
    operands = [torch.randn(shape, dtype=dtype) for shape in [(*leading, features), (outputs, features), (outputs,)]]
    assert_rounded_once(F.linear, operands)


def test_half_precision_makes_no_float32_copies() -> None:
    """The only tensors made are the results."""
    x, w, dy = (torch.randn(shape, dtype=torch.bfloat16) for shape in [(300, 200), (100, 200), (300, 100)])
    for operator, operands in (
        (_ops.linear, (x, w, None)),
        (_ops.linear_input_grad, (dy, w)),
        (_ops.linear_weight_grad, (dy, x)),
    ):
        with torch.profiler.profile(profile_memory=True) as profile:
            result = operator(*operands)
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        assert allocated == result.nbytes


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_layouts(dtype: torch.dtype, which: str) -> None:
    x, w, b = (torch.randn(shape, dtype=dtype) for shape in [(6, 9), (5, 9), (5,)])
    with scratchnn.kernels(which):
        for view in [*matrices((6, 9), dtype), *matrices((2, 6, 9), dtype)]:
            check_against_torch(F.linear, torch.nn.functional.linear, [view, w, b])
        for view in matrices((5, 9), dtype):
            check_against_torch(F.linear, torch.nn.functional.linear, [x, view, b])
        check_against_torch(F.linear, torch.nn.functional.linear, [x, w, torch.randn(10, dtype=dtype)[::2]])
        for dy in matrices((6, 5), dtype):
            ours, theirs = (gradients(f, [x, w, b], dy) for f in (F.linear, torch.nn.functional.linear))
            tolerance = {"rtol": 4e-2, "atol": 4e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-4}
            torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [
        ((4, 5), (5,), None),
        ((5,), (5,), None),
        ((5,), (5,), ()),
        ((2, 4, 5), (5,), ()),
        ((4, 5), (3, 5), ()),
        ((4, 5), (3, 5), (1,)),
        ((4, 5), (1, 5), (1,)),
        ((4, 5), (3, 5), (1, 3)),
        ((4, 5), (3, 5), (4, 1)),
        ((4, 5), (3, 5), (4, 3)),
        ((2, 4, 5), (3, 5), (4, 3)),
    ],
)
def test_weights_and_biases_of_other_ranks(x: tuple, w: tuple, b: tuple | None) -> None:
    operands = [torch.randn(shape) for shape in (x, w, b) if shape is not None]
    check_against_torch(F.linear, torch.nn.functional.linear, operands)


def test_one_gradient_at_a_time() -> None:
    operands = [torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)]
    for wanted in range(3):
        results = []
        for linear in (F.linear, torch.nn.functional.linear):
            leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(operands)]
            linear(*leaves).square().sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
            results.append(leaves[wanted].grad)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# Derivatives and transforms.


@pytest.mark.parametrize("leading", [(), (3,), (2, 2)])
def test_derivatives(leading: tuple) -> None:
    operands = tuple(
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(*leading, 4), (3, 4), (3,)]
    )
    assert torch.autograd.gradcheck(F.linear, operands, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(F.linear, operands, check_fwd_over_rev=True)


def test_forward_derivative_of_each_operand() -> None:
    operands = (torch.randn(4, 5), torch.randn(3, 5), torch.randn(3))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for wanted in itertools.product((False, True), repeat=3):
        results = []
        for linear in (F.linear, torch.nn.functional.linear):
            with torch.autograd.forward_ad.dual_level():
                duals = [
                    torch.autograd.forward_ad.make_dual(x, tangent) if want else x
                    for x, tangent, want in zip(operands, tangents, wanted, strict=True)
                ]
                results.append(torch.autograd.forward_ad.unpack_dual(linear(*duals)).tangent)
        assert (results[0] is None) == (results[1] is None)
        if results[0] is not None:
            assert results[0].shape == results[1].shape
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("leading", [(), (4,), (2, 4)])
@pytest.mark.parametrize(
    "mapped", [dims for dims in itertools.product((None, 0, 1), repeat=3) if dims != (None, None, None)]
)
def test_vmap(mapped: tuple, leading: tuple) -> None:
    operands = []
    for shape, dim in zip([(*leading, 5), (3, 5), (3,)], mapped, strict=True):
        x = torch.randn(shape if dim is None else (6, *shape))
        operands.append(x if dim is None else x.movedim(0, dim).contiguous())

    def gradient(linear: Any) -> Any:
        return grad(lambda *operands: linear(*operands).square().sum(), argnums=(0, 1, 2))

    for transform in (lambda linear: linear, gradient):
        ours, theirs = (vmap(transform(f), in_dims=mapped)(*operands) for f in (F.linear, torch.nn.functional.linear))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_vmap_nested() -> None:
    x, w = torch.randn(2, 3, 4, 5), torch.randn(3, 2, 6, 5)
    ours, theirs = (vmap(vmap(f), in_dims=(0, 1))(x, w).square() for f in (F.linear, torch.nn.functional.linear))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_per_sample_gradients() -> None:
    model = nn.Linear(6, 4)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    x = torch.randn(5, 6)

    def loss(weights: dict, row: Tensor) -> Tensor:
        return functional_call(model, weights, (row,)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(5):
        alone = grad(loss)(weights, x[i])
        for name in weights:
            torch.testing.assert_close(together[name][i], alone[name], rtol=1e-5, atol=1e-5)


def test_jvp_and_jacobian() -> None:
    operands = (torch.randn(4, 5), torch.randn(3, 5), torch.randn(3))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for transform in (
        lambda f: jvp(f, operands, tangents),
        lambda f: jacrev(f, argnums=(0, 1, 2))(*operands),
        lambda f: jacfwd(f, argnums=(0, 1, 2))(*operands),
        lambda f: hessian(lambda x, w: f(x, w).square().sum())(*operands[:2]),
    ):
        results = (transform(f) for f in (F.linear, torch.nn.functional.linear))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_compile(dynamic: bool, bias: bool) -> None:
    torch._dynamo.reset()
    layer = nn.Linear(5, 3, bias)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in [(4, 5), (7, 5), (2, 3, 5), (5,)]:
        x = torch.randn(shape, requires_grad=True)
        results = []
        for function in (compiled, layer):
            y = function(x)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    layer = nn.Linear(5, 3).eval()
    batch = {"input": {0: torch.export.Dim("batch", min=2)}}
    exported = torch.export.export(layer, (torch.randn(4, 5),), dynamic_shapes=batch, strict=strict)
    x = torch.randn(7, 5)
    assert torch.equal(exported.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    for x_dtype in (torch.float32, torch.float64, dtype):
        results = []
        x = torch.randn(4, 5).to(x_dtype)
        for namespace in (nn, torch.nn):
            torch.manual_seed(1)
            layer = namespace.Linear(5, 3)
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


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("features", "outputs"), [(5, 3), (64, 10), (300, 200), (1500, 7), (9, 600), (96, 130)])
def test_the_rest_of_the_batch_changes_no_bit(features: int, outputs: int, dtype: torch.dtype) -> None:
    x, w, b, dy = (
        torch.randn(shape, dtype=dtype) for shape in [(65, features), (outputs, features), (outputs,), (65, outputs)]
    )
    y, dx, *_ = gradients(F.linear, [x, w, b], dy)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 12), slice(12, 64), slice(64, 65)):
        part_y, part_dx, *_ = gradients(F.linear, [x[rows], w, b], dy[rows])
        assert torch.equal(part_y, y[rows])
        assert torch.equal(part_dx, dx[rows])


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(
    ("rows", "features", "outputs"), [(65, 64, 10), (256, 300, 200), (1, 1500, 700), (900, 70, 33), (4000, 33, 40)]
)
def test_the_number_of_threads_changes_no_bit(rows: int, features: int, outputs: int, dtype: torch.dtype) -> None:
    operands = [torch.randn(shape, dtype=dtype) for shape in [(rows, features), (outputs, features), (outputs,)]]
    dy = torch.randn(rows, outputs, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(F.linear, operands, dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# Errors and odd arguments.

X, W, B = torch.zeros(2, 6), torch.zeros(3, 6), torch.zeros(3)

BAD_CALLS = {
    # call, what our message must say
    "features": (lambda f: f.linear(X[:, :5], W), r"\[2, 5\].*\[3, 6\]"),
    "features of a stack": (lambda f: f.linear(X[None, :, :5], W), r"\[1, 2, 5\].*\[3, 6\]"),
    "features of a vector": (lambda f: f.linear(X[0, :5], W), r"\[5\].*\[3, 6\]"),
    "features of no rows": (lambda f: f.linear(X[:0, :5], W), r"\[0, 5\].*\[3, 6\]"),
    "scalar input": (lambda f: f.linear(torch.zeros(()), W), "scalar|dimension"),
    "weight of rank 3": (lambda f: f.linear(X, W[None]), r"2 dimensions.*\[1, 3, 6\]"),
    "scalar weight": (lambda f: f.linear(X, torch.zeros(())), r"2 dimensions.*\[\]"),
    "bias size": (lambda f: f.linear(X, W, torch.zeros(4)), r"\[3\].*\[4\]"),
    "bias of the wrong shape": (lambda f: f.linear(X, W, torch.zeros(3, 3)), r"\[2, 3\]|\[3, 3\]"),
    "bias for a weight of rank 1": (lambda f: f.linear(X, W[0], B[:1]), r"\[6\].*\[1\]"),
    "bias type": (lambda f: f.linear(X, W, B.double()), "Float.*Double|float.*double"),
    "bias a number": (lambda f: f.linear(X, W, 1.0), "bias.*float"),
    "types differ": (lambda f: f.linear(X.double(), W), "Double.*Float|double.*float"),
    "half input": (lambda f: f.linear(X.bfloat16(), W), "BFloat16.*Float|bfloat16.*float"),
    "whole input": (lambda f: f.linear(X.long(), W), "Long.*Float|int64.*float"),
    "list for input": (lambda f: f.linear(X.tolist(), W), "input.*list"),
    "array for input": (lambda f: f.linear(X.numpy(), W), "input.*ndarray"),
    "list for weight": (lambda f: f.linear(X, W.tolist()), "weight.*list"),
    "no weight": (lambda f: f.linear(X, None), "weight.*NoneType"),
    "unknown argument": (lambda f: f.linear(X, W, biases=B), "biases"),
    "weight missing": (lambda f: f.linear(X), "weight"),
    "layer": (lambda f: (nn if f is F else torch.nn).Linear(5, 3)(X), r"\[2, 6\].*\[3, 5\]"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_torchs(name: str) -> None:
    call, pattern = BAD_CALLS[name]
    message = same_error(lambda: call(F), lambda: call(torch.nn.functional))
    with pytest.raises(AssertionError, match=pattern):  # the message itself, searched as pytest does
        raise AssertionError(message)


def test_whole_numbers() -> None:
    x, w, b = torch.randint(-9, 9, (4, 6)), torch.randint(-9, 9, (3, 6)), torch.arange(3)
    assert torch.equal(F.linear(x, w, b), torch.nn.functional.linear(x, w, b))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_reach_every_output_that_sees_them(special: float) -> None:
    x, w, dy = torch.randn(5, 9), torch.randn(4, 9), torch.randn(5, 4)
    x[2, 8] = special
    dy[3, 1] = special
    ours, theirs = (gradients(f, [x, w], dy) for f in (F.linear, torch.nn.functional.linear))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


# The module.


def pair(**options: Any) -> tuple[nn.Linear, torch.nn.Linear]:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layers.append(namespace.Linear(6, 4, **options))
    return tuple(layers)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}], ids=str)
def test_the_layer_is_torchs(options: dict) -> None:
    ours, theirs = pair(**options)
    assert isinstance(ours, torch.nn.Linear)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(5, 6, dtype=options.get("dtype"))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_copies_and_files() -> None:
    ours, theirs = pair()
    x = torch.randn(5, 6)
    expected = ours(x)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is nn.Linear
        assert torch.equal(copied(x), expected)
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.nn.init.zeros_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert not theirs.weight.any()


def test_meta_device() -> None:
    for shape in [(5, 6), (6,), (2, 5, 6)]:
        ours, theirs = (layer.to("meta")(torch.zeros(shape, device="meta")) for layer in pair())
        assert ours.device.type == "meta"
        assert ours.shape == theirs.shape
        assert strides(ours) == strides(theirs)
    nn.Linear(3, 4, device="meta")(torch.zeros(2, 3, device="meta", requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        F.linear(X[:, :5].to("meta"), W.to("meta"))


# Complex numbers, whole numbers.


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize(("leading", "features", "outputs"), [*SIZES[:5], *SIZES[7:]])
def test_complex_numbers(leading: tuple, features: int, outputs: int, dtype: torch.dtype, which: str) -> None:
    operands = [torch.randn(shape, dtype=dtype) for shape in [(*leading, features), (outputs, features), (outputs,)]]
    dy = torch.randn(*leading, outputs, dtype=dtype)
    wide = [x.to(torch.complex128) for x in operands]
    truth = gradients(torch.nn.functional.linear, wide, dy.to(torch.complex128))
    with scratchnn.kernels(which):
        ours = gradients(F.linear, operands, dy)
    for mine, exact in zip(ours, truth, strict=True):
        assert mine.dtype == dtype
        tolerance = 1e-4 if dtype == torch.complex64 else 1e-12
        torch.testing.assert_close(mine.to(torch.complex128), exact, rtol=tolerance, atol=tolerance)


def test_complex_derivatives() -> None:
    operands = [torch.randn(shape, dtype=torch.complex128, requires_grad=True) for shape in [(2, 3), (4, 3), (4,)]]
    assert torch.autograd.gradcheck(F.linear, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(F.linear, operands)
    x, w = operands[0].detach(), operands[1].detach()
    torch.testing.assert_close(F.linear(x.conj(), w.conj()), torch.nn.functional.linear(x.conj(), w.conj()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers_wrap_as_torchs(dtype: torch.dtype) -> None:
    high = torch.iinfo(dtype).max
    x, w, b = (torch.randint(0, high, shape).to(dtype) for shape in [(4, 6), (3, 6), (3,)])
    assert torch.equal(F.linear(x, w, b), torch.nn.functional.linear(x, w, b))
    z, w3 = torch.randint(0, 9, (4, 5)).to(dtype), torch.randint(0, 9, (3, 6, 5)).to(dtype)
    assert torch.equal(F.bilinear(x, z, w3, b), torch.nn.functional.bilinear(x, z, w3, b))


# The bilinear layer.

BILINEAR = [  # leading dimensions, features of the first and the second input, outputs
    ((4,), 5, 3, 2),
    ((), 3, 4, 5),
    ((2, 3), 4, 4, 4),
    ((1,), 1, 1, 1),
    ((33,), 17, 40, 9),
    ((65,), 100, 30, 6),
    ((0,), 3, 4, 5),
    ((3,), 4, 5, 0),
]


def bilinear_formula(x: Tensor, z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("...i,kij,...j->...k", x, w, z) + b


def bilinear_operands(sizes: tuple, dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
    leading, first, second, outputs = sizes
    shapes = [(*leading, first), (*leading, second), (outputs, first, second), (outputs,)]
    return [torch.randn(shape, dtype=dtype) for shape in (shapes if bias else shapes[:3])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("sizes", BILINEAR, ids=str)
def test_bilinear(sizes: tuple, dtype: torch.dtype, which: str, bias: bool) -> None:
    if dtype.itemsize == 2 and sizes[0] in ((33,), (65,)):
        return  # torch takes seconds
    with scratchnn.kernels(which):
        operands = bilinear_operands(sizes, dtype, bias)
        check_against_torch(F.bilinear, torch.nn.functional.bilinear, operands)


def test_bilinear_by_its_formula() -> None:
    for which in ("fast", "naive"):
        for dtype in (torch.float64, torch.complex128):
            operands = bilinear_operands(BILINEAR[2], dtype)
            dy = torch.randn(2, 3, 4, dtype=dtype)
            with scratchnn.kernels(which):
                ours = gradients(F.bilinear, operands, dy)
            torch.testing.assert_close(ours, gradients(bilinear_formula, operands, dy))


def test_bilinear_layouts() -> None:
    x, z, w, b = bilinear_operands(((6,), 9, 5, 4), torch.float32)
    for first in matrices((6, 9)):
        for second in matrices((6, 5)):
            check_against_torch(F.bilinear, torch.nn.functional.bilinear, [first, second, w, b])
    check_against_torch(F.bilinear, torch.nn.functional.bilinear, [x, z, torch.randn(9, 5, 4).permute(2, 0, 1), b])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("leading", [(), (3,)])
def test_bilinear_derivatives(leading: tuple, dtype: torch.dtype) -> None:
    operands = [x.requires_grad_() for x in bilinear_operands((leading, 3, 2, 2), dtype)]
    assert torch.autograd.gradcheck(F.bilinear, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(F.bilinear, operands, check_fwd_over_rev=not dtype.is_complex)


@pytest.mark.parametrize("mapped", [(0, None, None, None), (0, 0, None, None), (None, 1, 0, None), (0, 0, 0, 0)])
def test_bilinear_transforms(mapped: tuple) -> None:
    operands = []
    for x, dim in zip(bilinear_operands(((4,), 5, 3, 2), torch.float32), mapped, strict=True):
        operands.append(x if dim is None else torch.stack([x, x + 1, x * 2], dim))

    def gradient(bilinear: Any) -> Any:
        return grad(lambda *operands: bilinear(*operands).square().sum(), argnums=(0, 1, 2, 3))

    for transform in (lambda bilinear: bilinear, gradient):
        functions = (F.bilinear, torch.nn.functional.bilinear)
        results = (vmap(transform(f), in_dims=mapped)(*operands) for f in functions)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_bilinear_compiles() -> None:
    layer = nn.Bilinear(5, 3, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    operands, dy = [torch.randn(4, 5), torch.randn(4, 3)], torch.randn(4, 2)
    torch.testing.assert_close(gradients(compiled, operands, dy), gradients(layer, operands, dy), rtol=0, atol=0)


def test_bilinear_is_reproducible() -> None:
    operands, dy = bilinear_operands(((65,), 40, 33, 7), torch.float32), torch.randn(65, 7)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(F.bilinear, operands, dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    x, z, w, b = operands
    for rows in (slice(0, 1), slice(1, 12), slice(12, 65)):
        part = gradients(F.bilinear, [x[rows], z[rows], w, b], dy[rows])
        assert all(torch.equal(a, whole[rows]) for a, whole in zip(part[:3], results[0][:3], strict=True))


def test_bilinear_holds_no_product_of_its_inputs() -> None:
    """Whatever the sizes, no more than one matrix beside inputs and outputs."""
    operands = [torch.randn(200, 150), torch.randn(200, 160), torch.randn(30, 150, 160)]
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.ops.scratchnn.bilinear(*operands, None)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert largest <= 200 * 160 * 4


A, Z, W3 = torch.zeros(2, 6), torch.zeros(2, 5), torch.zeros(3, 6, 5)

BAD_BILINEAR = {
    "features of the second": lambda f: f.bilinear(A, Z[:, :4], W3),
    "features of the first": lambda f: f.bilinear(A[:, :4], Z, W3),
    "rows": lambda f: f.bilinear(A, Z[:1], W3),
    "ranks": lambda f: f.bilinear(A, Z[None], W3),
    "bias": lambda f: f.bilinear(A, Z, W3, torch.zeros(4)),
    "weight of rank 2": lambda f: f.bilinear(A, Z, W3[0]),
    "types": lambda f: f.bilinear(A, Z.double(), W3),
    "type of the weight": lambda f: f.bilinear(A, Z, W3.double()),
    "a list": lambda f: f.bilinear(A.tolist(), Z, W3),
    "no weight": lambda f: f.bilinear(A, Z, None),
}


@pytest.mark.parametrize("name", BAD_BILINEAR)
def test_bilinear_errors_are_torchs(name: str) -> None:
    assert same_error(lambda: BAD_BILINEAR[name](F), lambda: BAD_BILINEAR[name](torch.nn.functional))


# The other modules.


@pytest.mark.parametrize("bias", [False, True])
def test_bilinear_layer_is_torchs(bias: bool) -> None:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layers.append(namespace.Bilinear(6, 5, 4, bias=bias))
    ours, theirs = layers
    assert isinstance(ours, torch.nn.Bilinear)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x, z = torch.randn(3, 6), torch.randn(3, 5)
    torch.testing.assert_close(ours(x, z), theirs(x, z))


def test_lazy_linear_becomes_ours() -> None:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layer = namespace.LazyLinear(4)
        x = torch.randn(5, 6)
        layers.append((layer, repr(layer), layer(x)))
    (ours, before, y), (theirs, their_before, their_y) = layers
    assert before == their_before
    assert type(ours) is nn.Linear
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours.weight, theirs.weight)
    torch.testing.assert_close(y, their_y)


def test_identity() -> None:
    x = torch.randn(3)
    assert nn.Identity(1, unused=2)(x) is x
    assert repr(nn.Identity()) == repr(torch.nn.Identity())

"""Rerouting torch's functions to ours inside a block: all of them, under all their names, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import importlib
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from common import Recording, relative_error
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.overrides import TorchFunctionMode, get_overridable_functions
from torch.utils._pytree import tree_leaves
from torch_samples import REASON_TO_SKIP, Entry, Sample, compare, dtypes_of, error_samples, functions, run, samples

import scratchnn
from scratchnn.override import NAMES, REROUTED

OURS_ALONE = {"maxout", "global_avg_pool"}  # torch has no such functions

X1 = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))
X2 = torch.randn(2, 4, 12, 10, generator=torch.Generator().manual_seed(2))
X3 = torch.randn(2, 4, 6, 6, 8, generator=torch.Generator().manual_seed(3))
IMAGES = (X1, X2, X3)
MEAN, VAR, W = torch.zeros(4), torch.ones(4), torch.linspace(0.5, 1.5, 4)
SAMPLES = (torch.tensor([[[0.3], [0.1], [0.7], [0.9]]] * 2).expand(2, 4, rank) for rank in (1, 2, 3))
_, SAMPLES2, SAMPLES3 = SAMPLES


WEIGHTS = torch.randn(6, 4, 3, 3, 3, generator=torch.Generator().manual_seed(4))
MATRIX, VECTOR, FORMS = WEIGHTS.reshape(-1)[:30].view(3, 10), WEIGHTS.reshape(-1)[:3], torch.full((3, 12, 12), 0.1)


def weight(rank: int, outputs: int, inputs: int) -> Tensor:
    return WEIGHTS[(slice(outputs), slice(inputs), *[slice(None)] * rank, *[0] * (3 - rank))]


# The form of each function that torch.nn.functional has, by name.
CALLS: dict[str, Callable[[], Any]] = {
    **{f"conv{r}d": lambda r=r: getattr(F, f"conv{r}d")(IMAGES[r - 1], weight(r, 6, 2), groups=2) for r in (1, 2, 3)},
    **{
        f"conv_transpose{r}d": lambda r=r: getattr(F, f"conv_transpose{r}d")(IMAGES[r - 1], weight(r, 4, 3), stride=2)
        for r in (1, 2, 3)
    },
    **{f"max_pool{r}d": lambda r=r: getattr(F, f"max_pool{r}d")(IMAGES[r - 1], 2) for r in (1, 2, 3)},
    **{
        f"max_pool{r}d_with_indices": lambda r=r: getattr(F, f"max_pool{r}d")(IMAGES[r - 1], 2, return_indices=True)
        for r in (1, 2, 3)
    },
    **{f"adaptive_max_pool{r}d": lambda r=r: getattr(F, f"adaptive_max_pool{r}d")(IMAGES[r - 1], 3) for r in (1, 2, 3)},
    **{
        f"adaptive_max_pool{r}d_with_indices": lambda r=r: getattr(F, f"adaptive_max_pool{r}d")(
            IMAGES[r - 1], 3, return_indices=True
        )
        for r in (1, 2, 3)
    },
    "fractional_max_pool2d": lambda: F.fractional_max_pool2d(X2, 2, output_size=4, _random_samples=SAMPLES2),
    "fractional_max_pool3d": lambda: F.fractional_max_pool3d(X3, 2, output_size=3, _random_samples=SAMPLES3),
    "fractional_max_pool2d_with_indices": lambda: F.fractional_max_pool2d(
        X2, 2, output_ratio=(0.5, 0.5), return_indices=True, _random_samples=SAMPLES2
    ),
    "fractional_max_pool3d_with_indices": lambda: F.fractional_max_pool3d_with_indices(
        X3, 2, output_size=3, _random_samples=SAMPLES3
    ),
    **{
        f"max_unpool{r}d": lambda r=r: getattr(F, f"max_unpool{r}d")(
            *getattr(F, f"max_pool{r}d")(IMAGES[r - 1], 2, return_indices=True), 2
        )
        for r in (1, 2, 3)
    },
    **{f"avg_pool{r}d": lambda r=r: getattr(F, f"avg_pool{r}d")(IMAGES[r - 1], 2, padding=1) for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": lambda r=r: getattr(F, f"adaptive_avg_pool{r}d")(IMAGES[r - 1], 3) for r in (1, 2, 3)},
    **{f"lp_pool{r}d": lambda r=r: getattr(F, f"lp_pool{r}d")(IMAGES[r - 1].abs(), 2.0, 2) for r in (1, 2, 3)},
    "batch_norm": lambda: F.batch_norm(X2, MEAN.clone(), VAR.clone(), W, W, training=True),
    "instance_norm": lambda: F.instance_norm(X2, weight=W, bias=W),
    "layer_norm": lambda: F.layer_norm(X2, (12, 10), eps=1e-3),
    "group_norm": lambda: F.group_norm(X2, 2, W, W),
    "rms_norm": lambda: F.rms_norm(X2, (10,)),
    "local_response_norm": lambda: F.local_response_norm(X2, 3),
    "linear": lambda: F.linear(X2, MATRIX, VECTOR),
    "bilinear": lambda: F.bilinear(X1, X1, FORMS),
    "threshold": lambda: F.threshold(X2, 0.1, -1.0),
    "threshold_": lambda: F.threshold_(X2.clone(), 0.1, -1.0),
    "prelu": lambda: F.prelu(X2, W),
    "glu": lambda: F.glu(X2, 1),
    "gelu": lambda: F.gelu(X2, approximate="tanh"),
    **{name: lambda name=name: getattr(F, name)(X2, dim=1) for name in ("softmax", "softmin", "log_softmax")},
    **{
        name: lambda name=name: getattr(F, name)(X2.clone())
        for name in (
            *("celu", "celu_", "elu", "elu_", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "hardtanh_"),
            *("leaky_relu", "leaky_relu_", "logsigmoid", "mish", "relu", "relu6", "relu_", "rrelu", "rrelu_", "selu"),
            *("selu_", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink"),
        )
    },
}

# Further names, where torch has them.
OTHER_CALLS: dict[str, Callable[[], Any]] = {
    "torch.conv2d": lambda: torch.conv2d(X2, weight(2, 4, 4), padding="same"),
    "torch.max_pool1d": lambda: torch.max_pool1d(X1, 3, 2, 1),
    "torch.max_pool1d_with_indices": lambda: torch.max_pool1d_with_indices(X1, 3, 2, 1),
    "torch.max_pool2d": lambda: torch.max_pool2d(X2, (2, 3)),
    "torch.max_pool3d": lambda: torch.max_pool3d(X3, 2, 1, 1, 1, True),
    "torch.adaptive_max_pool1d": lambda: torch.adaptive_max_pool1d(X1, 3),
    "torch.avg_pool1d": lambda: torch.avg_pool1d(X1, 2, count_include_pad=False),
    "torch.batch_norm": lambda: torch.batch_norm(X2, W, None, MEAN.clone(), VAR.clone(), True, 0.1, 1e-5, False),
    "torch.instance_norm": lambda: torch.instance_norm(X2, W, W, None, None, True, 0.1, 1e-5, False),
    "torch.group_norm": lambda: torch.group_norm(X2, 2, W, W, 1e-5, False),
    "torch.layer_norm": lambda: torch.layer_norm(X2, [10], None, None, 1e-5, False),
    "torch.rms_norm": lambda: torch.rms_norm(X2, [10], eps=1e-3),
    "torch.relu": lambda: torch.relu(input=X2),
    "Tensor.relu": lambda: X2.relu(),
    "torch.relu_": lambda: torch.relu_(X2.clone()),
    "Tensor.relu_": lambda: X2.clone().relu_(),
    "torch.threshold": lambda: torch.threshold(X2, threshold=0.1, value=2),
    "torch.celu": lambda: torch.celu(X2, alpha=0.5),
    "torch.selu": lambda: torch.selu(X2),
    "torch.rrelu": lambda: torch.rrelu(X2, 0.1, 0.2, False),
    "torch.rrelu_": lambda: torch.rrelu_(X2.clone()),
    "torch.prelu": lambda: torch.prelu(X2, W),
    "Tensor.prelu": lambda: X2.prelu(W),
    "Tensor.hardshrink": lambda: X2.hardshrink(0.3),
    "torch.sigmoid": lambda: torch.sigmoid(X2),
    "torch.sigmoid_": lambda: torch.sigmoid_(X2.clone()),
    "torch.special.expit": lambda: torch.special.expit(X2),
    "Tensor.sigmoid": lambda: X2.sigmoid(),
    "Tensor.sigmoid_": lambda: X2.clone().sigmoid_(),
    "torch.tanh": lambda: torch.tanh(X2),
    "torch.tanh_": lambda: torch.tanh_(X2.clone()),
    "Tensor.tanh": lambda: X2.tanh(),
    "Tensor.tanh_": lambda: X2.clone().tanh_(),
    "torch.softmax": lambda: torch.softmax(X2, -1, torch.float64),
    "torch.special.softmax": lambda: torch.special.softmax(X2, 0),
    "Tensor.softmax": lambda: X2.softmax(dim=1, dtype=torch.float64),
    "torch.log_softmax": lambda: torch.log_softmax(X2, 1),
    "torch.special.log_softmax": lambda: torch.special.log_softmax(X2, 1, dtype=torch.float64),
    "Tensor.log_softmax": lambda: X2.log_softmax(1),
    "torch.bilinear": lambda: torch.bilinear(X1, X1, FORMS),
}

# What both sides may use on the way: views, copies, and the arithmetic around an average.
AUXILIARY = {
    f"aten::{name}"
    for name in (
        "_to_copy",
        "abs",
        "alias",
        "clone",
        "copy_",
        "detach",
        "expand",
        "mul",
        "pow",
        "select",
        "slice",
        "squeeze",
        "unsqueeze",
        "view",
    )
}


def operators(call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """What a call returns, and the operators it ran."""
    torch.manual_seed(1)
    with Recording() as recording:
        output = call()
    return output, set(recording.names)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nn.functional.(tanh|sigmoid) is deprecated.*")
        yield


# Every function, under each of its names.


@pytest.mark.parametrize("name", [name for name in scratchnn.functional.__all__ if name not in OURS_ALONE])
def test_every_function_is_rerouted(name: str) -> None:
    expected, theirs = operators(CALLS[name])
    with scratchnn.override() as routed:
        found, ours = operators(CALLS[name])
    close(found, expected)
    assert any(operator.startswith("scratchnn::") for operator in ours)
    assert ours & theirs <= AUXILIARY
    plain = name.removesuffix("_").removesuffix("_with_indices")
    assert routed.calls[plain] == 1
    assert not routed.left


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_other_names_are_rerouted(name: str) -> None:
    expected, theirs = operators(OTHER_CALLS[name])
    with scratchnn.override() as routed:
        found, ours = operators(OTHER_CALLS[name])
    close(found, expected)
    assert any(operator.startswith("scratchnn::") for operator in ours)
    assert ours & theirs <= AUXILIARY
    assert routed.calls.total() == 1


@pytest.mark.parametrize("name", [*CALLS, *OTHER_CALLS])
def test_what_is_not_chosen_is_torchs(name: str) -> None:
    call = (CALLS | OTHER_CALLS)[name]
    expected, theirs = operators(call)
    with scratchnn.override(include=[]) as routed:
        found, unchanged = operators(call)
    assert unchanged == theirs
    close(found, expected)
    assert not routed.calls
    assert not routed.left


def test_the_table_is_complete() -> None:
    """Whatever torch calls by one of our names and lets be overridden is in the table."""
    names = {*scratchnn.functional.__all__, "sigmoid_", "tanh_"}
    overridable = {function for functions in get_overridable_functions().values() for function in functions}
    for namespace in (torch, torch.Tensor, F, torch.special):
        for name in names:
            function = getattr(namespace, name, None)
            if function is not None and (function in overridable or namespace is F):
                assert function in REROUTED, f"{namespace.__name__}.{name}"
    plain = {name.removesuffix("_").removesuffix("_with_indices") for name in scratchnn.functional.__all__}
    assert plain - OURS_ALONE == NAMES


def check_samples(form: str, dtype: torch.dtype, *, of_functional: bool) -> None:
    """As in tests/test_torch_samples.py, but the calls are torch's own, inside a block."""
    routed = scratchnn.override()
    for entry in functions():
        call = getattr(entry.info, form)
        if call is None or dtype not in dtypes_of(entry) or (call is entry.theirs and not of_functional):
            continue
        inside = Entry(entry.name, entry.family, routed(call), call, entry.info)
        for sample in samples(entry, dtype):
            if form == "inplace_variant":  # torch's inputs require gradients, and may not be written to
                sample = replace(sample, args=(sample.args[0].detach(), *sample.args[1:]))
            compare(inside, sample, dtype)
        for sample in error_samples(entry):
            theirs, ours = (run(side, sample, torch.float32).get("error") for side in (call, inside.ours))
            assert type(ours) is type(theirs), f"{sample}: torch {theirs!r}, scratchnn {ours!r}"
    assert routed.calls


@pytest.mark.skipif(REASON_TO_SKIP is not None, reason=str(REASON_TO_SKIP))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64, torch.int64], ids=str)
@pytest.mark.parametrize("form", ["op", "method_variant", "inplace_variant"])
def test_torchs_samples_of_other_names(form: str, dtype: torch.dtype) -> None:
    check_samples(form, dtype, of_functional=False)


@pytest.mark.slow
@pytest.mark.skipif(REASON_TO_SKIP is not None, reason=str(REASON_TO_SKIP))
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.bool], ids=str
)
def test_torchs_samples_of_all_functions(dtype: torch.dtype) -> None:
    check_samples("op", dtype, of_functional=True)


# What is left to torch.


class Plain(torch.Tensor):
    """A subclass that torch's functions keep."""


class Logged(torch.Tensor):
    """A subclass with a say in what torch's functions do."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        cls.seen.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


def quantised(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)


LEFT: dict[str, tuple[str, Callable[[], Any]]] = {
    "out": ("writes to out=", lambda: torch.sigmoid(X2, out=torch.empty(0))),
    "subclass": ("takes a Plain", lambda: F.relu(X2.as_subclass(Plain))),
    "own function": ("takes a Logged", lambda: torch.tanh(X2.as_subclass(Logged))),
    "sparse": ("takes a tensor of layout torch.sparse_coo", lambda: X2[0, 0].to_sparse().relu()),
    "sparse weight": (
        "takes a tensor of layout torch.sparse_csr",
        lambda: F.linear(X2[0, 0], MATRIX.to_sparse_csr()),
    ),
    "oneDNN": ("takes a tensor of layout torch._mkldnn", lambda: X2.to_mkldnn().relu()),
    "quantised": ("takes a quantised tensor", lambda: F.relu(quantised(X2))),
    "nested": ("takes a nested tensor", lambda: torch.nested.nested_tensor([X2[0], X2[1, :2]]).relu()),
    "generator": ("in a form that is torch's alone", lambda: torch.rrelu(X2, 0.1, 0.1, True, torch.Generator())),
    "one number": (
        "in a form that is torch's alone",
        lambda: torch.batch_norm(X2[:1, :, 0, 0], W, W, None, None, True, 0.1, 1e-5, False),
    ),
    "one pixel": (
        "in a form that is torch's alone",
        lambda: torch.instance_norm(X2[:, :, :1, 0], W, W, None, None, True, 0.1, 1e-5, False),
    ),
    "one number a group": (
        "in a form that is torch's alone",
        lambda: torch.group_norm(X2[:1, :, 0, 0], 4, W, W, 1e-5, False),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", LEFT)
def test_what_scratchnn_does_not_serve_is_left_to_torch(case: str) -> None:
    reason, call = LEFT[case]
    expected = call()
    with scratchnn.override() as routed:
        found = call()
    assert type(found) is type(expected)
    assert found.layout == expected.layout
    assert found.is_quantized == expected.is_quantized
    dense = [value.to_padded_tensor(0.0) if value.is_nested else value for value in (found, expected)]
    dense = [value.to_dense() if value.layout != torch.strided else value for value in dense]
    torch.testing.assert_close(*[value.as_subclass(Tensor) for value in dense], equal_nan=True)
    assert not routed.calls
    assert [name_and_reason[1] for name_and_reason in routed.left] == [reason]


def test_other_devices_are_left_to_torch() -> None:
    with torch._subclasses.FakeTensorMode(), scratchnn.override() as routed:
        assert F.relu(torch.empty(2, 3, device="cuda")).device.type == "cuda"
        assert F.relu(torch.empty(2, 3)).shape == (2, 3)
        assert F.relu(torch.empty(2, 3, device="meta")).device.type == "meta"
    assert routed.calls == {"relu": 2}
    assert routed.left == {("relu", "on cuda"): 1}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.sigmoid(2.0),
        lambda: torch.relu([1.0]),
        lambda: F.conv2d("image", WEIGHTS),
        lambda: torch.softmax(X2),
        lambda: torch.sigmoid_(torch.ones(2, dtype=torch.int64)),
        lambda: torch.tanh_(torch.ones(2, requires_grad=True)),
        lambda: X2.softmax("channels"),
        lambda: F.max_pool2d(X2, 2, return_indices=2, stride=-1),
    ],
)
def test_wrong_calls_raise_as_torchs(wrong: Callable[[], Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011 - which is what is found out
        wrong()
    with scratchnn.override(), pytest.raises(expected.type):
        wrong()


# Inside of torch.


def test_functions_that_call_others_are_rerouted_inside() -> None:
    x, mask = X2[:, :, 0], torch.zeros(2, 10, dtype=torch.bool)
    attention = torch.nn.MultiheadAttention(10, 2, batch_first=True).eval()
    transformer = torch.nn.TransformerEncoderLayer(10, 2, 16, activation="gelu", batch_first=True).eval()
    cases: list[tuple[Callable[[], Any], dict[str, int]]] = [
        (lambda: attention(x, x, x)[0], {"linear": 2, "softmax": 1}),
        (lambda: transformer(x), {"linear": 4, "layer_norm": 2, "gelu": 1}),
        (lambda: F.gumbel_softmax(x, tau=0.5), {"softmax": 1}),
        (lambda: F.interpolate(X2, size=(3, 3), mode="area"), {"adaptive_avg_pool2d": 1}),
        (
            lambda: F.multilabel_soft_margin_loss(x[0], mask[:, :1].expand(2, 10).float().repeat(2, 1)),
            {"logsigmoid": 2},
        ),
    ]
    for call, calls in cases:
        torch.manual_seed(1)
        expected = call()
        torch.manual_seed(1)
        with scratchnn.override() as routed:
            found = call()
        close(found, expected)
        assert routed.calls == calls
    lstm = torch.nn.LSTM(10, 3)
    with scratchnn.override() as routed:
        lstm(x)
    assert not routed.calls  # computed in C++


@pytest.mark.skipif(REASON_TO_SKIP is not None, reason=str(REASON_TO_SKIP))
def test_every_python_function_of_torch_passes_through() -> None:
    """Those that are not ours give in a block what they give outside."""
    operators = importlib.import_module("torch.testing._internal.common_methods_invocations").op_db
    checked, routed = 0, scratchnn.override()
    for info in operators:
        name = info.name.removeprefix("nn.functional.")
        function = getattr(F, name, None)
        if not isinstance(function, types.FunctionType) or function in REROUTED or torch.float32 not in info.dtypes:
            continue
        sample = next(iter(info.sample_inputs("cpu", torch.float32)))
        call = Sample((sample.input, *sample.args), sample.kwargs)
        expected, found = (run(side, call, torch.float32) for side in (function, routed(function)))
        assert type(found.get("error")) is type(expected.get("error")), f"{name}: {found}"
        close([found[key] for key in found if key != "error"], [expected[key] for key in expected if key != "error"])
        checked += 1
    assert checked > 30


def test_layers_of_torch_are_rerouted_and_unchanged() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    with scratchnn.override() as routed:
        found = model(x)
    close(found, expected)
    assert str(routed) == (
        "60 of 60 calls rerouted\n"
        "  20 conv2d\n"
        "  20 batch_norm\n"
        "  17 relu\n"
        "  1 max_pool2d\n"
        "  1 adaptive_avg_pool2d\n"
        "  1 linear"
    )
    assert before == {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    with scratchnn.override() as routed:
        torch.tanh(X2)
        torch.tanh(X2, out=torch.empty(0))
    assert str(routed) == "1 of 2 calls rerouted\n  1 tanh\n1 left to torch\n  1 tanh: writes to out="


# The block.


def test_blocks_end() -> None:
    def calls() -> bool:
        return any(name.startswith("scratchnn") for name in operators(lambda: torch.relu(X2))[1])

    assert not calls()
    with scratchnn.override():
        assert calls()
        with pytest.raises(ZeroDivisionError), scratchnn.override():
            torch.relu(X2 / (1 // 0))
        assert calls()
        with pytest.raises(RuntimeError):
            F.conv2d(X2, WEIGHTS[..., 0, :1, :1, 0])  # refused by ours
        assert calls()
    assert not calls()


def test_blocks_nest() -> None:
    with scratchnn.override(include="relu") as outer:
        with scratchnn.override(include="tanh") as inner:
            torch.tanh(torch.relu(X2))
        torch.tanh(torch.relu(X2))
    assert (outer.calls, inner.calls) == ({"relu": 2}, {"tanh": 1})
    routed = scratchnn.override()
    with routed, routed:
        torch.relu(X2)
    with routed:
        torch.relu(X2)
    assert routed.calls == {"relu": 2}


def test_a_decorator() -> None:
    routed = scratchnn.override()

    @routed
    def power(x: Tensor, times: int) -> Tensor:
        """Of a function."""
        return x if times == 0 else torch.tanh(power(x, times - 1))

    close(power(X2, 3), X2.tanh().tanh().tanh())
    assert routed.calls == {"tanh": 3}
    assert (power.__name__, power.__doc__) == ("power", "Of a function.")


def test_blocks_belong_to_a_thread() -> None:
    seen: dict[str, set[str]] = {}
    ready, done = threading.Event(), threading.Event()

    def other() -> None:
        seen["without"] = operators(lambda: torch.relu(X2))[1]
        with scratchnn.override(include="tanh"):
            ready.set()
            done.wait(10)
            seen["with"] = operators(lambda: torch.tanh(X2))[1]

    thread = threading.Thread(target=other)
    with scratchnn.override():
        thread.start()
        ready.wait(10)
    here = operators(lambda: torch.tanh(X2))[1]
    done.set()
    thread.join()
    assert seen["without"] == {"aten::relu"}
    assert "scratchnn::tanh" in seen["with"]
    assert here == {"aten::tanh"}


def test_with_other_modes() -> None:
    seen: list[Any] = []

    class Seeing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with scratchnn.override() as routed, Seeing():
        torch.relu(X2)
    assert torch.relu in seen
    assert routed.calls == {"relu": 1}
    seen.clear()
    with Seeing(), scratchnn.override() as routed:
        torch.relu(X2)
    assert torch.relu not in seen  # it was never called
    assert routed.calls == {"relu": 1}
    with torch.device("meta"), scratchnn.override() as routed:
        assert torch.nn.Linear(2, 3)(torch.ones(4, 2)).device.type == "meta"
    assert routed.calls == {"linear": 1}


# Choosing functions.


def chosen(**options: Any) -> frozenset[str]:
    return scratchnn.override(**options).names


def test_include_and_exclude() -> None:
    assert chosen() == NAMES
    assert chosen(include="relu") == chosen(include="relu_") == chosen(include=torch.Tensor.relu_) == {"relu"}
    assert chosen(include=["conv?d", torch.sigmoid]) == {"conv1d", "conv2d", "conv3d", "sigmoid"}
    assert chosen(include=F.max_pool2d) == chosen(include="max_pool2d_with_indices") == {"max_pool2d"}
    assert chosen(include=scratchnn.functional.gelu) == {"gelu"}
    assert chosen(include="linear") == {"linear", "bilinear"}  # the family
    assert chosen(include=("norm", "linear"), exclude={"*_norm"}) == {"linear", "bilinear"}
    assert chosen(exclude=["conv", "pool", "norm", "linear", "activation"]) == chosen(include=[]) == frozenset()
    with scratchnn.override(exclude="relu") as routed:
        assert operators(lambda: F.relu(torch.tanh(X2)))[1] == {"scratchnn::tanh", "aten::relu"}
    assert routed.calls == {"tanh": 1}
    assert not routed.left


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_what_cannot_be_chosen(argument: str) -> None:
    for wrong in (3, [None], {"conv": True}):
        with pytest.raises(TypeError, match=argument):
            scratchnn.override(**{argument: wrong})
    for wrong in ("dropout", "conv4*", "", F.dropout, torch.matmul, ["relu", "rellu"]):
        with pytest.raises(ValueError, match=argument):
            scratchnn.override(**{argument: wrong})
    with pytest.raises(TypeError):
        scratchnn.override("relu")  # by name only: `@scratchnn.override` without parentheses is a slip


# Derivatives and transforms.


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(inplace=True),
        torch.nn.MaxPool2d(2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
        torch.nn.LogSoftmax(1),
    )


def test_backward_inside_and_outside() -> None:
    model = small()
    model(X2).square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    for inside in (True, False):
        model.zero_grad()
        with scratchnn.override() as routed:
            loss = model(X2).square().sum()
            if inside:
                forward = routed.calls.total()
                used = operators(loss.backward)[1]
                assert routed.calls.total() == forward  # a backward pass of ours calls nothing that is rerouted
        if not inside:
            used = operators(loss.backward)[1]
        assert {"scratchnn::conv_weight_grad", "scratchnn::normalize_backward"} <= used
        close([parameter.grad for parameter in model.parameters()], expected)
    # Of what was computed before the block, the derivatives are torch's.
    loss = model(X2).square().sum()
    with scratchnn.override():
        used = operators(loss.backward)[1]
    assert not any(name.startswith("scratchnn") for name in used)


def test_double_backward() -> None:
    x = X2.double().requires_grad_()
    with scratchnn.override():
        assert torch.autograd.gradgradcheck(
            lambda x: F.silu(F.softmax(x, 1)), x[:1, :, :2, :2].detach().requires_grad_()
        )


def test_checkpoints() -> None:
    """A segment computed again in the backward pass must be so in a block; context_fn sees to it anywhere."""
    layers, x = small(), X2.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layers(x).square().sum(), x)
    checkpoint = torch.utils.checkpoint.checkpoint
    with scratchnn.override():
        loss = checkpoint(layers, x, use_reentrant=False).square().sum()
        close(torch.autograd.grad(loss, x)[0], expected)
        loss = checkpoint(
            layers, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), scratchnn.override())
        )
    close(torch.autograd.grad(loss.square().sum(), x)[0], expected)


def test_autocast_and_no_grad() -> None:
    model = small()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            expected = model(X2)
            with scratchnn.override():
                found = model(X2)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), scratchnn.override() as routed:
            assert not model(X2).requires_grad
        assert routed.calls["conv2d"] == 1


def test_functional_transforms() -> None:
    model = small()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    def transformed() -> list[Any]:
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X2)
        jacobian = torch.func.jacrev(lambda x: F.softmax(F.gelu(x), 1))(X2[0, 0])
        value, tangent = torch.func.jvp(lambda x: torch.tanh(F.avg_pool2d(x, 2)), (X2,), (torch.ones_like(X2),))
        return [per_sample, jacobian, value, tangent]

    expected = transformed()
    with scratchnn.override() as routed:
        found = transformed()
    close(found, expected)
    assert {"conv2d", "group_norm", "linear", "softmax", "gelu", "tanh", "avg_pool2d"} <= set(routed.calls)


# Compilers and tracers.


def compiled(function: Callable[..., Any], **options: Any) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def ours_in(counter: CompileCounterWithBackend) -> int:
    """The functions of ours in a traced graph: with gradients, each is one call of an autograd function."""
    targets = [str(node.target) for node in counter.graphs[-1].graph.nodes if node.op == "call_function"]
    return sum("autograd_function_apply" in target or "scratchnn" in target for target in targets)


@pytest.mark.parametrize("where", ["inside", "outside", "decorator"])
def test_compiles_without_a_break(where: str) -> None:
    model = small()
    expected = [model(X2), *torch.autograd.grad(model(X2).square().sum(), model.parameters())]

    def inside(x: Tensor) -> Tensor:
        with scratchnn.override():
            return model(x)

    function = {"inside": inside, "outside": model, "decorator": scratchnn.override()(model.forward)}[where]
    call, counter = compiled(function)
    for _ in range(3):
        with scratchnn.override() if where == "outside" else contextlib.nullcontext():
            output = call(X2)
        close([output, *torch.autograd.grad(output.square().sum(), model.parameters())], expected)
    assert counter.frame_count == 1
    assert ours_in(counter) == 7


def test_compiled_code_knows_the_block_it_is_called_in() -> None:
    call, counter = compiled(lambda x: torch.tanh(torch.relu(x)), dynamic=True)
    found = []
    for block in (None, {}, {"exclude": "relu"}, {}, None):
        for size in (2, 3):
            with contextlib.nullcontext() if block is None else scratchnn.override(**block) as routed:
                call(torch.randn(size, 4))
            assert routed is None or not routed.calls  # compiled calls are not counted
        found.append((counter.frame_count, ours_in(counter)))
    assert found == [(1, 0), (2, 2), (3, 1), (3, 1), (3, 1)]


def test_a_graph_break_in_a_block() -> None:
    def function(x: Tensor) -> Tensor:
        with scratchnn.override():
            x = torch.relu(x)
            torch._dynamo.graph_break()
            return torch.tanh(x)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    close(torch.compile(function, backend=counter)(X2), X2.relu().tanh())
    names = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    assert [name for name in names if name.startswith("scratchnn.")] == [
        "scratchnn.relu.default",
        "scratchnn.tanh.default",
    ]


def test_export() -> None:
    model = small().eval()
    for strict in (False, True):
        with scratchnn.override():
            program = torch.export.export(model, (X2,), strict=strict)
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert {"scratchnn.conv.default", "scratchnn.linear.default"} <= targets
        close(program.module()(X2), model(X2))


def test_symbolic_traces_are_torchs_and_run_as_ours() -> None:
    def function(x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, WEIGHTS[..., 0])).softmax(1)

    with scratchnn.override():
        traced = torch.fx.symbolic_trace(function)
    assert "torch.nn.functional.relu" in traced.code
    assert "scratchnn" not in traced.code
    with scratchnn.override() as routed:
        close(traced(X2), function(X2))
    assert routed.calls == {"conv2d": 2, "relu": 2, "softmax": 2}
    with scratchnn.override():
        made = torch.fx.experimental.proxy_tensor.make_fx(function)(X2)
    assert "torch.ops.scratchnn.conv" in made.code


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_torchscript_is_torchs() -> None:
    model = small().eval()
    with scratchnn.override() as routed:
        traced = torch.jit.trace(model, X2, check_trace=False)
        assert not routed.calls
        assert {reason for _, reason in routed.left} == {"traced by TorchScript"}
        assert torch.equal(traced(X2), traced(X2))
        assert not routed.calls
    close(traced(X2), model(X2))


# Whole networks.


def one_step(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The output in training, the gradients and the statistics after it."""
    model = copy.deepcopy(model).train()
    output = model(x)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("name", ["densenet121", "shufflenet_v2_x0_5", "swin_t"])
def test_networks_that_call_functions(name: str) -> None:
    """A training step, as accurate as torch's own."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
    x = torch.randn(2, 3, 64, 64)
    truth = one_step(model.double(), x.double())
    theirs = one_step(model.float(), x)
    with scratchnn.override() as routed:
        ours = one_step(model, x)
    assert not routed.left
    assert routed.calls.total() > 100
    pairs = [
        (relative_error(mine, true), relative_error(other, true))
        for mine, other, true in zip(ours, theirs, truth, strict=True)
        if true.is_floating_point()
    ]
    mine, other = (torch.tensor(side).square().mean().sqrt().item() for side in zip(*pairs, strict=True))
    assert mine <= 4 * other

"""The decompositions beside the operators: every operator, every layer with its gradients, and what graphs are left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from common import strides
from test_conv import GEOMETRIES, conv_operands
from test_layers import made, of, quiet
from test_operators import SAMPLES, registered
from test_pool import CASES
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

import scratchnn
import scratchnn.functional as F
from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.ops._elementwise import ROWS, Row

TABLE = scratchnn.decompositions()

# What the largest number may be off by, relative to the largest.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}


def overload(name: str) -> OpOverload:
    return getattr(torch.ops.scratchnn, name).default


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def copied(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.clone(), values)


def assert_same(found: Any, expected: Any, dtype: torch.dtype) -> None:
    """The numbers but for rounding in ``dtype``; shapes, types and orders of memory exactly."""
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert strides(ours) == strides(theirs)
        if not theirs.is_floating_point() and not theirs.is_complex():
            assert torch.equal(ours, theirs)
            continue
        finite = theirs[theirs.isfinite()].abs()
        tolerance = TOLERANCE.get(dtype, 0)
        scale = finite.max().item() if finite.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def narrowest(values: Any) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in tensors(values) if tensor.is_floating_point() or tensor.is_complex()]
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype], default=torch.int64)


def check(operator: OpOverload, args: tuple) -> None:
    """The operator and its decomposition on the same arguments, what they write into included."""
    theirs, ours = copied(args), copied(args)
    before = torch.get_rng_state()
    expected = operator(*theirs)
    torch.set_rng_state(before)
    found = TABLE[operator](*ours)
    torch.set_rng_state(before)
    assert_same((found, ours), (expected, theirs), narrowest(args))


def test_every_operator_has_a_decomposition() -> None:
    """And nothing else has, but for the copy that a write becomes."""
    assert set(TABLE) == {overload(name) for name in registered()} | {torch.ops.aten.copy.default}


def test_each_call_gives_a_table_of_its_own() -> None:
    scratchnn.decompositions().clear()
    assert scratchnn.decompositions() == TABLE


def in_every_type(name: str) -> Iterator[tuple]:
    """The sample calls of an operator, and the same in the types that it serves."""
    for args in SAMPLES[name]():
        yield args
        for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64):
            if dtype == torch.int64 and "grad" in name:  # whole numbers have no gradients
                continue
            other = tree_map_only(Tensor, lambda x, dtype=dtype: x.to(dtype) if x.is_floating_point() else x, args)
            try:
                overload(name)(*copied(other))
            except (RuntimeError, NotImplementedError):  # a type that it does not serve
                continue
            yield other


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_numbers(name: str) -> None:
    for args in in_every_type(name):
        check(overload(name), args)


class BesideTheirDecompositions(TorchDispatchMode):
    """Checks every operator that runs."""

    seen: set[str]

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.namespace == "scratchnn":
            self.seen.add(func._schema.name)
            check(func, args)
        return func(*args, **(kwargs or {}))


@of(LAYERS)
@quiet
def test_layers_and_their_gradients(layer: Layer) -> None:
    """With the arguments that layers give, in the layouts that they leave behind; second derivatives too."""
    for dtype, last in ((torch.float64, False), (torch.float32, True)):
        inputs = layer.draw(dtype)
        module = made(layer, *(x.float() if x.is_floating_point() else x for x in inputs)).to(dtype)
        format = {4: torch.channels_last, 5: torch.channels_last_3d} if last else {}
        leaves = [
            x.to(memory_format=format.get(x.dim(), torch.preserve_format)).requires_grad_(x.is_floating_point())
            for x in inputs
        ]
        torch.manual_seed(1)  # another than that of the inputs: a norm's gradient of those is zero
        with BesideTheirDecompositions() as mode:
            differentiate(module(*leaves), leaves, twice=dtype == torch.float64)
        assert mode.seen or layer.name == "Identity"


def differentiate(output: Tensor, leaves: list[Tensor], twice: bool) -> None:
    if not twice:
        output.backward(torch.randn_like(output))
        return
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad(output, wanted, torch.randn_like(output), create_graph=True)
    if any(grad.requires_grad for grad in grads):
        sum(grad.square().sum() for grad in grads).backward()


@pytest.mark.parametrize(("name", "shape", "arguments"), CASES)
def test_windows(name: str, shape: tuple, arguments: dict) -> None:
    """Pooling over every kind of window: with gaps, hanging over, wholly in the padding; of no sample."""
    for values in (torch.randn(shape).double(), torch.randint(-2, 3, shape).double()):  # distinct, and ties
        x = values.requires_grad_()
        with BesideTheirDecompositions() as mode:
            y = getattr(F, name)(x, **arguments)
            y.backward(torch.randn_like(y))
        assert mode.seen


def test_windows_of_padding_alone() -> None:
    """They have no maximum: no gradient goes anywhere, and their index is -1."""
    x = torch.randn(1, 2, 4, 2).requires_grad_()
    with BesideTheirDecompositions() as mode:
        y, indices = F.max_pool2d(x, (3, 2), 1, 1, (1, 3), return_indices=True)
        y.backward(torch.ones_like(y))
    assert (indices == -1).all()
    assert {"scratchnn::max_pool_indices", "scratchnn::max_pool_backward"} <= mode.seen


@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), GEOMETRIES)
def test_convolutions(shape: tuple, out_channels: int, kernel: tuple, options: dict) -> None:
    x, w, b = (tensor.requires_grad_() for tensor in conv_operands(shape, out_channels, kernel, options, torch.float64))
    with BesideTheirDecompositions() as mode:
        y = F.conv2d(x, w, b, **options)
        y.backward(torch.randn_like(y))
    assert {"scratchnn::conv", "scratchnn::conv_transpose", "scratchnn::conv_weight_grad"} <= mode.seen


KINKS = [math.nan, 0.0, -0.0, 0.1, 0.4, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, -6.0, 20.0, 20.5, -20.0, 100.0, -100.0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_kinks_and_large_numbers(row: Row) -> None:
    """Of infinity torch has no mish and no GELU."""
    names = {row.name, f"{row.name}_", f"{row.name}_backward", f"{row.name}_output_backward"}
    numbers = KINKS if row.name in ("mish", "gelu") else [*KINKS, math.inf, -math.inf]
    for name, dtype in itertools.product(names & set(SAMPLES), (torch.float64, torch.float32, torch.bfloat16)):
        x = torch.tensor(numbers, dtype=dtype)
        parameters = [argument for argument in SAMPLES[name]()[0] if not isinstance(argument, Tensor)]
        grad = [torch.full_like(x, 1.5)] if name.endswith("_backward") else []
        check(overload(name), (*grad, x, *parameters))


def test_statistics_at_their_limits() -> None:
    """Of a constant channel, of one number, of nothing; and of windows that go beyond everything."""
    nothing = torch.randn(0, 4, 3)
    check(overload("batch_norm_train"), (nothing, None, None, 1e-5))
    check(overload("batch_norm_backward"), (nothing, nothing, None, *torch.rand(2, 4).double(), 1e-5, True))
    check(overload("normalize"), (nothing, None, None, (0, 2, 2, 3), "group", True, 1e-5))
    check(overload("normalize"), (nothing, None, None, (0, 1, 3, 1), "row", False, 1e-5))
    _, _, var = TABLE[overload("batch_norm_train")](torch.full((4, 3, 2), 5.0), None, None, 1e-5)
    assert (var >= 0).all()
    for count in (0, 1, 2):
        statistics = [torch.rand(3), torch.rand(3), torch.rand(3).double(), torch.rand(3).double()]
        check(overload("batch_norm_update_"), (*statistics, 0.1, count))
    check(overload("local_response_norm"), (torch.randn(2, 3, 4), 10**9, 10**9, 0.1, 0.75, 1.0))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_traced_graphs_are_of_torchs_operators(name: str) -> None:
    """And compute the same."""
    for args in SAMPLES[name]():
        leaves, spec = tree_flatten(args)

        def call(*tensors: Tensor, leaves: list = leaves, spec: TreeSpec = spec) -> Any:
            given = iter(tensors)
            values = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return overload(name)(*tree_unflatten(values, spec)), *values

        traced = make_fx(call, decomposition_table=TABLE, tracing_mode="fake")(*copied(tensors(args)))
        for node in traced.graph.nodes:
            assert not isinstance(node.target, OpOverload) or node.target.namespace != "scratchnn"
        torch.manual_seed(0)
        found = traced(*copied(tensors(args)))
        torch.manual_seed(0)
        assert_same(found, call(*copied(tensors(args))), narrowest(args))


def test_a_training_step_is_traced_with_its_gradients() -> None:
    """Forward and backward in one graph, as other compilers take them."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        torch.nn.BatchNorm2d(8),
        torch.nn.Hardswish(inplace=True),
        torch.nn.MaxPool2d(3, 2, 1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 5),
    )
    scratchnn.convert(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    x, target = torch.randn(4, 3, 9, 9), torch.randint(5, (4,))

    def step(parameters: dict, buffers: dict, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        logits = torch.func.functional_call(model, (parameters, buffers), x)
        loss = torch.nn.functional.cross_entropy(logits, target)
        return loss, *torch.autograd.grad(loss, list(parameters.values())), *buffers.values()

    traced = make_fx(step, decomposition_table=TABLE, tracing_mode="fake")
    graph = traced(parameters, copied(buffers), x, target)
    used = {node.target.namespace for node in graph.graph.nodes if isinstance(node.target, OpOverload)}
    assert "scratchnn" not in used
    found = graph(parameters, copied(buffers), x, target)
    torch.testing.assert_close(found, list(step(parameters, copied(buffers), x, target)), rtol=1e-4, atol=1e-6)

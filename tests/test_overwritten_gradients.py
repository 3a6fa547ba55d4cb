"""Activations and batch norm write their gradient over the one that arrives, where nobody else will ask for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import Module

import scratchnn
import scratchnn.functional as F
from scratchnn import nn
from scratchnn.ops._elementwise import ROWS

SHAPE = (2, 16, 6, 5)


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """One of each kind: all that is said here of one activation is said of the others by their common code."""
    torch.manual_seed(0)
    given = nn.BatchNorm2d(16).double()
    given.running_var.uniform_(0.5, 2)
    return {
        "relu": F.relu,  # of the output
        "relu_": lambda x: F.relu(x.clone(), inplace=True),
        "silu": F.silu,  # of the input
        "elu_": lambda x: F.elu(x.clone(), inplace=True),  # of the output, by a formula of its own
        "batch_norm": nn.BatchNorm2d(16, track_running_stats=False).double(),
        "batch_norm_eval": given.eval(),
        "batch_norm_without_parameters": nn.BatchNorm2d(16, affine=False, track_running_stats=False).double(),
    }


NAMES = sorted(layers())
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(layout: torch.memory_format = torch.contiguous_format, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, dtype=torch.float64, generator=generator).contiguous(memory_format=layout)


def operators(run: Callable[[], Any]) -> set[str]:
    """The names of the operators of ours that are called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = {event.key for event in profile.key_averages()}
    return {name.removeprefix("scratchnn::") for name in names if name.startswith("scratchnn::")}


def wanted(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """The gradient where the one that arrives is held, and so is not overwritten."""
    assert not any(name.endswith("backward_") for name in operators(lambda: grad(layer(x), x, g)))
    return grad(layer(x), x, g)[0]


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_that_nobody_holds_is_overwritten(name: str, layout: torch.memory_format) -> None:
    layer, x, g = layers()[name], images(layout).requires_grad_(), images(layout, 2)
    assert any(name.endswith("backward_") for name in operators(lambda: grad(3 * layer(x), x, g)))
    assert torch.equal(grad(3 * layer(x), x, g)[0], wanted(layer, x, 3 * g))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernels", ["fast", "naive"])
def test_every_activation_writes_the_same_numbers(row: Any, dtype: torch.dtype, kernels: str) -> None:
    parameters = {"leaky_relu": (0.1,), "threshold": (0.2, -1.0), "hardtanh": (-0.7, 0.4), "softplus": (1.5, 2.0)}
    p = parameters.get(row.name, (0.4,) if row.name in ("elu", "celu", "hardshrink", "softshrink") else ())
    ops = torch.ops.scratchnn
    for layout in FORMATS:
        saved, g = images(layout).to(dtype), images(layout, 2).to(dtype)
        with scratchnn.kernels(kernels):
            expected = getattr(ops, f"{row.name}_backward")(g, saved, *p)
            assert getattr(ops, f"{row.name}_backward_")(g, saved, *p) is None
        assert torch.equal(g, expected)
        other = images(seed=2).to(dtype)  # in an order of its own, and with gaps
        spaced = torch.empty(2, *SHAPE, dtype=dtype)[0].copy_(other)[:, ::2]
        for grad_ in (other, spaced):
            expected = getattr(ops, f"{row.name}_backward")(grad_, saved[:, : grad_.shape[1]], *p)
            getattr(ops, f"{row.name}_backward_")(grad_, saved[:, : grad_.shape[1]], *p)
            assert torch.equal(grad_, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernels", ["fast", "naive"])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_batch_norm_writes_the_same_numbers(layout: torch.memory_format, kernels: str, training: bool) -> None:
    ops = torch.ops.scratchnn
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, g, weight = images(layout).to(dtype), images(layout, 2).to(dtype), torch.rand(16).to(dtype)
        mean, var = torch.randn(16).to(dtype), torch.rand(16).to(dtype)
        with scratchnn.kernels(kernels):
            dx, *parameters = ops.batch_norm_backward(g, x, weight, mean, var, 1e-5, training)
            found = ops.batch_norm_backward_(g, x, weight, mean, var, 1e-5, training)
        for mine, other in zip((g, *found), (dx, *parameters), strict=True):
            assert torch.equal(mine, other)


def test_batch_norm_refuses_another_order() -> None:
    args = (images(), None, None, torch.ones(16).double(), 1e-5, True)
    with pytest.raises(RuntimeError, match="order of memory"):
        torch.ops.scratchnn.batch_norm_backward_(images(torch.channels_last), *args)


@pytest.mark.parametrize("name", NAMES)
def test_those_that_others_hold_are_not(name: str) -> None:
    layer, x, g = layers()[name], images().requires_grad_(), images(seed=2)
    before, expected = g.clone(), wanted(layer, x, 3 * g)

    assert torch.equal(grad(layer(x), x, g)[0] * 0 + g, before)  # one that is given

    kept: list[Tensor] = []  # by a hook of the tensor
    y = layer(x)
    y.register_hook(kept.append)
    assert torch.equal(grad(3 * y, x, g)[0], expected)
    assert torch.equal(kept[0], 3 * g)

    views: list[Tensor] = []  # a part of it, or its memory
    y = layer(x)
    y.register_hook(lambda grad: views.extend((grad[0], grad.detach(), torch.from_numpy(grad.numpy()))))
    assert torch.equal(grad(3 * y, x, g)[0], expected)
    assert all(torch.equal(view, 3 * g if view.dim() == 4 else 3 * g[0]) for view in views)

    y = layer(x)  # by the output itself
    y.retain_grad()
    assert torch.equal(grad(3 * y, x, g)[0], expected)
    assert torch.equal(y.grad, 3 * g)

    y = layer(x)  # one that is asked for
    asked, found = grad(3 * y, [y, x], g)
    assert torch.equal(asked, 3 * g)
    assert torch.equal(found, expected)

    y = layer(x)  # by hooks of the node, before and after
    seen: list[Tensor] = []
    y.grad_fn.register_prehook(lambda gradients: seen.extend(gradients))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.extend(outputs))
    assert torch.equal(grad(3 * y, x, g)[0], expected)
    assert all(torch.equal(gradient, 3 * g) for gradient in seen if gradient is not None)


@pytest.mark.parametrize("name", NAMES)
def test_one_that_goes_several_ways(name: str) -> None:
    layer, x, g = layers()[name], images().requires_grad_(), images(seed=2)
    expected = wanted(layer, x, 3 * g)
    (found,) = grad(3 * (layer(x) + x), x, g)  # to both summands
    assert torch.equal(found, expected + 3 * g)
    (found,) = grad(3 * (layer(x) + layer(x)), x, g)
    assert torch.equal(found, 2 * expected)


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_was_borrowed_is_left_alone(name: str) -> None:
    array = images(seed=2).numpy()
    before = array.copy()

    class Borrowing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return torch.from_numpy(array)

    layer, x = layers()[name], images().requires_grad_()
    (found,) = grad(Borrowing.apply(layer(x)).sum(), x)
    assert np.array_equal(array, before)
    assert torch.equal(found, wanted(layer, x, torch.from_numpy(before)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_without_memory_of_their_own_for_each_number(name: str) -> None:
    layer, x = layers()[name], images().requires_grad_()
    expected = wanted(layer, x, torch.ones(SHAPE, dtype=torch.float64))
    torch.testing.assert_close(grad(layer(x).sum(), x)[0], expected, rtol=1e-12, atol=1e-12)
    row = torch.randn(5, dtype=torch.float64, requires_grad=True)  # here the input has none either
    if not name.startswith("batch_norm"):
        (found,) = grad(layer(row.expand(4, 5)).sum(), row)
        torch.testing.assert_close(found, 4 * grad(layer(row).sum(), row)[0])


@pytest.mark.parametrize("name", NAMES)
def test_another_order_of_memory_is_kept(name: str) -> None:
    layer, g = layers()[name], images(torch.channels_last, 2)
    x = images().requires_grad_()
    (found,) = grad(3 * layer(x).contiguous(memory_format=torch.channels_last), x, g)
    torch.testing.assert_close(found, wanted(layer, x, 3 * g.contiguous()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_have_what_they_need(name: str) -> None:
    layer, x = layers()[name], (0.3 + images()).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: 3 * layer(x), x[:, :, :1, :2].contiguous().detach().requires_grad_())
    y = 3 * layer(x)
    first = grad(y, x, images(seed=2), retain_graph=True)[0]
    assert torch.equal(first, grad(y, x, images(seed=2))[0])


def test_a_chain_of_layers_passes_one_tensor_on() -> None:
    model = torch.nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.BatchNorm2d(16), nn.SiLU(), nn.BatchNorm2d(16))
    x = torch.randn(SHAPE, requires_grad=True)
    y = 3 * model(x)
    names = operators(lambda: grad(y, [x, *model.parameters()], torch.randn(SHAPE)))
    assert names == {"batch_norm_backward_", "relu_backward_", "silu_backward_"}


def test_hooks_of_modules_see_what_arrived() -> None:
    model: Module = torch.nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    other: Module = torch.nn.Sequential(torch.nn.BatchNorm2d(16), torch.nn.ReLU())
    seen: list[list[Tensor]] = [[], []]
    for which, module in enumerate((model, other)):
        for layer in module:
            layer.register_full_backward_hook(
                lambda _, inputs, outputs, which=which: seen[which].extend((*inputs, *outputs))
            )
        (3 * module(torch.linspace(-2, 2, 960).reshape(SHAPE).sin().requires_grad_())).square().sum().backward()
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

"""Mixed precision around every layer: autocast by torch's own lists, the gradients' types, scaling, default types.

Numbers of a narrow type are compared with torch's up to a few dozen of its rounding steps: how exact they are is
measured elsewhere (test_layers).

Tests marked ``dear`` take a layer of each kind in the quick suite (``FEW`` in sides.py), all of them in the slow one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sides import LAYERS, agree, close, differentiable, draw, leaves, of, outcome, pair, quiet, weighting
from torch import Tensor
from torch.amp import GradScaler, custom_bwd, custom_fwd
from torch.autograd import forward_ad, grad
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import Layer

NARROW = (torch.bfloat16, torch.float16)
STEPS = 30

each_narrow = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])


def autocast(dtype: torch.dtype, **options: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype, **options)


def cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return leaves([x.detach().to(dtype) if x.is_floating_point() else x for x in inputs])


@each_narrow
@of(LAYERS, dear=True)
@quiet
def test_types_and_values(layer: Layer, dtype: torch.dtype) -> None:
    """Of the output and every gradient, for weights and inputs of all types that go together."""

    def action(weights: torch.dtype, inputs: torch.dtype, module: Module, *given: Tensor) -> list[Any]:
        module, given = module.to(weights), cast(given, inputs)
        with autocast(dtype):
            output = module(*given)
        return [output, *grad(output, differentiable(module, given), weighting(output)), *module.buffers()]

    types = [(torch.float32, torch.float32), (dtype, dtype)]
    if dtype == torch.bfloat16:
        types.append((torch.float64, torch.float64))  # stays what it is
    for weights, inputs in types:
        agree(
            layer,
            lambda *args, weights=weights, inputs=inputs: action(weights, inputs, *args),
            dtype=torch.float32,
            rtol=STEPS * torch.finfo(dtype).eps,
        )


@of(LAYERS, dear=True)
@quiet
def test_on_and_off_again(layer: Layer) -> None:
    """Nested, switched off inside, with and without the cache of cast weights, and nothing of it afterwards."""

    def action(module: Module, *inputs: Tensor) -> list[Tensor]:
        found = []

        def run() -> None:
            torch.manual_seed(1)
            found.append(module(*inputs))

        for cached in (True, False):
            with autocast(torch.bfloat16, cache_enabled=cached):
                run()
                with autocast(torch.bfloat16, enabled=False):
                    run()
                    with autocast(torch.bfloat16):
                        run()
                run()
        with torch.no_grad(), autocast(torch.float16):
            run()
        run()
        return found

    module, _ = pair(layer, torch.float32)
    found = agree(layer, action, dtype=torch.float32, rtol=STEPS * torch.finfo(torch.bfloat16).eps)
    again, _ = pair(layer, torch.float32)
    if module.training and any(True for _ in module.buffers()):  # statistics have moved on
        return
    torch.manual_seed(1)
    assert torch.equal(found[-1], again(*draw(layer, torch.float32)))
    assert torch.equal(found[-1], found[1])


@of(LAYERS, dear=True)
@quiet
def test_backward_inside_autocast(layer: Layer) -> None:
    """And a second one: neither is meant to run there, both do, with torch's types."""

    def action(module: Module, *inputs: Tensor) -> list[Tensor]:
        sources = differentiable(module, inputs)
        with autocast(torch.bfloat16):
            output = module(*inputs)
            first = grad(output.float().sin().sum(), sources, create_graph=True)
            value = sum((g * weighting(g)).sum() for g in first)
            second = grad(value, sources, allow_unused=True, materialize_grads=True) if value.requires_grad else ()
        return [output, *first, *second]

    rtol = 4 * STEPS * torch.finfo(torch.bfloat16).eps
    agree(layer, action, dtype=torch.float32, rtol=rtol, lacking="not implemented")


@of(LAYERS, dear=True)
@quiet
def test_derivatives_of_other_modes(layer: Layer) -> None:
    """A tangent, and ``torch.func.grad``: cast where torch casts."""

    def action(module: Module, *inputs: Tensor) -> list[Tensor]:
        inputs = tuple(x.detach() for x in inputs)
        torch.func.replace_all_batch_norm_modules_(module)
        weights = weighting(module(*inputs))
        torch.manual_seed(1)
        with forward_ad.dual_level(), autocast(torch.bfloat16):
            dual = module(forward_ad.make_dual(inputs[0], weighting(inputs[0])), *inputs[1:])
            found = [*forward_ad.unpack_dual(dual)]
        torch.manual_seed(1)
        with autocast(torch.bfloat16):
            found.append(torch.func.grad(lambda x: (module(x, *inputs[1:]) * weights).sum())(inputs[0]))
        return found

    agree(layer, action, dtype=torch.float32, rtol=4 * STEPS * torch.finfo(torch.bfloat16).eps)


@of(layer for layer in LAYERS if layer.name not in ("RReLU", "FractionalMaxPool2d", "FractionalMaxPool3d"))
@quiet
def test_autocast_reaches_into_vmap(layer: Layer) -> None:
    """The same types as without vmap; torch's own layers are not cast there."""
    module, _ = pair(layer, torch.float32)
    torch.func.replace_all_batch_norm_modules_(module)
    if layer.name.startswith("LazyInstanceNorm"):  # keeps statistics
        module.eval()
    inputs = draw(layer, torch.float32)
    with torch.no_grad(), autocast(torch.bfloat16):
        expected = module(*inputs)
        found = torch.func.vmap(module)(*(x[None] for x in inputs))
    assert found.dtype == expected.dtype
    close(found[0], expected, STEPS * torch.finfo(expected.dtype).eps)


@of(LAYERS, dear=True)
@quiet
def test_types_that_do_not_go_together(layer: Layer) -> None:
    """Refused with torch's type of error, outside of autocast and inside of it."""

    def action(weights: torch.dtype, inputs: torch.dtype, module: Module, *given: Tensor) -> list[Any]:
        module, given = module.to(weights), cast(given, inputs)
        output = module(*given)
        return [output, *grad(output, differentiable(module, given), weighting(output))]

    wide, narrow, half = torch.float64, torch.bfloat16, torch.float16
    for weights, inputs in (
        (torch.float32, narrow),
        (torch.float32, wide),
        (wide, torch.float32),
        (narrow, torch.float32),
        (narrow, half),
    ):

        def mixed(*args: Any, weights: torch.dtype = weights, inputs: torch.dtype = inputs) -> list[Any]:
            return action(weights, inputs, *args)

        # torch has no local response norm of images in these types
        rtol = STEPS * torch.finfo(narrow).eps
        agree(
            layer,
            mixed,
            dtype=torch.float32,
            rtol=rtol,
            lacking="avg_pool3d_out_frame" if layer.family == "norm" else None,
        )
    with autocast(torch.bfloat16):
        agree(layer, lambda *args: action(torch.float32, wide, *args), dtype=torch.float32, rtol=rtol)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@of(layer for layer in LAYERS if layer.reference is None)
@quiet
def test_default_types(layer: Layer) -> None:
    """Layers are built in ``torch.get_default_dtype()`` with torch's initial weights, and compute in it."""
    for dtype in (torch.float64, torch.bfloat16):
        found = []
        with default(dtype):
            for nn in (scratchnn.nn, torch.nn):
                torch.manual_seed(2)
                module = layer.build(nn)
                output = outcome(lambda module, *inputs: module(*inputs), module, draw(layer, dtype))
                state = [*module.parameters(), *module.buffers()]
                found.append((output, state))
        (output, state), (expected, other) = found
        if isinstance(expected, Exception):
            assert type(output) is type(expected) or layer.name == "LocalResponseNorm"  # torch has it in float64 alone
            continue
        assert output.dtype == expected.dtype
        rtol = STEPS * torch.finfo(dtype).eps
        close((output, state), (expected, other), rtol)


def network(nn: Any) -> Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        nn.Linear(8, 5),
        nn.LogSoftmax(1),
    )


@each_narrow
def test_training_with_a_scaler(dtype: torch.dtype) -> None:
    """``GradScaler`` finds the steps whose gradients overflow, skips them, and the others are torch's."""
    x, target = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    found = []
    for nn in (scratchnn.nn, torch.nn):
        model = network(nn)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scaler = GradScaler("cpu", init_scale=2.0**40, growth_interval=4)
        scales, losses = [], []
        for step in range(30):
            optimizer.zero_grad()
            with autocast(dtype):
                loss = torch.nn.functional.nll_loss(model(x), target)
            scaler.scale(loss).backward()
            if step == 25:
                model[0].weight.grad[0] = torch.nan
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            losses.append(loss.item())
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in model.parameters())
        assert scales[25] == scales[24] / 2
        assert losses[-1] < losses[0]
        found.append((losses, scales))
    if dtype == torch.bfloat16:  # has the range of float32: what overflows does not hang by a rounding step
        assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.05, atol=0.02)


def test_functions_of_the_users_own() -> None:
    """``custom_fwd`` and ``custom_bwd``: inside of them layers compute in the type that the user has chosen."""

    class Wide(torch.autograd.Function):
        @staticmethod
        @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
        def forward(ctx: Any, x: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
            assert x.dtype == torch.float32
            with torch.enable_grad():
                ctx.x = x.detach().requires_grad_()
                ctx.output = model(ctx.x)
            assert ctx.output.dtype == torch.float32
            return ctx.output.detach()

        @staticmethod
        @custom_bwd(device_type="cpu")
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return grad(ctx.output, ctx.x, g)[0], None

    class Narrow(torch.autograd.Function):
        @staticmethod
        @custom_fwd(device_type="cpu")
        def forward(ctx: Any, x: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
            with torch.enable_grad():
                ctx.x = x.detach().requires_grad_()
                ctx.output = model(ctx.x)
            return ctx.output.detach()

        @staticmethod
        @custom_bwd(device_type="cpu")
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            assert torch.is_autocast_enabled("cpu")  # as in the forward pass
            return grad(ctx.output, ctx.x, g)[0], None

    for function, dtype in ((Wide, torch.float32), (Narrow, torch.bfloat16)):
        found = []
        for nn in (scratchnn.nn, torch.nn):
            torch.manual_seed(4)
            model = torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 1))
            x = torch.randn(2, 3, 5, 5, requires_grad=True)
            with autocast(torch.bfloat16):
                output = function.apply(x, model.forward)
            assert output.dtype == dtype
            found.append((output.detach(), grad(output, x, weighting(output))[0]))
        close(*found, STEPS * torch.finfo(dtype).eps)


def test_a_device_that_is_not_there() -> None:
    """Autocast of another device leaves the CPU alone."""
    layer = scratchnn.nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast("cuda", torch.float16):
            assert layer(torch.randn(4, 3)).dtype == torch.float32

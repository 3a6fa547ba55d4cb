"""torch.compile: whole networks in one graph, sizes that change, the transforms and modes around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from test_operators import SAMPLES
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.utils import counters
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """Nothing compiled before, and nothing counted."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled, none of them for a break."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def small() -> Module:
    """Every family, in place and not, some of it as torch has no name for."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding="same", groups=2, padding_mode="reflect"),
        nn.GroupNorm(2, 8),
        nn.Hardswish(inplace=True),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.LayerNorm2d(4),
        nn.PReLU(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Maxout(16, 6, 2),
        nn.Linear(6, 5),
        nn.LogSoftmax(1),
    )


def features() -> Module:
    """The first layers of it, where the whole would take long."""
    return small()[:7]


def images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width)


def assert_trains_alike(compiled: Callable[[Tensor], Tensor], module: Module, reference: Module, *xs: Tensor) -> None:
    """Outputs, gradients and buffers, step after step; ``compiled`` runs ``module``."""
    for x in xs:
        results = []
        for call, owner in ((compiled, module), (reference, reference)):
            owner.zero_grad()
            output = call(x)
            output.square().mean().backward()
            grads = {name: parameter.grad for name, parameter in owner.named_parameters()}
            results.append((output.detach(), grads, dict(owner.named_buffers())))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


# Whole networks

NETWORKS = [
    ("resnet18", "aot_eager"),
    ("mobilenet_v3_small", "aot_eager"),
    *(
        pytest.param(name, "inductor", marks=pytest.mark.slow)
        for name in ("resnet18", "mobilenet_v3_small", "mobilenet_v3_large")
    ),
]


@pytest.mark.parametrize(("name", "backend"), NETWORKS)
def test_networks_train_in_one_graph(name: str, backend: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    scratchnn.convert(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_trains_alike(compiled, model, reference, images(4, 32, 32), images(4, 32, 32))
    assert graphs() == 1


def test_dynamo_explains_no_break() -> None:
    explanation = torch._dynamo.explain(small())(images(2, 32, 32))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)


def test_inductor() -> None:
    module = features()
    reference = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True)
    assert_trains_alike(compiled, module, reference, images(4, 16, 16), images(4, 16, 16))
    assert graphs() == 1


@pytest.mark.slow
def test_inductors_cache() -> None:
    """A graph of our operators is compiled once, and then read."""
    module = features()
    with torch._inductor.utils.fresh_cache():
        for attempt in ("compiled", "read"):
            torch.compile(module, fullgraph=True)(images(4, 16, 16)).sum().backward()
            hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
            assert (hits > 0) == (attempt == "read")
            torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_inductors_modes(mode: str) -> None:
    module = small()
    reference = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    assert_trains_alike(compiled, module, reference, images(4, 32, 32), images(4, 32, 32))
    assert graphs() == 1


# Sizes that change

SIZES = [(4, 32, 36), (3, 32, 36), (5, 48, 36), (4, 40, 56), (6, 33, 35), (2, 64, 50)]


def test_one_graph_for_all_sizes() -> None:
    module = small()
    reference = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    assert_trains_alike(compiled, module, reference, *(images(*size) for size in SIZES))
    assert graphs() == 1


def test_sizes_that_change_are_let_go_of() -> None:
    """Left to itself torch takes sizes to be fixed, and compiles again when one of batch, height, width changes."""
    module = features()
    reference = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_trains_alike(compiled, module, reference, *(images(*size) for size in SIZES))
    assert graphs() <= 4


def test_sizes_marked_as_dynamic_stay_so() -> None:
    """torch raises where a size was marked, and an operator made it a constant."""
    module = features()
    reference = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    xs = [images(*size) for size in SIZES]
    for x in xs:
        for dim in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, dim)
    assert_trains_alike(compiled, module, reference, *xs)
    assert graphs() == 1


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_no_fake_kernel_makes_a_size_a_constant(name: str) -> None:
    operator = getattr(torch.ops.scratchnn, name).default
    for args in SAMPLES[name]():
        leaves, spec = tree_flatten(args)

        def call(*tensors: Tensor, leaves: list = leaves, spec: Any = spec) -> Any:
            rest = iter(tensors)
            return operator(*tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec))

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        environment = make_fx(call, tracing_mode="symbolic")(*tensors).shape_env
        constants = {int(value) for value in environment.replacements.values() if value.is_number}
        # The channels of a depthwise convolution are its groups, which are no size of a tensor.
        assert constants <= ({args[-2]} if name in ("conv", "conv_transpose") else set())


# What people compile besides


def test_functions() -> None:
    def network(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.relu(F.conv2d(x, weight, bias, stride=2))
        y, indices = F.max_pool2d(y, 2, return_indices=True)
        y = F.max_unpool2d(F.gelu(y, approximate="tanh"), indices, 2)
        y = F.batch_norm(F.instance_norm(y), None, None, training=True)
        y = F.local_response_norm(y, 3) + F.lp_pool2d(y, 2.0, 1)
        y = F.adaptive_max_pool2d(F.softplus(y), 2).flatten(1)
        return F.softmax(F.linear(F.rms_norm(y, y.shape[1:]), torch.ones(3, y.shape[1])), 1)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    operands = [images(2, 18, 18), torch.randn(4, 3, 3, 3), torch.randn(4)]
    results = []
    for function in (compiled, network):
        leaves = [x.clone().requires_grad_() for x in operands]
        output = function(*leaves)
        results.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert graphs() == 1


def test_the_optimizers_step_and_the_whole_of_training() -> None:
    module, reference = features(), features()
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (module, reference))
    network = torch.compile(module, fullgraph=True, backend="aot_eager")
    step = torch.compile(ours.step, backend="aot_eager")
    for _ in range(3):
        x = images(4, 32, 32)
        for call, update, optimizer in ((network, step, ours), (reference, theirs.step, theirs)):
            call(x).square().mean().backward()
            update()
            optimizer.zero_grad()
    torch.testing.assert_close(module.state_dict(), reference.state_dict(), rtol=1e-4, atol=1e-6)


def test_autocast() -> None:
    """Around the compiled network and inside of it: the same types and numbers as without."""
    module = nn.Sequential(*features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    x = images(2, 32, 32)

    def inside(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    expected = inside(x)
    outside = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert outside(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        around = outside(x)  # is seen to be another case
    for found in (around, torch.compile(inside, fullgraph=True, backend="aot_eager")(x)):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_checkpoints() -> None:
    """Computed again in the backward pass; eager mode updates statistics again as well, for torch's layers too."""
    module = features()
    reference = copy.deepcopy(module)
    compiled = torch.compile(lambda x: checkpoint(module, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    x, results = images(4, 32, 32), []
    for call, owner in ((compiled, module), (reference, reference)):
        call(x).square().mean().backward()
        results.append(([parameter.grad for parameter in owner.parameters()], dict(owner.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_channels_last_stays() -> None:
    module = features()
    x = images(4, 32, 32).contiguous(memory_format=torch.channels_last)
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert output.stride() == module(x).stride()
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_compiled_autograd() -> None:
    """The backward pass of compiled code, captured when it runs, as one graph."""
    module = features()
    reference = copy.deepcopy(module)
    network = torch.compile(module, fullgraph=True, backend="aot_eager")
    captured = []

    def compiler(graph: torch.fx.GraphModule) -> Callable:
        captured.append(graph)
        return torch.compile(graph, backend="eager", fullgraph=True)

    x = images(4, 32, 32)
    with compiled_autograd._enable(compiler):
        network(x).square().mean().backward()
    reference(x).square().mean().backward()
    assert len(captured) == 1
    grads = [[parameter.grad for parameter in m.parameters()] for m in (module, reference)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


# torch.func inside of compiled functions

X, V, W = torch.randn(4, 3, 7, 7), torch.randn(5), torch.randn(2, 3, 3, 3)

TRANSFORMS: dict[str, tuple[Callable, Tensor]] = {
    "grad": (grad(lambda w: F.conv2d(X, w).square().sum()), W),
    "grad of an activation in place": (grad(lambda x: F.hardswish(x + 1, inplace=True).square().sum()), V),
    "grad of grad": (grad(lambda v: grad(lambda v: F.silu(v).sum())(v).sum()), V),
    "vjp": (lambda x: vjp(lambda x: F.max_pool2d(x, 2), x)[1](torch.ones(4, 3, 3, 3)), X),
    "jvp": (lambda x: jvp(lambda x: F.batch_norm(x, None, None, training=True), (x,), (x,))[1], X),
    "jacrev": (jacrev(lambda v: F.softmax(v, 0)), V),
    "jacfwd": (jacfwd(F.gelu), V),
    "hessian": (hessian(lambda v: F.layer_norm(v, (5,)).pow(3).sum()), V),
    "vmap over inputs": (vmap(lambda x: F.conv2d(x, W)), X),
    "vmap over weights": (vmap(lambda w: F.conv2d(X, w)), torch.randn(3, 2, 3, 3, 3)),
    "vmap of grad": (vmap(grad(lambda x: F.adaptive_avg_pool2d(F.relu(x), 2).square().sum())), X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_inside(name: str) -> None:
    function, x = TRANSFORMS[name]
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, function(x), rtol=1e-4, atol=1e-5)


def test_gradients_of_each_sample() -> None:
    """A network under vmap of grad, with parameters that want gradients of their own."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2)
    )
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x[None],)).square().mean()

    each = vmap(grad_and_value(loss), (None, 0))
    x = images(3, 5, 5)
    found = torch.compile(each, fullgraph=True, backend="aot_eager")(parameters, x)
    torch.testing.assert_close(found, each(parameters, x), rtol=1e-4, atol=1e-6)


def test_second_derivatives_by_backward_are_refused() -> None:
    """By AOTAutograd, of any function: with ``torch.func`` they are had."""
    compiled = torch.compile(lambda x: F.silu(x).sum(), backend="aot_eager")
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()

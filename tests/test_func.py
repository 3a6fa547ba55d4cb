"""Every layer under the transforms of ``torch.func``: derivatives, vmap, and one inside the other, beside torch's.

Where torch lacks a rule, or has a wrong second derivative (that of its normalizations), ours is held against what is
right.

Tests marked ``dear`` take a layer of each kind in the quick suite (``FEW`` in sides.py), all of them in the slow one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sides import LAYERS, agree, close, draw, of, pair, quiet, weighting
from torch import Tensor
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vjp,
    vmap,
)
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import Layer

# What torch says where it has no rule: vmap of RReLU, bilinear and unpooling of nothing.
LACKING = "do not yet support|not implemented|dims of size 0|ambiguous|at least one element|must match the size"

WITH_WEIGHTS = [layer for layer in LAYERS if any(True for _ in layer.theirs().parameters())]
TRACKING = [layer for layer in LAYERS if "BatchNorm" in layer.name and layer.variant != "eval"]
RANDOM = [layer for layer in LAYERS if layer.name in ("RReLU", "FractionalMaxPool2d", "FractionalMaxPool3d")]

Call = Callable[..., Any]


def detached(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in inputs)


def state(module: Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return parameters, {name: b.detach().clone() for name, b in module.named_buffers()}


def curved(output: Tensor, weights: Tensor) -> Tensor:
    """A number that depends on the output in a curved way."""
    return (output * weights).sin().sum()


def stacked(inputs: tuple[Tensor, ...], size: int = 3, dim: int = 0) -> tuple[Tensor, ...]:
    """The inputs several times over, along a new dimension, none like the other."""
    return tuple(torch.stack([x.roll(i, 0) for i in range(size)], dim) for x in inputs)


def ensemble(module: Module, size: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of several layers of the same kind, stacked."""
    members = [copy.deepcopy(module) for _ in range(size)]
    with torch.no_grad():
        for number, member in enumerate(members):
            for p in member.parameters():
                p.mul_(1 + 0.1 * number).add_(0.01 * number)
    return stack_module_state(members)


# --- derivatives --------------------------------------------------------------------------------------------------


@of(LAYERS, dear=True)
@quiet
def test_grad_and_vjp(layer: Layer) -> None:
    """By parameters and inputs at once, with statistics that are updated on the way."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        inputs = detached(inputs)
        parameters, buffers = state(module)

        def call(parameters: dict, x: Tensor, buffers: dict) -> Tensor:
            return functional_call(module, (parameters, buffers), (x, *inputs[1:]))

        def loss(*args: Any) -> tuple[Tensor, Tensor]:
            output = call(*args)
            return curved(output, weighting(output)), output

        (by_parameters, by_input), output = grad(loss, (0, 1), has_aux=True)(parameters, inputs[0], buffers)
        torch.manual_seed(1)
        again, pullback = vjp(call, parameters, inputs[0], buffers)
        close(again, output)
        found = [output, *buffers.values(), *by_parameters.values(), by_input]
        for seed in range(2):  # as often as one likes
            gradients = pullback(weighting(output, seed))
            found += [*gradients[0].values(), gradients[1]]
        return found

    agree(layer, action)


def with_tangents(module: Module, *inputs: Tensor) -> tuple[Call, tuple, tuple]:
    """The layer as a function of its parameters and first input, and primals and tangents for it."""
    inputs = detached(inputs)
    parameters, buffers = state(replace_all_batch_norm_modules_(module))
    tangents = {name: weighting(p) for name, p in parameters.items()}

    def call(parameters: dict, x: Tensor) -> Tensor:
        return functional_call(module, (parameters, buffers), (x, *inputs[1:]))

    return call, (parameters, inputs[0]), (tangents, weighting(inputs[0]))


@of(LAYERS)
@quiet
def test_jvp(layer: Layer) -> None:
    def action(module: Module, *inputs: Tensor) -> Any:
        return jvp(*with_tangents(module, *inputs))

    agree(layer, action)


@pytest.mark.slow
@of(layer for layer in LAYERS if layer not in RANDOM)
@quiet
def test_linearize(layer: Layer) -> None:
    """What is traced is the derivative that ``jvp`` computes."""
    module, _ = pair(layer)
    call, primals, tangents = with_tangents(module, *draw(layer, samples=1 if layer.family == "conv" else 2))
    torch.manual_seed(1)
    expected = jvp(call, primals, tangents)
    torch.manual_seed(1)
    output, derivative = linearize(call, *primals)
    close((output, derivative(*tangents)), expected)


class Along:
    """The layer as a function of two numbers: one moves the parameters and the input, the other the input alone."""

    def __init__(self, module: Module, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.inputs = module, detached(inputs)
        self.parameters, self.buffers = state(replace_all_batch_norm_modules_(module))
        self.directions = {name: weighting(p) for name, p in self.parameters.items()}
        self.first, self.second = weighting(self.inputs[0], 3), weighting(self.inputs[0], 5)
        self.point = torch.zeros(2, dtype=torch.float64)
        self.weights = weighting(self(self.point))

    def __call__(self, t: Tensor) -> Tensor:
        torch.manual_seed(1)
        parameters = {name: p + t[0] * self.directions[name] for name, p in self.parameters.items()}
        x = self.inputs[0] + t[0] * self.first + t[1] * self.second
        return functional_call(self.module, (parameters, self.buffers), (x, *self.inputs[1:]))

    def number(self, t: Tensor) -> Tensor:
        return curved(self(t), self.weights)


@of((layer for layer in LAYERS if layer not in RANDOM), dear=True)
@quiet
def test_jacobians(layer: Layer) -> None:
    """By reverse and by forward mode, whole and in chunks."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        along = Along(module, inputs)
        jacobians = jacrev, jacfwd, lambda f: jacrev(f, chunk_size=2)
        return [jacobian(lambda t: along(t).flatten()[:3])(along.point) for jacobian in jacobians]

    agree(layer, action)


@of((layer for layer in LAYERS if layer not in RANDOM), dear=True)
@quiet
def test_hessians(layer: Layer) -> None:
    """Whichever derivative is taken inside the other, one mode or both: the second derivative that autograd has."""
    ours, theirs = pair(layer)
    inputs = draw(layer, samples=1)
    # Of hardsigmoid torch has none; it is zero.
    known = Along(ours if layer.name == "Hardsigmoid" else theirs, inputs)
    expected = torch.autograd.functional.hessian(known.number, known.point)
    along = Along(ours, inputs)
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        close(outer(inner(along.number))(along.point), expected, 1e-8)


# --- vmap ---------------------------------------------------------------------------------------------------------


@of(layer for layer in LAYERS if layer not in RANDOM)
@quiet
def test_vmap_over_inputs(layer: Layer) -> None:
    """Along any dimension, in chunks, twice over, from outside and from inside a graph of autograd."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        call = replace_all_batch_norm_modules_(module)
        found = [
            vmap(call)(*stacked(inputs)),
            vmap(call, in_dims=1, out_dims=1)(*stacked(inputs, dim=1)),
            vmap(call, in_dims=-1, out_dims=-1)(*stacked(inputs, dim=-1)),
            vmap(call, chunk_size=2)(*stacked(inputs)),
            vmap(vmap(call), in_dims=-1)(*stacked(stacked(inputs, 2), dim=-1)),
        ]
        leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
        return [*found, *torch.autograd.grad(found[1], leaves, weighting(found[1]))]

    agree(layer, action)


@of(WITH_WEIGHTS, dear=True)
@quiet
def test_ensembles(layer: Layer) -> None:
    """Several layers at once, each with weights and statistics of its own: on one input, or on one each."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        leaves = [x for x in inputs if x.requires_grad]
        found = []
        for in_dims, own in ((None, inputs), (0, stacked(inputs)), (1, stacked(inputs, dim=1))):
            parameters, buffers = ensemble(module)

            def call(parameters: dict, buffers: dict, inputs: tuple[Tensor, ...]) -> Tensor:
                return functional_call(module, (parameters, buffers), inputs)

            output = vmap(call, in_dims=(0, 0, in_dims))(parameters, buffers, own)
            sources = [*leaves, *parameters.values()]
            found += [output, *buffers.values(), *torch.autograd.grad(output, sources, weighting(output))]
        return found

    agree(layer, action)


@of(WITH_WEIGHTS, dear=True)
@quiet
def test_gradients_of_ensembles(layer: Layer) -> None:
    """The gradients of each by vmap of grad; every layer on every input by vmap of vmap."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        inputs = detached(inputs)
        parameters, buffers = ensemble(replace_all_batch_norm_modules_(module))
        weights = weighting(module(*inputs))

        def call(parameters: dict, buffers: dict, inputs: tuple[Tensor, ...]) -> Tensor:
            return functional_call(module, (parameters, buffers), inputs)

        def loss(*args: Any) -> Tensor:
            return curved(call(*args), weights)

        each = vmap(grad(loss), in_dims=(0, 0, None))(parameters, buffers, inputs)
        if not buffers:
            many = vmap(vmap(call, (None, None, 0)), (0, 0, None))(parameters, buffers, stacked(inputs, 2))
            return [*each.values(), many]
        return [*each.values(), *buffers.values()]

    agree(layer, action)


@of(layer for layer in LAYERS if layer not in TRACKING and layer not in RANDOM)
@quiet
def test_per_sample_gradients(layer: Layer) -> None:
    """By vmap of grad, as in differentially private training; the same as sample after sample."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        inputs = detached(inputs)
        parameters, buffers = state(module)
        weights = weighting(module(*(x[:1] for x in inputs)))

        def loss(parameters: dict, x: Tensor, *rest: Tensor) -> Tensor:
            output = functional_call(module, (parameters, buffers), tuple(x[None] for x in (x, *rest)))
            return curved(output, weights)

        in_dims = (None, *[0] * len(inputs))
        by_parameters, by_input = vmap(grad(loss, (0, 1)), in_dims=in_dims)(parameters, *inputs)
        return [*by_parameters.values(), by_input]

    found = agree(layer, action)
    if isinstance(found, Exception):  # running statistics: refused on both sides
        assert layer.name.startswith("LazyInstanceNorm")
        return
    module, _ = pair(layer)
    inputs = draw(layer)
    weights = weighting(module(*(x[:1] for x in inputs)))
    for sample in range(inputs[0].shape[0]):
        x = inputs[0][sample : sample + 1].clone().requires_grad_()
        output = module(x, *(z[sample : sample + 1] for z in inputs[1:]))
        alone = torch.autograd.grad(curved(output, weights), [*module.parameters(), x])
        close([g[sample] for g in found], [*alone[:-1], alone[-1][0]])


@of((layer for layer in LAYERS if layer not in RANDOM), dear=True)
@quiet
def test_derivatives_of_vmap(layer: Layer) -> None:
    """And vmap of derivatives: one transform inside the other, either way round."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        inputs = detached(inputs)
        module = replace_all_batch_norm_modules_(module)
        tangents = torch.stack([weighting(inputs[0], seed) for seed in range(3)])
        many = stacked(inputs)

        def call(x: Tensor) -> Tensor:
            return module(x, *inputs[1:])

        def calls(x: Tensor) -> Tensor:
            return vmap(module)(x, *many[1:])

        output = calls(many[0])
        return [
            vmap(lambda tangent: jvp(call, (inputs[0],), (tangent,))[1])(tangents),
            *jvp(calls, (many[0],), (weighting(many[0]),)),
            grad(lambda x: curved(calls(x), weighting(output)))(many[0]),
        ]

    agree(layer, action)


@of(layer for layer in LAYERS if layer not in RANDOM)
@quiet
def test_vmap_of_nothing(layer: Layer) -> None:
    """Where torch takes an empty dimension so do we, and give something as empty."""

    def action(module: Module, *inputs: Tensor) -> int:
        inputs = tuple(x[None][:0] for x in detached(inputs))
        return vmap(replace_all_batch_norm_modules_(module))(*inputs).numel()

    agree(layer, action, lacking=LACKING)


@of(RANDOM)
@quiet
def test_randomness(layer: Layer) -> None:
    """Numbers may be drawn where vmap is told how: for each sample anew, or once. The same ones as torch draws."""

    def action(randomness: str, module: Module, *inputs: Tensor) -> list[Any]:
        many = stacked(detached(inputs))
        output = vmap(module, randomness=randomness)(*many)
        again = vmap(module, randomness=randomness)(torch.stack([many[0][0]] * 3))
        draws = {tuple(x.flatten().tolist()) for x in again}
        assert len(draws) == (3 if randomness == "different" else 1)
        return [output]

    for randomness in ("error", "same", "different"):
        lacking = LACKING if randomness == "different" else None
        agree(layer, lambda *args, randomness=randomness: action(randomness, *args), lacking=lacking)


# --- batch norm, and whole models ---------------------------------------------------------------------------------


@of(TRACKING)
@quiet
def test_vmap_refuses_statistics_that_are_shared(layer: Layer) -> None:
    """As torch does; without statistics, with ``replace_all_batch_norm_modules_`` or in evaluation it goes."""

    def action(how: str, module: Module, *inputs: Tensor) -> Any:
        if how == "replaced":
            assert replace_all_batch_norm_modules_(module) is module
            assert module.running_mean is None
        elif how == "evaluation":
            module.eval()
        return vmap(module)(*stacked(detached(inputs)))

    for how in ("as it is", "replaced", "evaluation"):
        found = agree(layer, lambda *args, how=how: action(how, *args))
        assert isinstance(found, RuntimeError) is (how == "as it is")


def network(nn: Any) -> Module:
    """A small network with what real ones have: convolutions, norms, a shortcut, pooling, tied weights."""
    torch.manual_seed(5)

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.block = torch.nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.again.weight = self.block[0].weight
            self.pool, self.head = nn.AvgPool2d(2), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.norm(self.stem(x)))
            x = x + self.block(x)
            return self.head(self.pool(self.again(x)).flatten(1))

    return Network().double()


def both_networks(action: Callable[[Module, Tensor], Any]) -> None:
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    results = []
    for nn in (scratchnn.nn, torch.nn):
        torch.manual_seed(6)
        results.append(action(network(nn), x))
    close(*results)


def test_tied_weights_move_together() -> None:
    """``functional_call`` replaces a weight wherever it is used, or where it is named alone."""

    def action(model: Module, x: Tensor) -> list[Any]:
        parameters, buffers = state(model)
        assert "again.weight" not in parameters
        buffers = [{name: b.clone() for name, b in buffers.items()} for _ in range(3)]

        def loss(parameters: dict, buffers: dict, **options: Any) -> Tensor:
            return functional_call(model, (parameters, buffers), (x,), **options).sin().sum()

        tied = grad(loss)(parameters, buffers[0])
        apart = parameters | {"again.weight": parameters["block.0.weight"].clone()}
        own = grad(lambda *args: loss(*args, tie_weights=False))(apart, buffers[1])
        torch.testing.assert_close(own["block.0.weight"] + own["again.weight"], tied["block.0.weight"])
        with pytest.raises(ValueError, match="tied"):
            loss(apart, buffers[2])
        return [*tied.values(), *own.values(), *buffers[0].values()]

    both_networks(action)


def test_a_network_sample_by_sample() -> None:
    """Gradients, Jacobians and a Hessian of each sample, and an ensemble of networks trained a step each."""

    def action(model: Module, x: Tensor) -> list[Any]:
        training = copy.deepcopy(model)
        parameters, buffers = state(model.eval())
        target = torch.arange(4) % 3

        def loss(parameters: dict, x: Tensor, target: Tensor) -> Tensor:
            output = functional_call(model, (parameters, buffers), (x[None],))
            return torch.nn.functional.cross_entropy(output, target[None])

        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target)
        call = lambda x: functional_call(model, (parameters, buffers), (x[None],))[0]  # noqa: E731
        jacobians = vmap(jacrev(call))(x), vmap(jacfwd(call))(x)
        close(*jacobians)
        curvature = hessian(lambda x: call(x)[0])(x[0])
        output, derivative = linearize(call, x[0])
        close((output, derivative(x[1])), jvp(call, (x[0],), (x[1],)))

        stacks = ensemble(training)

        def step(parameters: dict, buffers: dict, x: Tensor) -> dict[str, Tensor]:
            def loss(parameters: dict) -> Tensor:
                output = functional_call(training, (parameters, buffers), (x,))
                return torch.nn.functional.cross_entropy(output, target)

            return {name: parameters[name] - 0.1 * g for name, g in grad(loss)(parameters).items()}

        trained = vmap(step, in_dims=(0, None, None))({n: p.detach() for n, p in stacks[0].items()}, {}, x)
        return [*per_sample.values(), jacobians[0], curvature, *trained.values()]

    def without_statistics(model: Module, x: Tensor) -> list[Any]:
        return action(replace_all_batch_norm_modules_(model), x)

    both_networks(without_statistics)

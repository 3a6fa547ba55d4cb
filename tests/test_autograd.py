"""What autograd promises around a layer: every mode, order and hook of differentiation, for every layer beside torch's.

Values are torch's own, or, where torch lacks a derivative or has a wrong one, those of finite differences.

Tests marked ``dear`` take a layer of each kind in the quick suite (``FEW`` in sides.py), all of them in the slow one.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from sides import IMAGES, LAYERS, agree, close, differentiable, draw, leaves, of, outcome, pair, quiet, weighting
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.autograd import graph as autograd_graph
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

import scratchnn
from scratchnn.accuracy.layers import Layer

# What torch says where it has no derivative of this kind. The last: it overwrites what it has saved itself.
LACKING = "support forward AD|does not support it|not implemented|3rd\\+ order|output_padding|modified by an inplace"

# torch makes of these several operations, of which the first makes a new tensor: so no input or weight is saved itself.
COPIED_BY_TORCH = [
    layer
    for layer in LAYERS
    if layer.variant in ("3, reflect", "4, same")
    or "InstanceNorm" in layer.name
    or layer.name in ("RMSNorm", "Tanhshrink")
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def called(module: Module, operands: Sequence[Tensor]) -> Tensor:
    """The module called with other tensors in the place of all its leaves: inputs, then parameters."""
    names = [name for name, _ in module.named_parameters()]
    inputs, parameters = operands[: len(operands) - len(names)], operands[len(operands) - len(names) :]
    torch.manual_seed(1)
    return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), tuple(inputs))


def everything(module: Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [*inputs, *module.parameters()]


def dual(x: Tensor, seed: int) -> Tensor:
    return forward_ad.make_dual(x, weighting(x, seed)) if x.is_floating_point() else x


def scalar(output: Tensor) -> Tensor:
    """A number that depends on the output in a curved way."""
    return (output * weighting(output)).sin().sum()


# --- the derivatives themselves -----------------------------------------------------------------------------------


@of(LAYERS, dear=True)
@quiet
def test_forward_mode(layer: Layer) -> None:
    """The tangent for tangents of all leaves together, and of each alone."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        operands = everything(module, inputs)
        count = len(operands)
        found = []
        for carriers in (range(count), *([position] for position in range(count))):
            with forward_ad.dual_level():
                duals = [dual(x, seed) if seed in carriers else x for seed, x in enumerate(operands)]
                found.append(tuple(forward_ad.unpack_dual(called(module, duals))))
        return found

    agree(layer, action)
    with torch.no_grad():  # neither mode needs the other
        agree(layer, action)


@of(LAYERS, dear=True)
@quiet
def test_forward_over_reverse(layer: Layer) -> None:
    """Gradients that carry tangents: products of the Hessian and a vector."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        with forward_ad.dual_level():
            duals = [dual(x, seed) for seed, x in enumerate(everything(module, inputs))]
            gradients = grad(scalar(called(module, duals)), [x for x in duals if x.requires_grad])
            return [tuple(forward_ad.unpack_dual(g)) for g in gradients]

    agree(layer, action, lacking=LACKING)


@of(LAYERS, dear=True)
@quiet
def test_reverse_over_forward(layer: Layer) -> None:
    """The gradient of a tangent, against finite differences: torch's norms take their statistics for constants here."""
    module, _ = pair(layer)
    inputs = leaves(draw(layer, samples=1 if layer.family == "conv" else 2))

    def tangent(*operands: Tensor) -> Tensor:
        with forward_ad.dual_level():
            duals = [dual(x, seed) for seed, x in enumerate(operands)]
            found = forward_ad.unpack_dual(called(module, duals)).tangent
        return found + 0 * sum(x.sum() for x in operands)  # a tangent may depend on nothing

    assert gradcheck(tangent, tuple(everything(module, inputs)), fast_mode=True)


def second_gradients(value: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a number that depends on the gradients of ``value`` in a curved way."""
    first = grad(value, sources, create_graph=True)
    curved = sum((g * weighting(g)).square().sum() for g in first) / 30
    return grad(curved, sources, create_graph=True, allow_unused=True, materialize_grads=True)


@of(LAYERS)
@quiet
def test_double_backward(layer: Layer) -> None:
    def action(module: Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        return second_gradients(scalar(module(*inputs)), differentiable(module, inputs))

    agree(layer, action, lacking=LACKING)


@of(LAYERS, dear=True)
@quiet
def test_triple_backward(layer: Layer) -> None:
    """Against finite differences: torch has no third derivative of batch norm, and a wrong one of layer norm."""
    module, _ = pair(layer)
    operands = everything(module, leaves(draw(layer, samples=1 if layer.family == "conv" else 2)))

    def function(*operands: Tensor) -> tuple[Tensor, ...]:
        return second_gradients(scalar(called(module, operands)), [x for x in operands if x.requires_grad])

    assert gradcheck(function, tuple(operands), fast_mode=True)


@of(LAYERS, dear=True)
@quiet
def test_gradients_of_all_kinds_are_the_differences(layer: Layer) -> None:
    """torch's own checks: undefined, batched and forward-mode gradients of first and second order."""
    module, _ = pair(layer)
    inputs = draw(layer, samples=1 if layer.family == "conv" else 2)
    random = layer.name in ("RReLU", "FractionalMaxPool2d", "FractionalMaxPool3d")
    options = {"fast_mode": True, "check_batched_grad": not random}

    def function(*operands: Tensor) -> Tensor:
        return called(module, operands)

    assert gradgradcheck(function, tuple(everything(module, leaves(inputs))), check_fwd_over_rev=True, **options)
    if layer in IMAGES:
        format = torch.channels_last if inputs[0].dim() == 4 else torch.channels_last_3d
        inputs = tuple(x.contiguous(memory_format=format) for x in inputs)
    operands = tuple(everything(module, leaves(inputs)))
    assert gradcheck(function, operands, check_forward_ad=True, check_batched_forward_grad=not random, **options)


FUNCTIONAL = {
    "vjp": lambda f, x: torch.autograd.functional.vjp(f, x, torch.ones((), dtype=x.dtype)),
    "jvp": lambda f, x: torch.autograd.functional.jvp(f, x, weighting(x)),
    "hvp": lambda f, x: torch.autograd.functional.hvp(f, x, weighting(x)),
    "vhp": lambda f, x: torch.autograd.functional.vhp(f, x, weighting(x)),
}


@of(LAYERS, dear=True)
@quiet
def test_products_of_jacobian_and_hessian(layer: Layer) -> None:
    def action(module: Module, x: Tensor, *rest: Tensor) -> list[Any]:
        def function(x: Tensor) -> Tensor:
            torch.manual_seed(1)
            return scalar(module(x, *rest))

        return [product(function, x) for product in FUNCTIONAL.values()]

    agree(layer, action, lacking=LACKING)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_whole_jacobians_and_hessians(strategy: str, vectorize: bool) -> None:
    """Of a small network, by every strategy torch has: row by row, by vmap, forward over reverse."""
    if strategy == "forward-mode" and not vectorize:
        pytest.skip("torch has no such strategy")
    results = []
    for nn in (scratchnn.nn, torch.nn):
        torch.manual_seed(2)
        model = torch.nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.AvgPool2d(2), nn.LayerNorm((4, 2, 2))
        ).double()
        model.eval()
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(model, x, vectorize=vectorize, strategy=strategy)
        weights = torch.randn(1, 4, 2, 2, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(
            lambda x, model=model, weights=weights: (model(x) * weights).sin().sum(),
            x,
            vectorize=vectorize,
            outer_jacobian_strategy=strategy,
        )
        results.append((jacobian, hessian))
    close(*results)


@of(LAYERS)
@quiet
def test_batches_of_incoming_gradients(layer: Layer) -> None:
    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        batch = torch.stack([weighting(output, seed) for seed in range(3)])
        sources = differentiable(module, inputs)
        together = grad(output, sources, batch, is_grads_batched=True, retain_graph=True)
        apart = [grad(output, sources, one, retain_graph=True) for one in batch]
        close(together, tuple(map(torch.stack, zip(*apart, strict=True))))
        return together

    agree(layer, action)


# --- which gradients are asked for, and how often ------------------------------------------------------------------


@of(LAYERS, dear=True)
@quiet
def test_the_graph_lives_for_one_backward(layer: Layer) -> None:
    """Unless it is retained; gradients add up in ``grad``; a second time is refused as torch refuses it."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        output.backward(weighting(output), retain_graph=True)
        first = [x.grad.clone() for x in differentiable(module, inputs)]
        output.backward(weighting(output))
        assert all(torch.equal(2 * g, x.grad) for g, x in zip(first, differentiable(module, inputs), strict=True))
        return first

    agree(layer, action)

    def again(module: Module, *inputs: Tensor) -> Tensor:
        output = module(*inputs)
        output.backward(weighting(output))
        return grad(output, inputs[0], weighting(output))[0]

    module, theirs = pair(layer)
    saved = []
    with autograd_graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        module(*leaves(draw(layer)))
    found, expected = (outcome(again, side, leaves(draw(layer))) for side in (module, theirs))
    if saved:
        assert isinstance(found, RuntimeError)
        assert "Trying to backward through the graph a second time" in str(found)
    elif not isinstance(expected, Exception):  # a layer that saves nothing can go back as often as one likes
        close(found, expected)


@of(LAYERS)
@quiet
def test_unused_and_selected_leaves(layer: Layer) -> None:
    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        other = torch.ones(3, dtype=torch.float64, requires_grad=True)
        sources = [other, *differentiable(module, inputs)]
        weights = weighting(output)
        with pytest.raises(RuntimeError, match="not to have been used"):
            grad(output, sources, weights, retain_graph=True)
        nothing, *some = grad(output, sources, weights, allow_unused=True, retain_graph=True)
        assert nothing is None
        zero, *same = grad(output, sources, weights, materialize_grads=True, retain_graph=True)
        assert torch.equal(zero, torch.zeros_like(other))
        assert all(map(torch.equal, some, same))
        for chosen in sources[1:]:  # one leaf at a time, and only it
            output.backward(weights, inputs=[chosen], retain_graph=True)
            assert [x.grad is not None for x in sources] == [x is chosen for x in sources]
            some.append(chosen.grad)
            chosen.grad = None
        return some

    agree(layer, action)


@of(LAYERS, dear=True)
@quiet
def test_what_is_frozen_costs_nothing(layer: Layer) -> None:
    """For each choice of leaves: the same gradients, none for the others, and no more saved than torch saves."""

    def action(kept: tuple[bool, ...], module: Module, *inputs: Tensor) -> list[Any]:
        operands = differentiable(module, inputs)
        for x, keep in zip(operands, kept, strict=True):
            x.requires_grad_(keep)
        saved = {}

        def pack(x: Tensor) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with autograd_graph.saved_tensors_hooks(pack, lambda x: x):
            output = module(*inputs)
        sizes.append(sum(saved.values()))
        assert output.requires_grad is any(kept)
        wanted = [x for x, keep in zip(operands, kept, strict=True) if keep]
        return [output, *(grad(output, wanted, weighting(output)) if wanted else ())]

    module, _ = pair(layer)
    for kept in itertools.product((False, True), repeat=len(differentiable(module, leaves(draw(layer))))):
        sizes: list[int] = []
        agree(layer, lambda *args, kept=kept: action(kept, *args))
        assert sizes[0] <= sizes[1] + 1024, f"{kept}: {sizes[0]} bytes saved, torch {sizes[1]}"


@of([layer for layer in LAYERS if layer.family in ("conv", "linear")])
@quiet
def test_frozen_weights_are_not_computed(layer: Layer) -> None:
    """Of sums over products, by far the dearest, only those that are asked for are taken."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    module, _ = pair(layer)
    inputs = leaves(draw(layer))
    sources = differentiable(module, inputs)
    counts = []
    for wanted in ([*sources], *([x] for x in sources)):
        for x in sources:
            x.requires_grad_(any(x is y for y in wanted))
        output = module(*inputs)
        names: list[str] = []
        with Names():
            grad(output, wanted, weighting(output))
        counts.append(sum(name.startswith("scratchnn::") for name in names))
    assert counts[0] <= sum(counts[1:])
    assert all(count < counts[0] for count in counts[1:]) or len(sources) < 2


@of(layer for layer in LAYERS if layer.name != "Identity")  # whose output is its input
@quiet
def test_with_and_without_grad_mode(layer: Layer) -> None:
    """Nothing is recorded without it, nested switches are obeyed, and the numbers are the same ones."""
    module, _ = pair(layer)
    inputs = leaves(draw(layer))

    def run() -> Tensor:
        torch.manual_seed(1)
        return module(*inputs)

    module.train(not any(name.startswith("running") for name, _ in module.named_buffers()))
    recorded = run()
    assert recorded.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = run()
            with torch.enable_grad():
                inside = run()
        assert not output.requires_grad
        assert output.is_inference() is (mode is torch.inference_mode)
        assert inside.requires_grad is (mode is torch.no_grad)
        assert torch.equal(output, recorded)
        assert torch.equal(inside, recorded)
    with torch.set_grad_enabled(False):
        assert not run().requires_grad


@of(LAYERS, dear=True)
@quiet
def test_inference_tensors(layer: Layer) -> None:
    """Inputs or whole layers made in inference mode: used, differentiated and refused as torch's are."""

    def inputs_of_inference(module: Module, *inputs: Tensor) -> list[Any]:
        with torch.inference_mode():
            own = tuple(x.clone() for x in inputs)
            inside = module(*own)
        module.requires_grad_(False)
        torch.manual_seed(1)
        return [inside, module(*own)]

    agree(layer, inputs_of_inference)

    def gradients_of_weights(module: Module, *inputs: Tensor) -> Any:
        with torch.inference_mode():
            own = tuple(x.clone() for x in inputs)
        output = module(*own)
        return grad(output, list(module.parameters()), weighting(output)) if output.requires_grad else ()

    found = [outcome(gradients_of_weights, module, leaves(draw(layer))) for module in pair(layer)]
    if isinstance(found[0], Exception):  # torch may refuse more than we do: ours saves less
        assert "Inference tensors cannot be saved for backward" in str(found[0])
        assert layer in COPIED_BY_TORCH or str(found[1]) == str(found[0])

    with torch.inference_mode():
        module, reference = pair(layer)
        torch.manual_seed(1)
        expected = reference.eval()(*draw(layer))
        torch.manual_seed(1)
        close(module.eval()(*draw(layer)), expected, 1e-6)


# --- the graph ----------------------------------------------------------------------------------------------------


def nodes_of(output: Tensor) -> list[Any]:
    """All nodes of the graph that leads to the output."""
    pending, seen = [output.grad_fn], []
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.append(node)
            pending += [following for following, _ in node.next_functions]
    return seen


@of(LAYERS)
@quiet
def test_the_graph_leads_to_the_leaves(layer: Layer) -> None:
    """It ends in exactly the leaves; where the layer has a node it bears a name; hooks of nodes see what flows."""
    module, _ = pair(layer)
    inputs = leaves(draw(layer))
    output = module(*inputs)
    nodes = nodes_of(output)
    found = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    if output is not inputs[0]:
        assert found == {id(x) for x in differentiable(module, inputs)}
        node = output.grad_fn
        assert re.search(r"Backward\d*$", node.name())
        assert isinstance(node, autograd_graph.Node)
        assert isinstance(node.metadata, dict)
        assert autograd_graph.get_gradient_edge(output).node is node
    seen: list[Any] = []
    handles = [node.register_hook(lambda after, before: seen.append((after, before))) for node in nodes]
    handles += [node.register_prehook(lambda before: seen.append(before)) for node in nodes]
    output.backward(weighting(output), retain_graph=True)
    assert len(seen) == 2 * len(nodes)
    for handle in handles:
        handle.remove()
    output.backward(weighting(output))
    assert len(seen) == 2 * len(nodes)


@of(LAYERS)
@quiet
def test_hooks_change_gradients(layer: Layer) -> None:
    """A hook on a node, on the output, on a leaf and after accumulation each has its word."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        sources = differentiable(module, inputs)
        order: list[str] = []

        def doubled(name: str) -> Callable[[Tensor], Tensor]:
            return lambda g: order.append(name) or 2 * g

        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda gradients: tuple(3 * g if g is not None else g for g in gradients))
            output.retain_grad()
        output.register_hook(doubled("output"))
        for x in sources:
            x.register_hook(doubled("leaf"))
            x.register_post_accumulate_grad_hook(lambda x: x.grad.mul_(5))
        edges = [autograd_graph.get_gradient_edge(x) for x in sources]
        autograd_graph.register_multi_grad_hook(sources, lambda gradients: order.append(f"all {len(gradients)}"))
        output.backward(weighting(output))
        assert order[0] == "output"
        assert order[-1] == f"all {len(sources)}"
        assert len(edges) == order.count("leaf")
        return [x.grad for x in sources]

    agree(layer, action)


@of(LAYERS, dear=True)
@quiet
def test_saved_tensors_may_live_elsewhere(layer: Layer) -> None:
    """Hooks pack what is saved away and bring back a copy, or forbid it: the same gradients, of second order too."""
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> int:
        kept[len(kept)] = x.detach().clone()
        return len(kept) - 1

    module, _ = pair(layer)
    found = []
    for hooks in (
        nullcontext(),
        autograd_graph.saved_tensors_hooks(pack, lambda key: kept[key].clone()),
        autograd_graph.save_on_cpu(),
    ):
        inputs = leaves(draw(layer))
        torch.manual_seed(1)
        with hooks:
            output = module(*inputs)
        sources = [*differentiable(module, inputs), weighting(output).requires_grad_()]
        first = grad(output, sources[:-1], sources[-1], create_graph=True)
        value = sum((g * weighting(g)).square().sum() for g in first)
        found.append([*first, *grad(value, sources, allow_unused=True, materialize_grads=True)])
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))

    def forbidden(module: Module, *inputs: Tensor) -> Tensor:
        with (
            autograd_graph.disable_saved_tensors_hooks("no hooks here"),
            autograd_graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        ):
            return module(*inputs)

    agree(layer, forbidden)


@of(LAYERS, dear=True)
@quiet
def test_what_is_changed_after_the_call(layer: Layer) -> None:
    """A saved tensor that is overwritten is noticed; one that is not saved may be, and the gradients are right.

    Nothing is refused that torch accepts, but for what torch copies first.
    """

    def action(position: int, module: Module, *inputs: Tensor) -> list[Any]:
        inputs = tuple(x.clone() for x in inputs)
        output = module(*inputs)
        sources = differentiable(module, inputs)
        weights = weighting(output)
        with torch.no_grad():
            [*inputs, *module.parameters(), *module.buffers(), output][position].add_(1)
        return grad(output, sources, weights)

    def untouched(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        return grad(output, differentiable(module, inputs), weighting(output))

    module, theirs = pair(layer)
    expected = outcome(untouched, theirs, leaves(draw(layer)))
    count = len([*draw(layer), *module.parameters(), *module.buffers()]) + 1
    for position in range(count):
        mine, other = (
            outcome(lambda *args, at=position: action(at, *args), side, leaves(draw(layer))) for side in pair(layer)
        )
        if isinstance(mine, Exception):
            assert "modified by an inplace operation" in str(mine)
            assert isinstance(other, Exception) or layer in COPIED_BY_TORCH, f"torch lets tensor {position} be changed"
        else:
            close(mine, expected, 1e-6)


@of(LAYERS, dear=True)
@quiet
def test_changes_that_autograd_saves_from(layer: Layer) -> None:
    """Under ``allow_mutation_on_saved_tensors`` the graph keeps what was there before."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        weights = weighting(output)
        expected = grad(output, differentiable(module, inputs), weights)
        torch.manual_seed(1)
        with autograd_graph.allow_mutation_on_saved_tensors():
            own = tuple(x.clone() if x.requires_grad else x for x in inputs)
            output = module(*own)
            kept = output * 1
            own[0].mul_(0)
            output.mul_(0)
            close(grad(kept, differentiable(module, inputs), weights), expected)
        return []

    agree(layer, action, lacking="Tensor-likes are not close")  # torch forgets that RReLU's slopes have changed


@of(LAYERS)
@quiet
def test_the_output_may_be_changed_further(layer: Layer) -> None:
    """In place, as the next layer may do: the gradients follow, unless the layer has saved its output, as torch's."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*(x * 1 if x.requires_grad else x for x in inputs))
        output.mul_(2)
        return [output, *grad(output, differentiable(module, inputs), weighting(output))]

    found, expected = (outcome(action, module, leaves(draw(layer))) for module in pair(layer))
    if isinstance(found, Exception):
        assert type(found) is type(expected)
        assert "modified by an inplace operation" in str(found)
    elif not isinstance(expected, Exception):
        close(found, expected, 1e-6)


@of(LAYERS)
@quiet
def test_called_twice_before_backward(layer: Layer) -> None:
    """As in a Siamese network, and with statistics that run on."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        first = module(*inputs)
        second = module(inputs[0] * 2, *inputs[1:])
        total = (first * weighting(first)).sum() + (second * weighting(second, 8)).sum()
        return [*grad(total, differentiable(module, inputs)), *module.buffers()]

    agree(layer, action)


@of(LAYERS)
@quiet
def test_the_graph_is_freed_with_its_output(layer: Layer) -> None:
    """At once, by reference counts: no cycle waits for the garbage collector with an image in its hands."""
    module, _ = pair(layer)
    for retain in (None, False, True):
        inputs = leaves(draw(layer))
        own = inputs[0] * 1
        output = module(own, *inputs[1:])
        if retain is not None:
            grad(output, inputs[0], weighting(output), create_graph=retain)
        alive = weakref.ref(own), weakref.ref(output)
        del own, output
        assert [x() for x in alive] == [None, None]


@of(LAYERS, dear=True)
@quiet
def test_incoming_gradients_of_every_form(layer: Layer) -> None:
    """Expanded, transposed, sliced, in either memory format, zero; and refused where they do not fit."""

    def forms(output: Tensor) -> list[Tensor]:
        g = weighting(output)
        found = [torch.ones((), dtype=g.dtype).expand(g.shape), torch.zeros_like(g), torch.stack([g, g], -1)[..., 0]]
        found.append(g.transpose(0, -1).contiguous().transpose(0, -1))
        found.append(g[:1].expand(g.shape))
        if g.dim() in (4, 5):
            found.append(g.to(memory_format=torch.channels_last if g.dim() == 4 else torch.channels_last_3d))
        return found

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        output = module(*inputs)
        sources = differentiable(module, inputs)
        found = [grad(output, sources, form, retain_graph=True) for form in forms(output)]
        found.append(grad(output.sum(), sources, retain_graph=True))
        for wrong in (torch.ones(output.numel() + 1, dtype=output.dtype), torch.ones_like(output).cfloat()):
            with pytest.raises(RuntimeError):
                grad(output, sources, wrong, retain_graph=True)
        return found

    agree(layer, action)


@of(LAYERS, dear=True)
@quiet
def test_anomalies_are_found_and_named(layer: Layer) -> None:
    """``detect_anomaly`` tells which operation gave NaN, and where in the forward pass it was called."""
    module, theirs = pair(layer)

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        with torch.autograd.detect_anomaly(check_nan=True):
            output = module(*inputs)
            if output.grad_fn is not None:
                assert "in action" in "".join(output.grad_fn.metadata["traceback_"])
            return grad(output, differentiable(module, inputs), torch.full_like(output, torch.nan))

    found, expected = (outcome(action, side, leaves(draw(layer))) for side in (module, theirs))
    assert isinstance(found, Exception) is isinstance(expected, Exception), (found, expected)
    if isinstance(found, Exception):
        assert type(found) is type(expected)
        assert "returned nan values in its" in str(found)
    else:
        close(found, expected)


@of(LAYERS)
@quiet
def test_gradients_require_gradients_only_on_demand(layer: Layer) -> None:
    module, _ = pair(layer)
    inputs = leaves(draw(layer))
    output = module(*inputs)
    sources = differentiable(module, inputs)
    for mode in (nullcontext, torch.no_grad):
        with mode():
            assert not any(g.requires_grad for g in grad(output, sources, weighting(output), retain_graph=True))
    weights = weighting(output).requires_grad_()
    assert all(g.requires_grad for g in grad(output, sources, weights, create_graph=True))


@of(LAYERS, dear=True)
@quiet
def test_inside_functions_of_the_users_own(layer: Layer) -> None:
    """A layer called in the forward or backward pass of a custom function, with its own graph inside."""

    class Around(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, module: Module, *inputs: Tensor) -> Tensor:
            ctx.module = module
            with torch.enable_grad():
                ctx.inputs = leaves(inputs)
                ctx.output = module(*ctx.inputs)
            return ctx.output.detach().clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple:
            wanted = [x for x in ctx.inputs if x.requires_grad]
            gradients = iter(grad(ctx.output, wanted, g))
            return None, *(next(gradients) if x.requires_grad else None for x in ctx.inputs)

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        wanted = [x for x in inputs if x.requires_grad]
        output = Around.apply(module, *inputs)
        torch.manual_seed(1)
        direct = module(*inputs)
        found = grad(output, wanted, weighting(output))
        close(found, grad(direct, wanted, weighting(direct)))
        return found

    agree(layer, action)


def test_statistics_have_no_gradient() -> None:
    """A gradient by them is refused, as torch refuses it, and not left out."""
    x, zeros, ones = torch.randn(4, 3, 5), torch.zeros(3), torch.ones(3)
    for training in (False, True):
        for statistics in ((zeros.clone().requires_grad_(), ones), (zeros, ones.clone().requires_grad_())):
            for functional in (scratchnn.functional, torch.nn.functional):
                with pytest.raises(RuntimeError, match="not differentiable"):
                    functional.batch_norm(x, *statistics, training=training)


def test_statistics_that_have_moved_on() -> None:
    """A backward pass through those of before is refused: torch takes it with those of now, and errs."""
    layer = scratchnn.nn.BatchNorm1d(3)
    x = torch.randn(4, 3, requires_grad=True)
    output = layer.eval()(x)
    layer.train()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()

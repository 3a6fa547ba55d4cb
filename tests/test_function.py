"""The Function and the Remembered that are written in C++, beside torch.autograd.Function and functools.lru_cache."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from scratchnn import _C, functional
from scratchnn.ops._common import Function

X = torch.linspace(-1, 2, 6, dtype=torch.float64)

# In place on part of a tensor, with the derivative taken from the output.
IN_PLACE = ["relu_", "elu_", "selu_", "celu_", "hardtanh_", "leaky_relu_", "rrelu_"]


def both(**members: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The same function, called by way of ours and by way of torch's."""
    statics = {name: staticmethod(member) for name, member in members.items()}
    statics.setdefault("jvp", staticmethod(lambda ctx, *tangents: None))
    statics.setdefault("vmap", staticmethod(lambda info, in_dims, *args: None))
    theirs = type("Made", (torch.autograd.Function,), {n: statics[n] for n in members})
    return [type("Made", (Function,), statics).call, theirs.apply]


def product(**changed: Callable[..., Any]) -> list[Callable[..., Any]]:
    """``a b``, with some of its methods changed."""

    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return g * b, g * a

    return both(**{"forward": forward, "setup_context": setup_context, "backward": backward} | changed)


def leaf(seed: float = 1) -> Tensor:
    return (seed * X).requires_grad_()


class Broken(Exception):
    """What the functions here raise."""


def broken(*args: Any) -> Any:
    raise Broken


def test_it_is_a_function_of_torch() -> None:
    for call in product():
        a, b = leaf(), leaf(2)
        output = call(a, b)
        assert output.grad_fn.name() == "MadeBackward"
        nodes = [node for node, _ in output.grad_fn.next_functions]
        assert all(node.variable is x for node, x in zip(nodes, (a, b), strict=True))
        for create_graph in (True, False):
            first = grad(output.sum(), (a, b), create_graph=create_graph, retain_graph=True)
            assert torch.equal(first[0], b)
            assert torch.equal(first[1], a)
            assert first[0].requires_grad is create_graph


@pytest.mark.parametrize("where", ["forward", "setup_context", "backward"])
def test_errors_pass_through_and_leave_nothing_behind(where: str) -> None:
    for call in product(**{where: broken}):
        a, b = leaf(), leaf(2)
        alive = weakref.ref(a)
        with pytest.raises(Broken):
            call(a, b).sum().backward()
        del a
        gc.collect()
        assert alive() is None


def test_a_backward_pass_that_failed_may_be_tried_again() -> None:
    fail = [True]

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        if fail[0]:
            raise Broken
        a, b = ctx.saved_tensors
        return g * b, g * a

    for call in product(backward=backward):
        a, b = leaf(), leaf(2)
        output = call(a, b)
        fail[0] = True
        with pytest.raises(Broken):
            output.sum().backward()
        fail[0] = False
        output.sum().backward()
        assert torch.equal(a.grad, b)
        with pytest.raises(RuntimeError, match="second time"):
            output.sum().backward()


def test_what_backward_returns_is_checked() -> None:
    for call in product(backward=lambda ctx, g: (g,)):
        with pytest.raises(RuntimeError, match="gradients"):
            call(leaf(), leaf(2)).sum().backward()
    for call in product(backward=lambda ctx, g: (g, 1.0)):
        with pytest.raises((RuntimeError, TypeError)):
            call(leaf(), leaf(2)).sum().backward()
    for call in product(backward=lambda ctx, g: (g[:2], g)):
        with pytest.raises(RuntimeError, match="invalid gradient"):
            call(leaf(), leaf(2)).sum().backward()
    for call in product(backward=lambda ctx, g: (None, g)):
        a, b = leaf(), leaf(2)
        call(a, b).sum().backward()
        assert a.grad is None
        assert torch.equal(b.grad, torch.ones_like(b))


def test_undefined_gradients_are_zeros_on_demand() -> None:
    for materialize in (True, False):
        seen: list[Any] = []

        def setup_context(ctx: Any, inputs: tuple, output: Any, materialize: bool = materialize) -> None:
            ctx.set_materialize_grads(materialize)

        def backward(ctx: Any, g: Tensor, h: Tensor | None, seen: list[Any] = seen) -> Tensor:
            seen.append(h)
            return g

        calls = both(forward=lambda a: (2 * a, 3 * a), setup_context=setup_context, backward=backward)
        for call in calls:
            call(leaf())[0].sum().backward()
        for h in seen:
            assert torch.equal(h, torch.zeros_like(X)) if materialize else h is None


def test_needs_input_grad() -> None:
    """In the forward pass what requires a gradient; in the backward pass no more than that."""
    seen: list[tuple[bool, ...]] = []
    for call in product(backward=lambda ctx, g: seen.append(ctx.needs_input_grad) or (g, g)):
        for kept in ((True, True), (True, False), (False, True)):
            a, b = (leaf(seed).detach().requires_grad_(keep) for seed, keep in zip((1, 2), kept, strict=True))
            seen.clear()
            call(a, b).sum().backward()
            assert seen == [kept]


def test_gradients_that_nobody_asks_for_are_not_needed() -> None:
    """Which torch's own Function does not say."""
    seen: list[tuple[bool, ...]] = []
    call, _ = product(backward=lambda ctx, g: seen.append(ctx.needs_input_grad) or (g, g))
    a, b = leaf(), leaf(2)
    output = call(a, b)
    grad(output.sum(), b, retain_graph=True)
    grad(output.sum(), a, retain_graph=True)
    output.sum().backward()
    assert seen == [(False, True), (True, False), (True, True)]


def test_inputs_die_with_the_backward_pass() -> None:
    for call in product():
        a, b = leaf() * 1, leaf(2) * 1
        output = call(a, b)
        alive = weakref.ref(a), weakref.ref(b)
        del a, b
        output.sum().backward()
        assert [x() for x in alive] == [None, None]  # with no help of the garbage collector


@pytest.mark.parametrize("name", IN_PLACE)
def test_views_changed_in_place_are_freed(name: str) -> None:
    """Their history is that of the whole tensor, which leads to the node: it must not hold on to that."""
    for functions in (functional, torch.nn.functional):
        base = leaf() * 1
        part = base[1:4]
        getattr(functions, name)(part)
        alive = weakref.ref(base)
        base.sum().backward(retain_graph=True)
        del base, part
        assert alive() is None, functions


def test_views_that_may_not_be_changed_are_not() -> None:
    """Refused before anything is written."""
    for functions in (functional, torch.nn.functional):
        x = leaf() * 1
        with torch.no_grad():
            made_without = x[:2]
        single = leaf()
        for view in (x.unbind(0)[0], x.chunk(2)[0], single[:2]):
            before = view.detach().clone()
            with pytest.raises(RuntimeError, match="view"):
                functions.relu_(view)
            assert torch.equal(view.detach(), before)
        with pytest.raises(RuntimeError):
            functions.relu_(made_without)


@pytest.mark.parametrize("fails", ["pack", "unpack"])
def test_hooks_that_raise(fails: str) -> None:
    pack, unpack = (broken if name == fails else (lambda x: x) for name in ("pack", "unpack"))
    for call in product():
        a, b = leaf(), leaf(2)
        alive = weakref.ref(a)
        with pytest.raises(Broken), saved_tensors_hooks(pack, unpack):
            call(a, b).sum().backward()
        del a
        gc.collect()
        assert alive() is None


def test_hooks_that_free_what_is_being_unpacked() -> None:
    """A hook runs the backward pass of the same graph, which is over for good then: the pass under way goes on."""
    pending = [True]

    def unpack(x: Tensor) -> Tensor:
        if pending:
            pending.clear()
            grad(output, a, torch.ones_like(output))
            gc.collect()
        return x.clone()

    call, _ = product()  # torch's own Function reads what has been freed
    a, b = leaf(), leaf(2)
    with saved_tensors_hooks(lambda x: x.clone(), unpack):
        output = call(a, b)
    assert torch.equal(grad(output, b, torch.ones_like(output), retain_graph=True)[0], a)


def test_the_context_may_outlive_its_node() -> None:
    kept: list[Any] = []

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.remark = "kept"
        kept.append(ctx)

    call, _ = product(setup_context=setup_context)
    output = call(leaf(), leaf(2))
    assert len(kept[0].saved_tensors) == 2
    del output
    assert kept[0].remark == "kept"
    assert kept[0].needs_input_grad == (True, True)
    with pytest.raises(RuntimeError, match="during the backward pass only"):
        _ = kept[0].saved_tensors


def test_hooks_of_the_graph_that_free_it() -> None:
    for call in product():
        a = leaf()
        held = [call(a * 1, leaf(2))]
        held[0].grad_fn.register_prehook(lambda gradients, held=held: held.clear())
        held[0].sum().backward()
        assert a.grad is not None


def test_threads_share_a_node() -> None:
    """Each asks for another gradient."""
    call, _ = product()
    a, b = leaf(), leaf(2)
    output = call(a, b)
    together = threading.Barrier(4)

    def work(number: int) -> bool:
        together.wait()
        wanted, other = (a, b) if number % 2 else (b, a)
        return all(torch.equal(grad(output.sum(), wanted, retain_graph=True)[0], other) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_long_chains_are_freed_without_recursion() -> None:
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = functional.relu(y)
    y.backward()
    assert x.grad == 1
    del y


def test_calls_leave_nothing_behind() -> None:
    call, _ = product()
    a, b = leaf(), leaf(2)

    def run(count: int) -> None:
        for _ in range(count):
            call(a, b).sum().backward()
            with torch.no_grad():
                call(a, b)
            with pytest.raises(TypeError):
                call(a)

    run(10)
    gc.collect()
    before = len(gc.get_objects())
    run(200)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


# --- Remembered ---------------------------------------------------------------------------------------------------


class Counting:
    """A function that gives its arguments back in a list, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        self.calls += 1
        return [*args, *kwargs.values()]


def test_constants_are_remembered() -> None:
    function = Counting()
    remembered = _C.Remembered(function)
    for args in ((1,), (2**70,), (None, "a"), ((1, 2), (3, (None,))), ()):
        first = remembered(*args)
        assert first == list(args)
        assert remembered(*args) is first
    assert function.calls == 5


def test_equal_arguments_of_other_types_are_others() -> None:
    remembered = _C.Remembered(Counting())
    for order in ((1, True, 1.0), (False, 0.0, 0)):
        for _ in range(2):
            for value in order:
                (found,) = remembered(value)
                assert type(found) is type(value)
                ((inner,),) = remembered((value,))
                assert type(inner) is type(value)


def test_what_is_no_key_is_passed_on() -> None:
    function = Counting()
    remembered = _C.Remembered(function)
    for value in ([1], 1.0, {}, ([1],), torch.tensor(1), object()):
        assert remembered(value)[0] is value
        assert remembered(value)[0] is value
    assert remembered(a=1) == [1]
    assert remembered(a=1) == [1]
    assert function.calls == 14


def test_errors_are_not_remembered() -> None:
    calls: list[int] = []

    def function(value: int) -> int:
        calls.append(value)
        if len(calls) < 3:
            raise Broken
        return value

    remembered = _C.Remembered(function)
    for _ in range(2):
        with pytest.raises(Broken):
            remembered(7)
    assert remembered(7) == 7
    assert remembered(7) == 7
    assert len(calls) == 3


def test_it_does_not_grow_for_ever() -> None:
    remembered = _C.Remembered(lambda value: [value])
    first = remembered(0)
    for value in range(1, 5000):
        remembered(value)
    assert remembered(0) == first
    assert remembered(0) is not first


def test_cycles_through_it_are_collected() -> None:
    class Holder:
        def method(self, value: int) -> int:
            return value

    holder = Holder()
    holder.remembered = _C.Remembered(holder.method)
    holder.remembered(1)
    alive = weakref.ref(holder)
    del holder
    gc.collect()
    assert alive() is None

"""A step of training, watched: which layers call which, and what each of them costs.

Unless numbers are wanted, the step runs on the meta device, where tensors have shapes and no memory. The model itself
is called, with other parameters and buffers in the place of its own, and put back as it was.
"""

from __future__ import annotations

import bisect
import contextlib
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from scratchnn.summary.field import Field
from scratchnn.summary.layer import Extent, Layer, ReceptiveField
from scratchnn.summary.tracker import Tracker
from scratchnn.testing.nested import map_tensors, named_tensors

__all__ = ["trace"]

Arguments = tuple[tuple, dict[str, Any]]


def trace(model: Module, arguments: Arguments, compute: bool) -> tuple[Layer, dict[int, tuple[Module, list[Tensor]]]]:
    """Run a model forward and backward.

    Args:
        model: with parameters on the CPU or the meta device.
        arguments: ``(args, kwargs)`` to call it with.
        compute: with numbers, on the model's device; else with shapes alone.

    Returns:
        the call of the model, with all calls in it; and for the calls in which no other layer was called, by the ``id``
        of their :class:`Layer`, the module and the tensors it was given.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    def stand_in(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if compute else torch.empty_like(tensor.detach(), device="meta")

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"summary(): the lazy layer of {name!r} has no shape yet, call the model once before")
    device = contextlib.nullcontext() if compute else torch.device("meta")
    with _as_it_was(model), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), device:
        given = {
            f"model.{name}": stand_in(tensor).requires_grad_(tensor.requires_grad)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        args, kwargs = map_tensors(stand_in, arguments)
        counter = FlopCounterMode(display=False)
        watch = _Watch(model, (args, kwargs), counter, {tensor.untyped_storage()._cdata for tensor in given.values()})
        with watch.hooks(), counter, watch:
            functional_call(_Step(model, watch), given, args, kwargs)
    return watch.root, watch.innermost


class _Step(Module):
    """Forward and backward as one call, so that layers that are called again for their gradient are the same ones."""

    def __init__(self, model: Module, watch: _Watch) -> None:
        super().__init__()
        self.model, self.watch = model, watch

    def forward(self, *args: Any, **kwargs: Any) -> None:
        with torch.autograd.graph.saved_tensors_hooks(self.watch.save, lambda tensor: tensor):
            output = self.model(*args, **kwargs)
        self.watch.forward_ends()
        ends = [tensor for tensor in named_tensors(output, "").values() if tensor.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(tensor) for tensor in ends])


@contextlib.contextmanager
def _as_it_was(model: Module) -> Iterator[None]:
    """Puts back every attribute that the modules had: a ``forward`` may keep what it computes."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    names = ("_parameters", "_buffers")
    tables = [(module, name, dict(vars(module)[name])) for module, _ in attributes for name in names]
    try:
        yield
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for module, name, before in tables:
            table = vars(module)[name]
            table.clear()
            table.update(before)


class _Watch(TorchDispatchMode):
    """Sees every operator of both passes, and charges what it costs to the layer that it belongs to.

    In the backward pass that is the layer whose forward pass made the node of the graph that is running. Nodes are
    numbered in the order in which they are made, so the numbers at which layers began and ended tell.
    """

    def __init__(self, model: Module, arguments: Arguments, counter: Any, parameters: set[int]) -> None:
        super().__init__()
        self.model, self.counter = model, counter
        self.innermost: dict[int, tuple[Module, list[Tensor]]] = {}
        self._tracker = Tracker()
        for number, tensor in enumerate(named_tensors(arguments, "").values()):
            self._tracker.begin(number, tensor)
        self._sizes = [tensor.shape for tensor in named_tensors(arguments, "").values()]
        self._running: list[tuple[Layer, Module]] = []
        self._calls: Counter[str] = Counter()
        self._saved = set(parameters)  # storages that are not to be counted (again)
        self._forward = True
        self._begins: list[int] = []  # numbers of nodes, and whose the nodes from there on are
        self._owners: list[Layer] = []

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on every layer, for as long as the block lasts."""
        handles = []
        for name, module in self.model.named_modules():
            if "parametrizations" in name.split("."):  # part of the layer whose weight they make
                continue
            handles += [
                module.register_forward_pre_hook(
                    lambda module, args, kwargs, name=name: self._begin(name, module, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda module, args, output: self._end(output)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str, module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self._forward:  # called again for its gradient, as checkpointing does
            return
        layer = Layer(name, type(module).__name__, self._calls[name])
        self._calls[name] += 1
        if self._running:
            parent = self._running[-1][0]
            parent.parts.append(layer)
            self.innermost.pop(id(parent), None)
        else:
            self.root = layer
        self.innermost[id(layer)] = module, list(named_tensors((args, kwargs), "").values())
        self._running.append((layer, module))
        self._note_owner()

    def _end(self, output: Any) -> None:
        if not self._forward:
            return
        layer, _ = self._running.pop()
        tensors = list(named_tensors(output, "").values())
        layer.shapes = [tuple(tensor.shape) for tensor in tensors]
        if tensors:
            layer.receptive_field = self._extents(self._tracker.field(tensors[0]))
        self._note_owner()

    def _note_owner(self) -> None:
        if self._running:
            self._begins.append(torch.autograd._get_sequence_nr())
            self._owners.append(self._running[-1][0])

    def forward_ends(self) -> None:
        """The backward pass is next."""
        self._forward = False

    def save(self, tensor: Tensor) -> Tensor:
        """A tensor is kept for the backward pass."""
        storage = tensor.untyped_storage()
        if self._running and storage._cdata not in self._saved:
            self._saved.add(storage._cdata)
            self._running[-1][0].own_saved += storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        result = func(*args, **kwargs)
        products = (self.counter.get_total_flops() - before) // 2  # a multiplication and an addition are two
        if self._forward and self._running:
            layer, module = self._running[-1]
            layer.own_forward += products
            self._tracker.follow(func, args, kwargs, result, module)
        elif not self._forward and products:
            self._owner().own_backward += products
        return result

    def _owner(self) -> Layer:
        """The layer that the node of the graph which is running belongs to."""
        node = torch._C._current_autograd_node()
        at = bisect.bisect_right(self._begins, node._sequence_nr()) - 1 if node is not None else 0
        return self._owners[max(at, 0)]

    def _extents(self, field: Field) -> ReceptiveField:
        extents: dict[int, list[Extent]] = {}
        for axis in sorted(field.reaches):
            reach, size = field.reaches[axis], self._sizes[axis.input][axis.dim]
            moves = axis in field.places
            low, high = reach.low(0), reach.high(0)
            if not moves:  # the same for all: no more than there is
                low, high = max(low, 0), min(high, size - 1)
            extent = Extent(
                reach.size if moves else high - low + 1,
                reach.stride if moves else Fraction(0),
                low,
                not moves and (low, high) == (0, size - 1),
            )
            extents.setdefault(axis.input, []).append(extent)
        return {number: tuple(of_axes) for number, of_axes in extents.items()}

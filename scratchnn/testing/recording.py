"""A run of a model, written down call by call: what every layer gave, and the gradient that came back to it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Module

from scratchnn.testing.nested import map_tensors, named_tensors

__all__ = ["Call", "CallName", "Recording", "record"]


class CallName(NamedTuple):
    """A call of a layer: its name in the model, and which of its calls this is, from 0."""

    layer: str
    index: int

    def __str__(self) -> str:
        name = self.layer or "the model itself"
        return f"{name}, call {self.index + 1}" if self.index else name


@dataclass
class Call:
    """What went through a layer in one call.

    Attributes:
        leaf: whether no other layer was called in the course of it.
        arguments: ``(args, kwargs)``, copies; None where they were not wanted.
        outputs: copies of the tensors it gave, by their path in the output.
        gradients: of these, those that a gradient came back to.
    """

    leaf: bool
    arguments: tuple[tuple, dict[str, Any]] | None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Recording:
    """A run of a model.

    Attributes:
        calls: in the order in which they ended, so that the parts of a block come before the block.
        output: of the model, as it is: with its graph.
        error: the exception that ended the run, and the innermost layer that it came from.
    """

    calls: dict[CallName, Call] = field(default_factory=dict)
    output: Any = None
    error: tuple[CallName, Exception] | None = None


def record(
    model: Module,
    arguments: tuple[tuple, dict[str, Any]],
    *,
    keep_arguments: bool = False,
    forced: Recording | None = None,
) -> Recording:
    """Run a model and write down what every layer of it gives.

    Gradients are added when one goes backward through the output.

    Args:
        model: the model.
        arguments: ``(args, kwargs)`` of the call.
        keep_arguments: copy what the layers are given as well.
        forced: another run, whose outputs each innermost layer is made to give once its own are written down. All that
            follows then computes with the other run's numbers, and a ReLU decides as it did there, but the gradient
            goes backward through this model's own layers.
    """
    recording = Recording()
    try:
        with _hooks(model, recording, keep_arguments, forced) as running:
            recording.output = model(*arguments[0], **arguments[1])
    except Exception as error:
        recording.error = (running[-1][0] if running else CallName("", 0), error)
    return recording


class _Running(NamedTuple):
    name: CallName
    number: int  # of all calls begun so far
    arguments: tuple[tuple, dict[str, Any]] | None


@contextmanager
def _hooks(
    model: Module, recording: Recording, keep_arguments: bool, forced: Recording | None
) -> Iterator[list[_Running]]:
    """Hooks on every layer that write the recording; gives the calls that have begun and not ended, innermost last."""
    running: list[_Running] = []
    counts: Counter[str] = Counter()
    numbers = itertools.count()
    begun = 0
    last: tuple[Tensor, int, Tensor] | None = None  # of the outputs: itself, its version, its copy

    def begin(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal begun
        begun = next(numbers)
        kept = map_tensors(_copy, (args, kwargs)) if keep_arguments else None
        running.append(_Running(CallName(name, counts[name]), begun, kept))
        counts[name] += 1

    def end(output: Any) -> None:
        nonlocal last
        name, number, arguments = running.pop()
        call = recording.calls[name] = Call(number == begun, arguments if number == begun else None)
        for path, tensor in named_tensors(output, "").items():
            if last is None or last[0] is not tensor or last[1] != tensor._version:
                last = tensor, tensor._version, _copy(tensor)
            call.outputs[path] = last[2]  # a block hands on what its last layer gave
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, path=path: _note(call.gradients, path, gradient))
        if forced is not None and call.leaf and name in forced.calls:
            for path, tensor in named_tensors(output, "").items():
                _force(tensor, forced.calls[name].outputs.get(path))

    handles = []
    for name, layer in model.named_modules():
        if "parametrizations" in name.split("."):  # part of the layer whose weight they make
            continue
        handles += [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: begin(name, args, kwargs), with_kwargs=True
            ),
            layer.register_forward_hook(lambda _, args, output: end(output)),
        ]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _copy(tensor: Tensor) -> Tensor:
    """A copy that later changes in place do not reach, which remembers whether a gradient was wanted."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _note(gradients: dict[str, Tensor], path: str, gradient: Tensor) -> None:
    gradients[path] = gradient.detach().clone()


def _force(tensor: Tensor, value: Tensor | None) -> None:
    """Put other numbers into a tensor behind autograd's back, so that the graph stays what it is."""
    overlapping = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if value is not None and value.shape == tensor.shape and not overlapping:
        tensor.data.copy_(value.data)

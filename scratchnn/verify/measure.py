"""What a model costs on either side: the time of each layer and of the whole, and the memory kept for gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.bench.memory import saved
from scratchnn.bench.timing import Spread, interleave, ratio
from scratchnn.targets.zoo import Inputs
from scratchnn.testing.models import Projection, call_arguments
from scratchnn.testing.nested import named_tensors
from scratchnn.testing.recording import Call, CallName, Recording, record
from scratchnn.testing.replay import Replay

__all__ = ["Cost", "measure_costs"]

Context = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Cost:
    """What one layer, or the whole model, costs.

    Attributes:
        forward: torch's time over ours, without gradients: above 1 is a win.
        backward: the same ratio of times of a forward and a backward pass; None where no gradient comes back.
        saved_ours: bytes that our forward pass keeps for the backward pass, parameters aside.
        saved_theirs: bytes that torch's keeps, likewise.
    """

    forward: Spread
    backward: Spread | None
    saved_ours: int
    saved_theirs: int


def measure_costs(
    ours: Module, theirs: Module, inputs: Inputs, context: Context, seconds: float
) -> tuple[Cost, dict[CallName, Cost]]:
    """The cost of the whole model, and of each innermost layer whose computation may differ.

    Layers of one class with the same settings and shapes are measured once.

    Args:
        ours, theirs: the models, whose gradients and statistics are of no use afterwards.
        inputs: what to call them with.
        context: what to run ours in.
        seconds: for each pass of a layer, set-up aside; the whole model gets ten times as much.

    Returns:
        the cost of the whole model, and those of the calls of layers.
    """
    sides = [_Side(ours, context), _Side(theirs, nullcontext)]
    whole = _cost([side.passes_of_model(inputs) for side in sides], 10 * seconds)
    recording = _record(sides[1].model.train(), inputs)
    known: dict[tuple, Cost] = {}
    costs = {}
    for name, call in recording.calls.items():
        mine, other = (side.model.get_submodule(name.layer) for side in sides)
        if not call.leaf or (context is nullcontext and type(mine) is type(other)):
            continue
        shapes = tuple(tuple(tensor.shape) for tensor in named_tensors(call.arguments, "").values())
        key = (type(mine), repr(mine), shapes)
        if key not in known:
            known[key] = _cost([side.passes_of_call(name, call) for side in sides], seconds)
        costs[name] = known[key]
    return whole, costs


class _Passes(NamedTuple):
    """What is timed, and what the memory is counted of: the forward pass with gradients."""

    forward: Callable[[], object]
    backward: Callable[[], object] | None
    tracked: Callable[[], object]
    parameters: list[Tensor]


class _Side:
    """A model, ours or torch's, and what it runs in."""

    def __init__(self, model: Module, context: Context) -> None:
        self.model, self.context = model, context

    def passes_of_model(self, inputs: Inputs) -> _Passes:
        evaluation, training = (call_arguments(draw, 0) for draw in (inputs.evaluation, inputs.training))
        loss = inputs.loss or Projection(0)

        def forward() -> None:
            with torch.no_grad(), self.context():
                self.model.eval()(*evaluation[0], **evaluation[1])

        def tracked() -> Any:
            with self.context():
                return self.model.train()(*training[0], **training[1])

        def step() -> None:
            self.model.zero_grad()
            loss(tracked()).backward()

        return _Passes(forward, step, tracked, [*self.model.parameters(), *self.model.buffers()])

    def passes_of_call(self, name: CallName, call: Call) -> _Passes:
        layer = self.model.get_submodule(name.layer)
        in_place = getattr(layer, "inplace", False)
        replay = Replay(layer, call, dict(layer.named_buffers()), every=False, copies=in_place)

        def forward() -> None:
            with torch.no_grad(), self.context():
                replay.forward()

        def tracked() -> Any:
            with self.context():
                return replay.forward()

        def both() -> None:
            with self.context():
                replay.forward_backward()

        trained = bool(replay.gradients and replay.leaves)
        return _Passes(forward, both if trained else None, tracked, [*layer.parameters(), *layer.buffers()])


def _cost(sides: list[_Passes], seconds: float) -> Cost:
    ours, theirs = sides
    backward = None
    if ours.backward is not None and theirs.backward is not None:
        backward = _faster([ours.backward, theirs.backward], seconds)
    return Cost(_faster([ours.forward, theirs.forward], seconds), backward, *(_saved_bytes(side) for side in sides))


def _faster(candidates: list[Callable[[], object]], seconds: float) -> Spread:
    return ratio(*interleave(candidates, seconds))


def _saved_bytes(passes: _Passes) -> int:
    """The memory that autograd keeps of a forward pass: the size of each storage, once, without the parameters'."""
    _, sizes = saved(passes.tracked, passes.parameters)
    return sum(sizes.values())


def _record(model: Module, inputs: Inputs) -> Recording:
    """A step of training, with what each layer is given."""
    recording = record(model, call_arguments(inputs.training, 0), keep_arguments=True)
    if recording.error is not None:
        raise recording.error[1]
    (inputs.loss or Projection(0))(recording.output).backward()
    recording.output = None
    return recording

"""Two models and the float64 run of one of them, run side by side: every result of every layer, compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.testing.errors import exact
from scratchnn.testing.nested import map_tensors, named_tensors
from scratchnn.testing.recording import Call, CallName, Recording, record
from scratchnn.testing.replay import Replay
from scratchnn.testing.verdict import Check, check
from scratchnn.testing.widening import widening

__all__ = ["EVALUATION", "TRAINING", "Draw", "Group", "Key", "dtype_of", "widened"]

EVALUATION, TRAINING = "evaluation", "training"

Arguments = tuple[tuple, dict[str, Any]]
Loss = Callable[[Any], Tensor]


class Group:
    """What a check is about: a layer by itself, a layer in the model, or the whole model."""

    ALONE_FORWARD = "alone_forward"
    ALONE_BACKWARD = "alone_backward"
    FORWARD = "forward"
    BACKWARD = "backward"
    WHOLE = "whole"


class Key(NamedTuple):
    """Which result a check is of; of the whole model there is no call."""

    group: str
    phase: str
    call: CallName | None
    what: str

    @property
    def alone(self) -> bool:
        """Whether it is of a layer by itself."""
        return self.group in (Group.ALONE_FORWARD, Group.ALONE_BACKWARD)

    @property
    def direction(self) -> str:
        """The pass that gives it, as one of the groups."""
        return Group.BACKWARD if self.what.startswith("gradient") else Group.FORWARD


@dataclass
class _Run:
    """One run of one model, what it leaves behind, and what ended it if it went wrong."""

    recording: Recording
    results: dict[str, Tensor] = field(default_factory=dict)
    error: tuple[CallName | None, Exception] | None = None


class Draw:
    """The comparison for one draw of inputs and random numbers.

    Args:
        ours, reference: the models; they are run as they are, and left as they were.
        truth: the reference in float64.
        factor: how many times the reference's error ours may have.
        context: what to run ours in.
        seed: of the random numbers.

    Attributes:
        free: checks of the models left to themselves.
        forced: those of the models with the reference's decisions.
        shapes: of the first output of each call, in the order in which the calls end, for each phase.
        leaves: the calls of layers that contain no others.
    """

    def __init__(
        self,
        ours: Module,
        reference: Module,
        truth: Module,
        factor: float,
        context: Callable[[], AbstractContextManager],
        seed: int,
    ) -> None:
        self.ours, self.reference, self.truth = ours, reference, truth
        self.factor, self.context, self.seed = factor, context, seed
        all_of_it = not reference.training
        self.trained = {name: all_of_it or layer.training for name, layer in reference.named_modules()}
        self.free: dict[Key, Check] = {}
        self.forced: dict[Key, Check] = {}
        self.shapes: dict[str, dict[CallName, tuple[int, ...]]] = {}
        self.leaves: set[CallName] = set()

    def compare(self, phase: str, arguments: Arguments, loss: Loss | None = None) -> None:
        """Run all models and compare what they give; with a loss, also backward."""
        theirs = self._run(self.reference, phase, arguments, loss, keep_arguments=True)
        if theirs.error is not None:
            raise theirs.error[1]
        for found, forced in ((self.free, None), (self.forced, theirs.recording)):
            truth = self._run_truth(phase, arguments, loss, forced)
            with self.context():
                mine = self._run(self.ours, phase, arguments, loss, forced=forced)
            self._compare_runs(found, phase, mine, theirs, truth)
            del truth, mine  # each is as large as all activations
        calls = theirs.recording.calls
        self.leaves |= {name for name, call in calls.items() if call.leaf}
        self.shapes[phase] = {name: _shape(call) for name, call in calls.items()}
        self._compare_layers(phase, {name: call for name, call in calls.items() if call.leaf})

    def _run(
        self,
        model: Module,
        phase: str,
        arguments: Arguments,
        loss: Loss | None,
        *,
        keep_arguments: bool = False,
        forced: Recording | None = None,
    ) -> _Run:
        given = map_tensors(_fresh, arguments)
        torch.manual_seed(self.seed)
        with self._borrowed(model, phase), torch.set_grad_enabled(loss is not None):
            run = _Run(record(model, given, keep_arguments=keep_arguments, forced=forced))
            run.error = run.recording.error
            if run.error is None and loss is not None:
                try:
                    loss(run.recording.output).backward()
                except Exception as error:
                    run.error = None, error
            run.results = _results(model, given, run.recording.output)
        run.recording.output = None  # and with it the graph
        return run

    def _run_truth(self, phase: str, arguments: Arguments, loss: Loss | None, forced: Recording | None) -> _Run:
        wide = map_tensors(lambda tensor: _fresh(exact(tensor), tensor.requires_grad), arguments)
        with widening(dtype_of(self.reference)):
            truth = self._run(self.truth, phase, wide, loss, forced=forced)
        if truth.error is not None:
            raise ValueError(
                f"compare_models(): the reference does not run in float64, which is the truth: {truth.error[1]}"
            ) from truth.error[1]
        return truth

    @contextmanager
    def _borrowed(self, model: Module, phase: str) -> Iterator[None]:
        """Run a model in the mode of a phase, and leave its mode, its buffers and its gradients as they were."""
        modes = [(module, module.training) for module in model.modules()]
        buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
        values = [buffer.clone() if buffer is not None else None for _, _, buffer in buffers]
        gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        for parameter, _ in gradients:
            parameter.grad = None
        for name, module in model.named_modules():
            module.training = phase == TRAINING and self.trained[name]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for (module, name, buffer), value in zip(buffers, values, strict=True):
                    module._buffers[name] = buffer if value is None else buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _compare_runs(self, found: dict[Key, Check], phase: str, mine: _Run, theirs: _Run, truth: _Run) -> None:
        known: dict[tuple[int, ...], Check] = {}  # what a block gives is mostly what its last layer gave

        def compare(group: str, call: CallName | None, sides: list[Mapping[str, Tensor]], label: str = "") -> None:
            for name in dict.fromkeys((*sides[1], *sides[0])):
                what, results = f"{label}{name}", [side.get(name) for side in sides]
                same = tuple(map(id, results))
                if same not in known:
                    known[same] = check(what, phase, self.factor, *results)
                found[Key(group, phase, call, what)] = replace(known[same], what=what)

        for name, call in theirs.recording.calls.items():
            other, true = mine.recording.calls.get(name), truth.recording.calls.get(name, Call(call.leaf, None))
            if other is not None:
                compare(Group.FORWARD, name, [other.outputs, call.outputs, true.outputs], "output")
                # Where a layer's output is a view that is changed in place, autograd tells nobody of its gradient.
                both = call.gradients.keys() & other.gradients.keys() & true.gradients.keys()
                gradients = [{path: run.gradients[path] for path in both} for run in (other, call, true)]
                compare(Group.BACKWARD, name, gradients, "gradient of output")
            elif problem := _why_missing(name, mine):
                found[Key(Group.FORWARD, phase, name, "call")] = Check("call", phase, self.factor, problem=problem)
        if mine.error is None:
            compare(Group.WHOLE, None, [mine.results, theirs.results, truth.results])
        else:
            problem = _raised(mine.error[1])
            found[Key(Group.WHOLE, phase, None, "run")] = Check("run", phase, self.factor, problem=problem)

    def _compare_layers(self, phase: str, calls: Mapping[CallName, Call]) -> None:
        """Call every innermost layer by itself, with what the reference's was given."""
        models = (self.ours, self.reference, self.truth)
        with ExitStack() as borrowed:
            for model in models:
                borrowed.enter_context(self._borrowed(model, phase))
            for name, call in calls.items():
                mine, theirs, true = (model.get_submodule(name.layer) for model in models)
                state = {buffer: value.clone() for buffer, value in theirs.named_buffers()}
                for group, results in (
                    (Group.ALONE_FORWARD, Replay.outputs),
                    (Group.ALONE_BACKWARD, Replay.gradient_of_each),
                ):
                    expected = results(Replay(theirs, call, state, seed=self.seed))
                    with widening(dtype_of(self.reference)):
                        wide = results(Replay(true, call, state, widen=True, seed=self.seed))
                    try:
                        with self.context():
                            given = results(Replay(mine, call, state, seed=self.seed))
                    except Exception as error:
                        problem = _raised(error)
                        self.free[Key(group, phase, name, "call")] = Check("call", phase, self.factor, problem=problem)
                        continue
                    for what in dict.fromkeys((*expected, *given)):
                        sides = [side.get(what) for side in (given, expected, wide)]
                        made = check(what, phase, self.factor, *sides, strict=group == Group.ALONE_FORWARD)
                        self.free[Key(group, phase, name, what)] = made


def dtype_of(model: Module) -> torch.dtype:
    """The type that a model computes in: that of its first floating parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def widened(model: Module) -> Module:
    """A copy in float64, and complex128."""
    return copy.deepcopy(model)._apply(exact)


def _fresh(tensor: Tensor, requires_grad: bool | None = None) -> Tensor:
    """A copy that a run may change, and whose gradient is its own."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad if requires_grad is None else requires_grad)


def _results(model: Module, arguments: Arguments, output: Any) -> dict[str, Tensor]:
    """What a run leaves behind: output, gradients, and the buffers."""
    results = {name: tensor.detach().clone() for name, tensor in named_tensors(output, "output").items()}
    for name, tensor in (*named_tensors(arguments, "input ").items(), *model.named_parameters()):
        if tensor.grad is not None:
            results[f"gradient of {name}"] = tensor.grad.to_dense() if tensor.grad.is_sparse else tensor.grad
    return results | {f"{name} after it": buffer.clone() for name, buffer in model.named_buffers()}


def _shape(call: Call) -> tuple[int, ...]:
    """The shape of the first tensor that a call gave."""
    return next((tuple(output.shape) for output in call.outputs.values()), ())


def _why_missing(name: CallName, mine: _Run) -> str:
    """Why ours has no such call; nothing where its run ended before."""
    if mine.error is None:
        return "it is never called"
    where, error = mine.error
    return _raised(error) if where == name else ""


def _raised(error: Exception) -> str:
    return f"raises {type(error).__name__}: {error}"

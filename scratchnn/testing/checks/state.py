"""Checks of what a module holds: its state, what training does to it, its modes, its copies."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.testing.cases import Arguments
from scratchnn.testing.checks.experiments import Backward, differentiable, same_bits, values
from scratchnn.testing.checks.registry import check
from scratchnn.testing.experiment import Trial, told
from scratchnn.testing.report import Finding
from scratchnn.testing.sides import Subject

STEPS = 3
_LEARNING_RATE = 0.01


@check(modules=True)
def state_dict(trial: Trial) -> Iterator[Finding]:
    """Keys in the same order, shapes and dtypes; states load both ways; what is trained, and what is not saved; from
    factories, the same initial weights for the same seed."""
    ours, theirs, _ = (side.layer for side in trial.sides())
    described = {
        "state": lambda module: {name: _described(x) for name, x in module.state_dict().items()},
        "parameters": lambda module: {
            name: f"{_described(p)}{'' if p.requires_grad else ', frozen'}" for name, p in module.named_parameters()
        },
        "buffers that are not saved": lambda module: {
            name: _described(x) for name, x in module.named_buffers() if name not in module.state_dict()
        },
    }
    for quantity, describe in described.items():
        yield trial.finding("", quantity, problem=_difference(describe(ours), describe(theirs)))
    yield trial.finding("", "state of the module loads into the reference", problem=_loading(ours, theirs))
    yield trial.finding("", "state of the reference loads into the module", problem=_loading(theirs, ours))
    fresh = trial.pair.fresh(trial.seed)
    if fresh is not None:
        yield from _initial(trial, *fresh)


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _difference(mine: Mapping[str, str], other: Mapping[str, str]) -> str:
    """How two descriptions by name differ, in names, their order or what they describe."""
    missing, extra = [name for name in other if name not in mine], [name for name in mine if name not in other]
    parts = [f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("has", extra)) if names]
    parts += [
        f"{name} is {mine[name]} instead of {other[name]}"
        for name in other
        if mine.get(name, other[name]) != other[name]
    ]
    if not parts and list(mine) != list(other):
        parts = [f"in the order {', '.join(mine)} instead of {', '.join(other)}"]
    return "; ".join(parts)


def _loading(source: Module, target: Module) -> str:
    """What goes wrong when the state of ``source`` is loaded into a copy of ``target`` that holds zeros."""
    target = copy.deepcopy(target)
    with torch.no_grad():
        for x in target.state_dict().values():
            x.zero_()
    try:
        target.load_state_dict(source.state_dict(), strict=True)
    except Exception as error:
        return f"raises {told(error)}"
    arrived = target.state_dict()
    lost = [name for name, x in source.state_dict().items() if not same_bits(x, arrived[name])]
    return f"{', '.join(lost)} did not arrive" if lost else ""


def _initial(trial: Trial, ours: Module, theirs: Module) -> Iterator[Finding]:
    mine, other = ours.state_dict(), theirs.state_dict()
    wrong = [name for name, x in other.items() if name in mine and not same_bits(mine[name], x)]
    problem = f"other numbers in {', '.join(wrong)}" if wrong else ""
    yield trial.finding("", "initial weights of a seed", problem=problem)
    problem = "" if ours.training == theirs.training else f"training={ours.training} instead of {theirs.training}"
    yield trial.finding("", "initial mode", problem=problem)


@check(modules=True)
def training_steps(trial: Trial) -> Iterator[Finding]:
    """Three steps of gradient descent in training mode: buffers after the first and the last, then all parameters and
    the last output."""
    sides = trial.sides()
    if not sides.theirs.parameters() and not sides.theirs.buffers() and not sides.ours.buffers():
        yield trial.finding("", skipped="there are no parameters and no buffers")
        return

    def experiment(subject: Subject, calls: Arguments) -> dict[str, Any]:
        subject.layer.train()
        result: dict[str, Any] = {}
        for step, (args, kwargs) in enumerate(calls.args, start=1):
            backward = Backward(trial.seed + step, trial.dtype)
            output = subject(Arguments(args, kwargs), trial.seed + step)
            _descend(subject, differentiable(output), backward)
            if step in (1, STEPS):
                result |= {f"{name} after step {step}": x.clone() for name, x in subject.buffers().items()}
        result |= {f"{name} after step {STEPS}": p.detach() for name, p in subject.parameters().items()}
        return result | values(output)

    steps = (trial.arguments(step) for step in range(STEPS))
    # One call's arguments hold those of all, so that each side gets copies of its own, in its own dtype.
    yield from trial.hold("", experiment, Arguments(tuple((call.args, dict(call.kwargs)) for call in steps)))


def _descend(subject: Subject, outputs: Mapping[str, Tensor], backward: Backward) -> None:
    """Change the parameters in place, as an optimizer does."""
    parameters = list(subject.parameters().values())
    if not outputs or not parameters:
        return
    gradients = torch.autograd.grad(
        list(outputs.values()), parameters, list(backward.incoming(outputs).values()), allow_unused=True
    )
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= _LEARNING_RATE * gradient


@check(modules=True)
def train_eval(trial: Trial) -> Iterator[Finding]:
    """Outputs in training mode, then in evaluation, then in training again, and what evaluation did to the buffers."""

    def experiment(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for when, training in (("in training", True), ("in evaluation", False), ("back in training", True)):
            subject.layer.train(training)
            with torch.no_grad():
                output = values(subject(arguments.copy(), trial.seed))
            result |= {f"{name} {when}": x for name, x in output.items()}
            result[f"training {when}"] = all(module.training == training for module in subject.layer.modules())
            if not training:
                result |= {f"{name} after evaluation": x.clone() for name, x in subject.buffers().items()}
        return result

    yield from trial.hold("", experiment, trial.arguments())


@check(modules=True)
def copies(trial: Trial) -> Iterator[Finding]:
    """A deep copy, a pickled copy, and one that loads a saved state compute the same bits as the module itself."""
    theirs = trial.sides().theirs.layer
    backward = Backward(trial.seed, trial.dtype)
    trial.of_reference(lambda: backward(trial.sides().theirs, trial.arguments()))
    for case, duplicate in (("deepcopy", copy.deepcopy), ("pickle", _pickled), ("saved state", _saved)):
        ours = trial.pair.original(trial.dtype, trial.device, trial.seed)
        try:
            duplicate(theirs)
        except Exception as error:
            yield trial.finding(case, skipped=f"that of the reference raises {told(error)}")
            continue
        try:
            other = duplicate(ours)
        except Exception as error:
            if duplicate is _pickled and not _is_found_by_name(type(ours)):
                yield trial.finding(
                    case, skipped="pickle does not find the class: it is not defined at the top of a file"
                )
            else:
                yield trial.finding(case, problem=f"raises {told(error)}")
            continue
        expected, found = (backward(Subject(module), trial.arguments()) for module in (ours, other))
        for name, x in expected.items():
            yield trial.finding(case, name, problem="" if same_bits(x, found.get(name)) else "other bits")


def _pickled(module: Module) -> Module:
    return pickle.loads(pickle.dumps(module))


def _is_found_by_name(cls: type) -> bool:
    """Not so for a class defined in a function: that is no fault of the layer."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _saved(module: Module) -> Module:
    """A copy that held zeros and got the state from a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for x in other.state_dict().values():
            x.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@check(modules=True, wish="representation")
def representation(trial: Trial) -> Iterator[Finding]:
    """The printed module is that of the reference, the name of its class aside."""
    mine, other = (repr(side.layer).partition("(")[2] for side in trial.sides()[:2])
    yield trial.finding("", "repr", problem="" if mine == other else f"({mine} instead of ({other}")

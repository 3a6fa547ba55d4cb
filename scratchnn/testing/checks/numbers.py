"""Checks of the numbers: outputs, gradients, gradients of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from scratchnn.testing.cases import Arguments, random_like
from scratchnn.testing.checks.experiments import Backward, differentiable, forward, overwritable
from scratchnn.testing.checks.registry import check
from scratchnn.testing.experiment import Trial
from scratchnn.testing.report import Finding
from scratchnn.testing.sides import Subject

# Beyond so many inputs and parameters, each is not differentiated by alone any more.
_FEW = 6


@check(every_dtype=True)
def outputs(trial: Trial) -> Iterator[Finding]:
    """Outputs without gradients: values, shape, dtype, strides, and NaN and infinities in the same places."""
    yield from trial.hold("", forward(trial.seed), trial.arguments(), layout="same")


@check(every_dtype=True)
def gradients(trial: Trial) -> Iterator[Finding]:
    """Outputs with gradients, whether they have a history, and the gradients of all inputs and parameters; which of
    them are None."""
    yield from trial.hold("", Backward(trial.seed, trial.dtype), trial.arguments(), layout="same")


@check()
def partial_gradients(trial: Trial) -> Iterator[Finding]:
    """The same gradients where not all are wanted: inputs alone, parameters alone, each alone."""
    arguments = trial.arguments()
    inputs = list(arguments.differentiable())
    parameters = list(trial.sides().theirs.parameters())
    wanted = {"inputs alone": inputs}
    if parameters:
        wanted["parameters alone"] = parameters
    if len(inputs + parameters) <= _FEW:
        wanted |= {f"{name} alone": [name] for name in inputs + parameters if [name] not in wanted.values()}
    for case, names in wanted.items():
        yield from trial.hold(case, Backward(trial.seed, trial.dtype, by=names.__contains__), arguments)


@check(every_dtype=True)
def double_backward(trial: Trial) -> Iterator[Finding]:
    """Gradients of a random combination of all gradients, by the inputs, the parameters and the incoming gradients;
    None counts as zero."""
    backward = Backward(trial.seed, trial.dtype)

    def experiment(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        wanted = backward.leaves(subject, arguments)
        outputs = differentiable(subject(arguments.map(overwritable), trial.seed))
        if not outputs or not wanted:
            return {}
        incoming = backward.incoming(outputs)
        for x in incoming.values():
            x.requires_grad_()
        found = torch.autograd.grad(
            list(outputs.values()), list(wanted.values()), list(incoming.values()), create_graph=True, allow_unused=True
        )
        first = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
        histories = {f"history of the gradient of {name}": g.requires_grad for name, g in first.items()}
        first = {name: g for name, g in first.items() if g.requires_grad}
        if first:
            # Not by torch.autograd.grad: that does not reach a function which only says that it cannot be derived.
            directions = [random_like(g.detach(), f"second {n}", trial.seed, trial.dtype) for n, g in first.items()]
            torch.autograd.backward(list(first.values()), directions)
        by = wanted | {f"incoming gradient of {name}": x for name, x in incoming.items()}
        return histories | {
            f"second gradient of {name}": torch.zeros_like(x).detach() if x.grad is None else x.grad
            for name, x in by.items()
        }

    yield from trial.hold("", experiment, trial.arguments())

"""Checks of other calls: memory formats, batches, autocast, numbers that are not finite, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from scratchnn.testing import cases
from scratchnn.testing.cases import Arguments
from scratchnn.testing.checks.experiments import Backward, differentiable, forward, most_of, overwritable, same_bits
from scratchnn.testing.checks.registry import check
from scratchnn.testing.experiment import Experiment, Trial
from scratchnn.testing.report import Finding
from scratchnn.testing.sides import Subject


@check()
def memory_formats(trial: Trial) -> Iterator[Finding]:
    """Outputs and gradients of contiguous, channels_last, sliced, transposed and expanded inputs and of such incoming
    gradients. Outputs are laid out as the reference's or, contiguous or channels_last, as the input."""
    experiment = most_of(trial, trial.dtype)
    for format in cases.FORMATS:
        arguments = cases.formatted(trial.arguments(), format)
        if arguments is not None:
            layout = "kept" if format in ("contiguous", "channels_last") else ""
            yield from trial.hold(format, experiment, arguments, layout=layout)
    for format, layout in _gradient_layouts().items():
        backward = Backward(trial.seed, trial.dtype, layout=layout)
        yield from trial.hold(f"incoming gradient {format}", backward, trial.arguments())


def _gradient_layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    def in_format(format: str) -> Callable[[Tensor], Tensor]:
        def layout(x: Tensor) -> Tensor:
            value = cases.FORMATS[format](x)
            return x if value is None else value

        return layout

    formats = {format: in_format(format) for format in ("channels_last", "sliced", "transposed")}
    return formats | {"expanded": lambda x: x.new_ones(()).expand(x.shape)}  # that of a sum


@check()
def batching(trial: Trial) -> Iterator[Finding]:
    """One sample, no batch dimension, an empty batch: the same results, or the same type of error."""
    experiment = most_of(trial, trial.dtype)
    for case, part in (("one sample", slice(0, 1)), ("unbatched", 0), ("empty batch", slice(0, 0))):
        arguments = cases.part_of_batch(trial.arguments(), part)
        yield from trial.hold(case, experiment, arguments, same_error=True)


@check()
def non_finite(trial: Trial) -> Iterator[Finding]:
    """NaN and infinities in the inputs come out in the same places."""
    for value in (float("nan"), float("inf"), -float("inf")):
        yield from trial.hold(f"{value} in inputs", forward(trial.seed), cases.spoiled(trial.arguments(), value))


@check()
def autocast(trial: Trial) -> Iterator[Finding]:
    """Under autocast: types, outputs and gradients, with inputs in the layer's dtype and in autocast's own."""
    for dtype in (torch.bfloat16, torch.float16):
        short = str(dtype).removeprefix("torch.")
        experiment = _under_autocast(trial, dtype)
        yield from trial.hold(f"autocast {short}", experiment, trial.arguments())
        yield from trial.hold(f"autocast {short}, inputs in {short}", experiment, trial.draw(dtype, trial.seed))


def _under_autocast(trial: Trial, dtype: torch.dtype) -> Experiment:
    """float64 is left alone by autocast: the truth stays what it is."""
    passed = most_of(trial, dtype)

    def experiment(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        with torch.autocast(trial.device.type, dtype):
            return passed(subject, arguments)

    return experiment


@check()
def inputs_kept(trial: Trial) -> Iterator[Finding]:
    """Inputs, parameters and incoming gradients are not written to, unless the reference does."""

    def without_gradients(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        watch = _Watch(arguments.tensors() | subject.parameters())
        with torch.no_grad():
            subject(arguments, trial.seed)
        return watch.unchanged()

    def with_gradients(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        backward = Backward(trial.seed, trial.dtype)
        wanted = backward.leaves(subject, arguments)
        passed = arguments.map(overwritable)
        watch = _Watch(passed.tensors() | subject.parameters())
        outputs = differentiable(subject(passed, trial.seed))
        if not outputs or not wanted:
            return watch.unchanged()
        incoming = backward.incoming(outputs)
        watch_incoming = _Watch({f"incoming gradient of {name}": x for name, x in incoming.items()})
        torch.autograd.grad(list(outputs.values()), list(wanted.values()), list(incoming.values()), allow_unused=True)
        return watch.unchanged() | watch_incoming.unchanged()

    yield from trial.hold("without gradients", without_gradients, trial.arguments())
    yield from trial.hold("with gradients", with_gradients, trial.arguments())


class _Watch:
    """Tells of tensors which of them still have their bits."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._before = {name: x.detach().clone() for name, x in tensors.items()}

    def unchanged(self) -> dict[str, bool]:
        return {f"{name} unchanged": same_bits(x, self._before[name]) for name, x in self._tensors.items()}


@check()
def errors(trial: Trial) -> Iterator[Finding]:
    """Calls that are mistakes - of rank, channels, dtype, no tensor, no pixels, and the caller's own - raise the same
    type of error, with a message; where the reference takes one for good, so does the module."""
    for case, arguments in cases.wrong_calls(trial.arguments()):
        yield from trial.hold(case, forward(trial.seed), arguments, same_error=True)
    for case, arguments in trial.bad_calls.items():
        findings = list(trial.hold(case, forward(trial.seed), arguments, same_error=True))
        yield from findings
        if all(finding.quantity != "error" for finding in findings):
            yield trial.finding(case, "error", problem="the reference raises nothing here")

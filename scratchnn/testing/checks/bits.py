"""Checks of bits: of one module, held against itself. Those that torch itself does not pass have to be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scratchnn.testing.cases import part_of_batch
from scratchnn.testing.checks.experiments import Backward, differentiable, overwritable, same_bits
from scratchnn.testing.checks.registry import check
from scratchnn.testing.experiment import Trial
from scratchnn.testing.report import Finding
from scratchnn.testing.sides import Subject

THREADS = (1, 2, 3)
PARTS = (slice(0, 1), slice(1, 3))


@check()
def determinism(trial: Trial) -> Iterator[Finding]:
    """Two runs from one seed give the same bits, and so do two backward passes over one graph, where the reference's
    do."""
    theirs = trial.of_reference(lambda: _repeated(trial, "theirs"))
    ours = _repeated(trial, "ours")
    for quantity, same in ours.items():
        if not theirs.get(quantity, True):
            yield trial.finding("", quantity, skipped="the reference gives other bits as well")
        else:
            yield trial.finding("", quantity, problem="" if same else "other bits")


def _repeated(trial: Trial, side: str) -> dict[str, bool]:
    """Of each result, whether it comes out the same again."""
    first, second = (_differentiated_twice(trial, getattr(trial.sides(), side)) for _ in range(2))
    runs = {f"{name}, second run": same_bits(x, second[0][name]) for name, x in first[0].items()}
    return runs | {f"{name}, second backward pass": same_bits(first[0][name], x) for name, x in first[1].items()}


def _differentiated_twice(trial: Trial, subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and gradients, and the gradients once more from the same graph."""
    backward, arguments = Backward(trial.seed, trial.dtype), trial.arguments()
    wanted = backward.leaves(subject, arguments)
    outputs = differentiable(subject(arguments.map(overwritable), trial.seed))
    if not outputs or not wanted:
        return {name: x.detach() for name, x in outputs.items()}, {}
    first, second = (
        torch.autograd.grad(
            list(outputs.values()),
            list(wanted.values()),
            list(backward.incoming(outputs).values()),
            retain_graph=True,
            allow_unused=True,
        )
        for _ in range(2)
    )
    names = [f"gradient of {name}" for name in wanted]
    results = {name: x.detach() for name, x in outputs.items()} | dict(zip(names, first, strict=True))
    return results, dict(zip(names, second, strict=True))


@check(wish="reproducible")
def batch_split(trial: Trial) -> Iterator[Finding]:
    """A sample's outputs and input gradients have the same bits, alone or in a batch of any size."""
    arguments = trial.arguments()
    first = next(iter(arguments.tensors().values()))
    if first.dim() == 0:
        yield trial.finding("", skipped="the first input has no batch")
        return
    size = len(first)
    trial.of_reference(lambda: _by_sample(trial, trial.sides().theirs, slice(0, size), size))
    whole = _by_sample(trial, trial.sides().ours, slice(0, size), size)
    for part in PARTS:
        if part.stop > size:
            continue
        for name, x in _by_sample(trial, trial.sides().ours, part, size).items():
            if name in whole:
                problem = "" if same_bits(x, whole[name][part]) else "other bits than in the whole batch"
                yield trial.finding(f"samples {part.start} to {part.stop - 1}", name, problem=problem)


def _by_sample(trial: Trial, subject: Subject, part: slice, size: int) -> dict[str, Tensor]:
    """Outputs and input gradients of a part of the batch; the incoming gradient is that part of the whole batch's."""

    def layout(gradient: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(trial.seed)
        whole = torch.randn(size, *gradient.shape[1:], generator=generator, dtype=torch.float64)
        return torch.empty_like(gradient).copy_(whole[part])

    arguments = part_of_batch(trial.arguments(), part)
    backward = Backward(trial.seed, trial.dtype, by=arguments.differentiable().__contains__, layout=layout)
    return {
        name: x
        for name, x in backward(subject, arguments).items()
        if isinstance(x, Tensor) and x.dim() and x.shape[0] == part.stop - part.start
    }


@check(wish="reproducible")
def threads(trial: Trial) -> Iterator[Finding]:
    """Outputs and all gradients have the same bits for any number of threads."""
    trial.of_reference(lambda: Backward(trial.seed, trial.dtype)(trial.sides().theirs, trial.arguments()))
    before = torch.get_num_threads()
    results = {}
    try:
        for number in THREADS:
            torch.set_num_threads(number)
            results[number] = Backward(trial.seed, trial.dtype)(trial.sides().ours, trial.arguments())
    finally:
        torch.set_num_threads(before)
    first, *others = THREADS
    for number in others:
        for name, x in results[first].items():
            problem = "" if same_bits(x, results[number][name]) else f"other bits than with {first}"
            yield trial.finding(f"{number} threads", name, problem=problem)

"""Experiments that several checks share: a forward pass, a backward pass, and bits beside bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scratchnn.testing.cases import Arguments, random_like
from scratchnn.testing.experiment import Experiment, Trial
from scratchnn.testing.nested import leaves, named_tensors
from scratchnn.testing.sides import Subject

__all__ = ["Backward", "differentiable", "forward", "most_of", "overwritable", "same_bits", "values"]


def values(output: Any) -> dict[str, Any]:
    """What a call gave: tensors without their history, and whatever else stands in a nested output."""
    return {name: x.detach() if isinstance(x, Tensor) else x for name, x in leaves(output, "output")}


def differentiable(output: Any) -> dict[str, Tensor]:
    """The outputs with a history."""
    return {name: x for name, x in named_tensors(output, "output").items() if x.requires_grad}


def forward(seed: int) -> Experiment:
    """Call the layer without gradients."""

    def experiment(subject: Subject, arguments: Arguments) -> dict[str, Any]:
        with torch.no_grad():
            return values(subject(arguments, seed))

    return experiment


@dataclass(frozen=True)
class Backward:
    """Call a layer and differentiate: the outputs, which of them have a history, and the gradients.

    Attributes:
        seed: of the call and of the incoming gradient.
        rounded: the dtype that the incoming gradient is rounded to, on all sides.
        by: of the names of inputs and parameters, those to differentiate by; the rest is frozen. All unless given.
        layout: lays out the incoming gradient.
    """

    seed: int
    rounded: torch.dtype
    by: Callable[[str], bool] = lambda name: True
    layout: Callable[[Tensor], Tensor] = lambda gradient: gradient

    def leaves(self, subject: Subject, arguments: Arguments) -> dict[str, Tensor]:
        """What to differentiate by: of the arguments and the layer, which are both changed accordingly."""
        named = arguments.differentiable() | subject.parameters()
        for name, x in named.items():
            x.requires_grad_(self.by(name))
        return {name: x for name, x in named.items() if x.requires_grad}

    def incoming(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the outputs, the same random numbers for all sides."""
        return {
            name: self.layout(random_like(x.detach(), name, self.seed, self.rounded)) for name, x in outputs.items()
        }

    def __call__(self, subject: Subject, arguments: Arguments) -> dict[str, Any]:
        wanted = self.leaves(subject, arguments)
        output = subject(arguments.map(overwritable), self.seed)
        outputs = differentiable(output)
        histories = {f"history of {name}": x.requires_grad for name, x in named_tensors(output, "output").items()}
        gradients: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if outputs and wanted:
            incoming = list(self.incoming(outputs).values())
            gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), incoming, allow_unused=True)
        return values(output) | histories | {f"gradient of {n}": g for n, g in zip(wanted, gradients, strict=True)}


def most_of(trial: Trial, rounded: torch.dtype) -> Experiment:
    """A backward pass or, where the reference has none, a forward pass."""
    backward = Backward(trial.seed, rounded)
    try:
        backward(trial.sides().theirs, trial.arguments())
    except Exception:
        return forward(trial.seed)
    return backward


def overwritable(x: Tensor) -> Tensor:
    """A copy, through which gradients flow, of a tensor that autograd would not let a layer overwrite.

    What has gaps or overlaps is passed as it is: a copy would close them.
    """
    if not x.requires_grad or torch.empty_like(x).stride() != x.stride():
        return x
    return x.clone()


def same_bits(a: Any, b: Any) -> bool:
    """Whether two tensors agree in shape, dtype and every bit, or two plain values are equal."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    x = x.detach().resolve_conj()
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).contiguous().view(torch.uint8)

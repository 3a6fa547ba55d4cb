"""What came out of comparing two models: a verdict, the layer where they part, and a table for whoever wants to see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scratchnn.testing.recording import CallName
from scratchnn.testing.verdict import Check

__all__ = ["Fault", "LayerReport", "ModelReport", "worst"]

SCHEMA = 1


@dataclass
class LayerReport:
    """The checks of one call of one layer.

    Attributes:
        name: its name in the model, and which call of it this is.
        type: its class.
        shape: of its output.
        leaf: whether it contains no layers that it calls; only such are checked by themselves.
        alone_forward: output and buffers, when called with what the reference's layer was given.
        alone_backward: the gradients, for the gradient that came back to the reference's layer.
        forward: its output in the model.
        backward: the gradient of its output in the model.
    """

    name: CallName
    type: str
    shape: tuple[int, ...]
    leaf: bool
    alone_forward: list[Check] = field(default_factory=list)
    alone_backward: list[Check] = field(default_factory=list)
    forward: list[Check] = field(default_factory=list)
    backward: list[Check] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """All of them: by itself, then in the model."""
        return [*self.alone_forward, *self.alone_backward, *self.forward, *self.backward]

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """``same``, or what failed: a layer by itself, or what arrives at it in the model."""
        for checks, said in (
            (self.alone_forward, "forward DIFFERS"),
            (self.alone_backward, "backward DIFFERS"),
            (self.forward, "DIFFERS in the model"),
            (self.backward, "gradient DIFFERS in the model"),
        ):
            if not all(check.passed for check in checks):
                return said
        return "same"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        groups = ("alone_forward", "alone_backward", "forward", "backward")
        return {
            "layer": self.name.layer,
            "call": self.name.index,
            "type": self.type,
            "shape": list(self.shape),
            "leaf": self.leaf,
            "passed": self.passed,
        } | {group: [check.to_dict() for check in getattr(self, group)] for group in groups}


@dataclass(frozen=True)
class Fault:
    """Where two models part.

    Attributes:
        name: of the layer to blame.
        check: what failed.
        reason: why it is this layer's fault.
    """

    name: CallName
    check: Check
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.check} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"layer": self.name.layer, "call": self.name.index, "reason": self.reason, "check": self.check.to_dict()}


@dataclass
class ModelReport:
    """Whether two models compute the same, and if not, where they part. Printed, it is a summary.

    Attributes:
        ours: the class of the model under test.
        reference: that of the model it is held against.
        dtype: of the reference.
        factor: how many times the reference's error was allowed.
        seeds: how many draws the medians are of.
        layers: one report for each call of each layer, in the order in which the calls end.
        whole: the checks of the models as a whole: outputs, gradients of parameters, buffers after the step.
    """

    ours: str
    reference: str
    dtype: torch.dtype
    factor: float
    seeds: int
    layers: list[LayerReport]
    whole: list[Check]

    @property
    def passed(self) -> bool:
        """Whether no check of any layer or of the whole failed."""
        return not self.failures

    @property
    def exit_code(self) -> int:
        """0 where the models are equivalent, else 1: for commands."""
        return 0 if self.passed else 1

    @property
    def failures(self) -> list[str]:
        """All that failed, in one line each."""
        of_layers = [f"{layer.name}: {check}" for layer in self.layers for check in layer.checks if not check.passed]
        return of_layers + [str(check) for check in self.whole if not check.passed]

    @property
    def turned(self) -> int:
        """How many results pass with the reference's decisions only, see :func:`compare_models`."""
        return sum(check.turned and check.passed for check in self._all())

    @property
    def ran(self) -> bool:
        """Whether ours came to the end of its runs."""
        return all(check.what != "run" for check in self.whole)

    @property
    def first_forward(self) -> Fault | None:
        """The first layer, in the order of computation, where outputs or statistics part."""
        for layer in self.layers:
            for check in layer.alone_forward:
                if not check.passed:
                    return Fault(layer.name, check, "called by itself with the reference's input")
            for check in layer.forward:
                if not check.passed:
                    return self._blame(layer, check)
        return None

    @property
    def first_backward(self) -> Fault | None:
        """The first layer, in the order of the backward pass, where gradients part."""
        for layer in reversed(self.layers):
            for check in layer.backward:
                if not check.passed:
                    return self._blame(layer, check)
            for check in layer.alone_backward:
                if not check.passed:
                    return Fault(layer.name, check, "called by itself with the reference's input and gradient")
        return None

    def _blame(self, layer: LayerReport, check: Check) -> Fault:
        """A result that is off in the model, though all layers that it has come through so far pass by themselves."""
        if layer.leaf:
            parent = CallName(layer.name.layer.rpartition(".")[0], 0)
            return Fault(parent, check, f"seen at {layer.name}, which by itself passes: what lies between the layers")
        return Fault(layer.name, check, "the layers in it pass by themselves: what lies between them")

    def _all(self) -> Iterator[Check]:
        for layer in self.layers:
            yield from layer.checks
        yield from self.whole

    def __str__(self) -> str:
        leaves = [layer for layer in self.layers if layer.leaf]
        head = f"{self.ours} and {self.reference} in {str(self.dtype).removeprefix('torch.')}"
        if self.passed:
            lines = [f"equivalent: {head}, {len(leaves)} calls of layers, {sum(1 for _ in self._all())} results"]
        else:
            lines = [f"NOT equivalent: {head}: {len(self.failures)} of {sum(1 for _ in self._all())} results differ"]
        for which, fault in (("forward", self.first_forward), ("backward", self.first_backward)):
            if fault is not None:
                lines.append(f"  first {which}: {fault}")
        if not self.passed and self.first_forward is None and self.first_backward is None:
            lines += [f"  {failure}" for failure in self.failures[:5]]
        if self.turned and self.passed:
            lines.append(f"  {self.turned} results pass with the reference's decisions only: rounding turned some over")
        return "\n".join(lines)

    def table(self) -> list[list[str]]:
        """Rows of cells, headings first: the errors of every innermost layer by itself, and of others that differ."""
        rows = [
            ["layer", "class", "output", "forward: ours, theirs", "ratio", "backward: ours, theirs", "ratio", "verdict"]
        ]
        for layer in self.layers:
            if layer.leaf or not layer.passed:
                errors = [*_cells(worst(layer.alone_forward)), *_cells(worst(layer.alone_backward))]
                shape = "x".join(map(str, layer.shape))
                rows.append([str(layer.name), layer.type, shape, *errors, layer.verdict])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "ours": self.ours,
            "reference": self.reference,
            "dtype": str(self.dtype).removeprefix("torch."),
            "factor": self.factor,
            "seeds": self.seeds,
            "turned": self.turned,
            "first_forward": fault.to_dict() if (fault := self.first_forward) else None,
            "first_backward": fault.to_dict() if (fault := self.first_backward) else None,
            "whole": [check.to_dict() for check in self.whole],
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def worst(checks: Sequence[Check]) -> Check | None:
    """The check that fails by most or comes closest to it, of those that are about more than noise if there are any."""
    return max(checks, key=lambda check: (not check.passed, not check.noise, check.excess), default=None)


def _cells(check: Check | None) -> list[str]:
    """Both errors and their ratio; blank where there was nothing to check."""
    if check is None:
        return ["", ""]
    if check.comparison is None:
        return [check.problem, ""]
    comparison = check.comparison
    errors = (f"{error.relative:.1e}".replace("0.0e+00", "0") for error in (comparison.ours, comparison.theirs))
    return [", ".join(errors), f"{comparison.ratio:.2f}"]

"""When a result of ours passes for that of the reference: by its error against float64, over several draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scratchnn.testing.errors import Comparison, Error, exact, relative_error

__all__ = ["Check", "check", "merge"]

# An error of so many rounding steps is allowed even where the reference happens to be exact.
STEPS = 2
# The relative error of fewer numbers than this is a matter of luck.
FEW = 16


@dataclass(frozen=True)
class Check:
    """One result of ours beside the reference's, and whether it passes.

    Attributes:
        what: the result, as ``output`` or ``gradient of weight``.
        phase: ``evaluation`` or ``training``.
        factor: how many times the reference's error ours may have.
        count: how many numbers the result consists of.
        usual: the reference's usual error in the model. Where there are only a few numbers, which may be exact by luck,
            its error counts as no smaller.
        comparison: both errors; None where there is nothing to compare, for which ``problem`` has the reason.
        problem: what is wrong besides rounding: another shape, another type, an exception.
        apart: how far ours is from the reference itself, relative to it; measured only where that may count.
        strict: see :attr:`truthless`.
        turned: judged with the reference's decisions, since ours decided otherwise when it was left to itself.
        free: where that is so, the errors of the models left to themselves.
    """

    what: str
    phase: str
    factor: float
    count: int = 0
    usual: float = 0.0
    comparison: Comparison | None = None
    problem: str = ""
    apart: float = 0.0
    strict: bool = False
    turned: bool = False
    free: Comparison | None = None

    @property
    def allowed(self) -> float:
        """The largest relative error that passes."""
        if self.comparison is None:
            return 0.0
        theirs = self.comparison.theirs.relative
        if self.count < FEW:
            theirs = max(theirs, self.usual)
        return self.factor * theirs + STEPS * self.comparison.step

    @property
    def as_exact(self) -> bool:
        """Whether our error is within what is allowed, whatever the reference's is."""
        return self.comparison is not None and self.comparison.ours.relative <= self.allowed

    @property
    def noise(self) -> bool:
        """Whether the reference's own result has hardly a digit to count on.

        It may be all rounding errors, as the gradient of a bias before a batch norm, whose terms cancel; or it may draw
        other random numbers in float64, or decide otherwise there.
        """
        return self.comparison is not None and self.comparison.theirs.relative > math.sqrt(self.comparison.step)

    @property
    def truthless(self) -> bool:
        """Whether float64 cannot judge, so that ours has to be close to the reference itself.

        So it is with :attr:`noise`; but if not ``strict``, ours passes by being no further from float64 than allowed.
        """
        return self.noise and (self.strict or not self.as_exact)

    @property
    def passed(self) -> bool:
        """Whether ours is as exact as it has to be."""
        if self.problem or self.comparison is None:
            return False
        if self.truthless:
            return self.apart <= math.sqrt(self.comparison.step)
        return self.as_exact

    @property
    def large(self) -> bool:
        """Whether ours is wrong by more than rounding errors amount to, however many layers they came through."""
        return self.comparison is None or self.comparison.ours.relative > math.sqrt(self.comparison.step)

    @property
    def excess(self) -> float:
        """Our error as a multiple of what is allowed: which of several checks is worst."""
        if self.problem or self.comparison is None:
            return math.inf
        if self.truthless:
            return self.apart / math.sqrt(self.comparison.step)
        return self.comparison.ours.relative / self.allowed

    def __str__(self) -> str:
        where = f"{self.what} in {self.phase}" + (", with the reference's decisions" if self.turned else "")
        if self.problem or self.comparison is None:
            return f"{where}: {self.problem}"
        if self.truthless:
            return f"{where}: {self.apart:.1e} away from the reference, which float64 cannot follow"
        ours, theirs = self.comparison.ours.relative, self.comparison.theirs.relative
        return f"{where}: error {ours:.1e}, the reference's {theirs:.1e}, allowed {self.allowed:.1e}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: there it is null."""
        return _finite(asdict(self) | {"allowed": self.allowed, "passed": self.passed})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check(
    what: str,
    phase: str,
    factor: float,
    ours: Tensor | None,
    theirs: Tensor | None,
    truth: Tensor | None,
    strict: bool = False,
) -> Check:
    """Compare one result, of which any side may have none."""
    made = Check(what, phase, factor, strict=strict, count=0 if ours is None else ours.numel())
    if ours is None or theirs is None:
        return replace(made, problem="there is none" if ours is None else "the reference has none")
    if ours.shape != theirs.shape:
        return replace(made, problem=f"shape {tuple(ours.shape)}, the reference's is {tuple(theirs.shape)}")
    if ours.dtype != theirs.dtype:
        return replace(made, problem=f"{ours.dtype}, the reference's is {theirs.dtype}")
    step = torch.finfo(ours.dtype.to_real() if ours.is_floating_point() or ours.is_complex() else torch.float64).eps
    if truth is None or truth.shape != theirs.shape:
        error = other = Error(math.inf, math.inf)
    else:
        error = Error.of(ours, truth)
        other = error if torch.equal(ours, theirs) else Error.of(theirs, truth)
    comparison = Comparison(error, other, step)
    apart = relative_error(ours, exact(theirs)) if comparison.theirs.relative > math.sqrt(comparison.step) else 0.0
    return replace(made, comparison=comparison, apart=apart)


def merge(checks: Sequence[Check]) -> Check:
    """The same check on several draws as one: the medians of both sides' errors, and any problem that turned up.

    The median, since a rounding error that turns a ReLU or a maximum over, which happens to either side now and then,
    changes a gradient by a thousand times its usual error.
    """
    for one in checks:
        if one.problem or one.comparison is None:
            return one
    return replace(
        checks[0],
        comparison=Comparison.median([one.comparison for one in checks if one.comparison is not None]),
        apart=median(one.apart for one in checks),
    )

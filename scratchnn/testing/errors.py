"""Rounding errors: a result beside its float64 truth, told as a relative error and in units in the last place.

Whoever wants to know whether two layers compute the same must not compare them with each other, since then one's error
counts against the other, but both with the truth: the same computation on the same numbers in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Comparison", "Error", "Tolerance", "exact", "relative_error", "ulp_error"]


def exact(tensor: Tensor) -> Tensor:
    """The same numbers in float64, or complex128; whole numbers and booleans stay what they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def relative_error(value: Tensor, truth: Tensor) -> float:
    r"""How far a tensor is from the truth, :math:`\lVert v - t \rVert_2 / \lVert t \rVert_2`; without a unit.

    Where the truth is all zeros, the norm of the difference. Entries that are the same infinity, or NaN on both sides,
    count as equal; any other entry that is not finite makes the error infinite.

    Args:
        value: any tensor.
        truth: of the same shape, of a wider type.

    Returns:
        the error, without a unit: 0 where both are equal.

    Example:
        >>> from scratchnn.testing import relative_error
        >>> truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> round(relative_error(truth + 0.1, truth), 4)
        0.0283
    """
    value, truth = _comparable(value, truth)
    scale = truth.norm().item()
    return _infinite((value - truth).norm().item() / (scale if scale > 0 else 1.0))


def ulp_error(value: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """The largest difference of any entry, in units in the last place of ``dtype``.

    The unit is the distance between neighbouring numbers at the truth's magnitude, or at the root mean square of all
    entries where that is larger: of a sum whose terms cancel, nobody can expect more digits than the terms had.
    """
    value, truth = _comparable(value, truth)
    if truth.numel() == 0:
        return 0.0
    rms = truth.norm().item() / math.sqrt(truth.numel())
    magnitude = truth.abs().clamp(min=max(rms, torch.finfo(dtype).tiny))
    unit = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(magnitude)))
    return _infinite(((value - truth).abs() / unit).max().item())


def _comparable(value: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both exact; entries that agree without being finite become zero."""
    value, truth = (
        tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.double()
        for tensor in (exact(value.detach()), exact(truth.detach()))
    )
    if not (truth.isfinite().all() and value.isfinite().all()):
        same = (value == truth) | (value.isnan() & truth.isnan())
        agree = same & ~truth.isfinite()
        value, truth = value.masked_fill(agree, 0), truth.masked_fill(agree, 0)
    return value, truth


def _infinite(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _real(tensor: Tensor) -> torch.dtype:
    """The dtype whose rounding a tensor has."""
    return tensor.dtype.to_real() if tensor.is_floating_point() or tensor.is_complex() else torch.float64


@dataclass(frozen=True)
class Error:
    """How far one result is from the truth.

    Attributes:
        relative: the relative error (L2), see :func:`relative_error`.
        ulp: the largest error of an entry in units in the last place.
    """

    relative: float
    ulp: float

    @classmethod
    def of(cls, value: Tensor, truth: Tensor) -> Error:
        """The error of ``value``, in units of its own dtype (for whole numbers, of float64)."""
        return cls(relative_error(value, truth), ulp_error(value, truth, _real(value)))

    def covers(self, other: Error) -> bool:
        """Whether another error is at most this one, in both numbers."""
        return other.relative <= self.relative and other.ulp <= self.ulp

    @classmethod
    def median(cls, errors: Sequence[Error]) -> Error:
        """Of several draws, number by number."""
        return cls(median(error.relative for error in errors), median(error.ulp for error in errors))


@dataclass(frozen=True)
class Comparison:
    """The errors of two computations of one thing: that under test, and the reference it is held against.

    Attributes:
        ours: the error against the truth of what is under test.
        theirs: that of the reference.
        step: the distance from 1 to the next number of the dtype.
    """

    ours: Error
    theirs: Error
    step: float

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor, truth: Tensor) -> Comparison:
        """Compare two results with the truth."""
        return cls(Error.of(ours, truth), Error.of(theirs, truth), torch.finfo(_real(ours)).eps)

    @classmethod
    def median(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """Of several draws, number by number: one draw's errors scatter."""
        ours, theirs = (Error.median([getattr(c, side) for c in comparisons]) for side in ("ours", "theirs"))
        return cls(ours, theirs, comparisons[0].step)

    @property
    def ratio(self) -> float:
        """Our relative error over theirs. Below a tenth of a rounding step both count as exact: the ratio is 1."""
        floor = 0.1 * self.step
        ours, theirs = max(self.ours.relative, floor), max(self.theirs.relative, floor)
        return 1.0 if math.isinf(ours) and math.isinf(theirs) else ours / theirs


# How much more than the relative error the largest error of a single entry scatters from draw to draw.
_LARGEST = 4.0


@dataclass(frozen=True)
class Tolerance:
    """How large an error may be beside the reference's own: ``factor`` times as large, and some rounding steps more.

    Attributes:
        factor: of the reference's error. A sum in another order has other errors, by chance alone.
        steps: rounding steps of the dtype that any result may be off, since the reference may be exact by luck. In
            float64 they are :attr:`DOUBLE_STEPS` unless given: there the reference is its own truth, its error unknown.
    """

    factor: float = 2.0
    steps: float | None = None

    STEPS: ClassVar[float] = 2.0
    DOUBLE_STEPS: ClassVar[float] = 32.0

    def allowed(self, comparison: Comparison) -> Error:
        """The largest error that passes; a single entry may be four times as far off as the whole."""
        steps = self.steps
        if steps is None:
            steps = self.DOUBLE_STEPS if comparison.step <= torch.finfo(torch.float64).eps else self.STEPS
        theirs = comparison.theirs
        return Error(
            self.factor * theirs.relative + steps * comparison.step, _LARGEST * (self.factor * theirs.ulp + steps)
        )

    def allows(self, comparison: Comparison) -> bool:
        """Whether both errors, of the whole and of the worst entry, are within what is allowed."""
        return self.allowed(comparison).covers(comparison.ours)

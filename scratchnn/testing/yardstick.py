"""What a result is held against: as a rule the float64 run, and what is used where that is no measure."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scratchnn.testing.errors import Comparison, Error, Tolerance, exact

__all__ = ["Yardstick", "size_of", "yardstick"]

# From here on the float64 run of the reference does not describe the reference: rounding in half precision is below.
_FAR_OFF = 0.1

# Rounding steps between two results in one dtype, where both sides' errors are in the difference.
_APART = 4 * Tolerance.STEPS


class Yardstick(NamedTuple):
    """How far off a result is, and how far it may be.

    Attributes:
        comparison: both sides' errors.
        allowed: the largest errors that pass.
        truth: what they are errors from.
        note: what was done in place of the usual.
    """

    comparison: Comparison
    allowed: Error
    truth: Tensor
    note: str


def yardstick(
    ours: Tensor, theirs: Tensor, truth: Tensor, scale: float, tolerance: Tolerance, untrue: str = ""
) -> Yardstick:
    """Choose what a result is measured by.

    Args:
        ours, theirs, truth: of the layer under test, of the reference and of the reference in float64; all finite.
        scale: the size of the largest results of the experiment.
        tolerance: how large errors may be as a rule.
        untrue: why ``truth`` is none, where it is known to be none.
    """
    comparison = Comparison.of(ours, theirs, truth)
    size, noise = size_of(truth), comparison.step * scale
    wrong = comparison.theirs.relative > _FAR_OFF  # no digit of the reference is right
    if (wrong or untrue or truth.dtype == theirs.dtype) and size <= 4 * noise:
        return _noise(comparison, truth, size, noise, tolerance)
    if not (wrong or untrue):
        return Yardstick(comparison, tolerance.allowed(comparison), truth, "")
    allowed = Tolerance(0.0, max(_APART, tolerance.steps or 0.0)).allowed(comparison)
    if wrong and allowed.covers(comparison.ours):
        return Yardstick(comparison, allowed, truth, "the reference is far off its float64 run, the module is not")
    note = f"{untrue or 'the reference in float64 computes something else'}: held against its own result"
    return Yardstick(Comparison.of(ours, theirs, theirs), allowed, theirs, note)


def _noise(comparison: Comparison, truth: Tensor, size: float, noise: float, tolerance: Tolerance) -> Yardstick:
    """Where terms cancel to nothing, no digit is right on either side: it may be as large as their rounding errors."""
    relative = 8 * noise / size if size else 8 * noise * math.sqrt(truth.numel())
    relative = max(tolerance.allowed(comparison).relative, 10 * comparison.theirs.relative, relative)
    note = "terms cancel: held against the rounding errors of the largest results"
    return Yardstick(comparison, Error(relative, math.inf), truth, note)


def size_of(x: Tensor) -> float:
    """The root mean square of the finite numbers."""
    numbers = exact(x.detach()[x.isfinite()])
    return numbers.to(torch.complex128).norm().item() / math.sqrt(numbers.numel()) if numbers.numel() else 0.0

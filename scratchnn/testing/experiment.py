"""How a check is made: one experiment on the layer, on its reference and on the float64 truth, and their comparison.

An experiment is a function that does something with a layer and returns what came out by name: tensors, None where
there is no tensor, or plain values. It is run on fresh copies with equal weights and arguments of their own, so that
nothing that one does to them reaches the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from scratchnn.testing.cases import Arguments, Draw, channels_last, strides
from scratchnn.testing.errors import Tolerance
from scratchnn.testing.report import Finding
from scratchnn.testing.sides import Pair, Sides, Subject
from scratchnn.testing.yardstick import size_of, yardstick

__all__ = ["Experiment", "Inapplicable", "Trial", "told"]

Experiment = Callable[[Subject, Arguments], Mapping[str, Any]]
T = TypeVar("T")


class Inapplicable(Exception):
    """The reference itself does not stand a check."""


@dataclass(frozen=True)
class Trial:
    """What a check has to work with: two sides, arguments, a dtype and a seed.

    Attributes:
        check: its name.
        pair: both sides.
        draw: draws arguments for a dtype and a seed.
        dtype: of weights and arguments.
        seed: of everything random.
        tolerance: how large errors may be.
        device: where it happens.
        bad_calls: the caller's own examples of calls that must fail.
    """

    check: str
    pair: Pair
    draw: Draw
    dtype: torch.dtype
    seed: int
    tolerance: Tolerance
    device: torch.device
    bad_calls: Mapping[str, Arguments]

    def arguments(self, step: int = 0) -> Arguments:
        """The arguments of a call; another ``step`` gives others of the same kind."""
        return self.draw(self.dtype, self.seed + 1000 * step)

    def sides(self) -> Sides:
        """Fresh copies of both sides, and the truth."""
        return self.pair.sides(self.dtype, self.device)

    def of_reference(self, compute: Callable[[], T]) -> T:
        """What the reference gives, in checks that need it to.

        Raises:
            Inapplicable: where it raises an error.
        """
        try:
            return compute()
        except Exception as error:
            raise Inapplicable(f"the reference raises {told(error)}") from error

    def finding(self, case: str, quantity: str = "", **rest: Any) -> Finding:
        """A finding of this check in this dtype."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Finding(self.check, f"{dtype}, {case}" if case else dtype, quantity, **rest)

    def hold(
        self,
        case: str,
        experiment: Experiment,
        arguments: Arguments,
        *,
        layout: str = "",
        same_error: bool = False,
    ) -> Iterator[Finding]:
        """Run an experiment on all sides and compare what comes out, name by name.

        Args:
            case: what is special about it.
            experiment: see the head of this file.
            arguments: of the call; every side gets a copy.
            layout: hold the strides of the outputs together as well: ``"same"`` as the reference's, or ``"kept"``, for
                which the format of the input will do too, contiguous or channels_last.
            same_error: where the reference raises an error, expect the same one. Without it nothing is compared then.
        """
        ours, theirs, truth = self.sides()
        expected, found = _attempt(experiment, theirs, arguments), _attempt(experiment, ours, arguments)
        if isinstance(expected, Exception):
            yield self._answer_to_refusal(case, expected, found, same_error)
            return
        if isinstance(found, Exception):
            yield self.finding(case, problem=f"raises {told(found)}; the reference does not")
            return
        true = _attempt(experiment, truth, arguments.exact())
        if isinstance(true, Exception):
            true = {}
        scale = max((size_of(x) for x in (true or expected).values() if isinstance(x, Tensor)), default=0.0)
        for name in {**expected, **found}:
            sides = (found.get(name), expected.get(name), true.get(name))
            yield self._compared(case, name, *sides, scale)
            if layout and name.startswith("output") and all(isinstance(side, Tensor) for side in sides[:2]):
                yield self._laid_out(case, name, sides[0], sides[1], arguments, layout)

    def _answer_to_refusal(self, case: str, expected: Exception, found: Any, same_error: bool) -> Finding:
        if not same_error:
            return self.finding(case, skipped=f"the reference raises {told(expected)}")
        problem = ""
        if not isinstance(found, Exception):
            problem = f"raises nothing; the reference raises {told(expected)}"
        elif not isinstance(found, _types_to_expect(expected)):
            problem = f"raises {told(found)}; the reference raises {told(expected)}"
        elif str(expected) and not str(found).strip():
            problem = f"raises {type(found).__name__} without a message"
        return self.finding(case, "error", problem=problem)

    def _compared(self, case: str, name: str, ours: Any, theirs: Any, truth: Any, scale: float) -> Finding:
        if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
            both_plain = not isinstance(ours, Tensor) and not isinstance(theirs, Tensor)
            same = both_plain and ours == theirs
            return self.finding(case, name, problem="" if same else f"{_kind(ours)} instead of {_kind(theirs)}")
        problem = _other_kind(ours, theirs)
        if problem or not (theirs.is_floating_point() or theirs.is_complex()):
            if not problem and not torch.equal(ours, theirs):
                problem = f"other values{_worst(ours, theirs)}"
            return self.finding(case, name, problem=problem)
        untrue = ""
        if not isinstance(truth, Tensor) or truth.shape != theirs.shape:
            untrue, truth = "the reference has no such result in float64", theirs
        return self._measured(case, name, ours.detach(), theirs.detach(), truth.detach(), scale, untrue)

    def _measured(
        self, case: str, name: str, ours: Tensor, theirs: Tensor, truth: Tensor, scale: float, untrue: str
    ) -> Finding:
        """Both errors beside each other.

        Args:
            case, name, ours, theirs, truth: as in :meth:`_compared`.
            scale: the size of the largest results of the experiment.
            untrue: why ``truth`` is none, where it is known to be none.
        """
        problem = _not_finite_elsewhere(ours, theirs)
        if problem and _not_finite_elsewhere(ours, truth):
            return self.finding(case, name, problem=problem)
        finite = ours.isfinite() & theirs.isfinite() & truth.isfinite()
        ours, theirs, truth = (x.masked_fill(~finite, 0) for x in (ours, theirs, truth))
        held = yardstick(ours, theirs, truth, scale, self.tolerance, untrue)
        problem = "" if held.allowed.covers(held.comparison.ours) else f"error too large{_worst(ours, held.truth)}"
        return self.finding(
            case, name, problem=problem, comparison=held.comparison, allowed=held.allowed, note=held.note
        )

    def _laid_out(
        self, case: str, name: str, ours: Tensor, theirs: Tensor, arguments: Arguments, layout: str
    ) -> Finding:
        mine, other = strides(ours), strides(theirs)
        format = channels_last(ours.dim())
        last = any(_only_channels_last(x) for x in arguments.tensors().values())
        wanted = format if last else torch.contiguous_format
        kept = layout == "kept" and wanted is not None and mine == strides(ours.contiguous(memory_format=wanted))
        problem = "" if mine == other or kept else f"strides {ours.stride()}, the reference's {theirs.stride()}"
        if problem and last and format is not None and other == strides(theirs.contiguous(memory_format=format)):
            problem = f"channels_last is lost: {problem}"
        return self.finding(case, f"layout of {name}", problem=problem)


def _attempt(experiment: Experiment, subject: Subject, arguments: Arguments) -> Mapping[str, Any] | Exception:
    try:
        return experiment(subject, arguments.copy())
    except Exception as error:
        return error


def told(error: Exception) -> str:
    """An exception in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:160]}{'...' if len(message) > 160 else ''}"


def _types_to_expect(error: Exception) -> tuple[type[Exception], ...]:
    """The reference's type; where that is an accident of how it is written, what says the same as well.

    A dtype that a kernel of torch lacks is a NotImplementedError or the RuntimeError which that derives from, depending
    on the kernel. What is no tensor fails for want of a method before anything looks at its type.
    """
    also = {NotImplementedError: (RuntimeError,), AttributeError: (TypeError,)}
    return (type(error), *also.get(type(error), ()))


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _other_kind(ours: Tensor, theirs: Tensor) -> str:
    """In what a tensor differs that is no matter of rounding."""
    if ours.shape != theirs.shape:
        return f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    if ours.dtype != theirs.dtype:
        return f"{ours.dtype} instead of {theirs.dtype}".replace("torch.", "")
    if ours.device != theirs.device:
        return f"on {ours.device} instead of {theirs.device}"
    return ""


def _not_finite_elsewhere(ours: Tensor, theirs: Tensor) -> str:
    """Whether NaN or infinities are in other places."""
    infinities = (
        {"infinity": torch.isinf} if theirs.is_complex() else {"infinity": torch.isposinf, "-infinity": torch.isneginf}
    )
    for what, test in {"NaN": torch.isnan, **infinities}.items():
        mine, other = test(ours), test(theirs)
        if not torch.equal(mine, other):
            return f"{what} in {int(mine.sum())} places instead of {int(other.sum())}"
    return ""


def _worst(ours: Tensor, truth: Tensor) -> str:
    """Where the largest difference is, and what stands there."""
    wide = torch.complex128 if truth.is_complex() else torch.float64
    difference = (ours.to(wide) - truth.to(wide)).abs().nan_to_num(0.0)
    if difference.numel() == 0:
        return ""
    place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    at = f" at {list(place)}" if place else ""
    digits = 17 if ours.dtype in (torch.float64, torch.complex128) else 9
    return f"; largest{at}: {ours[place].item():.{digits}g} instead of {truth[place].item():.{digits}g}"


def _only_channels_last(x: Tensor) -> bool:
    format = channels_last(x.dim())
    return format is not None and x.is_contiguous(memory_format=format) and not x.is_contiguous()

"""Whether a layer computes what another one does: all checks, one report."""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from scratchnn.testing.cases import Arguments, Draw, drawer
from scratchnn.testing.checks import CHECKS, Check
from scratchnn.testing.errors import Comparison, Error, Tolerance
from scratchnn.testing.experiment import Inapplicable, Trial, told
from scratchnn.testing.report import Finding, NotEquivalentError, Report
from scratchnn.testing.sides import Pair, Side, Unshareable

__all__ = ["DTYPES", "ReferenceRefusesError", "assert_equivalent", "check_equivalence", "select"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class ReferenceRefusesError(ValueError):
    """The reference raises an error for good arguments, in every dtype: there is nothing to compare with."""


# How often an error that is too large is measured again, on other numbers; the medians decide.
_REPEATS = 2


def check_equivalence(
    module: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    dtypes: Sequence[torch.dtype] = DTYPES,
    factor: float = Tolerance.factor,
    steps: float | None = None,
    reproducible: bool = False,
    representation: bool = False,
    bad_calls: Mapping[str, tuple[Any, ...]] | None = None,
    known: Mapping[str, str] | None = None,
    perturb: bool = True,
    seed: int = 0,
) -> Report:
    r"""Hold a layer against a reference under every check, and report.

    Both sides are measured against the reference run in float64 on the same, rounded numbers. With errors
    :math:`e = \lVert v - t \rVert_2 / \lVert t \rVert_2` against that truth, a result :math:`v` passes where

    .. math:: e_\text{module} \le \text{factor} \cdot e_\text{reference} + \text{steps} \cdot \epsilon

    and the largest error of an entry, in ulp, is at most four times what that gives in ulp. An error that is too large
    is measured on two more draws, and the medians decide: rounding errors scatter. Neither side is changed.

    Args:
        module: the layer under test: a module, a factory (called without arguments, gives a module; a class will do),
            or a function of tensors.
        reference: what it should compute, likewise. It gets the module's weights.
        inputs: the arguments by position: a tensor or a tuple, in which tuples, lists and dictionaries of tensors may
            stand, or a function ``(dtype, seed)`` that draws them. Dimension 0 is the batch. Those tensors that
            require a gradient are differentiated by or, where none does, all floating ones.
        kwargs: the arguments by name.
        checks: the names of the checks to make; all unless given.
        skip: the names of checks not to make.
        dtypes: of weights and inputs. Those that the reference refuses are left out; complex ones have to be named.
        factor: how many times the reference's error is allowed.
        steps: and how many rounding steps more; 2 unless given, and 32 in float64, where the error of the reference
            is not known.
        reproducible: expect the same bits of a sample in any batch and with any number of threads as well, which torch
            does not promise.
        representation: expect the same ``repr``, the name of the class aside.
        bad_calls: further calls that must raise the same type of error on both sides: for a name, the arguments by
            position, to which ``kwargs`` are added.
        known: differences to accept: patterns, as ``"batching/*unbatched*"``, of a finding's ``check/case/quantity``,
            and the reason for each. They are listed in the report.
        perturb: draw weights anew that are all equal, as the ones and zeros of a new normalization, so that a layer
            that ignores them does not pass.
        seed: of everything random. Both sides start from the same one, so that layers like dropout can be compared.

    Returns:
        the report; see :attr:`Report.passed`, :attr:`Report.failures`, ``str(report)`` and :meth:`Report.to_json`.

    Raises:
        TypeError: where module or reference is neither module, factory nor function, or an input is no tensor at all.
        ValueError: where there is no such check, a dtype is not one of numbers with a fraction, or, as
            :class:`ReferenceRefusesError`, the reference refuses the inputs in every dtype.

    Example:
        >>> from scratchnn.testing import check_equivalence
        >>> inputs = torch.randn(2, 3)
        >>> check_equivalence(torch.nn.ReLU(), torch.nn.ReLU6(), 10 * inputs, checks=["outputs"]).passed
        False
    """
    selected = select(checks, skip, reproducible=reproducible, representation=representation)
    _require_dtypes(dtypes)
    ours, theirs = Side(module), Side(reference)
    draw = drawer(inputs, kwargs, seed)
    tolerance = Tolerance(factor, steps)
    settings = {
        "factor": factor,
        "steps": steps if steps is not None else [Tolerance.STEPS, Tolerance.DOUBLE_STEPS],
        "dtypes": [_short(dtype) for dtype in dtypes],
        "checks": [check.name for check in selected],
        "perturb": perturb,
        "seed": seed,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": platform.machine(),
    }
    devices = None if torch.accelerator.is_available() else ()
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = _device(draw(dtypes[0], seed))
        settings["device"] = str(device)
        report = Report(ours.name, theirs.name, settings)
        try:
            pair = Pair(ours, theirs, draw, perturb=perturb, seed=seed)
        except Unshareable as error:
            report.findings.append(Finding("state_dict", "", "weights", problem=str(error)))
            return report
        accepted, refused = _accepted(pair, draw, dtypes, device, seed)
        calls = {name: Arguments(tuple(args), dict(kwargs or {})) for name, args in (bad_calls or {}).items()}
        for check in selected:
            if check.modules and not pair.modules:
                report.findings.append(Finding(check.name, "", skipped="not both sides are modules"))
                continue
            for dtype in accepted if check.every_dtype else accepted[:1]:
                trial = Trial(check.name, pair, draw, dtype, seed, tolerance, device, calls)
                report.findings += _settled(check, trial)
            for dtype, reason in refused.items() if check.every_dtype else ():
                report.findings.append(Finding(check.name, _short(dtype), skipped=reason))
    report.findings = [_excused(finding, known or {}) for finding in report.findings]
    return report


def assert_equivalent(module: Callable[..., Any], reference: Callable[..., Any], inputs: Any, **options: Any) -> Report:
    """As :func:`check_equivalence`, with the same arguments, and raise where the report has not passed.

    Args:
        module, reference, inputs, options: as of :func:`check_equivalence`.

    Returns:
        the report.

    Raises:
        NotEquivalentError: an :class:`AssertionError` with the report for its message; also where nothing at all could
            be compared.
        TypeError, ValueError: as :func:`check_equivalence`.

    Example:
        >>> from scratchnn.testing import assert_equivalent
        >>> ours, theirs = scratchnn.nn.ReLU(), torch.nn.ReLU()
        >>> assert_equivalent(ours, theirs, torch.randn(2, 3), checks=["outputs"]).passed
        True
    """
    report = check_equivalence(module, reference, inputs, **options)
    if not report.passed:
        raise NotEquivalentError(report)
    return report


def select(checks: Iterable[str] | None, skip: Iterable[str], **wishes: bool) -> list[Check]:
    """The checks to make, in order; ``wishes`` are those of :attr:`Check.wish` that hold.

    Raises:
        TypeError: where a name is given in place of a collection of names.
        ValueError: where there is no check of a name.
    """
    if isinstance(checks, str) or isinstance(skip, str):
        raise TypeError("checks and skip are collections of names, not one name")
    wanted = None if checks is None else list(checks)
    unwanted = list(skip)
    for name in (*(wanted or ()), *unwanted):
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}; there are {', '.join(CHECKS)}")
    if wanted is None:
        wanted = [name for name, check in CHECKS.items() if wishes.get(check.wish, not check.wish)]
    return [check for name, check in CHECKS.items() if name in wanted and name not in unwanted]


def _require_dtypes(dtypes: Sequence[torch.dtype]) -> None:
    for dtype in dtypes:
        if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
            raise ValueError(f"dtypes are floating or complex ones of torch, not {dtype!r}")
    if not dtypes:
        raise ValueError("at least one dtype is needed")


def _device(arguments: Arguments) -> torch.device:
    tensors = list(arguments.tensors().values())
    if not tensors:
        raise TypeError("the inputs hold no tensor")
    return tensors[0].device


def _accepted(
    pair: Pair, draw: Draw, dtypes: Sequence[torch.dtype], device: torch.device, seed: int
) -> tuple[list[torch.dtype], dict[torch.dtype, str]]:
    """The dtypes that the reference computes in, and why it refuses the others.

    Raises:
        ReferenceRefusesError: where there are none.
    """
    accepted, refused = [], {}
    for dtype in dtypes:
        arguments = draw(dtype, seed)
        try:
            with torch.no_grad():
                pair.sides(dtype, device).theirs(arguments, seed)
            accepted.append(dtype)
        except Exception as error:
            refused[dtype] = f"the reference raises {told(error)}"
    if not accepted:
        reasons = "; ".join(f"{_short(dtype)}: {reason}" for dtype, reason in refused.items())
        raise ReferenceRefusesError(f"the reference accepts the inputs in no dtype: {reasons}")
    return accepted, refused


def _settled(check: Check, trial: Trial) -> list[Finding]:
    """The findings of a check; errors that are too large are measured again before they count."""
    findings = list(_made(check, trial))
    if not any(_is_too_large(finding) for finding in findings):
        return findings
    repeated: dict[str, list[Finding]] = {}
    for repeat in range(1, _REPEATS + 1):
        for finding in _made(check, dataclasses.replace(trial, seed=trial.seed + repeat)):
            repeated.setdefault(finding.name, []).append(finding)
    return [_decided(finding, repeated.get(finding.name, [])) for finding in findings]


def _made(check: Check, trial: Trial) -> Iterator[Finding]:
    try:
        yield from check.function(trial)
    except Inapplicable as reason:
        yield trial.finding("", skipped=str(reason))
    except Exception as error:
        yield trial.finding("", problem=f"raises {told(error)}")


def _is_too_large(finding: Finding) -> bool:
    return bool(finding.problem) and finding.comparison is not None


def _decided(finding: Finding, repeated: Sequence[Finding]) -> Finding:
    """An error that is too large passes if the median of all draws does."""
    measured = [finding, *(other for other in repeated if other.comparison is not None)]
    if not _is_too_large(finding) or len(measured) <= _REPEATS:
        return finding
    comparison = Comparison.median([other.comparison for other in measured])
    allowed = Error.median([other.allowed for other in measured])
    if not allowed.covers(comparison.ours):
        return finding
    note = f"the median of {_REPEATS + 1} draws"
    return dataclasses.replace(finding, problem="", comparison=comparison, allowed=allowed, note=note)


def _excused(finding: Finding, known: Mapping[str, str]) -> Finding:
    reason = next((reason for pattern, reason in known.items() if fnmatchcase(finding.name, pattern)), "")
    return dataclasses.replace(finding, known=reason) if finding.problem and reason else finding


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

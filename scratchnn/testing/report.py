"""What the equivalence checks found: for people, a table that begins with the worst; for programs, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scratchnn.testing.errors import Comparison, Error

__all__ = ["Finding", "NotEquivalentError", "Report"]

SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One thing that was compared, or could not be.

    Attributes:
        check: the name of the check.
        case: what was special, as ``float32`` or ``float32, channels_last``.
        quantity: what was compared, as ``output`` or ``gradient of weight``.
        problem: what is wrong, in a few words; empty where nothing is.
        comparison: both errors against float64 truth, where numbers were compared.
        allowed: the largest errors that pass.
        note: how the comparison was made, where it was not made as usual.
        skipped: why nothing was compared.
        known: the reason why the problem is accepted.
    """

    check: str
    case: str
    quantity: str = ""
    problem: str = ""
    comparison: Comparison | None = None
    allowed: Error | None = None
    note: str = ""
    skipped: str = ""
    known: str = ""

    @property
    def name(self) -> str:
        """``check/case/quantity``: what the patterns of known differences are held against."""
        return "/".join((self.check, self.case, self.quantity))

    @property
    def status(self) -> str:
        """``skipped``, ``passed``, ``known`` (a problem that is accepted) or ``failed``."""
        if self.skipped:
            return "skipped"
        if not self.problem:
            return "passed"
        return "known" if self.known else "failed"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite become strings."""
        entry: dict[str, Any] = {
            "check": self.check,
            "case": self.case,
            "quantity": self.quantity,
            "status": self.status,
        }
        for name in ("problem", "note", "skipped", "known"):
            if getattr(self, name):
                entry[name] = getattr(self, name)
        errors = {"allowed": self.allowed}
        if self.comparison is not None:
            errors = {"module": self.comparison.ours, "reference": self.comparison.theirs, **errors}
        for name, error in errors.items():
            if error is not None:
                entry[name] = {"relative": _number(error.relative), "ulp": _number(error.ulp)}
        return entry


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


@dataclass
class Report:
    """The outcome of :func:`~scratchnn.testing.check_equivalence`.

    Attributes:
        module: what was under test.
        reference: what it was held against.
        settings: what the verdict depends on: tolerances, dtypes, seed, versions.
        findings: everything that was compared, in order.
    """

    module: str
    reference: str
    settings: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def failures(self) -> list[Finding]:
        """The problems that are not known ones."""
        return self._of("failed")

    @property
    def compared(self) -> int:
        """How many things were compared."""
        return len(self.findings) - len(self._of("skipped"))

    @property
    def passed(self) -> bool:
        """Whether there is no failure; not so where nothing at all could be compared."""
        return self.compared > 0 and not self.failures

    @property
    def exit_code(self) -> int:
        """0 where it passed, else 1."""
        return 0 if self.passed else 1

    def _of(self, status: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == status]

    def to_dict(self) -> dict[str, Any]:
        """Everything, of types that JSON knows."""
        return {
            "schema": SCHEMA,
            "module": self.module,
            "reference": self.reference,
            "passed": self.passed,
            "compared": self.compared,
            "failed": len(self.failures),
            "settings": self.settings,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self._headline()
        if self.failures:
            checks = _distinct(finding.check for finding in self.failures)
            yield f"{len(self.failures)} of {self.compared} comparisons failed, in: {', '.join(checks)}"
            yield ""
            yield from _table(self.failures)
        known = self._of("known")
        if known:
            yield ""
            yield "known differences:"
            yield from _indented(f"{finding.name}: {finding.problem} ({finding.known})" for finding in known)
        yield ""
        yield from self._summary()
        skipped = self._of("skipped")
        if skipped:
            yield ""
            yield "not compared:"
            yield from _indented(_distinct(f"{_place(finding)}: {finding.skipped}" for finding in skipped))

    def _headline(self) -> str:
        if self.failures:
            first = self.failures[0]
            return f"{self.module} is not equivalent to {self.reference}: {_place(first)}: {_told(first)}"
        if not self.compared:
            return f"{self.module} could not be compared with {self.reference}"
        return f"{self.module} is equivalent to {self.reference}: {self.compared} comparisons"

    def _summary(self) -> Iterator[str]:
        """One line for each check: how much was compared, and the largest error as a share of what is allowed."""
        rows = [["check", "comparisons", "failed", "of what is allowed", "at most, in"]]
        for check in _distinct(finding.check for finding in self.findings if not finding.skipped):
            findings = [finding for finding in self.findings if finding.check == check and not finding.skipped]
            failed = sum(finding.status == "failed" for finding in findings)
            measured = [finding for finding in findings if finding.comparison is not None]
            worst = max(measured, key=_share, default=None)
            share, place = ("", "") if worst is None else (_percent(_share(worst)), _where(worst))
            rows.append([check, str(len(findings)), str(failed or ""), share, place])
        yield from _aligned(rows)


def _table(failures: Sequence[Finding]) -> Iterator[str]:
    rows = [
        ["check", "case", "quantity", "error", "reference's", "allowed", "ulp", "reference's", "allowed", "verdict"]
    ]
    for finding in failures:
        rows.append([finding.check, finding.case, finding.quantity, *_numbers(finding), finding.problem])
    yield from _aligned(rows)


def _numbers(finding: Finding) -> list[str]:
    comparison, allowed = finding.comparison, finding.allowed
    if comparison is None or allowed is None:
        return [""] * 6
    errors = (comparison.ours, comparison.theirs, allowed)
    return [*(f"{error.relative:.1e}" for error in errors), *(f"{error.ulp:.3g}" for error in errors)]


def _told(finding: Finding) -> str:
    """The problem with its most important numbers."""
    comparison, allowed = finding.comparison, finding.allowed
    if comparison is None or allowed is None:
        return finding.problem
    return (
        f"relative error {comparison.ours.relative:.1e}, the reference's {comparison.theirs.relative:.1e}, "
        f"allowed {allowed.relative:.1e}; {finding.problem}"
    )


def _share(finding: Finding) -> float:
    """How much of what is allowed an error takes up."""
    error, allowed = finding.comparison.ours, finding.allowed
    return max(error.relative / allowed.relative, error.ulp / allowed.ulp)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share < 10 else "over 999%"


def _place(finding: Finding) -> str:
    return ", ".join(part for part in (finding.check, finding.case, finding.quantity) if part)


def _where(finding: Finding) -> str:
    return ", ".join(part for part in (finding.case, finding.quantity) if part)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows as columns, without those that are empty below their heading."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    yield from _indented(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


class NotEquivalentError(AssertionError):
    """Raised by :func:`~scratchnn.testing.assert_equivalent`; its message is the report.

    Attributes:
        report: the :class:`Report`.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report

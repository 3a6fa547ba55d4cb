"""What came out, for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scratchnn.bench import targets
from scratchnn.bench.cases import FORWARD, FORWARD_BACKWARD, MODEL, TRAINING_STEP
from scratchnn.bench.limits import Limits
from scratchnn.bench.measure import Result
from scratchnn.bench.timing import Spread, geometric_mean

SCHEMA = 2

BUSY = 0.5  # processes that ran beside the benchmark on average: from here on they cost it time

_SHORT = {FORWARD: "fwd", FORWARD_BACKWARD: "fwd+bwd", TRAINING_STEP: "step"}


@dataclass
class Report:
    """The results with everything they depend on.

    Attributes:
        date: when the run started, in UTC.
        versions: of the software.
        hardware: the processor and its cores.
        settings: threads, instruction set, allocator, time per case and so on.
        limits: what the machine reached with these threads.
        results: one for each pass of each case.
        disagreements: cases that were not timed because their results differed from torch's.
    """

    date: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    settings: dict[str, Any]
    limits: Limits
    results: list[Result] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Everything, for :meth:`from_json`."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            ValueError: when it was written to another schema.
        """
        content = json.loads(text)
        schema = content.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"the report has schema {schema}, this version reads {SCHEMA}")
        content["limits"] = Limits(**content["limits"])
        content["results"] = [_result(entry) for entry in content["results"]]
        return cls(**content)


def _result(entry: dict[str, Any]) -> Result:
    return Result(
        **{
            **entry,
            "shape": tuple(entry["shape"]),
            "groups": tuple(entry["groups"]),
            "ours": Spread(**entry["ours"]),
            "torch": {name: Spread(**spread) for name, spread in entry["torch"].items()},
            "ratios": {name: Spread(**spread) for name, spread in entry["ratios"].items()},
            **{key: Spread(**entry[key]) if entry[key] else None for key in ("compiled", "compiled_ratio")},
        }
    )


def heading(report: Report) -> list[str]:
    """The lines above the table: where the numbers come from."""
    settings, hardware = report.settings, report.hardware
    matmul = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in report.limits.matmul.items())
    best = settings["torch_format"] == "best"
    torch_format = "the better of both memory formats" if best else "our memory format"
    lines = [
        f"{hardware['processor']}, {hardware['cores']} cores; {settings['threads']} threads, "
        f"{settings['instruction_set']}; allocator: {settings['allocator']}",
        ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        f"limits: copy {report.limits.copy / 1e9:.1f} GB/s; matmul peak {matmul}",
        f"torch runs in {torch_format}; ratio = torch's time / ours, [quartiles over the rounds]; rates are ours",
    ]
    if settings["compile"]:
        lines.append("models of torch.nn also under torch.compile, in our memory format; compiling is not timed")
    if settings["load_before"] > BUSY:
        lines.append(
            f"WARNING: the machine was busy (load average {settings['load_before']}), do not rely on these times"
        )
    return lines


class Table:
    """The rows of the terminal's table, made one by one while the cases run.

    Args:
        names: of all cases to come, for the width of the first column.
        limits: that the rates are compared with.
        compiled: whether there are columns for torch.compile.
    """

    def __init__(self, names: Sequence[str], limits: Limits, compiled: bool = False) -> None:
        self._width = max(len(name) for name in names)
        self._limits = limits
        self._compiled = compiled
        self._family = ""
        self._case = ""

    def header(self) -> str:
        """The heading of :meth:`rows`."""
        return (
            f"  {'case':<{self._width}}  {'pass':<7}  {'ours':>17}  {'torch':>17}"
            f"  {'ratio':>6}  {'quartiles':<14}"
            + (f" {'torch.compile':>17}  {'ratio':>6} " if self._compiled else "")
            + f" {'GFLOP/s':>8} {'peak':>5}  {'GB/s':>6} {'copy':>5}  rounds"
        )

    def rows(self, result: Result) -> Iterator[str]:
        """The row of a result, after a line with the family's name where a new one begins."""
        if result.family != self._family:
            self._family = result.family
            yield f"{result.family}"
        name = "" if result.name == self._case else result.name
        self._case = result.name
        theirs = result.torch[result.torch_format]
        ratio = result.ratio
        quartiles = f"[{ratio.lower:.2f}, {ratio.upper:.2f}]"
        seconds = result.ours.median
        arithmetic = " " * 14
        if result.flops:
            rate = result.flops / seconds
            arithmetic = f"{rate / 1e9:8.1f} {_share(rate / self._limits.matmul[result.dtype]):>5}"
        compiled = " " * 28 if self._compiled else ""
        if result.compiled is not None and result.compiled_ratio is not None:
            compiled = f" {duration(result.compiled):>17}  {result.compiled_ratio.median:>5.2f}x  "
        bandwidth = result.bytes / seconds
        remarks = [] if result.verdict == "faster" else [result.verdict.upper()]
        if result.torch_format != result.memory_format:
            remarks.append(f"torch in {result.torch_format}")
        yield (
            f"  {name:<{self._width}}  {_SHORT[result.which]:<7}"
            f"  {duration(result.ours):>17}  {duration(theirs):>17}"
            f"  {ratio.median:>5.2f}x  {quartiles:<14}{compiled} {arithmetic}"
            f"  {bandwidth / 1e9:6.1f} {_share(bandwidth / self._limits.copy):>5}  {result.rounds:>6}"
            f"  {', '.join(remarks)}"
        ).rstrip()


def duration(spread: Spread) -> str:
    """The median with half the distance between the quartiles, in a unit that suits."""
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us"))
        if spread.median * scale >= 1 or unit == "us"
    )
    half = (spread.upper - spread.lower) / 2 * scale
    median = spread.median * scale
    digits = 1 if median >= 100 else 2
    return f"{median:.{digits}f} +-{half:.{digits}f} {unit}"


def _share(fraction: float) -> str:
    return f"{fraction:.0%}"


@dataclass(frozen=True)
class Summary:
    """The results of one pass of one family: the geometric mean of the ratios, and how many say what."""

    family: str
    which: str
    mean: float
    verdicts: dict[str, int]

    def __str__(self) -> str:
        counts = ", ".join(f"{verdict} {count}" for verdict, count in self.verdicts.items())
        return f"  {self.family:<12}{self.which:<18}{self.mean:5.2f}x  ({counts})"


def summarize(results: Sequence[Result]) -> list[Summary]:
    """One summary for each pass of each family, in the order of the results."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.family, {}).setdefault(result.which, []).append(result)
    return [
        Summary(
            family,
            which,
            geometric_mean([result.ratio.median for result in group]),
            {verdict: sum(result.verdict == verdict for result in group) for verdict in ("faster", "even", "slower")},
        )
        for family, passes in groups.items()
        for which, group in passes.items()
    ]


def markdown(report: Report) -> str:
    """The goals, the summaries and all results as Markdown, to be pasted into a document."""
    lines = [f"{line}  " for line in heading(report)]
    lines += [f"Measured {report.date[:10]}, {report.settings['seconds']:g} seconds a case.", ""]
    lines += [*targets.markdown(targets.of_times(report.results)), ""]
    lines += [
        "| family | pass | geometric mean | faster | even | slower |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for summary in summarize(report.results):
        counts = " | ".join(str(count) for count in summary.verdicts.values())
        lines.append(f"| {summary.family} | {summary.which} | {summary.mean:.2f}x | {counts} |")
    models = [result for result in report.results if result.family == MODEL]
    layers = [result for result in report.results if result.family != MODEL]
    for results in (models, layers):
        lines += ["", *_markdown_table(results)] if results else []
    return "\n".join(lines) + "\n"


def _markdown_table(results: Sequence[Result]) -> list[str]:
    compiled = any(result.compiled is not None for result in results)
    extra = ("torch.compile | ratio | ", "---:|---:|") if compiled else ("", "")
    lines = [
        f"| family | case | as in | pass | scratchnn | torch.nn | ratio | quartiles | {extra[0]}rounds |",
        f"|---|---|---|---|---:|---:|---:|---|{extra[1]}---:|",
    ]
    for result in results:
        ratio, theirs = result.ratio, result.torch[result.torch_format]
        cells = [
            *(result.family, result.name, result.net, result.which),
            *(duration(result.ours), duration(theirs), f"{ratio.median:.2f}x"),
            f"{ratio.lower:.2f} to {ratio.upper:.2f}",
        ]
        if compiled:
            known = result.compiled is not None and result.compiled_ratio is not None
            cells += [duration(result.compiled), f"{result.compiled_ratio.median:.2f}x"] if known else ["", ""]
        lines.append(f"| {' | '.join(cells)} | {result.rounds} |")
    return lines

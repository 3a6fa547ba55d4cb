"""What came out of ``scratchnn verify``, for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scratchnn.bench.timing import Spread
from scratchnn.testing.model_report import ModelReport, worst
from scratchnn.testing.recording import CallName
from scratchnn.testing.verdict import Check
from scratchnn.verify.measure import Cost

__all__ = ["Report", "aligned", "heading", "layer_table", "markdown", "markdown_of_many", "row_of_model", "summary"]

SCHEMA = 1

# What is asked of the whole model, by how the names of the checks begin or end.
OUTPUT, GRADIENTS, STATISTICS = "output", "gradients", "running statistics"


@dataclass
class Report:
    """All that is known of one model.

    Attributes:
        model: as it was asked for.
        mode: how it came to scratchnn's layers: ``convert`` or ``override``.
        settings: sizes, draws, threads.
        environment: versions and hardware.
        taken: how many layers of each class scratchnn computes, or how many calls of each function.
        left: how many of those that it has are torch's all the same, by class or function, and why.
        comparison: the errors.
        whole: what the whole model costs; None where nothing was timed.
        costs: what each layer costs.
    """

    model: str
    mode: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    taken: dict[str, int]
    left: dict[str, int]
    comparison: ModelReport
    whole: Cost | None = None
    costs: dict[CallName, Cost] = field(default_factory=dict)

    def to_dict(self, layers: bool = True) -> dict[str, Any]:
        """Everything, for JSON; of the layers only if wanted."""
        comparison = self.comparison.to_dict()
        for layer, entry in zip(self.comparison.layers, comparison["layers"], strict=True):
            cost = self.costs.get(layer.name)
            entry["cost"] = asdict(cost) if cost is not None else None
        if not layers:
            del comparison["layers"]
        return {
            "schema": SCHEMA,
            "model": self.model,
            "mode": self.mode,
            "settings": self.settings,
            "environment": self.environment,
            "taken": self.taken,
            "left": self.left,
            "cost": asdict(self.whole) if self.whole is not None else None,
            "comparison": comparison,
        }

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def checks_of(self, what: str) -> list[Check]:
        """The checks of the whole model that are about its output, its gradients or its running statistics."""
        return [check for check in self.comparison.whole if _about(check) == what]


def _about(check: Check) -> str:
    if check.what.startswith("gradient"):
        return GRADIENTS
    return STATISTICS if check.what.endswith("after it") else OUTPUT


def heading(report: Report) -> list[str]:
    """Where the numbers come from.

    Args:
        report: of the model.

    Returns:
        the lines.
    """
    environment, settings = report.environment, report.settings
    how = "converted by scratchnn.convert" if report.mode == "convert" else "run under scratchnn.override"
    return [
        f"{report.model} in {settings['dtype']}, {how}, beside torch's layers and float64",
        f"{environment['processor']}, {environment['threads']} threads, {environment['instruction_set']}; "
        f"scratchnn {environment['scratchnn']}, torch {environment['torch']}",
        f"inputs: {settings['inputs']}; {settings['seeds']} draws, medians; "
        f"allowed: {report.comparison.factor:g} times torch's error",
    ]


def layer_table(report: Report) -> list[list[str]]:
    """One row for each call of each layer: its errors, and what it costs.

    Args:
        report: of the model.

    Returns:
        the rows, the names of the columns first.
    """
    head, *rows = report.comparison.table()
    if not report.costs:
        return [head, *rows]
    costs = {str(name): cost for name, cost in report.costs.items()}
    head = [*head[:-1], "speed fwd", "fwd+bwd", "saved MB: ours, theirs", head[-1]]
    return [head, *([*row[:-1], *_cost_cells(costs.get(row[0])), row[-1]] for row in rows)]


def _cost_cells(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["", "", ""]
    return [
        _times(cost.forward),
        _times(cost.backward),
        f"{_megabytes(cost.saved_ours)}, {_megabytes(cost.saved_theirs)}",
    ]


def _times(spread: Spread | None) -> str:
    return f"{spread.median:.2f}x" if spread is not None else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"


def summary(report: Report) -> list[str]:
    """The verdict and what it rests on, in a few lines.

    Args:
        report: of the model.

    Returns:
        the lines.
    """
    comparison = report.comparison
    lines = [str(comparison)]
    what = "layers converted" if report.mode == "convert" else "calls rerouted in evaluation"
    parts = ", ".join(f"{count} {name}" for name, count in report.taken.items())
    lines.append(f"{sum(report.taken.values())} {what}: {parts or 'none'}")
    for reason, count in report.left.items():
        lines.append(f"{count} left to torch: {reason}")
    for what in (OUTPUT, GRADIENTS, STATISTICS):
        check = worst(report.checks_of(what))
        if check is not None:
            lines.append(f"{what}, the worst: {check}")
    if (cost := report.whole) is not None:
        lines.append(
            f"torch's time over ours: evaluation {_times(cost.forward)}, training step {_times(cost.backward)}; "
            f"kept for the backward pass: {_megabytes(cost.saved_ours)} MB, "
            f"torch {_megabytes(cost.saved_theirs)} MB"
        )
    return lines


HEAD_OF_MODELS = [
    "model",
    "verdict",
    "layers",
    "left",
    "output",
    "gradients",
    "statistics",
    "layer fwd",
    "layer bwd",
    "turned",
    "speed eval",
    "step",
]


def row_of_model(report: Report) -> list[str]:
    """One line for a model among many: the ratios of our error to torch's where it is worst.

    Args:
        report: of the model.

    Returns:
        its cells, in the columns of :func:`markdown_of_many`.
    """
    comparison = report.comparison
    whole = [_ratio(worst(report.checks_of(what))) for what in (OUTPUT, GRADIENTS, STATISTICS)]
    alone = [
        _ratio(worst([check for layer in comparison.layers for check in getattr(layer, group)]))
        for group in ("alone_forward", "alone_backward")
    ]
    speeds = [_times(report.whole.forward), _times(report.whole.backward)] if report.whole is not None else ["", ""]
    return [
        report.model.rpartition(":")[2],
        "same" if comparison.passed else "DIFFERS",
        str(sum(layer.leaf for layer in comparison.layers)),
        str(sum(report.left.values())),
        *whole,
        *alone,
        str(comparison.turned),
        *speeds,
    ]


def _ratio(check: Check | None) -> str:
    if check is None:
        return ""
    text = "!" if check.comparison is None else f"{check.comparison.ratio:.2f}"
    return text if check.passed else f"{text} (!)"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The cells of a table in columns.

    Args:
        rows: as many cells in each.

    Returns:
        a line for each row.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]


def markdown(report: Report) -> str:
    """The page of one model.

    Args:
        report: of the model.

    Returns:
        the page, as Markdown.
    """
    lines = [
        f"# {report.model}",
        "",
        *(f"{line}  " for line in heading(report)),
        "",
        "```",
        *summary(report),
        "```",
        "",
    ]
    return "\n".join([*lines, *_markdown_table(layer_table(report))]) + "\n"


def markdown_of_many(reports: Sequence[Report]) -> str:
    """The page of several models.

    Args:
        reports: of the models.

    Returns:
        the page, as Markdown.
    """
    lines = ["# Models", "", f"{heading(reports[0])[1]}.", "", *EXPLANATION, ""]
    return "\n".join([*lines, *_markdown_table([HEAD_OF_MODELS, *map(row_of_model, reports)])]) + "\n"


EXPLANATION = [
    "Ratios of our error to torch's, both against float64, where ours is worst: the output in evaluation and training,",
    "the gradients of a training step, the buffers after it, and each layer by itself. Left are layers or calls of",
    "scratchnn's kinds that stayed torch's. Turned are results judged with torch's decisions. Speeds are torch's time",
    "over ours.",
]

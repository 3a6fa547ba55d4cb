"""The layers of a model as a picture: left, our error over torch's; right, torch's time over ours; a row for each."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scratchnn.bench.timing import Spread
from scratchnn.testing.model_report import LayerReport, worst
from scratchnn.testing.verdict import Check
from scratchnn.verify.report import Report

FORWARD, BACKWARD, WRONG = "#8fb4d9", "#3b6ea8", "#c8372d"
SLOWER, SLOWER_BACKWARD = "#efb199", "#d1603d"
GREY, INK = "#8a8a8a", "#333333"
BAR = 0.38
TICKS = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 64, 256)


def draw(report: Report, path: Path) -> None:
    """Draw the report to a PNG file."""
    layers = [layer for layer in report.comparison.layers if layer.leaf]
    timed = bool(report.costs)
    # No pyplot: it would keep state in the process and look for a screen.
    figure = Figure(figsize=(11.5 if timed else 7.5, 1.7 + 0.155 * len(layers)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    _errors(panels[0], layers, report.comparison.factor)
    if timed:
        _speeds(panels[1], layers, report)
    panels[0].set_yticks(range(len(layers)), [f"{layer.name}  {layer.type}" for layer in layers], fontsize=6)
    panels[0].set_ylim(len(layers) - 0.4, -0.6)
    verdict = "equivalent" if report.comparison.passed else "NOT equivalent"
    environment = report.environment
    figure.suptitle(f"{report.model}: {verdict}", fontsize=11, fontweight="bold", color=INK)
    figure.supxlabel(
        f"{report.mode}, {report.settings['dtype']}, inputs {report.settings['inputs']}; {environment['processor']}, "
        f"{environment['threads']} threads, {environment['instruction_set']}; torch {environment['torch']}",
        fontsize=7,
        color=GREY,
    )
    figure.savefig(path, format="png")


def _errors(axes: Axes, layers: list[LayerReport], factor: float) -> None:
    """A dot for the forward and one for the backward pass of each layer by itself."""
    axes.axvspan(1 / 8, factor, color="#eef4ea", linewidth=0)
    axes.axvline(factor, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    for y, layer in enumerate(layers):
        for checks, colour, offset in ((layer.alone_forward, FORWARD, -0.16), (layer.alone_backward, BACKWARD, 0.16)):
            check = worst(checks)
            if check is not None:
                _dot(axes, y + offset, check, colour, 4 * factor)
        if not layer.passed:
            axes.axhspan(y - 0.5, y + 0.5, color=WRONG, alpha=0.08, linewidth=0)
    _scale(axes, 1 / 8, 4 * factor)
    axes.set_xlabel("our error / torch's, against float64", fontsize=8)
    axes.legend(
        handles=[
            Line2D([], [], color=FORWARD, marker="o", linestyle="", label="forward"),
            Line2D([], [], color=BACKWARD, marker="o", linestyle="", label="backward"),
            Line2D([], [], color=WRONG, marker="o", linestyle="", label="differs"),
            Patch(color="#eef4ea", label="allowed"),
        ],
        **_ABOVE,
    )


def _dot(axes: Axes, y: float, check: Check, colour: str, furthest: float) -> None:
    """The ratio as a dot; as an arrow where it is further out than the axis goes, or where there is none."""
    ratio = check.comparison.ratio if check.comparison is not None else math.inf
    axes.plot(
        [min(max(ratio, 1 / 8), furthest)],
        [y],
        marker="o" if 1 / 8 <= ratio <= furthest else ">" if ratio > 1 else "<",
        markersize=3.4,
        color=colour if check.passed else WRONG,
        linestyle="",
        clip_on=False,
    )


def _speeds(axes: Axes, layers: list[LayerReport], report: Report) -> None:
    """A bar for the forward pass of each layer, and one for a forward and a backward pass."""
    ends = [1.0]
    for y, layer in enumerate(layers):
        cost = report.costs.get(layer.name)
        if cost is None:
            continue
        for spread, offset, colours in (
            (cost.forward, -BAR / 2, (FORWARD, SLOWER)),
            (cost.backward, BAR / 2, (BACKWARD, SLOWER_BACKWARD)),
        ):
            if spread is not None:
                _bar(axes, y + offset, spread, colours)
                ends.append(spread.median)
    axes.axvline(1, color=INK, linewidth=0.9)
    _scale(axes, min(0.45, min(ends) / 1.2), max(2.2, max(ends) * 1.2))
    axes.set_xlabel("torch's time / ours", fontsize=8)
    axes.legend(
        handles=[
            Patch(color=FORWARD, label="forward"),
            Patch(color=BACKWARD, label="with backward"),
            Patch(color=SLOWER_BACKWARD, label="slower than torch"),
        ],
        **_ABOVE,
    )


def _bar(axes: Axes, y: float, spread: Spread, colours: tuple[str, str]) -> None:
    axes.barh(y, spread.median - 1, BAR, left=1, color=colours[0 if spread.median >= 1 else 1])


_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "frameon": False, "fontsize": 7.5}


def _scale(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=GREY, labelcolor="black", labelsize=7.5)

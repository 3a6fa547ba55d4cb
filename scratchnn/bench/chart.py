"""The ratios as a picture: bars to the right of 1 are wins, bars to the left losses."""

from __future__ import annotations

from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scratchnn.bench.cases import FORWARD
from scratchnn.bench.measure import Result
from scratchnn.bench.report import Report

# (forward, forward+backward or training step)
_COLOURS = {
    "faster": ("#8fb4d9", "#3b6ea8"),
    "even": ("#cfcfcf", "#a3a3a3"),
    "slower": ("#efb199", "#d1603d"),
}
_COMPILED = "#222222"
_GREY = "#8a8a8a"
_BAR = 0.38
_TICKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 1.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_BETWEEN = (1 / 1.5, 1.5, 3, 6, 12, 24, 48, 96)  # ticks that a wide range goes without
_CROWDED = 30


def draw(report: Report, path: Path) -> None:
    """Draw the report's ratios to a PNG file, a row for each case, grouped by family."""
    rows = _rows(report.results)
    # No pyplot: it would keep state in the process and look for a screen.
    figure = Figure(figsize=(9.5, 1.6 + 0.22 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, (label, results) in enumerate(rows):
        if results is None:
            axes.text(0, y, label, transform=axes.get_yaxis_transform(), fontsize=10, fontweight="bold", va="center")
        else:
            _bars(axes, y, results)
    _dress(axes, rows, report)
    figure.savefig(path, format="png")


def _rows(results: list[Result]) -> list[tuple[str, list[Result] | None]]:
    """From top to bottom: a line with the name of each family, then its cases with the results of each."""
    families: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        families.setdefault(result.family, {}).setdefault(result.name, []).append(result)
    rows: list[tuple[str, list[Result] | None]] = []
    for family, cases in families.items():
        rows += [(family, None), *cases.items()]
    return rows


def _bars(axes: Axes, y: int, results: list[Result]) -> None:
    for result in results:
        forward = result.which == FORWARD
        ratio = result.ratio
        position = y + (-_BAR / 2 if forward else _BAR / 2)
        colour = _COLOURS[result.verdict][0 if forward else 1]
        axes.barh(position, ratio.median - 1, _BAR, left=1, color=colour)
        axes.plot([ratio.lower, ratio.upper], [position] * 2, color="#333333", linewidth=0.7, solid_capstyle="butt")
        if result.compiled_ratio is not None:
            axes.plot(result.compiled_ratio.median, position, "D", color=_COMPILED, markersize=3)
        right = ratio.median >= 1
        axes.annotate(
            f"{ratio.median:.2f}",
            (max(ratio.median, ratio.upper) if right else min(ratio.median, ratio.lower), position),
            xytext=(3 if right else -3, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=5.5,
            color="#333333",
        )


def _dress(axes: Axes, rows: list[tuple[str, list[Result] | None]], report: Report) -> None:
    spreads = [spread for result in report.results for spread in (result.ratio, result.compiled_ratio) if spread]
    ends = [end for spread in spreads for end in (spread.lower, spread.upper, spread.median)]
    low, high = min(0.8, min(ends) / 1.15), max(1.5, max(ends) * 1.15)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    crowded = high / low > _CROWDED
    ticks = [tick for tick in _TICKS if low <= tick <= high and not (crowded and tick in _BETWEEN)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}x"))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(
        [y for y, (_, results) in enumerate(rows) if results],
        [label for label, results in rows if results],
        fontsize=7.5,
    )
    axes.axvline(1, color="#333333", linewidth=0.9)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=_GREY, labelcolor="black", labelsize=8)
    axes.set_xlabel("torch.nn's time / scratchnn's (lines: quartiles over the rounds)", fontsize=8.5)
    handles: list[Artist] = [
        Patch(color=_COLOURS["faster"][0], label="forward"),
        Patch(color=_COLOURS["faster"][1], label="with backward"),
        Patch(color=_COLOURS["slower"][1], label="slower than torch.nn"),
        Patch(color=_COLOURS["even"][1], label="even"),
    ]
    if any(result.compiled_ratio is not None for result in report.results):
        label = "against torch.compile"
        handles.append(Line2D([], [], color=_COMPILED, marker="D", markersize=3, linestyle="", label=label))
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    settings = report.settings
    axes.set_title(
        f"{report.hardware['processor']}, {settings['threads']} threads, {settings['instruction_set']}; "
        f"torch {report.versions['torch']}; allocator: {settings['allocator']}; {report.date[:10]}",
        fontsize=8,
        color=_GREY,
        pad=28,
    )

"""``scratchnn bench --scaling`` in words and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from scratchnn.bench import targets
from scratchnn.bench.report import duration
from scratchnn.bench.scaling import AXES, Efficiency, Growth
from scratchnn.bench.targets import Standing

__all__ = ["ScalingReport", "draw", "efficiency_row", "growth_row"]

SCHEMA = 1
LEAST_EFFICIENCY = 0.85
MOST_GROWTH = 1.1  # the power of the work that time may grow with: a tenth is left to caches that overflow

EXPLANATION = (
    "exponent: forward+backward time grows with this power of the work (multiply-adds of dense convolutions, bytes of "
    "others) as the axis is stretched 8 times; 1 is linear."
)
EFFICIENCY_EXPLANATION = (
    "parallel efficiency: one thread's time over that of n threads, over n; in brackets that of copying memory, which "
    "bounds the layers that do little else."
)


@dataclass
class ScalingReport:
    """How cost grows, with what it depends on."""

    date: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    settings: dict[str, Any]
    growths: list[Growth] = field(default_factory=list)
    efficiencies: list[Efficiency] = field(default_factory=list)

    def to_json(self) -> str:
        """Everything, times in seconds."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    def standings(self) -> list[Standing]:
        """The goals about scaling; for each the layer that is furthest from it."""
        standings = []
        for axis in AXES:
            exponents = [growth.exponent for growth in self.growths if growth.axis == axis]
            worst = max(exponents, default=None)
            name = f"steepest growth with the {axis}, exponent"
            standings.append(Standing(name, MOST_GROWTH, worst, len(exponents), at_most=True, unit=""))
        shares = [found.ours.median / found.attainable for found in self.efficiencies]
        name = "lowest parallel efficiency, of what memory bandwidth allows"
        standings.append(Standing(name, LEAST_EFFICIENCY, min(shares, default=None), len(shares), unit=""))
        return standings

    def markdown(self) -> str:
        """The report as a page."""
        lines = [
            f"{self.hardware['processor']}, {self.settings['threads']} threads; "
            f"allocator: {self.settings['allocator']}  ",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()) + "  ",
            f"Measured {self.date[:10]}.",
            "",
            *targets.markdown(self.standings()),
            "",
            EXPLANATION,
            "",
            "| layer | axis | scratchnn | torch.nn | scratchnn's time at 1x | at 8x |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for growth in self.growths:
            first, last = duration(growth.ours[0]), duration(growth.ours[-1])
            exponents = f"{growth.exponent:.2f} | {growth.torch_exponent:.2f}"
            lines.append(f"| {growth.kind} | {growth.axis} | {exponents} | {first} | {last} |")
        if self.efficiencies:
            lines += [
                "",
                EFFICIENCY_EXPLANATION,
                "",
                "| layer | threads | scratchnn | torch.nn | attainable |",
                "|---|---:|---:|---:|---:|",
            ]
        for found in self.efficiencies:
            numbers = f"{found.ours.median:.2f} | {found.torch.median:.2f} | {found.attainable:.2f}"
            lines.append(f"| {found.kind} | {found.threads} | {numbers} |")
        return "\n".join(lines) + "\n"


def growth_row(growth: Growth) -> str:
    """A line of the table of exponents."""
    return (
        f"  {growth.kind:<18}{growth.axis:<10} exponent {growth.exponent:5.2f}, torch's {growth.torch_exponent:5.2f}"
        f"   {duration(growth.ours[0])} to {duration(growth.ours[-1])}"
    )


def efficiency_row(found: Efficiency) -> str:
    """A line of the table of efficiencies."""
    return (
        f"  {found.kind:<18}{found.threads} threads  efficiency {found.ours.median:.2f}, torch's "
        f"{found.torch.median:.2f}  (copy {found.copy:.2f})"
    )


_COLOURS = ("#3b6ea8", "#d1603d", "#4c9f70", "#8e6bbf", "#b8860b", "#555555")


def draw(report: ScalingReport, path: Path) -> None:
    """The cost of a unit of work along each axis, and the parallel efficiency, as a PNG file."""
    figure = Figure(figsize=(11, 7.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flat
    kinds = list(dict.fromkeys(growth.kind for growth in report.growths))
    for axis, axes in zip(AXES, panels, strict=False):
        _lines(axes, [growth for growth in report.growths if growth.axis == axis], kinds, axis)
    _bars(figure.axes[len(AXES)], report.efficiencies)
    figure.axes[0].legend(frameon=False, fontsize=7.5)
    figure.savefig(path, format="png")


def _lines(axes: Axes, growths: Sequence[Growth], kinds: list[str], axis: str) -> None:
    for growth in growths:
        colour = _COLOURS[kinds.index(growth.kind) % len(_COLOURS)]
        for spreads, style, label in ((growth.ours, "o-", growth.kind), (growth.torch, "--", None)):
            first = spreads[0].median
            costs = [spread.median / first / work for spread, work in zip(spreads, growth.work, strict=True)]
            axes.plot(growth.work, costs, style, color=colour, label=label, markersize=3.5, linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(1, color="#333333", linewidth=0.7)
    axes.set_title(f"{axis}: cost of a unit of work (flat: linear; dashed: torch.nn)", fontsize=9)
    axes.set_xlabel("work, as a multiple of the first", fontsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, efficiencies: Sequence[Efficiency]) -> None:
    for y, found in enumerate(efficiencies):
        axes.barh(y - 0.18, found.ours.median, 0.34, color=_COLOURS[0], label="scratchnn" if y == 0 else None)
        axes.barh(y + 0.18, found.torch.median, 0.34, color="#cfcfcf", label="torch.nn" if y == 0 else None)
        axes.plot([found.attainable] * 2, [y - 0.4, y + 0.4], color="#333333", linewidth=1.2)
    axes.set_yticks(
        range(len(efficiencies)), [f"{found.kind}, {found.threads} threads" for found in efficiencies], fontsize=7.5
    )
    axes.invert_yaxis()
    axes.set_title("parallel efficiency (line: what memory bandwidth allows)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if efficiencies:
        axes.legend(frameon=False, fontsize=7.5)

"""What the layers are meant to reach, and whether they do: the goals of the project as a table.

A goal about time holds for the geometric mean of torch's time over ours over its cases, with torch in its faster
memory format. Beside it stands the same with torch in the format that ours run in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scratchnn.bench.cases import FORWARD, FORWARD_BACKWARD, MODEL, TRAINING_STEP
from scratchnn.bench.measure import FUSED, LAYERS, Result
from scratchnn.bench.timing import geometric_mean

__all__ = ["FUSED", "Standing", "markdown", "of_times", "text"]


SMALLEST_RATIO = 0.95
MEANS = ((FORWARD, 1.5), (FORWARD_BACKWARD, 1.5))

# For each group of cases what its mean is to reach, forward and forward+backward.
GROUP_GOALS: dict[str, dict[str, float]] = {
    "3x3 stride 1, 32 channels and more": {FORWARD: 2.0, FORWARD_BACKWARD: 2.3},
    "3x3 stride 1, 16 channels": {FORWARD: 1.5, FORWARD_BACKWARD: 1.7},
    "depthwise convolution": {FORWARD_BACKWARD: 3.0},
    "bfloat16 convolution": {FORWARD: 20.0, FORWARD_BACKWARD: 20.0},
    "float64 convolution": {FORWARD: 2.0, FORWARD_BACKWARD: 2.0},
    "pooling, NCHW": {FORWARD: 5.0, FORWARD_BACKWARD: 5.0},
    "pooling, 3d": {FORWARD: 5.0, FORWARD_BACKWARD: 5.0},
    "InstanceNorm": {FORWARD: 2.0, FORWARD_BACKWARD: 2.0},
    "LocalResponseNorm": {FORWARD: 15.0, FORWARD_BACKWARD: 15.0},
}

# A training step: against torch.nn, and against torch.nn under torch.compile.
STEP_GOALS: dict[str, tuple[float, float]] = {
    "ResNet-20": (1.5, 1.2),
    "CIFAR ResNet-18": (1.8, 1.2),
    "speed-run VGG": (2.0, 1.2),
    "MobileNetV2": (1.4, 1.0),
    "ResNet-50": (1.2, 1.0),
}
FUSED_INFERENCE_GOALS = {"CIFAR ResNet-18": 1.7, "ResNet-50": 1.2}


@dataclass(frozen=True)
class Standing:
    """A goal and how far it is reached.

    Attributes:
        what: is measured.
        goal: the number to reach.
        reached: the number that was measured; None where nothing was.
        cases: how many cases it is made of.
        same_format: the same with torch in the memory format of ours, where that is another question.
        at_most: whether the goal is a bound from above.
        unit: behind the numbers.
    """

    what: str
    goal: float
    reached: float | None
    cases: int
    same_format: float | None = None
    at_most: bool = False
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """``reached``, ``missed`` or ``not measured``."""
        if self.reached is None:
            return "not measured"
        held = self.reached <= self.goal if self.at_most else self.reached >= self.goal
        return "reached" if held else "missed"

    def cells(self) -> list[str]:
        """What, goal, reached, the same format, cases and verdict as text."""
        bound = "<=" if self.at_most else ">="
        return [
            self.what,
            f"{bound} {self._number(self.goal)}",
            self._number(self.reached),
            self._number(self.same_format),
            str(self.cases),
            self.verdict,
        ]

    def _number(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.2f}{self.unit}" if self.unit else f"{value:.4g}"


HEADER = ("goal", "to reach", "reached", "same format", "cases", "verdict")


def of_times(results: Sequence[Result]) -> list[Standing]:
    """Every goal about time, measured or not."""
    return list(_of_times(results))


def _of_times(results: Sequence[Result]) -> Iterator[Standing]:
    layers = [result for result in results if result.family != MODEL]
    models = [result for result in results if result.family == MODEL]
    for which, goal in MEANS:
        yield _standing(f"all layers, {which}", goal, [result for result in layers if result.which == which])
    yield _standing("the slowest case of all layers", SMALLEST_RATIO, layers, min)
    for group, goals in GROUP_GOALS.items():
        for which, goal in goals.items():
            of_group = [result for result in layers if group in result.groups and result.which == which]
            yield _standing(f"{group}, {which}", goal, of_group)
    for net, (eager, compiled) in STEP_GOALS.items():
        steps = [result for result in models if result.net == net and result.which == TRAINING_STEP]
        for side in (LAYERS, FUSED):
            of_side = [result for result in steps if result.side == side]
            if side == LAYERS or of_side:
                name = f"{net}, training step" if side == LAYERS else f"{net}, training step, {side}"
                yield _standing(name, eager, of_side)
                yield _against_compile(f"{name}, against torch.compile", compiled, of_side)
    for net, goal in FUSED_INFERENCE_GOALS.items():
        fused = [result for result in models if (result.net, result.which, result.side) == (net, FORWARD, FUSED)]
        yield _standing(f"{net}, inference, {FUSED}", goal, fused)


def _standing(
    what: str,
    goal: float,
    results: Sequence[Result],
    statistic: Callable[[Sequence[float]], float] = geometric_mean,
) -> Standing:
    if not results:
        return Standing(what, goal, None, 0)
    best = statistic([result.ratio.median for result in results])
    same = statistic([result.ratios[result.memory_format].median for result in results])
    return Standing(what, goal, best, len(results), same)


def _against_compile(what: str, goal: float, results: Sequence[Result]) -> Standing:
    ratios = [result.compiled_ratio.median for result in results if result.compiled_ratio is not None]
    return Standing(what, goal, geometric_mean(ratios) if ratios else None, len(ratios))


def text(standings: Sequence[Standing]) -> list[str]:
    """The goals that something was measured for, as a table for the terminal."""
    measured = [standing for standing in standings if standing.reached is not None]
    rows = [HEADER, *(standing.cells() for standing in measured)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for what, *numbers, verdict in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([what.ljust(widths[0]), *cells, verdict]))
    if len(measured) < len(standings):
        lines.append(f"{len(standings) - len(measured)} further goals are about cases that were not measured")
    return lines


def markdown(standings: Sequence[Standing]) -> list[str]:
    """The table in Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|---:|---|"]
    return lines + [f"| {' | '.join(standing.cells())} |" for standing in standings]

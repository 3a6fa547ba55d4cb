"""How the cost of a layer grows: with the batch, the channels, the area, and with the threads that share it.

A cost that grows linearly stays the same for each unit of work. For a convolution the unit is a multiply-add, so that
channels, which count twice, compare as well; for all others it is a byte.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.nn import Module

from scratchnn.bench.cases import CHANNELS_LAST, FORWARD_BACKWARD, Case
from scratchnn.bench.limits import measure_limits
from scratchnn.bench.measure import Side, build_sides
from scratchnn.bench.timing import Spread, interleave, ratio

__all__ = [
    "AXES",
    "KINDS",
    "Efficiency",
    "Growth",
    "Kind",
    "copy_efficiency",
    "measure_efficiency",
    "measure_growth",
    "thread_counts",
]

CHANNELS, AREA = 32, 2048  # where these axes start; the batch starts with each layer's own
AXES = ("batch", "channels", "area")
FACTORS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Kind:
    """A layer of any number of channels.

    Attributes:
        name: of it.
        build: makes it for a number of channels from a namespace.
        arithmetic: whether multiply-adds are its unit of work, not bytes.
        batch: where this axis starts. Layers that do little but move memory begin with tensors that no cache holds:
            within a cache they run several times faster, and leaving it would look like growth.
    """

    name: str
    build: Callable[[ModuleType, int], Module]
    arithmetic: bool = False
    batch: int = 64

    def case(self, axis: str = "", factor: int = 1) -> Case:
        """The layer with one axis stretched by a factor."""
        batch = self.batch * (factor if axis == "batch" else 1)
        channels = CHANNELS * (factor if axis == "channels" else 1)
        height, width = _sides(AREA * (factor if axis == "area" else 1))
        return Case(
            f"{self.name} {channels}",
            "scaling",
            lambda nn: self.build(nn, channels),
            (batch, channels, height, width),
            memory_format=CHANNELS_LAST,
        )

    def work(self, case: Case) -> int:
        """What the time should grow with: operations, or bytes moved."""
        work = case.work(FORWARD_BACKWARD)
        return work.flops if self.arithmetic else work.bytes


def _sides(area: int) -> tuple[int, int]:
    """The height and width of an image of this area, a power of two, as near to a square as they get."""
    height = 1 << (area.bit_length() - 1) // 2
    return height, area // height


KINDS = (
    Kind("3x3 convolution", lambda nn, c: nn.Conv2d(c, c, 3, padding=1, bias=False), arithmetic=True, batch=8),
    Kind("1x1 convolution", lambda nn, c: nn.Conv2d(c, c, 1, bias=False), arithmetic=True, batch=8),
    Kind("depthwise 3x3", lambda nn, c: nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)),
    Kind("max pooling 2x2", lambda nn, c: nn.MaxPool2d(2)),
    Kind("batch norm", lambda nn, c: nn.BatchNorm2d(c)),
    Kind("ReLU", lambda nn, c: nn.ReLU()),
)


@dataclass(frozen=True)
class Growth:
    """The cost of forward and backward along one axis, ours and torch's in the same memory format.

    Attributes:
        kind: of the layer.
        axis: what is stretched.
        work: the work at each factor, over that at the first.
        ours: seconds at each factor.
        torch: likewise.
    """

    kind: str
    axis: str
    work: list[float]
    ours: list[Spread]
    torch: list[Spread]

    @property
    def exponent(self) -> float:
        """The power of the work that our time grows with: 1 is linear, less is a fixed cost that wears off."""
        return _slope(self.work, [spread.median for spread in self.ours])

    @property
    def torch_exponent(self) -> float:
        """The same of torch."""
        return _slope(self.work, [spread.median for spread in self.torch])


@dataclass(frozen=True)
class Efficiency:
    """What a number of threads gain on a layer: the time of one, over theirs, over their number.

    Attributes:
        kind: of the layer.
        threads: how many.
        ours: the efficiency; 1 is all that could be had.
        torch: likewise.
        copy: that of copying memory, which a layer bound by memory cannot exceed by much.
        bound_by_memory: whether the layer is such a one.
    """

    kind: str
    threads: int
    ours: Spread
    torch: Spread
    copy: float
    bound_by_memory: bool

    @property
    def attainable(self) -> float:
        """The efficiency that memory allows: that of a copy, or 1."""
        return min(self.copy, 1.0) if self.bound_by_memory else 1.0


def measure_growth(kind: Kind, axis: str, seconds: float, min_rounds: int) -> Growth:
    """Time a layer along an axis; ``seconds`` for each side."""
    cases = [kind.case(axis, factor) for factor in FACTORS]
    work = [kind.work(case) for case in cases]
    pairs = [_pair(case) for case in cases]
    times = [
        interleave([pair[side].passes()[1] for pair in pairs], seconds, min_rounds) for side in range(len(pairs[0]))
    ]
    ours, theirs = ([Spread.of(samples) for samples in side] for side in times)
    return Growth(kind.name, axis, [amount / work[0] for amount in work], ours, theirs)


def measure_efficiency(kind: Kind, threads: int, copy: float, seconds: float, min_rounds: int) -> Efficiency:
    """Time a layer, its batch stretched the furthest, with one thread and with several.

    Args:
        kind: the layer.
        threads: how many.
        copy: what :func:`copy_efficiency` gives for so many.
        seconds: for each side.
        min_rounds: at least so often, however long that takes.
    """
    spreads = []
    for side in _pair(kind.case("batch", FACTORS[-1])):
        run = side.passes()[1]
        alone, shared = interleave([_with_threads(run, 1), _with_threads(run, threads)], seconds, min_rounds)
        spreads.append(ratio([threads * time for time in shared], alone))
    return Efficiency(kind.name, threads, *spreads, copy, not kind.arithmetic)


def copy_efficiency(threads: int, seconds: float) -> float:
    """That of copying memory."""
    rates = []
    for number in (1, threads):
        with _threads(number):
            rates.append(measure_limits(set(), seconds).copy)
    return rates[1] / rates[0] / threads


def thread_counts() -> list[int]:
    """2, 4, 8, ... and as many as compute now."""
    most = torch.get_num_threads()
    return sorted({*(1 << power for power in range(1, most.bit_length())), *([most] if most > 1 else [])})


def _pair(case: Case) -> tuple[Side, Side]:
    ours, theirs = build_sides(case, (case.memory_format,))
    return next(iter(ours.values())), theirs[case.memory_format]


def _with_threads(run: Callable[[], object], threads: int) -> Callable[[], object]:
    def restricted() -> None:
        with _threads(threads):
            run()

    return restricted


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _slope(x: list[float], y: list[float]) -> float:
    """Of the line through the logarithms."""
    return statistics.linear_regression([math.log(value) for value in x], [math.log(value) for value in y]).slope

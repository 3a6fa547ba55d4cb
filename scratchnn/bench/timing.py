"""How time is measured: candidates take turns in one process, and medians are compared.

A machine's speed drifts (clock, temperature, neighbours). Candidates that take turns call by call drift
together, so their ratio does not; timing one after the other would measure the drift.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A sample lasts at least so long, so that the clock's own resolution and cost do not show.
SHORTEST_SAMPLE = 200e-6
MOST_CALLS = 1000


@dataclass(frozen=True)
class Spread:
    """The median of a number of samples and their quartiles: half of the samples lie between those."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of two samples or more."""
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


def interleave(
    candidates: Sequence[Callable[[], object]],
    seconds: float,
    min_rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds per call of each candidate, one number for each round.

    Each round runs every candidate once, in an order that changes from round to round through all
    permutations (AB, BA, AB, ...), so that none profits from always following the same other. A candidate
    that is too short for the clock is called several times a turn; all are called equally often.

    Args:
        candidates: what to time; each is called twice first, unmeasured.
        seconds: rounds go on for so long...
        min_rounds: ...and until there are so many.
        clock: gives the time in seconds.
    """
    fastest = min(_warm_up(candidate, clock) for candidate in candidates)
    calls = MOST_CALLS
    if fastest > 0:
        calls = min(max(math.ceil(SHORTEST_SAMPLE / fastest), 1), MOST_CALLS)
    samples: list[list[float]] = [[] for _ in candidates]
    orders = itertools.cycle(itertools.permutations(range(len(candidates))))
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whoever happens to run
    try:
        end = clock() + seconds
        while len(samples[0]) < min_rounds or clock() < end:
            for index in next(orders):
                candidate = candidates[index]
                start = clock()
                for _ in range(calls):
                    candidate()
                samples[index].append((clock() - start) / calls)
    finally:
        if collecting:
            gc.enable()
    return samples


def _warm_up(candidate: Callable[[], object], clock: Callable[[], float]) -> float:
    """Run a candidate twice; the first call also pays for set-up, the second tells how long it takes."""
    candidate()
    start = clock()
    candidate()
    return clock() - start


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as long theirs takes: the median and quartiles of the quotient within each round.

    Both times of a round were measured under the same conditions, however these change from round to round.
    The quotient of the two medians, which may stem from different rounds, can differ a little.
    """
    return Spread.of([their / our for our, their in zip(ours, theirs, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios: 2 and 1/2 average to 1."""
    return math.exp(statistics.fmean(math.log(value) for value in values))

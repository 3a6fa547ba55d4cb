"""What this machine can do at best, measured: the yardsticks beside the layers' rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

COPY_BYTES = 256 << 20  # larger than any cache
MATMUL_SIZE = 1024


@dataclass(frozen=True)
class Limits:
    """The best rates seen with the number of threads in force.

    Attributes:
        copy: bytes read and written per second by copying a large tensor.
        matmul: operations per second of a large square ``torch.mm``, by dtype. The peak of the
            multiply-add units is a little above it.
    """

    copy: float
    matmul: dict[str, float]


def measure_limits(dtypes: set[torch.dtype], seconds: float = 1.0) -> Limits:
    """Measure for ``seconds`` each: the bandwidth of copies, and matrix products in each of ``dtypes``."""
    return Limits(
        copy=_copy(seconds),
        matmul={str(dtype).removeprefix("torch."): _matmul(dtype, seconds) for dtype in sorted(dtypes, key=str)},
    )


def _copy(seconds: float) -> float:
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _shortest(lambda: target.copy_(source), seconds)


def _matmul(dtype: torch.dtype, seconds: float) -> float:
    n = MATMUL_SIZE
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    out = torch.empty(n, n, dtype=dtype)
    return 2 * n**3 / _shortest(lambda: torch.mm(a, b, out=out), seconds)


def _shortest(function: Callable[[], object], seconds: float) -> float:
    """A limit is what was reached once undisturbed, so the best of all calls counts, not the median."""
    function()
    end = time.perf_counter() + seconds
    times = []
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)

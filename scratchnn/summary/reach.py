"""Receptive fields along one axis: which pixels of an input each position of a tensor sees.

Position p of a layer sees the pixels ``low(p)`` to ``high(p)``, all of them or some in between. Padding counts as if
the image went on, so the numbers are those of a layer far from the border (Araujo et al., Computing Receptive Fields of
Convolutional Neural Networks, 2019). Most layers have ``low(p) = offset + stride p`` and ``high(p) = low(p) + size -
1``. Layers that enlarge the image do not: of two neighbours that were made of one pixel, both see the same. So the
positions come in periods, and what holds of one period holds of the next, ``step`` pixels further.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Reach"]

Position = Callable[[int], int]


@dataclass(frozen=True)
class Reach:
    """The pixels that each position sees, along one axis of one input.

    Attributes:
        step: how much further the next period sees; 0 where all positions see the same.
        lows: the first pixel for each position of the period that begins at position 0; they do not fall from one
            position to the next.
        highs: the last pixel, likewise.
    """

    step: int = 1
    lows: tuple[int, ...] = (0,)
    highs: tuple[int, ...] = (0,)

    @property
    def stride(self) -> Fraction:
        """Pixels from the field of one position to that of the next."""
        return Fraction(self.step, len(self.lows))

    @property
    def size(self) -> int:
        """Pixels in a field; in the largest, where they differ."""
        return max(high - low + 1 for low, high in zip(self.lows, self.highs, strict=True))

    def low(self, position: int) -> int:
        """The first pixel that a position sees."""
        return self._at(self.lows, position)

    def high(self, position: int) -> int:
        """The last pixel that a position sees."""
        return self._at(self.highs, position)

    def _at(self, pixels: tuple[int, ...], position: int) -> int:
        periods, rest = divmod(position, len(pixels))
        return pixels[rest] + periods * self.step

    def through(self, first: Position, last: Position, period: int = 1, step: int = 1) -> Reach:
        """Of a layer whose output o is made of the positions ``first(o)`` to ``last(o)``.

        Args:
            first, last: of windows that move along by ``step`` positions every ``period`` outputs.
            period, step: whole numbers above 0.
        """
        times = len(self.lows) // math.gcd(step, len(self.lows))
        outputs = range(period * times)
        return Reach(
            self.step * step * times // len(self.lows),
            tuple(self.low(first(o)) for o in outputs),
            tuple(self.high(last(o)) for o in outputs),
        )

    def over(self, count: int) -> Reach:
        """Of a layer whose every output is made of the positions 0 to ``count - 1``."""
        return Reach(0, (self.low(0),), (self.high(max(count, 1) - 1),))

    def joined(self, other: Reach) -> Reach | None:
        """Of a position that is made of the same position of two tensors; None where their strides differ."""
        if self.stride != other.stride:
            return None
        positions = range(math.lcm(len(self.lows), len(other.lows)))
        return Reach(
            self.step * len(positions) // len(self.lows),
            tuple(min(self.low(p), other.low(p)) for p in positions),
            tuple(max(self.high(p), other.high(p)) for p in positions),
        )


def convolved(kernel: int, stride: int, padding: int, dilation: int) -> dict[str, Position | int]:
    """The windows of a convolution or a pooling layer, for :meth:`Reach.through`: output o reads o S - P + t D."""
    return {
        "first": lambda o: o * stride - padding,
        "last": lambda o: o * stride - padding + (kernel - 1) * dilation,
        "step": stride,
    }


def transposed(kernel: int, stride: int, padding: int, dilation: int) -> dict[str, Position | int]:
    """The windows of a transposed convolution: output i reads every o with o S - P + t D = i."""

    def read(i: int) -> list[int]:
        found = [(i + padding - t * dilation) for t in range(kernel)]
        # An output that nothing arrives at, between kernels that do not meet, counts as seeing its neighbour's.
        return [at // stride for at in found if at % stride == 0] or [(i + padding) // stride]

    return {"first": lambda i: min(read(i)), "last": lambda i: max(read(i)), "period": stride}


def adaptive(size: int, outputs: int) -> dict[str, Position | int]:
    """The windows of adaptive pooling: output i reads floor(i W / W') to ceil((i + 1) W / W') - 1."""
    common = math.gcd(size, outputs)
    return {
        "first": lambda i: i * size // outputs,
        "last": lambda i: -(-(i + 1) * size // outputs) - 1,
        "period": outputs // common,
        "step": size // common,
    }


def nearest(size: int, outputs: int) -> dict[str, Position | int]:
    """The pixels that interpolation by the nearest neighbour takes."""
    return adaptive(size, outputs) | {"last": lambda i: i * size // outputs}


def interpolated(size: int, outputs: int, align_corners: bool, around: int) -> dict[str, Position | int]:
    """The pixels that linear (``around = 0``) or cubic (1) interpolation mixes."""
    if align_corners:
        top, bottom, shift = size - 1, max(outputs - 1, 1), Fraction(0)
    else:
        top, bottom, shift = size, outputs, Fraction(size - outputs, 2 * outputs)
    ratio = Fraction(max(top, 1), bottom)
    return {
        "first": lambda i: math.floor(i * ratio + shift) - around,
        "last": lambda i: math.ceil(i * ratio + shift) + around,
        "period": ratio.denominator,
        "step": ratio.numerator,
    }

"""Pooling: each output pixel is the maximum, or the average, of a window of its channel's plane.

Lecture, section 7.4. One module for each way to pool: :mod:`~scratchnn.ops.pool.max` (sliding and adaptive windows),
:mod:`~scratchnn.ops.pool.fractional`, :mod:`~scratchnn.ops.pool.average`, :mod:`~scratchnn.ops.pool.lp`, and
:mod:`~scratchnn.ops.pool.unpool`, which undoes a max pooling. One, two and three dimensions are one code path: the
operators work on any spatial rank from 1 to 3.

``x`` and ``dx`` are ``(N, C, *)`` with pixels ``i``, ``y`` and ``dy`` ``(N, C, *)`` with pixels ``o``, each of which
names a window of taps ``k``.
"""

from scratchnn.ops.pool.average import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    global_avg_pool,
)
from scratchnn.ops.pool.fractional import (
    fractional_max_pool2d,
    fractional_max_pool2d_with_indices,
    fractional_max_pool3d,
    fractional_max_pool3d_with_indices,
)
from scratchnn.ops.pool.lp import (
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
)
from scratchnn.ops.pool.max import (
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)
from scratchnn.ops.pool.unpool import (
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "global_avg_pool",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

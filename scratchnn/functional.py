"""``torch.nn.functional``'s names and signatures, computed by scratchnn.

Names that are not ours fall through to ``torch.nn.functional``, so ``import scratchnn.functional as F`` serves
an existing model file unchanged.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _torch_functional

from scratchnn.ops.activation import relu
from scratchnn.ops.conv import conv2d
from scratchnn.ops.linear import linear
from scratchnn.ops.norm import batch_norm
from scratchnn.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d, max_pool2d_with_indices

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "linear",
    "max_pool2d",
    "max_pool2d_with_indices",
    "relu",
]


def __getattr__(name: str) -> Any:
    return getattr(_torch_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})

"""``torch.nn.functional``'s names and signatures, computed by scratchnn.

Names that are not ours fall through to ``torch.nn.functional``, so ``import scratchnn.functional as F`` serves
an existing model file unchanged.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _torch_functional

from scratchnn import ops as _ops
from scratchnn.ops.activation import *
from scratchnn.ops.conv import *
from scratchnn.ops.linear import *
from scratchnn.ops.norm import *
from scratchnn.ops.pool import *

__all__ = []
for _family in (_ops.conv, _ops.pool, _ops.norm, _ops.linear, _ops.activation):
    __all__ += _family.__all__


def __getattr__(name: str) -> Any:
    return getattr(_torch_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})

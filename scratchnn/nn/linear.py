"""Fully-connected layers. Formula and shapes: :mod:`scratchnn.ops.linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import linear as ops

__all__ = ["Linear"]


class Linear(torch.nn.Linear):
    """:class:`torch.nn.Linear`: ``y = x w^T + b``; see :func:`scratchnn.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)

"""Activation layers. Formulas and shapes: :mod:`scratchnn.ops.activation`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import activation as ops

__all__ = ["ReLU"]


class ReLU(torch.nn.ReLU):
    """:class:`torch.nn.ReLU`: ``y = max(x, 0)``; see :func:`scratchnn.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu(input, self.inplace)

"""Fully-connected layers. Formulas and shapes: :mod:`scratchnn.ops.linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import linear as ops

__all__ = ["Bilinear", "Identity", "LazyLinear", "Linear"]


class Identity(torch.nn.Identity):
    """:class:`torch.nn.Identity`: what comes in goes out."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(torch.nn.Linear):
    """:class:`torch.nn.Linear`: ``y = x w^T + b``; see :func:`scratchnn.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class LazyLinear(torch.nn.LazyLinear):
    """:class:`torch.nn.LazyLinear`: a :class:`Linear` that takes its number of features from the first input."""

    cls_to_become = Linear

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class Bilinear(torch.nn.Bilinear):
    """:class:`torch.nn.Bilinear`: ``y = x^T W z + b``; see :func:`scratchnn.functional.bilinear`."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return ops.bilinear(input1, input2, self.weight, self.bias)

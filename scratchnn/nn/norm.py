"""Normalization layers. Formulas and shapes: :mod:`scratchnn.ops.norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import norm as ops

__all__ = ["BatchNorm2d"]


class BatchNorm2d(torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`: ``y = w (x - mu) / sqrt(v + eps) + b``, ``mu``, ``v`` by channel.

    See :func:`scratchnn.functional.batch_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain average of all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        batch_statistics = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        return ops.batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            batch_statistics,
            momentum,
            self.eps,
        )

"""Convolution layers. Formula and shapes: :mod:`scratchnn.ops.conv`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from scratchnn.ops import conv as ops

__all__ = ["Conv2d"]


class Conv2d(torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d`; see :func:`scratchnn.functional.conv2d`.

    ``padding_mode`` other than ``"zeros"`` fills the border from the image first, as in torch.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return ops.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        padded = pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return ops.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

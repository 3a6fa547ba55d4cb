"""Convolution layers. Formulas and shapes: :mod:`scratchnn.ops.conv`.

The ranks differ in nothing but the torch layer they derive from, so they share two methods. A padding mode other than
``"zeros"`` continues the image over its border; no padded copy of the image is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scratchnn.ops.conv import convolve, convolve_transposed

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


def _conv_forward(self: torch.nn.modules.conv._ConvNd, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rank = len(self.kernel_size)
    return convolve(rank, input, weight, bias, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)


def _forward_transposed(
    self: torch.nn.modules.conv._ConvTransposeNd, input: Tensor, output_size: Sequence[int] | None = None
) -> Tensor:
    rank = len(self.kernel_size)
    if self.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{rank}d, got {self.padding_mode!r}")
    output_padding = self._output_padding(
        input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
    )
    return convolve_transposed(
        rank, input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
    )


class Conv1d(torch.nn.Conv1d):
    """:class:`torch.nn.Conv1d`; see :func:`scratchnn.functional.conv1d`."""

    _conv_forward = _conv_forward


class Conv2d(torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d`; see :func:`scratchnn.functional.conv2d`."""

    _conv_forward = _conv_forward


class Conv3d(torch.nn.Conv3d):
    """:class:`torch.nn.Conv3d`; see :func:`scratchnn.functional.conv3d`."""

    _conv_forward = _conv_forward


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d`; see :func:`scratchnn.functional.conv_transpose1d`."""

    forward = _forward_transposed


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d`; see :func:`scratchnn.functional.conv_transpose2d`."""

    forward = _forward_transposed


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d`; see :func:`scratchnn.functional.conv_transpose3d`."""

    forward = _forward_transposed


# Lazy layers learn their input channels from the first input, and then turn into the ordinary layer.


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    """:class:`torch.nn.LazyConv1d`."""

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """:class:`torch.nn.LazyConv2d`."""

    cls_to_become = Conv2d


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):
    """:class:`torch.nn.LazyConv3d`."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    """:class:`torch.nn.LazyConvTranspose1d`."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    """:class:`torch.nn.LazyConvTranspose2d`."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):
    """:class:`torch.nn.LazyConvTranspose3d`."""

    cls_to_become = ConvTranspose3d

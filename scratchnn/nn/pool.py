"""Pooling layers. Formulas and shapes: :mod:`scratchnn.ops.pool`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import pool as ops
from scratchnn.ops.pool.average import pool_average
from scratchnn.ops.pool.max import pool_max

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "GlobalAvgPool",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


class MaxPool1d(torch.nn.MaxPool1d):
    """The maximum of windows of a signal: :func:`scratchnn.functional.max_pool1d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return pool_max(
            1,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of windows of a plane: :func:`scratchnn.functional.max_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return pool_max(
            2,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool3d(torch.nn.MaxPool3d):
    """The maximum of windows of a volume: :func:`scratchnn.functional.max_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return pool_max(
            3,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool1d(torch.nn.AvgPool1d):
    """The average of windows of a signal: :func:`scratchnn.functional.avg_pool1d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return pool_average(
            1,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            None,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """The average of windows of a plane: :func:`scratchnn.functional.avg_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return pool_average(
            2,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(torch.nn.AvgPool3d):
    """The average of windows of a volume: :func:`scratchnn.functional.avg_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return pool_average(
            3,
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class LPPool1d(torch.nn.LPPool1d):
    """The p-norm of windows of a signal: :func:`scratchnn.functional.lp_pool1d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """The p-norm of windows of a plane: :func:`scratchnn.functional.lp_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """The p-norm of windows of a volume: :func:`scratchnn.functional.lp_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    """The maximum of windows at random places: :func:`scratchnn.functional.fractional_max_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.fractional_max_pool2d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
        )


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """The maximum of windows at random places: :func:`scratchnn.functional.fractional_max_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.fractional_max_pool3d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
        )


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """Maxima to a given output size: :func:`scratchnn.functional.adaptive_max_pool1d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """Maxima to a given output size: :func:`scratchnn.functional.adaptive_max_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """Maxima to a given output size: :func:`scratchnn.functional.adaptive_max_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """Averages to a given output size: :func:`scratchnn.functional.adaptive_avg_pool1d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """Averages to a given output size: :func:`scratchnn.functional.adaptive_avg_pool2d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """Averages to a given output size: :func:`scratchnn.functional.adaptive_avg_pool3d` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool3d(input, self.output_size)


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """The maxima of a signal back in their places: :func:`scratchnn.functional.max_unpool1d` as a layer."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """The maxima of a plane back in their places: :func:`scratchnn.functional.max_unpool2d` as a layer."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """The maxima of a volume back in their places: :func:`scratchnn.functional.max_unpool3d` as a layer."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class GlobalAvgPool(torch.nn.Module):
    """The average of each channel of each sample, of any number of spatial dimensions; not in torch.

    Shape: ``(N, C, *)`` to ``(N, C)``; with ``keepdim`` to ``(N, C, 1, ...)``. It serves as the head of a network of
    any input size; see :func:`scratchnn.functional.global_avg_pool`.
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        return ops.global_avg_pool(input, self.keepdim)

    def extra_repr(self) -> str:
        return f"keepdim={self.keepdim}"

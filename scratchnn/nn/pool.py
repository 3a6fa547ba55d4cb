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
    r""":class:`torch.nn.MaxPool1d`: the maximum of each window of a signal.

    .. math:: y[n, c, o] = \max_k x[n, c, o S - P + k D]

    NaN is the largest value of all. Of equal maxima the first in row-major order takes the whole gradient.

    Args:
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        padding: P, positions on both sides, which count as minus infinity.
        dilation: D, positions between neighbouring taps of a window.
        return_indices: also return the positions of the maxima, as indices into the flattened signal, int64 (-1 for a
            window that dilation puts wholly into the padding), as :class:`MaxUnpool1d` takes them.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, C, L')`` or ``(C, L')``,
          ``L' = floor((L + 2 P - D (K - 1) - 1) / S) + 1``.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or signals, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors; without ``return_indices`` for integers.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.max_pool1d`.
    """

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
    r""":class:`torch.nn.MaxPool2d`: the maximum of each window of a plane.

    .. math:: y[n, c, o] = \max_k x[n, c, o S - P + k D]

    NaN is the largest value of all. Of equal maxima the first in row-major order takes the whole gradient.

    Args:
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        padding: P, pixels on both sides, which count as minus infinity.
        dilation: D, pixels between neighbouring taps of a window.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64 (-1 for a
            window that dilation puts wholly into the padding), as :class:`MaxUnpool2d` takes them.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, H', W')`` or ``(C, H', W')``,
          ``H' = floor((H + 2 P - D (K - 1) - 1) / S) + 1``, W' alike.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or planes, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.max_pool2d`.

    Example:
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> scratchnn.nn.MaxPool2d(2)(image)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """

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
    r""":class:`torch.nn.MaxPool3d`: the maximum of each window of a volume.

    .. math:: y[n, c, o] = \max_k x[n, c, o S - P + k D]

    NaN is the largest value of all. Of equal maxima the first in row-major order takes the whole gradient.

    Args:
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        padding: P, voxels on both sides, which count as minus infinity.
        dilation: D, voxels between neighbouring taps of a window.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64 (-1 for a
            window that dilation puts wholly into the padding), as :class:`MaxUnpool3d` takes them.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, D', H', W')`` or ``(C, D', H', W')``,
          ``H' = floor((H + 2 P - D (K - 1) - 1) / S) + 1``, D' and W' alike.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank or with empty channels or volumes, sizes that are not positive,
            padding of more than half of ``kernel_size``, or an output that would be empty.
        NotImplementedError: for boolean or complex tensors.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.max_pool3d`.
    """

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
    r""":class:`torch.nn.AvgPool1d`: the average of each window of a signal.

    .. math:: y[n, c, o] = \frac{1}{\mathrm{divisor}} \sum_k x[n, c, o S - P + k]

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding.

    Args:
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        padding: P, positions on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, C, L')`` or ``(C, L')``,
          ``L' = floor((L + 2 P - K) / S) + 1``.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank, or with empty channels or signals, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.avg_pool1d`.
    """

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
    r""":class:`torch.nn.AvgPool2d`: the average of each window of a plane.

    .. math:: y[n, c, o] = \frac{1}{\mathrm{divisor}} \sum_k x[n, c, o S - P + k]

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding.

    Args:
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        padding: P, pixels on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.
        divisor_override: divide by this number instead.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, H', W')`` or ``(C, H', W')``,
          ``H' = floor((H + 2 P - K) / S) + 1``, W' alike.

    Raises:
        TypeError: for arguments that are not integers.
        IndexError: for an input of fewer than three dimensions.
        RuntimeError: for an input of another rank, or with empty channels or planes, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.avg_pool2d`.

    Example:
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> scratchnn.nn.AvgPool2d(2)(image)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """

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
    r""":class:`torch.nn.AvgPool3d`: the average of each window of a volume.

    .. math:: y[n, c, o] = \frac{1}{\mathrm{divisor}} \sum_k x[n, c, o S - P + k]

    The divisor is the number of taps, without those that ceil mode hangs over beyond the padding.

    Args:
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        padding: P, voxels on both sides, which count as 0.
        ceil_mode: round the quotient up, provided the last window starts inside the input or its left padding.
        count_include_pad: divide by the taps in the padding as well.
        divisor_override: divide by this number instead.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, D', H', W')`` or ``(C, D', H', W')``,
          ``H' = floor((H + 2 P - K) / S) + 1``, D' and W' alike.

    Raises:
        TypeError: for arguments that are not integers.
        RuntimeError: for an input of another rank, or with empty channels or volumes, sizes that are not positive,
            padding of more than half of ``kernel_size``, an output that would be empty, or a divisor of zero.
        NotImplementedError: for other types.

    Source: lecture, section 7.4. See :func:`scratchnn.functional.avg_pool3d`.
    """

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
    r""":class:`torch.nn.LPPool1d`: the p-norm of each window of a signal.

    .. math:: y[n, c, o] = \Bigl( \sum_k x[n, c, o S + k]^p \Bigr)^{1/p}

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        norm_type: p, the power.
        kernel_size: K, in positions.
        stride: S, positions between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, C, L')`` or ``(C, L')``,
          ``L' = floor((L - K) / S) + 1``.

    Raises:
        ValueError: for p = 0.
        Exception: what :class:`AvgPool1d` raises, or for infinite p :class:`MaxPool1d`.

    Source: Sermanet, Chintala & LeCun 2012. See :func:`scratchnn.functional.lp_pool1d`.

    Example:
        >>> scratchnn.nn.LPPool1d(norm_type=2, kernel_size=2)(torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    r""":class:`torch.nn.LPPool2d`: the p-norm of each window of a plane.

    .. math:: y[n, c, o] = \Bigl( \sum_k x[n, c, o S + k]^p \Bigr)^{1/p}

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        norm_type: p, the power.
        kernel_size: K, in pixels, one number or one for each dimension.
        stride: S, pixels between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, H', W')`` or ``(C, H', W')``,
          ``H' = floor((H - K) / S) + 1``, W' alike.

    Raises:
        ValueError: for p = 0.
        Exception: what :class:`AvgPool2d` raises, or for infinite p :class:`MaxPool2d`.

    Source: Sermanet, Chintala & LeCun 2012. See :func:`scratchnn.functional.lp_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    r""":class:`torch.nn.LPPool3d`: the p-norm of each window of a volume.

    .. math:: y[n, c, o] = \Bigl( \sum_k x[n, c, o S + k]^p \Bigr)^{1/p}

    There is no absolute value: odd powers of negative inputs are negative, and the root of a negative sum is NaN. Where
    the sum is 0 so is the gradient. With p infinite, the maximum of the absolute values; with minus infinity, the
    minimum.

    Args:
        norm_type: p, the power.
        kernel_size: K, in voxels, one number or one for each dimension.
        stride: S, voxels between the starts of neighbouring windows; K if not given.
        ceil_mode: round the output size up. A window that hangs over the edge counts, as in torch, as if the part
            outside held the average of the part inside.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, D', H', W')`` or ``(C, D', H', W')``,
          ``H' = floor((H - K) / S) + 1``, D' and W' alike.

    Raises:
        ValueError: for p = 0.
        Exception: what :class:`AvgPool3d` raises, or for infinite p :class:`MaxPool3d`.

    Source: Sermanet, Chintala & LeCun 2012. See :func:`scratchnn.functional.lp_pool3d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    r""":class:`torch.nn.FractionalMaxPool2d`: the maximum of windows at random places of a plane.

    .. math:: y[n, c, o] = \max_{k < K} x[n, c, \lfloor (o + u) a \rfloor - \lfloor u a \rfloor + k]

    Along each dimension window o begins at ``floor((o + u) a) - floor(u a)`` with ``a = (I - K) / (O - 1)``, and a
    random u in [0, 1) for each channel of each sample; the last window ends where the input does.

    Args:
        kernel_size: K, in pixels, one number or one for each dimension.
        output_size: O, one number or one for each dimension.
        output_ratio: O as a part of I, instead, between 0 and 1.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64.
        _random_samples: the random numbers u, ``(N, C, 2)`` in the order width, height; by default drawn
            from torch's generator.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``.

    Raises:
        ValueError: when made, for not exactly one of output size and ratio, or a ratio that is not between 0 and 1.
        TypeError: for sizes that are not integers.
        IndexError: for an input of fewer than three dimensions.
        RuntimeError: for an input of more than four or with empty channels or planes, windows that do not fit, and
            random numbers of another shape or type, or that put a window outside the input.
        NotImplementedError: for types that are not floating.

    Source: Graham 2014, "Fractional Max-Pooling". See :func:`scratchnn.functional.fractional_max_pool2d`.

    Example:
        >>> scratchnn.nn.FractionalMaxPool2d(3, output_ratio=0.7)(torch.randn(8, 16, 20, 20)).shape
        torch.Size([8, 16, 14, 14])
    """

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
    r""":class:`torch.nn.FractionalMaxPool3d`: the maximum of windows at random places of a volume.

    .. math:: y[n, c, o] = \max_{k < K} x[n, c, \lfloor (o + u) a \rfloor - \lfloor u a \rfloor + k]

    Along each dimension window o begins at ``floor((o + u) a) - floor(u a)`` with ``a = (I - K) / (O - 1)``, and a
    random u in [0, 1) for each channel of each sample; the last window ends where the input does. As in torch ``O + K``
    must be at most the input size, one less than two dimensions allow.

    Args:
        kernel_size: K, in voxels, one number or one for each dimension.
        output_size: O, one number or one for each dimension.
        output_ratio: O as a part of I, instead, between 0 and 1.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64.
        _random_samples: the random numbers u, ``(N, C, 3)`` in the order depth, height, width; by default drawn
            from torch's generator.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``.

    Raises:
        ValueError: when made, for not exactly one of output size and ratio, or a ratio that is not between 0 and 1.
        TypeError: for sizes that are not integers.
        IndexError: for an input of fewer than four dimensions.
        RuntimeError: for an input of more than five or with empty channels or volumes, windows that do not fit, and
            random numbers of another shape or type, or that put a window outside the input.
        NotImplementedError: for types that are not floating.

    Source: Graham 2014, "Fractional Max-Pooling". See :func:`scratchnn.functional.fractional_max_pool3d`.
    """

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
    r""":class:`torch.nn.AdaptiveMaxPool1d`: the maximum of as many windows as the output is to have positions.

    .. math:: y[o] = \max \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, the output's size.
        return_indices: also return the positions of the maxima, as indices into the flattened signal, int64.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, C, O)`` or ``(C, O)``.

    Raises:
        TypeError: for sizes that are not integers.
        RuntimeError: for an input of another rank or with empty channels or signals, for several sizes, or a
            negative one.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_max_pool1d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    r""":class:`torch.nn.AdaptiveMaxPool2d`: the maximum of as many windows as the output is to have pixels.

    .. math:: y[o] = \max \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, one number or one for each dimension; None keeps that dimension.
        return_indices: also return the positions of the maxima, as indices into the flattened plane, int64.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty channels or planes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_max_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    r""":class:`torch.nn.AdaptiveMaxPool3d`: the maximum of as many windows as the output is to have voxels.

    .. math:: y[o] = \max \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, one number or one for each dimension; None keeps that dimension.
        return_indices: also return the positions of the maxima, as indices into the flattened volume, int64.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty channels or volumes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: He, Zhang, Ren & Sun 2014, "Spatial Pyramid Pooling"; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_max_pool3d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    r""":class:`torch.nn.AdaptiveAvgPool1d`: the average of as many windows as the output is to have positions.

    .. math:: y[o] = \operatorname{mean} \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, the output's size.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, C, O)`` or ``(C, O)``.

    Raises:
        TypeError: for sizes that are not integers.
        RuntimeError: for an input of another rank or with empty signals, for several sizes, or a
            negative one.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_avg_pool1d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    r""":class:`torch.nn.AdaptiveAvgPool2d`: the average of as many windows as the output is to have pixels.

    .. math:: y[o] = \operatorname{mean} \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, one number or one for each dimension; None keeps that dimension.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, C, O_H, O_W)`` or ``(C, O_H, O_W)``.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty planes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_avg_pool2d`.

    Example:
        >>> scratchnn.nn.AdaptiveAvgPool2d((1, 3))(torch.randn(8, 16, 7, 7)).shape
        torch.Size([8, 16, 1, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    r""":class:`torch.nn.AdaptiveAvgPool3d`: the average of as many windows as the output is to have voxels.

    .. math:: y[o] = \operatorname{mean} \{ x[i]: \lfloor o I / O \rfloor \le i < \lceil (o + 1) I / O \rceil \}

    along each dimension, I the size of the input.

    Args:
        output_size: O, one number or one for each dimension; None keeps that dimension.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, C, O_D, O_H, O_W)`` or ``(C, O_D, O_H, O_W)``.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for an input of another rank or with empty volumes, or negative sizes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network", for size 1; lecture, section 7.4.
    See :func:`scratchnn.functional.adaptive_avg_pool3d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool3d(input, self.output_size)


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    r""":class:`torch.nn.MaxUnpool1d`: the maxima of a signal back in their places, zero elsewhere.

    .. math:: y[n, c, \mathrm{indices}[n, c, i]] = x[n, c, i]

    Args:
        kernel_size: K of the pooling, in positions.
        stride: S of the pooling, in positions; K if not given.
        padding: P of the pooling, in positions.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``, and indices of the same shape, from :class:`MaxPool1d`.
        - Output: ``(N, C, L')`` or ``(C, L')``,
          ``L' = (L - 1) S - 2 P + K``, or the ``output_size`` of the call.

    Raises:
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or signals, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks". See
    :func:`scratchnn.functional.max_unpool1d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    r""":class:`torch.nn.MaxUnpool2d`: the maxima of a plane back in their places, zero elsewhere.

    .. math:: y[n, c, \mathrm{indices}[n, c, i]] = x[n, c, i]

    Args:
        kernel_size: K of the pooling, in pixels, one number or one for each dimension.
        stride: S of the pooling, in pixels; K if not given.
        padding: P of the pooling, in pixels.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``, and indices of the same shape, from :class:`MaxPool2d`.
        - Output: ``(N, C, H', W')`` or ``(C, H', W')``,
          ``H' = (H - 1) S - 2 P + K``, W' alike, or the ``output_size`` of the call.

    Raises:
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or planes, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks". See
    :func:`scratchnn.functional.max_unpool2d`.

    Example:
        >>> maxima, indices = scratchnn.nn.MaxPool2d(2, return_indices=True)(torch.arange(4.0).reshape(1, 1, 2, 2))
        >>> scratchnn.nn.MaxUnpool2d(2)(maxima, indices)
        tensor([[[[0., 0.],
                  [0., 3.]]]])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    r""":class:`torch.nn.MaxUnpool3d`: the maxima of a volume back in their places, zero elsewhere.

    .. math:: y[n, c, \mathrm{indices}[n, c, i]] = x[n, c, i]

    Args:
        kernel_size: K of the pooling, in voxels, one number or one for each dimension.
        stride: S of the pooling, in voxels; K if not given.
        padding: P of the pooling, in voxels.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``, and indices of the same shape, from :class:`MaxPool3d`.
        - Output: ``(N, C, D', H', W')`` or ``(C, D', H', W')``,
          ``H' = (H - 1) S - 2 P + K``, D' and W' alike, or the ``output_size`` of the call.

    Raises:
        ValueError: for an output size that cannot be, or of another number of dimensions.
        RuntimeError: for an input of another rank or with empty channels or volumes, and for indices of another shape
            than the input, of another type than int64, or outside the output.
        NotImplementedError: for types that are not floating.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks". See
    :func:`scratchnn.functional.max_unpool3d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return ops.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class GlobalAvgPool(torch.nn.Module):
    r"""The average of each channel of each sample, of any number of spatial dimensions; not in torch.

    .. math:: y[n, c] = \frac{1}{H W} \sum_{i} x[n, c, i]

    It serves as the head of a network of any input size, without parameters.

    Args:
        keepdim: keep the spatial dimensions, of size 1.

    Shape:
        - Input: ``(N, C, *)`` with at least one more dimension.
        - Output: ``(N, C)``; with ``keepdim`` ``(N, C, 1, ...)``.

    Raises:
        RuntimeError: for an input of fewer than three dimensions or with empty planes.
        NotImplementedError: for types that are not floating.

    Source: Lin, Chen & Yan 2013, "Network In Network"; lecture, section 7.4. See
    :func:`scratchnn.functional.global_avg_pool`.

    Example:
        >>> scratchnn.nn.GlobalAvgPool()(torch.randn(8, 16, 7, 7)).shape
        torch.Size([8, 16])
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        return ops.global_avg_pool(input, self.keepdim)

    def extra_repr(self) -> str:
        return f"keepdim={self.keepdim}"

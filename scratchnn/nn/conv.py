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
    r""":class:`torch.nn.Conv1d`, the match of each filter with every stretch of a signal.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    The sum runs over the channels of a filter's group and the taps t of its kernel.

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the number of filters.
        kernel_size: R, in positions.
        stride: S, positions between neighbouring outputs.
        padding: P, positions on both sides; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: D, positions between neighbouring taps of the kernel.
        groups: the channels are split into as many independent convolutions.
        bias: with b.
        padding_mode: what is beyond the border: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, K, L')`` or ``(K, L')``,
          ``L' = floor((L + 2 P - D (R - 1) - 1) / S) + 1``.
        - ``weight`` is ``(K, C / groups, R)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels, or padding or its mode is unknown.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: lecture, section 7.2. See :func:`scratchnn.functional.conv1d`.

    Example:
        >>> scratchnn.nn.Conv1d(4, 8, kernel_size=5, padding="same")(torch.randn(2, 4, 100)).shape
        torch.Size([2, 8, 100])
    """

    _conv_forward = _conv_forward


class Conv2d(torch.nn.Conv2d):
    r""":class:`torch.nn.Conv2d`, the match of each filter with every patch of an image.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    The sum runs over the channels of a filter's group and the taps t of its kernel.

    A 1x1 convolution is a fully-connected layer at every pixel (Lin, Chen & Yan 2013).

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the number of filters.
        kernel_size: R, S, in pixels, for both dimensions or ``(height, width)``.
        stride: S, pixels between neighbouring outputs.
        padding: P, pixels on both sides; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: D, pixels between neighbouring taps of the kernel.
        groups: the channels are split into as many independent convolutions.
        bias: with b.
        padding_mode: what is beyond the border: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, K, H', W')`` or ``(K, H', W')``,
          ``H' = floor((H + 2 P - D (R - 1) - 1) / S) + 1``, and W' alike.
        - ``weight`` is ``(K, C / groups, R, S)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels, or padding or its mode is unknown.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: lecture, section 7.2; a stride instead of a pooling: Springenberg et al. 2014; 3x3 in fewer multiplications:
    Lavin & Gray 2015. See :func:`scratchnn.functional.conv2d`.

    Example:
        >>> layer = scratchnn.nn.Conv2d(3, 16, kernel_size=3, stride=2, padding=1)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    _conv_forward = _conv_forward


class Conv3d(torch.nn.Conv3d):
    r""":class:`torch.nn.Conv3d`, the match of each filter with every block of a volume.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    The sum runs over the channels of a filter's group and the taps t of its kernel.

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the number of filters.
        kernel_size: Q, R, S, in voxels, for all dimensions or ``(depth, height, width)``.
        stride: S, voxels between neighbouring outputs.
        padding: P, voxels on both sides; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: D, voxels between neighbouring taps of the kernel.
        groups: the channels are split into as many independent convolutions.
        bias: with b.
        padding_mode: what is beyond the border: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, K, D', H', W')`` or ``(K, D', H', W')``,
          ``H' = floor((H + 2 P - D (R - 1) - 1) / S) + 1``, and D', W' alike.
        - ``weight`` is ``(K, C / groups, Q, R, S)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels, or padding or its mode is unknown.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: lecture, section 7.2. See :func:`scratchnn.functional.conv3d`.

    Example:
        >>> scratchnn.nn.Conv3d(1, 4, kernel_size=3)(torch.randn(2, 1, 8, 16, 16)).shape
        torch.Size([2, 4, 6, 14, 14])
    """

    _conv_forward = _conv_forward


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    r""":class:`torch.nn.ConvTranspose1d`, each input position spread over the outputs that a filter reaches.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    The gradient of the convolution of the same window with respect to its input; it inverts its sizes.

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the channels of the output.
        kernel_size: R, in positions.
        stride: S, positions between the outputs of neighbouring inputs.
        padding: P, positions left out on both sides of the output.
        output_padding: positions put back at the end of each dimension.
        groups: the channels are split into as many independent layers.
        bias: with b.
        dilation: D, positions between neighbouring taps of the kernel.
        padding_mode: only ``"zeros"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, K, L')`` or ``(K, L')``,
          ``L' = (L - 1) S - 2 P + D (R - 1) + output_padding + 1``.
          ``forward(input, output_size)`` chooses another of the S sizes that a convolution of stride S takes to the
          input's.
        - ``weight`` is ``(C, K / groups, R)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels; for another padding mode; for an
            ``output_size`` that cannot be.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: Zeiler et al. 2010, "Deconvolutional Networks". See :func:`scratchnn.functional.conv_transpose1d`.
    """

    forward = _forward_transposed


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    r""":class:`torch.nn.ConvTranspose2d`, each input pixel spread over the outputs that a filter reaches.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    The gradient of the convolution of the same window with respect to its input; it inverts its sizes.

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the channels of the output.
        kernel_size: R, S, in pixels, for both dimensions or ``(height, width)``.
        stride: S, pixels between the outputs of neighbouring inputs.
        padding: P, pixels left out on both sides of the output.
        output_padding: pixels put back at the end of each dimension.
        groups: the channels are split into as many independent layers.
        bias: with b.
        dilation: D, pixels between neighbouring taps of the kernel.
        padding_mode: only ``"zeros"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, K, H', W')`` or ``(K, H', W')``,
          ``H' = (H - 1) S - 2 P + D (R - 1) + output_padding + 1``, W' alike.
          ``forward(input, output_size)`` chooses another of the S sizes that a convolution of stride S takes to the
          input's.
        - ``weight`` is ``(C, K / groups, R, S)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels; for another padding mode; for an
            ``output_size`` that cannot be.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: Zeiler et al. 2010, "Deconvolutional Networks". See :func:`scratchnn.functional.conv_transpose2d`.

    Example:
        >>> layer = scratchnn.nn.ConvTranspose2d(16, 3, kernel_size=4, stride=2, padding=1)
        >>> layer(torch.randn(8, 16, 16, 16)).shape
        torch.Size([8, 3, 32, 32])
    """

    forward = _forward_transposed


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    r""":class:`torch.nn.ConvTranspose3d`, each input voxel spread over the outputs that a filter reaches.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    The gradient of the convolution of the same window with respect to its input; it inverts its sizes.

    Args:
        in_channels: C, the channels of the input.
        out_channels: K, the channels of the output.
        kernel_size: Q, R, S, in voxels, for all dimensions or ``(depth, height, width)``.
        stride: S, voxels between the outputs of neighbouring inputs.
        padding: P, voxels left out on both sides of the output.
        output_padding: voxels put back at the end of each dimension.
        groups: the channels are split into as many independent layers.
        bias: with b.
        dilation: D, voxels between neighbouring taps of the kernel.
        padding_mode: only ``"zeros"``.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, K, D', H', W')`` or ``(K, D', H', W')``,
          ``H' = (H - 1) S - 2 P + D (R - 1) + output_padding + 1``, D', W' alike.
          ``forward(input, output_size)`` chooses another of the S sizes that a convolution of stride S takes to the
          input's.
        - ``weight`` is ``(C, K / groups, Q, R, S)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, where ``groups`` does not divide both channels; for another padding mode; for an
            ``output_size`` that cannot be.
        RuntimeError: when called, where input and weight do not fit, with the numbers.

    Source: Zeiler et al. 2010, "Deconvolutional Networks". See :func:`scratchnn.functional.conv_transpose3d`.
    """

    forward = _forward_transposed


# Lazy layers learn their input channels from the first input, and then turn into the ordinary layer.


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    r""":class:`torch.nn.LazyConv1d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`Conv1d`.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            :class:`Conv1d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, K, L')`` or ``(K, L')``, as in :class:`Conv1d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`Conv1d`.

    Source: lecture, section 7.2.
    """

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    r""":class:`torch.nn.LazyConv2d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`Conv2d`.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            :class:`Conv2d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, K, H', W')`` or ``(K, H', W')``, as in :class:`Conv2d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`Conv2d`.

    Source: lecture, section 7.2.

    Example:
        >>> layer = scratchnn.nn.LazyConv2d(16, kernel_size=3)
        >>> layer(torch.randn(8, 3, 32, 32)).shape, layer
        (torch.Size([8, 16, 30, 30]), Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1)))
    """

    cls_to_become = Conv2d


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):
    r""":class:`torch.nn.LazyConv3d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`Conv3d`.

    .. math:: y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            :class:`Conv3d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, K, D', H', W')`` or ``(K, D', H', W')``, as in :class:`Conv3d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`Conv3d`.

    Source: lecture, section 7.2.
    """

    cls_to_become = Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    r""":class:`torch.nn.LazyConvTranspose1d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`ConvTranspose1d`.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as in
            :class:`ConvTranspose1d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, K, L')`` or ``(K, L')``, as in :class:`ConvTranspose1d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`ConvTranspose1d`.

    Source: Zeiler et al. 2010, "Deconvolutional Networks".
    """

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    r""":class:`torch.nn.LazyConvTranspose2d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`ConvTranspose2d`.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as in
            :class:`ConvTranspose2d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, K, H', W')`` or ``(K, H', W')``, as in :class:`ConvTranspose2d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`ConvTranspose2d`.

    Source: Zeiler et al. 2010, "Deconvolutional Networks".
    """

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):
    r""":class:`torch.nn.LazyConvTranspose3d`: learns C, its input channels, from its first input.

    It then turns into an ordinary :class:`ConvTranspose3d`.

    .. math:: y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    Args:
        out_channels: K, the channels of the output.
        kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as in
            :class:`ConvTranspose3d`.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, K, D', H', W')`` or ``(K, D', H', W')``, as in :class:`ConvTranspose3d`.

    Raises:
        RuntimeError: for a first input of another number of dimensions.
        ValueError, RuntimeError: as :class:`ConvTranspose3d`.

    Source: Zeiler et al. 2010, "Deconvolutional Networks".
    """

    cls_to_become = ConvTranspose3d

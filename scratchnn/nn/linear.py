"""Fully-connected layers. Formulas and shapes: :mod:`scratchnn.ops.linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from scratchnn.ops import linear as ops

__all__ = ["Bilinear", "Identity", "LazyLinear", "Linear"]


class Identity(torch.nn.Identity):
    """:class:`torch.nn.Identity`: what comes in goes out, ``y = x``.

    Args:
        args, kwargs: any, ignored.

    Shape:
        - Input: ``(*)``, anything.
        - Output: ``(*)``, the input itself.

    Raises:
        TypeError: only where it is not called with one argument.

    Source: :class:`torch.nn.Identity`; the shortcut of a residual block, He, Zhang, Ren & Sun 2015.

    Example:
        >>> x = torch.randn(2, 3)
        >>> scratchnn.nn.Identity()(x) is x
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(torch.nn.Linear):
    r""":class:`torch.nn.Linear`: every output is a weighted sum of all inputs.

    .. math:: y[n, k] = b[k] + \sum_c x[n, c] \; w[k, c]

    Args:
        in_features: C, the numbers in a row of the input.
        out_features: K, the numbers in a row of the output.
        bias: with b.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(*, C)`` with any number of leading dimensions, none included.
        - Output: ``(*, K)``.
        - ``weight`` is ``(K, C)``, ``bias`` ``(K)``: K (C + 1) parameters, K C multiply-adds for each row of the input.

    Raises:
        RuntimeError: where shapes or types do not fit, with the numbers.
        TypeError: where the input is not a tensor.

    Source: lecture, section 7.1. See :func:`scratchnn.functional.linear`.

    Example:
        >>> layer = scratchnn.nn.Linear(3072, 10)
        >>> layer(torch.randn(8, 3072)).shape
        torch.Size([8, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class LazyLinear(torch.nn.LazyLinear):
    r""":class:`torch.nn.LazyLinear`, a :class:`Linear` that learns C, its number of features, from its first input.

    .. math:: y[n, k] = b[k] + \sum_c x[n, c] \; w[k, c]

    Args:
        out_features: K, the numbers in a row of the output.
        bias: with b.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(*, C)``.
        - Output: ``(*, K)``.

    Raises:
        RuntimeError, TypeError: as :class:`Linear`.

    Source: lecture, section 7.1.

    Example:
        >>> scratchnn.nn.LazyLinear(10)(torch.randn(8, 3072)).shape
        torch.Size([8, 10])
    """

    cls_to_become = Linear

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class Bilinear(torch.nn.Bilinear):
    r""":class:`torch.nn.Bilinear`, a layer that is linear in each of two inputs.

    .. math:: y[n, k] = b[k] + \sum_{i, j} w[k, i, j] \; x[n, i] \; z[n, j]

    Args:
        in1_features: I, the numbers in a row of the first input.
        in2_features: J, the numbers in a row of the second input.
        out_features: K, the numbers in a row of the output.
        bias: with b.
        device, dtype: of the parameters.

    Shape:
        - Input: x ``(*, I)`` and z ``(*, J)``, with the same leading dimensions.
        - Output: ``(*, K)``.
        - ``weight`` is ``(K, I, J)``, ``bias`` ``(K)``.

    Raises:
        ValueError: when made, for less than one feature in x.
        RuntimeError: where shapes or types do not fit, with the numbers.
        TypeError: where an input is not a tensor.

    Source: Tenenbaum & Freeman 2000, "Separating Style and Content with Bilinear Models". See
    :func:`scratchnn.functional.bilinear`.

    Example:
        >>> scratchnn.nn.Bilinear(20, 30, 10)(torch.randn(8, 20), torch.randn(8, 30)).shape
        torch.Size([8, 10])
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return ops.bilinear(input1, input2, self.weight, self.bias)

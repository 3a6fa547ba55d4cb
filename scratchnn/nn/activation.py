"""Activation layers. Formulas and shapes: :mod:`scratchnn.ops.activation`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scratchnn import functional
from scratchnn.ops import activation as ops

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Maxout",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]


class ReLU(torch.nn.ReLU):
    """:class:`torch.nn.ReLU`: ``y = max(x, 0)``; see :func:`scratchnn.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu(input, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    """:class:`torch.nn.Hardtanh`: ``y = min(max(x, a), b)``; see :func:`scratchnn.functional.hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardtanh(input, self.min_val, self.max_val, self.inplace)


class ReLU6(torch.nn.ReLU6):
    """:class:`torch.nn.ReLU6`: ``y = min(max(x, 0), 6)``; see :func:`scratchnn.functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardtanh(input, self.min_val, self.max_val, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU`: ``y = x``, below zero ``a x``; see :func:`scratchnn.functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.leaky_relu(input, self.negative_slope, self.inplace)


class Threshold(torch.nn.Threshold):
    """:class:`torch.nn.Threshold`: ``y = x``, up to t a constant; see :func:`scratchnn.functional.threshold`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.threshold(input, self.threshold, self.value, self.inplace)


class Hardshrink(torch.nn.Hardshrink):
    """:class:`torch.nn.Hardshrink`: small numbers become 0; see :func:`scratchnn.functional.hardshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardshrink(input, self.lambd)


class Softshrink(torch.nn.Softshrink):
    """:class:`torch.nn.Softshrink`: all move towards 0; see :func:`scratchnn.functional.softshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softshrink(input, self.lambd)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """:class:`torch.nn.Hardsigmoid`: ``y = min(max(x + 3, 0), 6) / 6``."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardsigmoid(input, self.inplace)


class Hardswish(torch.nn.Hardswish):
    """:class:`torch.nn.Hardswish`: ``y = x min(max(x + 3, 0), 6) / 6``."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardswish(input, self.inplace)


class ELU(torch.nn.ELU):
    """:class:`torch.nn.ELU`: ``y = x``, below zero ``a (e^x - 1)``; see :func:`scratchnn.functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.elu(input, self.alpha, self.inplace)


class CELU(torch.nn.CELU):
    """:class:`torch.nn.CELU`: ``y = x``, below zero ``a (e^(x / a) - 1)``; see :func:`scratchnn.functional.celu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.celu(input, self.alpha, self.inplace)


class SELU(torch.nn.SELU):
    """:class:`torch.nn.SELU`: ``y = s x``, below zero ``s a (e^x - 1)``; see :func:`scratchnn.functional.selu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.selu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """:class:`torch.nn.Sigmoid`: ``y = 1 / (1 + e^-x)``; see :func:`scratchnn.functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.sigmoid(input)


class LogSigmoid(torch.nn.LogSigmoid):
    """:class:`torch.nn.LogSigmoid`: ``y = -log(1 + e^-x)``; see :func:`scratchnn.functional.logsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.logsigmoid(input)


class Tanh(torch.nn.Tanh):
    """:class:`torch.nn.Tanh`: ``y = tanh(x)``; see :func:`scratchnn.functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanh(input)


class Tanhshrink(torch.nn.Tanhshrink):
    """:class:`torch.nn.Tanhshrink`: ``y = x - tanh(x)``; see :func:`scratchnn.functional.tanhshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanhshrink(input)


class Softsign(torch.nn.Softsign):
    """:class:`torch.nn.Softsign`: ``y = x / (1 + |x|)``; see :func:`scratchnn.functional.softsign`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softsign(input)


class Softplus(torch.nn.Softplus):
    """:class:`torch.nn.Softplus`: ``y = log(1 + e^(b x)) / b``; see :func:`scratchnn.functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softplus(input, self.beta, self.threshold)


class SiLU(torch.nn.SiLU):
    """:class:`torch.nn.SiLU`: ``y = x / (1 + e^-x)``; see :func:`scratchnn.functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.silu(input, self.inplace)


class Mish(torch.nn.Mish):
    """:class:`torch.nn.Mish`: ``y = x tanh(log(1 + e^x))``; see :func:`scratchnn.functional.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.mish(input, self.inplace)


class GELU(torch.nn.GELU):
    """:class:`torch.nn.GELU`: ``y = x P(x)``, P of the normal distribution; see :func:`scratchnn.functional.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(input, approximate=self.approximate)


class PReLU(torch.nn.PReLU):
    """:class:`torch.nn.PReLU`: a leaky ReLU whose slope is learned; see :func:`scratchnn.functional.prelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.prelu(input, self.weight)


class RReLU(torch.nn.RReLU):
    """:class:`torch.nn.RReLU`: a leaky ReLU with random slopes; see :func:`scratchnn.functional.rrelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class GLU(torch.nn.GLU):
    """:class:`torch.nn.GLU`: one half, gated by the other; see :func:`scratchnn.functional.glu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.glu(input, self.dim)


class Softmax(torch.nn.Softmax):
    """:class:`torch.nn.Softmax`: ``y_i = e^(x_i) / sum_j e^(x_j)``; see :func:`scratchnn.functional.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmax(input, self.dim, _stacklevel=5)


class Softmin(torch.nn.Softmin):
    """:class:`torch.nn.Softmin`: the softmax of ``-x``; see :func:`scratchnn.functional.softmin`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmin(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """:class:`torch.nn.LogSoftmax`: the logarithm of the softmax; see :func:`scratchnn.functional.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.log_softmax(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    """:class:`torch.nn.Softmax2d`: the softmax over the channels, at each pixel of ``(N, C, H, W)`` or ``(C, H, W)``."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return ops.softmax(input, -3, _stacklevel=5)


class Maxout(torch.nn.Module):
    r"""A linear layer with several pieces to each output, of which the largest counts.

    .. math:: y_k = \max_p \; b_{kP + p} + \sum_c x_c \; w_{kP + p, c}

    A convex function of as many straight pieces, learned. Weights are drawn as those of :class:`torch.nn.Linear`.

    Args:
        in_features: C.
        out_features: K.
        pieces: P, at least 1.
        bias: with b.

    Shape:
        ``(*, C)`` to ``(*, K)``. ``weight`` is ``(K P, C)``, ``bias`` ``(K P)``.

    Raises:
        ValueError: for less than one piece.

    Source: Goodfellow et al., 2013; lecture, section 7.3.
    """

    __constants__ = ("in_features", "out_features", "pieces")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"Maxout: expected at least 1 piece, but got {pieces}")
        self.in_features = in_features
        self.out_features = out_features
        self.pieces = pieces
        self.weight = torch.nn.Parameter(torch.empty(out_features * pieces, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_features * pieces, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None and self.in_features > 0:
            bound = 1 / math.sqrt(self.in_features)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return ops.maxout(functional.linear(input, self.weight, self.bias), self.pieces, dim=-1)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, pieces={self.pieces}, "
            f"bias={self.bias is not None}"
        )

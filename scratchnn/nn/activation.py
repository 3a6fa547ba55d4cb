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
    "SELU",
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
    r""":class:`torch.nn.ReLU`: rectified linear unit; the derivative at 0 is taken as 0.

    .. math:: y = \max(x, 0)

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: Nair and Hinton, 2010; lecture, section 7.3. See :func:`scratchnn.functional.relu`.

    Example:
        >>> scratchnn.nn.ReLU()(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu(input, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    r""":class:`torch.nn.Hardtanh`: the identity between two limits; the derivative at a limit is taken as 0.

    .. math:: y = \min(\max(x, a), b)

    Args:
        min_val: a, the lower limit.
        max_val: b, the upper limit.
        inplace: overwrite the input.
        min_value, max_value: old names of both.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        AssertionError: when made, where a is not below b.
        NotImplementedError: for boolean or complex tensors.

    Source: Collobert, 2004. See :func:`scratchnn.functional.hardtanh`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardtanh(input, self.min_val, self.max_val, self.inplace)


class ReLU6(torch.nn.ReLU6):
    r""":class:`torch.nn.ReLU6`: a ReLU that ends at six.

    .. math:: y = \min(\max(x, 0), 6)

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: Krizhevsky, 2010, "Convolutional Deep Belief Networks on CIFAR-10". See :func:`scratchnn.functional.relu6`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardtanh(input, self.min_val, self.max_val, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    r""":class:`torch.nn.LeakyReLU`: a ReLU that leaks.

    .. math:: y = \begin{cases} x & x > 0 \\ a x & \text{else} \end{cases}

    Args:
        negative_slope: a, the slope below zero.
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Maas et al., 2013. See :func:`scratchnn.functional.leaky_relu`.

    Example:
        >>> scratchnn.nn.LeakyReLU(0.1)(torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.leaky_relu(input, self.negative_slope, self.inplace)


class Threshold(torch.nn.Threshold):
    r""":class:`torch.nn.Threshold`: a constant v up to a threshold t.

    .. math:: y = \begin{cases} x & x > t \\ v & \text{else} \end{cases}

    Args:
        threshold: t, up to which y is v.
        value: v, what y is there.
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: :class:`torch.nn.Threshold`; a ReLU is the one with t = v = 0. See :func:`scratchnn.functional.threshold`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.threshold(input, self.threshold, self.value, self.inplace)


class Hardshrink(torch.nn.Hardshrink):
    r""":class:`torch.nn.Hardshrink`: small numbers become zero.

    .. math:: y = \begin{cases} x & |x| > \lambda \\ 0 & \text{else} \end{cases}

    Args:
        lambd: :math:`\lambda`.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Donoho and Johnstone, 1994. See :func:`scratchnn.functional.hardshrink`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardshrink(input, self.lambd)


class Softshrink(torch.nn.Softshrink):
    r""":class:`torch.nn.Softshrink`: all numbers move towards zero.

    .. math:: y = \operatorname{sign}(x) \max(|x| - \lambda, 0)

    Args:
        lambd: :math:`\lambda \ge 0`.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        RuntimeError: for a negative :math:`\lambda`, or one that is no number of the input's type.
        NotImplementedError: for types that are not floating.

    Source: Donoho and Johnstone, 1994. See :func:`scratchnn.functional.softshrink`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softshrink(input, self.lambd)


class Hardsigmoid(torch.nn.Hardsigmoid):
    r""":class:`torch.nn.Hardsigmoid`: three straight lines for a sigmoid.

    .. math:: y = \min(\max(x + 3, 0), 6) / 6

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Howard et al., 2019. See :func:`scratchnn.functional.hardsigmoid`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardsigmoid(input, self.inplace)


class Hardswish(torch.nn.Hardswish):
    r""":class:`torch.nn.Hardswish`: x times a sigmoid of three straight lines.

    .. math:: y = x \min(\max(x + 3, 0), 6) / 6

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Howard et al., 2019. See :func:`scratchnn.functional.hardswish`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardswish(input, self.inplace)


class ELU(torch.nn.ELU):
    r""":class:`torch.nn.ELU`: exponential linear unit.

    .. math:: y = \begin{cases} x & x > 0 \\ \alpha (e^x - 1) & \text{else} \end{cases}

    Args:
        alpha: :math:`\alpha`.
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Clevert et al., 2016; lecture, section 7.3. See :func:`scratchnn.functional.elu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.elu(input, self.alpha, self.inplace)


class CELU(torch.nn.CELU):
    r""":class:`torch.nn.CELU`: an ELU with a continuous derivative.

    .. math:: y = \begin{cases} x & x > 0 \\ \alpha (e^{x / \alpha} - 1) & \text{else} \end{cases}

    Args:
        alpha: :math:`\alpha`, not 0.
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        RuntimeError: where :math:`\alpha` is 0.
        NotImplementedError: for types that are not floating.

    Source: Barron, 2017. See :func:`scratchnn.functional.celu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.celu(input, self.alpha, self.inplace)


class SELU(torch.nn.SELU):
    r""":class:`torch.nn.SELU`: an ELU that keeps mean 0 and variance 1, with s = 1.0507... and alpha = 1.6732....

    .. math:: y = \begin{cases} s x & x > 0 \\ s \alpha (e^x - 1) & \text{else} \end{cases}

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Klambauer et al., 2017. See :func:`scratchnn.functional.selu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.selu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    r""":class:`torch.nn.Sigmoid`: from 0 to 1.

    .. math:: y = \sigma(x) = 1 / (1 + e^{-x})

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        TypeError: where the input is not a tensor.

    Source: lecture, section 7.3. See :func:`scratchnn.functional.sigmoid`.

    Example:
        >>> scratchnn.nn.Sigmoid()(torch.tensor([0.0, 2.0]))
        tensor([0.5000, 0.8808])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.sigmoid(input)


class LogSigmoid(torch.nn.LogSigmoid):
    r""":class:`torch.nn.LogSigmoid`: precise also where the sigmoid is 0 or 1.

    .. math:: y = \log \sigma(x) = -\log(1 + e^{-x})

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: the logarithm of the sigmoid, lecture, section 7.3. See :func:`scratchnn.functional.logsigmoid`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.logsigmoid(input)


class Tanh(torch.nn.Tanh):
    r""":class:`torch.nn.Tanh`: from -1 to 1.

    .. math:: y = \tanh(x) = (e^x - e^{-x}) / (e^x + e^{-x})

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        TypeError: where the input is not a tensor.

    Source: lecture, section 7.3. See :func:`scratchnn.functional.tanh`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanh(input)


class Tanhshrink(torch.nn.Tanhshrink):
    r""":class:`torch.nn.Tanhshrink`: what tanh leaves of x.

    .. math:: y = x - \tanh(x)

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for booleans.

    Source: :class:`torch.nn.Tanhshrink`. See :func:`scratchnn.functional.tanhshrink`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanhshrink(input)


class Softsign(torch.nn.Softsign):
    """:class:`torch.nn.Softsign`: from -1 to 1, slower than tanh.

    .. math:: y = x / (1 + |x|)

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for booleans.

    Source: Bergstra et al., 2009. See :func:`scratchnn.functional.softsign`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softsign(input)


class Softplus(torch.nn.Softplus):
    r""":class:`torch.nn.Softplus`: a smooth ReLU, and x itself where :math:`\beta x` is above a threshold.

    .. math:: y = \log(1 + e^{\beta x}) / \beta

    Args:
        beta: :math:`\beta`.
        threshold: for :math:`\beta x`.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Dugas et al., 2001. See :func:`scratchnn.functional.softplus`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softplus(input, self.beta, self.threshold)


class SiLU(torch.nn.SiLU):
    r""":class:`torch.nn.SiLU`: sigmoid linear unit, or swish.

    .. math:: y = x \, \sigma(x) = x / (1 + e^{-x})

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are neither floating nor complex.

    Source: Hendrycks and Gimpel, 2016; Ramachandran et al., 2017. See :func:`scratchnn.functional.silu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.silu(input, self.inplace)


class Mish(torch.nn.Mish):
    r""":class:`torch.nn.Mish`: smooth, with a dip below zero.

    .. math:: y = x \tanh(\log(1 + e^x))

    Args:
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        NotImplementedError: for types that are not floating.

    Source: Misra, 2019. See :func:`scratchnn.functional.mish`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.mish(input, self.inplace)


class GELU(torch.nn.GELU):
    r""":class:`torch.nn.GELU`: Gaussian error linear unit.

    .. math:: y = x \, P(x), \qquad P(x) = \Pr(X < x), \; X \sim \mathcal{N}(0, 1)

    Args:
        approximate: ``"none"``, or ``"tanh"`` for :math:`P \approx (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3))) / 2`.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        RuntimeError: for another approximation.
        NotImplementedError: for types that are not floating.

    Source: Hendrycks and Gimpel, 2016; lecture, section 7.3. See :func:`scratchnn.functional.gelu`.

    Example:
        >>> scratchnn.nn.GELU()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1587,  0.0000,  0.8413])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(input, approximate=self.approximate)


class PReLU(torch.nn.PReLU):
    r""":class:`torch.nn.PReLU`: a leaky ReLU whose slope is learned.

    .. math:: y = \begin{cases} x & x > 0 \\ w_c x & \text{else} \end{cases}

    Args:
        num_parameters: 1 slope for all channels, or C.
        init: the slopes to begin with.
        device, dtype: of the slopes.

    Shape:
        - Input: any shape; dimension 1 are the channels c, and a tensor of one dimension has one.
        - Output: the same, in the same memory format.

    Raises:
        RuntimeError: where the numbers of slopes and channels, or the types, differ.
        NotImplementedError: for types that are not floating.

    Source: He et al., 2015. See :func:`scratchnn.functional.prelu`.

    Example:
        >>> scratchnn.nn.PReLU()(torch.tensor([-1.0, 2.0]))
        tensor([-0.2500,  2.0000], grad_fn=<PreluBackward>)
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.prelu(input, self.weight)


class RReLU(torch.nn.RReLU):
    r""":class:`torch.nn.RReLU`: a leaky ReLU with random slopes r.

    .. math:: y = \begin{cases} x & x > 0 \\ r x & \text{else} \end{cases}

    Args:
        lower, upper: the limits between which r is drawn for each number in training; else it is their mean.
        inplace: overwrite the input.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        RuntimeError: where the limits are in the wrong order.
        NotImplementedError: for types that are not floating; in training for float16, as torch.

    Source: Xu et al., 2015. See :func:`scratchnn.functional.rrelu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class GLU(torch.nn.GLU):
    r""":class:`torch.nn.GLU`: one half of the input, gated by the other.

    .. math:: y = a \, \sigma(b)

    Args:
        dim: the dimension along which a and b are the halves.

    Shape:
        - Input: any shape with an even size along ``dim``.
        - Output: the same, half along ``dim``.

    Raises:
        RuntimeError: for an odd size, and for scalars.
        IndexError: where there is no such dimension.
        NotImplementedError: for types that are not floating.

    Source: Dauphin et al., 2017. See :func:`scratchnn.functional.glu`.

    Example:
        >>> scratchnn.nn.GLU()(torch.tensor([3.0, 0.0]))
        tensor([1.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.glu(input, self.dim)


class Softmax(torch.nn.Softmax):
    r""":class:`torch.nn.Softmax`: positive numbers that add up to one.

    .. math:: y_i = e^{x_i} / \sum_j e^{x_j}

    Args:
        dim: the dimension that j runs along. Not to name it is deprecated.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for types that are not floating.

    Source: Bridle, 1990. See :func:`scratchnn.functional.softmax`.

    Example:
        >>> scratchnn.nn.Softmax(dim=0)(torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmax(input, self.dim, _stacklevel=5)


class Softmin(torch.nn.Softmin):
    r""":class:`torch.nn.Softmin`: the softmax of -x.

    .. math:: y_i = e^{-x_i} / \sum_j e^{-x_j}

    Args:
        dim: the dimension that j runs along. Not to name it is deprecated.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for types that are not floating.

    Source: Bridle, 1990. See :func:`scratchnn.functional.softmin`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmin(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    r""":class:`torch.nn.LogSoftmax`: the logarithm of the softmax, precise where that is near 0.

    .. math:: y_i = x_i - \log \sum_j e^{x_j}

    Args:
        dim: the dimension that j runs along. Not to name it is deprecated.

    Shape:
        - Input: any shape, ``(*)``.
        - Output: the same, in the same memory format.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for types that are not floating.

    Source: Bridle, 1990. See :func:`scratchnn.functional.log_softmax`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.log_softmax(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    r""":class:`torch.nn.Softmax2d`: the softmax over the channels, at each pixel.

    .. math:: y_c = e^{x_c} / \sum_{c'} e^{x_{c'}}

    Args:
        args, kwargs: any, ignored, as in torch.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: the same, in the same memory format.

    Raises:
        ValueError: for an input that is neither 3D nor 4D.
        NotImplementedError: for types that are not floating.

    Source: Bridle, 1990. See :func:`scratchnn.functional.softmax`.

    Example:
        >>> scratchnn.nn.Softmax2d()(torch.randn(8, 16, 10, 10)).shape
        torch.Size([8, 16, 10, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return ops.softmax(input, -3, _stacklevel=5)


class Maxout(torch.nn.Module):
    r"""A linear layer with several pieces to each output, of which the largest counts.

    .. math:: y_k = \max_p \; b_{kP + p} + \sum_c x_c \; w_{kP + p, c}

    A convex function of as many straight pieces, learned. Weights are drawn as those of :class:`torch.nn.Linear`.

    Args:
        in_features: C, the numbers in a row of the input.
        out_features: K, the numbers in a row of the output.
        pieces: P, at least 1.
        bias: with b.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(*, C)``.
        - Output: ``(*, K)``.
        - ``weight`` is ``(K P, C)``, ``bias`` ``(K P)``.

    Raises:
        ValueError: for less than one piece.

    Source: Goodfellow et al., 2013; lecture, section 7.3.

    Example:
        >>> scratchnn.nn.Maxout(100, 20, pieces=4)(torch.randn(8, 100)).shape
        torch.Size([8, 20])
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

"""Activations: the functions that users call.

Lecture, section 7.3: without a non-linearity between them, two linear layers are one. The functions of each element by
itself are one table, in :mod:`scratchnn.ops._elementwise`; those along a dimension are in
:mod:`scratchnn.ops._softmax` and :mod:`scratchnn.ops._gates`. All keep the input's shape, unless they say otherwise,
and its memory format; NaN stays NaN.
"""

from __future__ import annotations

import math
import operator
import warnings
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import autocast, integer
from scratchnn.ops._elementwise import FUNCTIONS, ROWS, check_writable, in_place, is_differentiated
from scratchnn.ops._gates import Glu, Maxout, Prelu, Rrelu
from scratchnn.ops._softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "celu",
    "celu_",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "log_softmax",
    "logsigmoid",
    "maxout",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "rrelu_",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "threshold_",
]

_FROM_OUTPUT = {row.name: row.in_place != "input" for row in ROWS}


def _tensor(value: Any, function: str, name: str = "input") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(value).__name__}")


def _number(value: Any, function: str, name: str) -> float:
    """A number, in any form that torch takes for one."""
    if type(value) is float:
        return value
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return float(value) if isinstance(value, (bool, int)) else value
    try:
        if isinstance(value, Tensor) and value.dim() > 0:
            raise TypeError
        return float(operator.index(value)) if not hasattr(value, "__float__") else float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{function}(): argument '{name}' must be Number, not {type(value).__name__}") from None


def _activation(name: str, input: Tensor, inplace: bool, *parameters: float) -> Tensor:
    _tensor(input, name)
    if inplace:
        return in_place(name, input, _FROM_OUTPUT[name], *parameters)
    return FUNCTIONS[name].call(input, *parameters)


def _floating(input: Tensor) -> Tensor:
    """Whole numbers as floating ones of the default type: the functions that have no whole results."""
    if input.is_floating_point() or input.is_complex():
        return input
    return input.to(torch.get_default_dtype())


# Piecewise linear.


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Rectified linear unit, :math:`y = \max(x, 0)`. The derivative at 0 is taken as 0.

    Args:
        input: any shape; floating or whole numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: Nair and Hinton, 2010; lecture, section 7.3.

    Example:
        >>> import scratchnn.functional as F
        >>> F.relu(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 2.])
    """
    _tensor(input, "relu")
    if inplace:
        return in_place("relu", input, True)
    return _relu(input)


_relu = FUNCTIONS["relu"].call


def relu_(input: Tensor) -> Tensor:
    r""":func:`relu` in place, :math:`y = \max(x, 0)`.

    Args:
        input: any shape, overwritten.

    Returns:
        the input.

    Raises:
        NotImplementedError: as :func:`relu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`relu`.
    """
    return relu(input, inplace=True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    r"""A ReLU that ends at six, :math:`y = \min(\max(x, 0), 6)`.

    Args:
        input: any shape; floating or whole numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: Krizhevsky, 2010, "Convolutional Deep Belief Networks on CIFAR-10".
    """
    return _activation("hardtanh", input, inplace, 0.0, 6.0)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    r"""The identity between two limits, :math:`y = \min(\max(x, a), b)`. The derivative at a limit is taken as 0.

    Args:
        input: any shape; floating or whole numbers.
        min_val: a, the lower limit.
        max_val: b, the upper limit.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        ValueError: where a is above b.
        NotImplementedError: for boolean or complex tensors.

    Source: Collobert, 2004.
    """
    least, most = _number(min_val, "hardtanh", "min_val"), _number(max_val, "hardtanh", "max_val")
    if least > most:
        raise ValueError(f"min_val cannot be greater than max_val, but got {min_val} and {max_val}")
    return _activation("hardtanh", input, inplace, least, most)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    r""":func:`hardtanh` in place, :math:`y = \min(\max(x, a), b)`.

    Args:
        input: any shape, overwritten.
        min_val, max_val: as in :func:`hardtanh`.

    Returns:
        the input.

    Raises:
        ValueError, NotImplementedError: as :func:`hardtanh`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`hardtanh`.
    """
    return hardtanh(input, min_val, max_val, inplace=True)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    r"""A ReLU that leaks: :math:`y = x` for :math:`x > 0`, else :math:`a x`.

    Args:
        input: any shape; floating numbers.
        negative_slope: a, the slope below zero.
        inplace: overwrite the input. With a negative slope there is no derivative then.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Maas et al., 2013.
    """
    return _activation("leaky_relu", input, inplace, _number(negative_slope, "leaky_relu", "negative_slope"))


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """:func:`leaky_relu` in place, :math:`y = x` for :math:`x > 0`, else :math:`a x`.

    Args:
        input: any shape, overwritten.
        negative_slope: as in :func:`leaky_relu`.

    Returns:
        the input.

    Raises:
        NotImplementedError: as :func:`leaky_relu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`leaky_relu`.
    """
    return leaky_relu(input, negative_slope, inplace=True)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    r"""A constant up to a threshold: :math:`y = x` for :math:`x > t`, else :math:`v`.

    Args:
        input: any shape; floating or whole numbers.
        threshold: t, up to which y is v.
        value: v, what y is there.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for boolean or complex tensors.

    Source: :class:`torch.nn.Threshold`; a ReLU is the one with t = v = 0.
    """
    _tensor(input, "threshold")
    limit, constant = _number(threshold, "threshold", "threshold"), _number(value, "threshold", "value")
    if inplace:
        # The output tells which x were above t, unless v is as well.
        return in_place("threshold", input, constant <= limit, limit, constant)
    return FUNCTIONS["threshold"].call(input, limit, constant)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """:func:`threshold` in place, :math:`y = x` for :math:`x > t`, else :math:`v`.

    Args:
        input: any shape, overwritten.
        threshold, value: as in :func:`threshold`.

    Returns:
        the input.

    Raises:
        NotImplementedError: as :func:`threshold`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`threshold`.
    """
    return _threshold(input, threshold, value, inplace=True)


_threshold = threshold


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    r"""Small numbers become zero: :math:`y = x` for :math:`|x| > \lambda`, else 0.

    Args:
        input: any shape; floating numbers.
        lambd: :math:`\lambda`.

    Returns:
        the input's shape, type and memory format.

    Raises:
        NotImplementedError: for other types.

    Source: Donoho and Johnstone, 1994.
    """
    _tensor(input, "hardshrink")
    return FUNCTIONS["hardshrink"].call(input, _number(lambd, "hardshrink", "lambd"))


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    r"""All numbers move towards zero: :math:`y = x - \lambda`, :math:`x + \lambda`, or 0 in between.

    Args:
        input: any shape; floating numbers.
        lambd: :math:`\lambda \ge 0`.

    Returns:
        the input's shape, type and memory format.

    Raises:
        RuntimeError: for a negative :math:`\lambda`, or one that is no number of the input's type.
        NotImplementedError: for other types.

    Source: Donoho and Johnstone, 1994.
    """
    _tensor(input, "softshrink")
    limit = _number(lambd, "softshrink", "lambd")
    most = torch.finfo(input.dtype).max if input.is_floating_point() else math.inf
    if not 0 <= limit <= most:
        raise RuntimeError(f"softshrink: lambd must be between 0 and {most}, but got {lambd}")
    return FUNCTIONS["softshrink"].call(input, limit)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Three straight lines for a sigmoid, :math:`y = \min(\max(x + 3, 0), 6) / 6`.

    Args:
        input: any shape; floating numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Howard et al., 2019.
    """
    return _activation("hardsigmoid", input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    r""":math:`y = x \min(\max(x + 3, 0), 6) / 6`.

    Args:
        input: any shape; floating numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Howard et al., 2019.
    """
    return _activation("hardswish", input, inplace)


# With exponentials below zero.


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""Exponential linear unit: :math:`y = x` for :math:`x > 0`, else :math:`\alpha (e^x - 1)`.

    Args:
        input: any shape; floating numbers.
        alpha: :math:`\alpha`.
        inplace: overwrite the input. With a negative :math:`\alpha` there is no derivative then.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Clevert et al., 2016.
    """
    return _activation("elu", input, inplace, _number(alpha, "elu", "alpha"))


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    r""":func:`elu` in place, :math:`y = x` for :math:`x > 0`, else :math:`\alpha (e^x - 1)`.

    Args:
        input: any shape, overwritten.
        alpha: as in :func:`elu`.

    Returns:
        the input.

    Raises:
        NotImplementedError: as :func:`elu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`elu`.
    """
    return elu(input, alpha, inplace=True)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""An ELU with a continuous derivative: :math:`y = x` for :math:`x > 0`, else :math:`\alpha (e^{x / \alpha} - 1)`.

    Args:
        input: any shape; floating numbers.
        alpha: :math:`\alpha`.
        inplace: overwrite the input. With a negative :math:`\alpha` there is no derivative then.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        RuntimeError: where :math:`\alpha` is 0.
        NotImplementedError: for other types.

    Source: Barron, 2017.
    """
    width = _number(alpha, "celu", "alpha")
    if width == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return _activation("celu", input, inplace, width)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    r""":func:`celu` in place, :math:`y = x` for :math:`x > 0`, else :math:`\alpha (e^{x / \alpha} - 1)`.

    Args:
        input: any shape, overwritten.
        alpha: as in :func:`celu`.

    Returns:
        the input.

    Raises:
        RuntimeError, NotImplementedError: as :func:`celu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`celu`.
    """
    return celu(input, alpha, inplace=True)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""An ELU that keeps mean 0 and variance 1: :math:`y = s x` for :math:`x > 0`, else :math:`s \alpha (e^x - 1)`.

    :math:`s = 1.0507\ldots`, :math:`\alpha = 1.6732\ldots`

    Args:
        input: any shape; floating numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Klambauer et al., 2017.
    """
    return _activation("selu", input, inplace)


def selu_(input: Tensor) -> Tensor:
    r""":func:`selu` in place, :math:`y = s x` for :math:`x > 0`, else :math:`s \alpha (e^x - 1)`.

    Args:
        input: any shape, overwritten.

    Returns:
        the input.

    Raises:
        NotImplementedError: as :func:`selu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`selu`.
    """
    return selu(input, inplace=True)


# Smooth.


def sigmoid(input: Tensor) -> Tensor:
    r""":math:`y = 1 / (1 + e^{-x})`.

    Args:
        input: any shape and type; whole numbers give floating ones.

    Returns:
        the input's shape and memory format.

    Raises:
        TypeError: where the input is not a tensor.

    Source: lecture, section 7.3.
    """
    _tensor(input, "sigmoid")
    return FUNCTIONS["sigmoid"].call(_floating(input))


def logsigmoid(input: Tensor) -> Tensor:
    r""":math:`y = \log(1 / (1 + e^{-x}))`, precise also where the sigmoid is 0 or 1.

    Args:
        input: any shape; floating numbers.

    Returns:
        the input's shape, type and memory format.

    Raises:
        NotImplementedError: for other types.

    Source: the logarithm of the sigmoid, lecture, section 7.3.
    """
    _tensor(input, "logsigmoid")
    return FUNCTIONS["log_sigmoid"].call(input)


def tanh(input: Tensor) -> Tensor:
    r""":math:`y = (e^x - e^{-x}) / (e^x + e^{-x})`.

    Args:
        input: any shape and type; whole numbers give floating ones.

    Returns:
        the input's shape and memory format.

    Raises:
        TypeError: where the input is not a tensor.

    Source: lecture, section 7.3.
    """
    _tensor(input, "tanh")
    return FUNCTIONS["tanh"].call(_floating(input))


def tanhshrink(input: Tensor) -> Tensor:
    r""":math:`y = x - \tanh(x)`.

    Args:
        input: any shape and type but booleans; whole numbers give floating ones.

    Returns:
        the input's shape and memory format.

    Raises:
        NotImplementedError: for booleans.

    Source: :class:`torch.nn.Tanhshrink`.
    """
    return _not_for_booleans("tanhshrink", input)


def softsign(input: Tensor) -> Tensor:
    r""":math:`y = x / (1 + |x|)`.

    Args:
        input: any shape and type but booleans; whole numbers give floating ones.

    Returns:
        the input's shape and memory format.

    Raises:
        NotImplementedError: for booleans.

    Source: Bergstra et al., 2009.
    """
    return _not_for_booleans("softsign", input)


def _not_for_booleans(name: str, input: Tensor) -> Tensor:
    _tensor(input, name)
    if input.dtype == torch.bool:
        raise NotImplementedError(f"{name}: not implemented for Bool tensors")
    return FUNCTIONS[name].call(_floating(input))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    r"""A smooth ReLU, :math:`y = \log(1 + e^{\beta x}) / \beta`, and x where :math:`\beta x` is above a threshold.

    Args:
        input: any shape; floating numbers.
        beta: :math:`\beta`.
        threshold: for :math:`\beta x`.

    Returns:
        the input's shape, type and memory format.

    Raises:
        NotImplementedError: for other types.

    Source: Dugas et al., 2001.
    """
    _tensor(input, "softplus")
    parameters = _number(beta, "softplus", "beta"), _number(threshold, "softplus", "threshold")
    return FUNCTIONS["softplus"].call(input, *parameters)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Sigmoid linear unit, or swish: :math:`y = x / (1 + e^{-x})`.

    Args:
        input: any shape; floating or complex numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Hendrycks and Gimpel, 2016; Ramachandran et al., 2017.
    """
    return _activation("silu", input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    r""":math:`y = x \tanh(\log(1 + e^x))`.

    Args:
        input: any shape; floating numbers.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        NotImplementedError: for other types.

    Source: Misra, 2019.
    """
    return _activation("mish", input, inplace)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    r"""Gaussian error linear unit, :math:`y = x P(x)`, P the probability of a number below x in a normal distribution.

    Args:
        input: any shape; floating numbers.
        approximate: ``"none"``, or ``"tanh"`` for :math:`P \approx (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3))) / 2`.

    Returns:
        the input's shape, type and memory format.

    Raises:
        RuntimeError: for another approximation.
        NotImplementedError: for other types.

    Source: Hendrycks and Gimpel, 2016.
    """
    _tensor(input, "gelu")
    if approximate == "none":
        return FUNCTIONS["gelu"].call(input)
    if approximate == "tanh":
        return FUNCTIONS["gelu_tanh"].call(input)
    if not isinstance(approximate, str):
        raise TypeError(f"gelu(): argument 'approximate' must be str, not {type(approximate).__name__}")
    raise RuntimeError(f"approximate argument must be either none or tanh, but got {approximate!r}.")


# With parameters that are learned, or drawn.


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    r"""A leaky ReLU whose slope is learned: :math:`y = x` for :math:`x > 0`, else :math:`w_c x`.

    Args:
        input: any shape; dimension 1 are the channels c, and a tensor of one dimension has one. Floating numbers.
        weight: one number, or ``(C)``.

    Returns:
        the input's shape, type and memory format.

    Raises:
        RuntimeError: where the numbers of slopes and channels, or the types, differ.
        NotImplementedError: for other types.

    Source: He et al., 2015.
    """
    _tensor(input, "prelu")
    _tensor(weight, "prelu", "weight")
    return Prelu.call(*autocast(input, weight))


def rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    r"""A leaky ReLU with random slopes: :math:`y = x` for :math:`x > 0`, else :math:`r x`.

    In training :math:`r` is drawn for each number, evenly between the limits, from torch's default generator as torch
    draws it. Else it is the mean of the limits.

    Args:
        input: any shape; floating numbers.
        lower, upper: the limits.
        training: draw.
        inplace: overwrite the input.

    Returns:
        the input's shape, type and memory format; the input itself, if in place.

    Raises:
        RuntimeError: where the limits are in the wrong order.
        NotImplementedError: for other types; in training for float16, as torch.

    Source: Xu et al., 2015.
    """
    _tensor(input, "rrelu")
    least, most = _number(lower, "rrelu", "lower"), _number(upper, "rrelu", "upper")
    if least > most:
        raise RuntimeError(f"rrelu: expected lower to be at most upper, but got {lower} and {upper}")
    if not training:
        return leaky_relu(input, (least + most) / 2, inplace)
    if inplace:
        check_writable(input)
    output, _ = Rrelu.call(input.clone() if inplace and is_differentiated(input) else input, least, most)
    return input.copy_(output) if inplace else output


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False) -> Tensor:
    """:func:`rrelu` in place, :math:`y = x` for :math:`x > 0`, else :math:`r x`.

    Args:
        input: any shape, overwritten.
        lower, upper, training: as in :func:`rrelu`.

    Returns:
        the input.

    Raises:
        RuntimeError, NotImplementedError: as :func:`rrelu`.
        RuntimeError: for a leaf that requires grad.

    Source: as of :func:`rrelu`.
    """
    return rrelu(input, lower, upper, training, inplace=True)


# Along a dimension.


def _wrapped(dim: int, dims: int, name: str = "dim") -> int:
    """A dimension counted from the front.

    Raises:
        IndexError: where there is no such dimension.
        TypeError: for anything but a whole number.
    """
    dim, dims = integer(dim, name), max(dims, 1)
    if not -dims <= dim < dims:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], but got {dim})")
    return dim % dims


def glu(input: Tensor, dim: int = -1) -> Tensor:
    r"""Gated linear unit, :math:`y = a \, \sigma(b)`, a and b the halves of the input along a dimension.

    Args:
        input: any shape with an even size along ``dim``; floating numbers.
        dim: the dimension.

    Returns:
        the input's shape, half along ``dim``.

    Raises:
        RuntimeError: for an odd size, and for scalars.
        IndexError: where there is no such dimension.
        NotImplementedError: for other types.

    Source: Dauphin et al., 2017.
    """
    _tensor(input, "glu")
    if input.dim() == 0:
        raise RuntimeError("glu does not support scalars because halving size must be even")
    return Glu.call(input, _wrapped(dim, input.dim()))


def maxout(input: Tensor, pieces: int, dim: int = 1) -> Tensor:
    r"""The largest of every ``pieces`` neighbours along a dimension, :math:`y_k = \max_p x_{k P + p}`.

    Of equal numbers the first takes the whole gradient.

    Args:
        input: any shape with a multiple of ``pieces`` along ``dim``; floating or whole numbers.
        pieces: P, at least 1.
        dim: the dimension, the channels if not given.

    Returns:
        the input's shape, with one P-th along ``dim``.

    Raises:
        RuntimeError: where the size is no multiple, and for scalars.
        IndexError: where there is no such dimension.
        NotImplementedError: for boolean or complex tensors.

    Source: Goodfellow et al., 2013; lecture, section 7.3.
    """
    _tensor(input, "maxout")
    return Maxout.call(input, integer(pieces, "pieces"), _wrapped(dim, input.dim()))[0]


def _implicit_dim(name: str, dims: int, stacklevel: int) -> int:
    """The dimension that old programs do not name."""
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if dims in (0, 1, 3) else 1


def _along(
    function: Any, name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None
) -> Tensor:
    _tensor(input, name)
    if dim is None:
        dim = _implicit_dim(name, input.dim(), stacklevel + 1)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name}(): argument 'dtype' must be torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and input.dtype != dtype:
        input = input.to(dtype)
    return function.call(input, _wrapped(dim, input.dim()))


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    r"""Positive numbers that add up to one, :math:`y_i = e^{x_i} / \sum_j e^{x_j}`.

    Args:
        input: any shape; floating numbers.
        dim: the dimension i runs along. Not to name it is deprecated: 0 for tensors of 0, 1 and 3 dimensions, else 1.
        _stacklevel: of the warning that the dimension is not named.
        dtype: of the output; the input is converted first, which also serves whole numbers.

    Returns:
        the input's shape and memory format, of ``dtype`` or the input's type.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for other types.

    Source: Bridle, 1990.

    Example:
        >>> import scratchnn.functional as F
        >>> F.softmax(torch.tensor([0.0, 0.0]), dim=0)
        tensor([0.5000, 0.5000])
    """
    return _along(Softmax, "softmax", input, dim, _stacklevel, dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    r"""The softmax of :math:`-x`, :math:`y_i = e^{-x_i} / \sum_j e^{-x_j}`: see :func:`softmax`.

    Args:
        input: any shape; floating numbers.
        dim: the dimension j runs along; see :func:`softmax`.
        _stacklevel: of the warning that the dimension is not named.
        dtype: of the output; the input is converted first, which also serves whole numbers.

    Returns:
        the input's shape and memory format, of ``dtype`` or the input's type.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for other types.

    Source: Bridle, 1990.
    """
    if isinstance(input, Tensor) and not input.is_floating_point():
        if input.dtype == torch.bool:
            raise NotImplementedError("softmin: not implemented for Bool tensors")
        return _along(Softmax, "softmin", -input, dim, _stacklevel, dtype)  # negated as what it is: unsigned wrap
    return _along(Softmin, "softmin", input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""The logarithm of :func:`softmax`, :math:`y_i = x_i - \log \sum_j e^{x_j}`, precise where that is near 0.

    Args:
        input: any shape; floating numbers.
        dim: the dimension i runs along. Not to name it is deprecated: 0 for tensors of 0, 1 and 3 dimensions, else 1.
        _stacklevel: of the warning that the dimension is not named.
        dtype: of the output; the input is converted first, which also serves whole numbers.

    Returns:
        the input's shape and memory format, of ``dtype`` or the input's type.

    Raises:
        IndexError: where there is no such dimension.
        NotImplementedError: for other types.

    Source: Bridle, 1990.
    """
    return _along(LogSoftmax, "log_softmax", input, dim, _stacklevel, dtype)

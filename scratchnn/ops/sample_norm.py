"""Normalization by statistics of a sample alone: layer norm, RMS norm, group norm, instance norm.

Nothing depends on the rest of a batch, in training or not. One operator serves all: the input is seen as
N x G x K x P (samples, groups, channels of a group, pixels), and ``sharing`` says which numbers share a mean and a
variance: a ``"row"`` (P = 1, over K), a ``"group"`` (over K and P) or a ``"pixel"`` (G = 1, over K). Names as in
``_norm_terms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, integer
from scratchnn.ops._norm_terms import Fold, Terms, kept, like, parameter_dtype
from scratchnn.ops.batch_norm import BatchNormEval, check_dtype

__all__ = ["group_norm", "instance_norm", "layer_norm", "rms_norm"]

_ops = torch.ops.scratchnn

Shape = tuple[int, int, int, int]


def _sets(shape: Sequence[int], sharing: str) -> tuple[int, int]:
    return shape[0], shape[3] if sharing == "pixel" else shape[1]


@torch.library.register_fake("scratchnn::normalize")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    sharing: str,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    var = input.new_empty(_sets(shape, sharing), dtype=parameter_dtype(input))
    return like(input), torch.empty_like(var) if centred else var.new_empty(0), var


@torch.library.register_fake("scratchnn::normalize_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    shape: Sequence[int],
    sharing: str,
    centred: bool,
    eps: float,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = parameter_dtype(input) if weight is None else weight.dtype
    grad_weight = input.new_empty(shape[1] * shape[2] if parameters else 0, dtype=dtype)
    return like(input), grad_weight, torch.empty_like(grad_weight)


_OVER = {"row": (2, 3), "group": (2, 3), "pixel": (2,)}


def _terms(
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    shape: Shape,
    sharing: str,
    centred: bool,
    eps: float,
) -> Terms:
    return Terms(input, weight, mean, var, eps, shape, _OVER[sharing], centred)


class Normalize(Function, operator="normalize"):
    """``y = w x_hat + b``; mean and variance are results too, without derivatives."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: Shape,
        sharing: str,
        centred: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.normalize(input, weight, bias, shape, sharing, centred, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        input, weight, bias, *ctx.geometry = inputs
        _, mean, var = output
        ctx.bias = None if bias is None else bias.shape
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        mean = kept(input, mean)
        ctx.save_for_backward(input, weight, mean, var)
        ctx.save_for_forward(input, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        input, weight, mean, var = ctx.saved_tensors
        parameters = weight is not None or ctx.bias is not None
        dx, dw, db = NormalizeBackward.call(grad, input, weight, mean, var, *ctx.geometry, parameters)
        dw = None if weight is None else dw.reshape(weight.shape)
        db = None if ctx.bias is None else db.reshape(ctx.bias)
        return dx, dw, db, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_: Tensor | None, w_: Tensor | None, b_: Tensor | None, *_: None) -> tuple[Tensor, None, None]:
        return _terms(*ctx.saved_tensors, *ctx.geometry).output_tangent(x_, w_, b_), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        input, weight, bias, shape, sharing, centred, eps = args
        fold = _Fold(info.batch_size, shape, sharing)
        output, mean, var = Normalize.call(
            fold.input(input, in_dims[0]),
            fold.parameter(weight, in_dims[1]),
            fold.parameter(bias, in_dims[2]),
            fold.shape,
            fold.sharing,
            centred,
            eps,
        )
        if centred:
            return (fold.output(output), fold.statistics(mean), fold.statistics(var)), (0, 0, 0)
        return (fold.output(output), mean.expand(info.batch_size, 0), fold.statistics(var)), (0, 0, 0)


class NormalizeBackward(Function, operator="normalize_backward"):
    """``dx = r P(w g)``, ``dw = sum of g x_hat``, ``db = sum of g``; without ``parameters``, dx alone."""

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor | None,
        var: Tensor,
        shape: Shape,
        sharing: str,
        centred: bool,
        eps: float,
        parameters: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.normalize_backward(grad, input, weight, mean, var, shape, sharing, centred, eps, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        grad, input, weight, mean, var, *ctx.geometry, ctx.parameters = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, input, weight, mean, var)
        ctx.save_for_forward(grad, input, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, a: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *saved = ctx.saved_tensors
        if not ctx.parameters:
            a = c = None
        gradients = _terms(*saved, *ctx.geometry).second_gradients(grad, u, a, c)
        return *gradients, None, None, None, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, g_: Tensor | None, x_: Tensor | None, w_: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, *saved = ctx.saved_tensors
        dx, dw, db = _terms(*saved, *ctx.geometry).gradient_tangents(grad, g_, x_, w_)
        return (dx, dw, db) if ctx.parameters else (dx, dw[:0], db[:0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad, input, weight, mean, var, shape, sharing, centred, eps, parameters = args
        fold = _Fold(info.batch_size, shape, sharing)
        dx, dw, db = NormalizeBackward.call(
            fold.input(grad, in_dims[0]),
            fold.input(input, in_dims[1]),
            fold.parameter(weight, in_dims[2]),
            fold.own_statistics(mean, in_dims[3]) if centred else None,
            fold.own_statistics(var, in_dims[4]),
            fold.shape,
            fold.sharing,
            centred,
            eps,
            parameters,
        )
        return (fold.output(dx), fold.split(dw, 0), fold.split(db, 0)), (0, 0, 0)


class _Fold(Fold):
    """Folds a vmapped dimension of size ``b`` into the groups: N x G x K x P becomes N x b G x K x P.

    So each sample of the vmap has weights of its own. Pixels by themselves become rows for that, N P x b x K x 1.
    """

    def __init__(self, size: int, shape: Shape, sharing: str) -> None:
        super().__init__(size)
        self.before, self.pixelwise = shape, sharing == "pixel"
        samples, groups, channels, pixels = shape
        if self.pixelwise:
            self.shape, self.sharing = (samples * pixels, size, channels, 1), "row"
        else:
            self.shape, self.sharing = (samples, size * groups, channels, pixels), sharing

    def input(self, tensor: Tensor, dim: int | None) -> Tensor:
        tensor = self._lead(tensor, dim, 0)
        self.like = tensor.shape  # b, then the shape of the input
        samples, groups, channels, pixels = self.before
        if self.pixelwise:
            tensor = tensor.reshape(self.size, samples, channels, pixels).permute(1, 3, 0, 2)
            return tensor.reshape(samples * pixels, self.size * channels)
        return tensor.reshape(self.size, samples, groups * channels, pixels).movedim(0, 1).flatten(1, 2)

    def output(self, tensor: Tensor) -> Tensor:
        samples, groups, channels, pixels = self.before
        if self.pixelwise:
            tensor = tensor.reshape(samples, pixels, self.size, channels).permute(2, 0, 3, 1)
        else:
            tensor = tensor.reshape(samples, self.size, groups * channels, pixels).movedim(1, 0)
        return tensor.reshape(self.like)

    def parameter(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        return None if tensor is None else self._lead(tensor, dim, 0).flatten()

    def statistics(self, tensor: Tensor) -> Tensor:
        """Of the sets of N x b G (or N P x b), those of b x N x G (or b x N x P)."""
        samples, groups, _, pixels = self.before
        if self.pixelwise:
            return tensor.reshape(samples, pixels, self.size).movedim(2, 0)
        return tensor.reshape(samples, self.size, groups).movedim(1, 0)

    def own_statistics(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """The reverse."""
        if tensor is None:
            return None
        tensor = self._lead(tensor, dim, 0)
        if self.pixelwise:
            return tensor.movedim(0, 2).reshape(self.shape[0], self.shape[1])
        return tensor.movedim(0, 1).reshape(self.shape[0], self.shape[1])


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


def _check_normalized_shape(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, name: str
) -> tuple[int, ...]:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}")
    if type(normalized_shape) is torch.Size:
        sizes = tuple(normalized_shape)
    elif isinstance(normalized_shape, (tuple, list)):
        sizes = tuple([integer(size, "normalized_shape") for size in normalized_shape])
    else:
        raise TypeError(
            f"{name}(): argument 'normalized_shape' (position 2) must be tuple of ints, not "
            f"{type(normalized_shape).__name__}"
        )
    if not sizes:
        raise RuntimeError(
            f"Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            f"normalized_shape = {sizes}"
        )
    for parameter, which in ((weight, "weight"), (bias, "bias")):
        if parameter is not None and parameter.shape != sizes:
            raise RuntimeError(
                f"Expected {which} to be of same shape as normalized_shape, but got {which} of shape "
                f"{tuple(parameter.shape)} and normalized_shape = {sizes}"
            )
    if name == "rms_norm" and input.dim() < len(sizes):  # torch's layer_norm tells it as below
        raise ValueError(f"Input tensor must have at least {len(sizes)} dimensions, but got {input.dim()}")
    if input.shape[-len(sizes) :] != sizes:
        raise RuntimeError(
            f"Given normalized_shape={list(sizes)}, expected input with shape [*, {str(list(sizes))[1:-1]}], but got "
            f"input of size {list(input.shape)}"
        )
    return sizes


def _rows(input: Tensor, sizes: Sequence[int]) -> Shape:
    return _product(input.shape[: -len(sizes)]), 1, _product(sizes), 1


def _check_floating(input: Tensor, name: str) -> None:
    if not input.is_floating_point():
        raise NotImplementedError(f"{name}: not implemented for {input.dtype} tensors")


def _check_parameters(input: Tensor, weight: Tensor | None, bias: Tensor | None, name: str) -> None:
    _check_floating(input, name)
    first = weight if weight is not None else bias
    if first is None or (first.dtype == input.dtype and (bias is None or bias.dtype == first.dtype)):
        return
    for parameter in (weight, bias):
        if parameter is not None and (
            parameter.dtype != first.dtype or parameter.dtype != torch.float32 or input.dtype == torch.float64
        ):
            raise RuntimeError(
                f"{name}: mixed dtype: expected weight and bias both of the dtype of the input, {input.dtype}, or "
                f"both float32 beside a narrower input, but got {parameter.dtype}"
            )


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalization, ``y = w (x - mu) / sqrt(v + eps) + b``, over the last dimensions of the input.

    Args:
        input: ``(*, *normalized_shape)``; floating types.
        normalized_shape: the sizes of the last dimensions.
        weight, bias: w and b, one number for each position, ``normalized_shape``, or none. Beside a bfloat16 or float16
            input, they may be float32.
        eps: added to the variance.

    Returns:
        like the input.

    Raises:
        RuntimeError: where the input does not end with ``normalized_shape``, or weight or bias do not have that shape
            or a dtype that fits the input's.
        TypeError: where the input is no tensor, or ``normalized_shape`` not a sequence of whole numbers.

    Source: Ba, Kiros & Hinton 2016, "Layer Normalization"; lecture, section 7.5: another choice of index sets.
    """
    sizes = _check_normalized_shape(input, normalized_shape, weight, bias, "layer_norm")
    _check_parameters(input, weight, bias, "layer_norm")
    return Normalize.call(input, weight, bias, _rows(input, sizes), "row", True, eps)[0]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root mean square normalization, ``y = w x / sqrt(E[x^2] + eps)``, over the last dimensions of the input.

    Layer normalization without the mean: the scale alone is taken out. ``eps`` defaults to the machine epsilon of
    the type computed in, float32 or float64. A complex input is divided by the (complex) root of its mean square, as
    torch does.

    Args:
        input: ``(*, *normalized_shape)``; floating or complex types.
        normalized_shape: the sizes of the last dimensions.
        weight: w, ``normalized_shape``, of any type, or none.
        eps: added to the mean square.

    Returns:
        like the input.

    Raises:
        RuntimeError: where the input does not end with ``normalized_shape``, or the weight does not have that shape.
        ValueError: where the input has fewer dimensions than ``normalized_shape``.
        TypeError: where the input is no tensor, or ``normalized_shape`` not a sequence of whole numbers.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    sizes = _check_normalized_shape(input, normalized_shape, weight, None, "rms_norm")
    if input.is_complex():
        return _complex_rms_norm(input, len(sizes), weight, eps)
    _check_floating(input, "rms_norm")
    dtype = parameter_dtype(input)
    if weight is not None and weight.dtype != input.dtype:
        weight = weight.to(dtype)
    if eps is None:
        eps = torch.finfo(dtype).eps
    return Normalize.call(input, weight, None, _rows(input, sizes), "row", False, eps)[0]


def _complex_rms_norm(input: Tensor, dims: int, weight: Tensor | None, eps: float | None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    x_hat = input * ((input * input).mean(list(range(-dims, 0)), keepdim=True) + eps).rsqrt()
    return x_hat if weight is None else (x_hat * weight).to(input.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalization, ``y = w (x - mu) / sqrt(v + eps) + b``, over the channels and pixels of a group.

    The C channels of a sample fall into ``num_groups`` groups of neighbours, each with a mean and a variance of its
    own; weight and bias have a number for each channel.

    Args:
        input: ``(N, C, *)``; floating types.
        num_groups: groups of neighbouring channels.
        weight, bias: w and b, ``(C)``, or none. Beside a bfloat16 or float16 input, they may be float32.
        eps: added to the variance.

    Returns:
        like the input, with its memory format.

    Raises:
        RuntimeError: for less than two dimensions, channels that do not fall into the groups, no channels or no
            pixels, parameters that do not fit the channels or the dtype.
        ValueError: where all index sets together hold a single number for each group.

    Source: Wu & He 2018, "Group Normalization"; lecture, section 7.5: another choice of index sets.
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    if type(num_groups) is not int and not isinstance(num_groups, torch.SymInt):
        num_groups = integer(num_groups, "num_groups")
    samples, channels, *spatial = input.shape
    pixels = _product(spatial)
    if samples * channels // num_groups * pixels == 1:
        sizes = [samples * channels // num_groups, num_groups, *spatial]
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {sizes}")
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups != 0:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    for parameter, which in ((weight, "weight"), (bias, "bias")):
        if parameter is not None and (parameter.dim() != 1 or parameter.shape[0] != channels):
            raise RuntimeError(
                f"Expected {which} to be a vector of size equal to the number of channels in input, but got {which} "
                f"of shape {list(parameter.shape)} and input of shape {list(input.shape)}"
            )
    if channels == 0:
        raise RuntimeError("Expected number of channels to be greater than 0, got 0")
    if pixels == 0:
        raise RuntimeError(f"Expected pixels to normalize over, but got input of shape {list(input.shape)}")
    _check_parameters(input, weight, bias, "group_norm")
    shape = (samples, num_groups, channels // num_groups, pixels)
    return Normalize.call(input, weight, bias, shape, "group", True, eps)[0]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalization, ``y = w (x - mu) / sqrt(v + eps) + b``, over the pixels of a channel of a sample.

    Running statistics, where given, move towards the mean over the samples of ``mu`` and of the unbiased variance
    ``v n / (n - 1)``. Without ``use_input_stats`` they are used instead of the input's own, as in batch normalization.

    Args:
        input: ``(N, C, *)``; floating types.
        running_mean, running_var: ``(C)``, or none; updated in place where the input's own statistics are used.
        weight, bias: w and b, ``(C)``, or none. Beside a bfloat16 or float16 input, these and the statistics may be
            float32.
        use_input_stats: normalize by the input's own statistics.
        momentum: of the running statistics.
        eps: added to the variance.

    Returns:
        like the input, with its memory format (torch's own ``instance_norm`` answers channels_last with contiguous).

    Raises:
        ValueError: where a sample has a single number in each channel, or one of the two running statistics only is
            given.
        RuntimeError: parameters or statistics that do not fit the channels or the dtype; no running statistics where
            they are to be used.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5: another choice of
    index sets.
    """
    if use_input_stats:
        if _product(input.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {tuple(input.shape)}")
        if (running_mean is None) != (running_var is None):
            raise ValueError("running_mean and running_var must either both be None or neither be None")
    elif running_mean is None or running_var is None:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    _check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    _check_parameters(input, weight, bias, "instance_norm")
    if input.shape[0] * input.shape[1] == 0 and (weight is not None or bias is not None):
        raise IndexError(f"instance_norm: no samples or no channels for weight and bias, input size {input.shape}")
    if not use_input_stats:
        for running, which in ((running_mean, "running_mean"), (running_var, "running_var")):
            check_dtype(input, running, which)
        return BatchNormEval.call(input, weight, bias, running_mean, running_var, eps)
    shape = (input.shape[0], input.shape[1], 1, _product(input.shape[2:]))
    output, mean, var = Normalize.call(input, weight, bias, shape, "group", True, eps)
    if running_mean is not None and running_var is not None and input.numel() > 0:
        mean, var = (statistic.detach().mean(0, dtype=torch.float64) for statistic in (mean, var))
        _ops.batch_norm_update_(running_mean, running_var, mean, var, momentum, shape[3])
    return output


def _check_channels(input: Tensor, **parameters: Tensor | None) -> None:
    for name, parameter in parameters.items():
        if parameter is not None and parameter.numel() != input.shape[1]:
            raise RuntimeError(f"{name} should contain {input.shape[1]} elements not {parameter.numel()}")


def layer_norm_2d(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalization over the channels at each pixel of N x C x H x W, in the memory format of the input."""
    channels = input.shape[1]
    for parameter, which in ((weight, "weight"), (bias, "bias")):
        if parameter is not None and parameter.shape != (channels,):
            raise RuntimeError(
                f"Expected {which} to have a number for each of {channels} channels, but got shape "
                f"{tuple(parameter.shape)}"
            )
    _check_parameters(input, weight, bias, "layer_norm")
    shape = (input.shape[0], 1, channels, _product(input.shape[2:]))
    return Normalize.call(input, weight, bias, shape, "pixel", True, eps)[0]

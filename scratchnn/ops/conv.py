"""Convolution and transposed convolution in one, two and three dimensions: the functional entries.

The formulas and their derivatives are in :mod:`scratchnn.ops._conv`. One function serves all ranks: ``convolve``, and
``convolve_transposed``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scratchnn.ops._common import autocast, expand, integer, remembered
from scratchnn.ops._conv import Conv, ConvTranspose, Window

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def convolve(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str = "zeros",
) -> Tensor:
    """Any rank and padding mode: unbatched inputs, autocast, and the window's numbers, one for each dimension."""
    name = f"conv{rank}d"
    _check_tensors(name, input, weight, bias)
    _check_rank(name, rank, weight)
    window = conv_window(rank, weight, stride, padding, dilation, groups, padding_mode)
    if padding_mode != "zeros" and input.dim() not in (rank + 1, rank + 2):
        error = NotImplementedError if input.dim() >= rank else RuntimeError  # torch's own, from its padding
        raise error(
            f"padding mode {padding_mode!r} of {name} takes {rank + 1}D or {rank + 2}D inputs, got {input.dim()}D"
        )
    input, weight, bias = autocast(input, weight, bias)
    if _is_batched(name, rank, input):
        return Conv.call(input, weight, bias, window)
    return Conv.call(input.unsqueeze(0), weight, bias, window).squeeze(0)


def conv_window(
    rank: int,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> Window:
    """The numbers of a convolution, checked."""
    kernel_size = weight.shape[2:] if isinstance(padding, str) else None
    return _window(rank, kernel_size, stride, padding, dilation, groups, padding_mode)


@remembered
def _window(
    rank: int,
    kernel_size: Sequence[int] | None,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> Window:
    """The numbers of a convolution, checked; the kernel's size is needed where padding has a name."""
    groups = integer(groups, "groups")
    stride = expand(stride, rank, "stride")
    dilation = expand(dilation, rank, "dilation")
    if isinstance(padding, str):
        amounts = _named_padding(padding, kernel_size, stride, dilation)
    else:
        amounts = [amount for amount in expand(padding, rank, "padding") for _ in range(2)]
    if padding_mode == "zeros":
        _refuse_negative(amounts, "padding")
    return Window(stride, amounts, dilation, groups, padding_mode)


def convolve_transposed(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> Tensor:
    """Any rank: the output's size, and the window of the convolution that leads back from it to the input."""
    name = f"conv_transpose{rank}d"
    _check_tensors(name, input, weight, bias)
    _check_rank(name, rank, weight)
    window = _window_transposed(rank, stride, padding, output_padding, groups, dilation)
    batched = _is_batched(name, rank, input)
    size = _size_transposed(input.shape[-rank:], weight.shape[2:], window)
    input, weight, bias = autocast(input, weight, bias)
    if batched:
        return ConvTranspose.call(input, weight, bias, size, window)
    return ConvTranspose.call(input.unsqueeze(0), weight, bias, size, window).squeeze(0)


@remembered
def _window_transposed(
    rank: int,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> Window:
    """The numbers of a transposed convolution, checked."""
    groups = integer(groups, "groups")
    stride = expand(stride, rank, "stride")
    padding = expand(padding, rank, "padding")
    extra = expand(output_padding, rank, "output_padding")
    dilation = expand(dilation, rank, "dilation")
    _refuse_negative(padding, "padding")
    _refuse_negative(extra, "output_padding")
    for more, step, spread in zip(extra, stride, dilation, strict=True):
        if more >= step and more >= spread:
            raise RuntimeError(
                "output padding must be smaller than either stride or dilation, but got "
                f"output_padding={extra}, stride={stride}, dilation={dilation}"
            )
    # Output padding shifts the output's end: it takes away from the padding there.
    amounts = [end for amount, more in zip(padding, extra, strict=True) for end in (amount, amount - more)]
    return Window(stride, amounts, dilation, groups)


def _size_transposed(positions: Sequence[int], kernel_size: Sequence[int], window: Window) -> list[int]:
    """All the window's positions, W of them S apart, cover (W - 1) S + D (K - 1) + 1 pixels, the padding among them."""
    return [
        (positions[i] - 1) * window.stride[i]
        + window.dilation[i] * (kernel_size[i] - 1)
        + 1
        - window.padding[2 * i]
        - window.padding[2 * i + 1]
        for i in range(len(positions))
    ]


def _check_tensors(function: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)):
        return
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and (tensor is not None or name != "bias"):
            raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(tensor).__name__}")


def _check_rank(function: str, rank: int, weight: Tensor) -> None:
    if weight.dim() != rank + 2:
        raise RuntimeError(
            f"{function}: expected weight to have {rank + 2} dimensions, but got weight of size {list(weight.shape)}"
        )


def _is_batched(function: str, rank: int, input: Tensor) -> bool:
    if input.dim() not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {function}, but got input of "
            f"size: {list(input.shape)}"
        )
    return input.dim() == rank + 2


def _refuse_negative(amounts: Sequence[int], name: str) -> None:
    for amount in amounts:
        if amount < 0:
            raise RuntimeError(f"negative {name} is not supported: got {list(amounts)}")


def _named_padding(name: str, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """``"valid"``: none. ``"same"``: as much as keeps the size, the odd pixel after the image."""
    if name == "valid":
        return [0] * (2 * len(kernel_size))
    if name != "same":
        raise RuntimeError(f"Invalid padding string: {name!r}; it is 'same' or 'valid'")
    if any(step != 1 for step in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={list(stride)}")
    amounts = []
    for kernel, spread in zip(kernel_size, dilation, strict=True):
        total = spread * (kernel - 1)
        amounts += [total // 2, total - total // 2]
    return amounts


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""One-dimensional convolution (cross-correlation): each output is a filter's match with a stretch of the input.

    .. math::
        y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        input: ``(N, C, L)`` or ``(C, L)``.
        weight: ``(K, C / groups, R)``.
        bias: ``(K)``, or none.
        stride, padding, dilation, groups: as in :func:`conv2d`, in the one dimension.

    Returns:
        ``(N, K, L')`` with ``L' = floor((L + 2 P - D (R - 1) - 1) / S) + 1``.

    Raises:
        RuntimeError, TypeError: as :func:`conv2d`.

    Source: lecture, section 7.2.
    """
    return convolve(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Two-dimensional convolution (cross-correlation): each output is a filter's match with a patch of the input.

    .. math::
        y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, of a floating, complex or integer type.
        weight: ``(K, C / groups, R, S)``.
        bias: ``(K)``, or none.
        stride: pixels between neighbouring outputs, for both dimensions or ``(height, width)``.
        padding: zeros on both sides, in pixels; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: pixels between neighbouring taps of the kernel.
        groups: the channels are split into as many independent convolutions.

    Returns:
        ``(N, K, H', W')`` with ``H' = floor((H + 2 P - D (R - 1) - 1) / S) + 1``, channels_last where the input
        or the weight is.

    Raises:
        RuntimeError: where shapes, types or numbers do not fit, with the numbers; before anything is computed.
        TypeError: where input, weight or bias is not a tensor, or a number is not whole.

    Source: lecture, section 7.2.

    Example:
        >>> import scratchnn.functional as F
        >>> image, edges = torch.tensor([[[1.0, 1.0, 5.0]]]), torch.tensor([[[[-1.0, 1.0]]]])
        >>> F.conv2d(image, edges)
        tensor([[[0., 4.]]])
    """
    return convolve(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Three-dimensional convolution (cross-correlation): each output is a filter's match with a block of the input.

    .. math::
        y[n, k, o] = b[k] + \sum_{c, t} w[k, c, t] \; x[n, c, o S - P + t D]

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        weight: ``(K, C / groups, Q, R, S)``.
        bias: ``(K)``, or none.
        stride, padding, dilation, groups: as in :func:`conv2d`, in three dimensions.

    Returns:
        ``(N, K, D', H', W')``, each size as in :func:`conv2d`; channels_last_3d where the input or the weight is.

    Raises:
        RuntimeError, TypeError: as :func:`conv2d`.

    Source: lecture, section 7.2.
    """
    return convolve(3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    r"""One-dimensional transposed convolution: each input spreads over the outputs that a filter reaches.

    .. math::
        y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    Args:
        input: ``(N, C, L)`` or ``(C, L)``.
        weight: ``(C, K / groups, R)``.
        bias: ``(K)``, or none.
        stride, padding, output_padding, groups, dilation: as in :func:`conv_transpose2d`, in the one dimension.

    Returns:
        ``(N, K, L')`` with ``L' = (L - 1) S - 2 P + D (R - 1) + output_padding + 1``.

    Raises:
        RuntimeError, TypeError: as :func:`conv_transpose2d`.

    Source: Zeiler et al., Deconvolutional Networks, 2010.
    """
    return convolve_transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    r"""Two-dimensional transposed convolution: each input pixel spreads over the outputs that a filter reaches.

    .. math::
        y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    It is the gradient of the convolution of the same window with respect to its input, and inverts its sizes.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, of a floating, complex or integer type.
        weight: ``(C, K / groups, R, S)``.
        bias: ``(K)``, or none.
        stride: pixels between the outputs of neighbouring inputs, for both dimensions or ``(height, width)``.
        padding: pixels left out on both sides of the output.
        output_padding: pixels put back at the end of each dimension. A convolution of stride S takes S sizes to the
            same one; this says which of them is meant.
        groups: the channels are split into as many independent convolutions.
        dilation: pixels between neighbouring taps of the kernel.

    Returns:
        ``(N, K, H', W')`` with ``H' = (H - 1) S - 2 P + D (R - 1) + output_padding + 1``, channels_last where the
        input or the weight is.

    Raises:
        RuntimeError: where shapes, types or numbers do not fit, with the numbers; before anything is computed.
        TypeError: where input, weight or bias is not a tensor, or a number is not whole.

    Source: Zeiler et al., Deconvolutional Networks, 2010.
    """
    return convolve_transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    r"""Three-dimensional transposed convolution: each input voxel spreads over the outputs that a filter reaches.

    .. math::
        y[n, k, i] = b[k] + \sum_{c, (o, t)\,:\, o S - P + t D = i} w[c, k, t] \; x[n, c, o]

    Args:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        weight: ``(C, K / groups, Q, R, S)``.
        bias: ``(K)``, or none.
        stride, padding, output_padding, groups, dilation: as in :func:`conv_transpose2d`, in three dimensions.

    Returns:
        ``(N, K, D', H', W')``, each size as in :func:`conv_transpose2d`; channels_last_3d where the input or the
        weight is.

    Raises:
        RuntimeError, TypeError: as :func:`conv_transpose2d`.

    Source: Zeiler et al., Deconvolutional Networks, 2010.
    """
    return convolve_transposed(3, input, weight, bias, stride, padding, output_padding, groups, dilation)

"""Convolution, its transpose and the gradient of its weight; the sum over all but the channels. Names as in
:mod:`scratchnn.ops._conv`.

torch knows zeros of one width on both sides. Any other border is laid around the image first; gradients are taken of
the image with its border, and what reaches the border is handed on to the pixels that it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from scratchnn.decompositions._table import decomposes

_aten = torch.ops.aten

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_channels_last(*tensors: Tensor) -> bool:
    return any(suggest_memory_format(tensor) in _CHANNELS_LAST.values() for tensor in tensors)


def _in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    format = _CHANNELS_LAST.get(tensor.dim()) if channels_last else None
    return tensor.contiguous(memory_format=format or torch.contiguous_format)


def _of_complex(bilinear: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A bilinear operation that torch has for real numbers, multiplied out for complex ones."""
    if not a.is_complex():
        return bilinear(a, b)
    (ar, ai), (br, bi) = ((x.real.contiguous(), x.imag.contiguous()) for x in (a, b))
    return torch.complex(bilinear(ar, br) - bilinear(ai, bi), bilinear(ar, bi) + bilinear(ai, br))


def _pairs(padding: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pixels before and after, for each dimension."""
    return zip(padding[::2], padding[1::2], strict=True)


def _is_torchs(padding: Sequence[int], padding_mode: str) -> bool:
    return padding_mode == "zeros" and all(before == after >= 0 for before, after in _pairs(padding))


def _shown(size: int, before: int, after: int, padding_mode: str, device: torch.device) -> Tensor:
    """Which pixel of an image each position of the image with its border shows, along a dimension."""
    i = torch.arange(-before, size + after, device=device)
    if padding_mode == "replicate":
        return i.clamp(0, size - 1)
    if padding_mode == "circular":
        return i % size
    return (size - 1) - ((size - 1) - i.abs()).abs()  # reflect


def _with_border(image: Tensor, padding: Sequence[int], padding_mode: str) -> Tensor:
    if padding_mode == "zeros":
        return _pad_zeros(image, list(_pairs(padding)))
    for dim, (before, after) in enumerate(_pairs(padding), start=2):
        pixels = _shown(image.shape[dim], before, after, padding_mode, image.device)
        image = image.index_select(dim, pixels)
    return image


def _pad_zeros(image: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Negative numbers crop."""
    return _aten.constant_pad_nd(image, [amount for pair in reversed(ends) for amount in pair])


def _without_border(bordered: Tensor, size: Sequence[int], padding: Sequence[int], padding_mode: str) -> Tensor:
    """The adjoint of :func:`_with_border`: each position is added to the pixel that it shows."""
    for dim, (before, after) in enumerate(_pairs(padding), start=2):
        pixels = _shown(size[dim - 2], before, after, padding_mode, bordered.device)
        shape = [size[dim - 2] if d == dim else n for d, n in enumerate(bordered.shape)]
        bordered = bordered.new_zeros(shape).index_add(dim, pixels, bordered)
    return bordered


def _add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias.reshape(-1, *(1 for _ in output.shape[2:]))


@decomposes("conv")
def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    channels_last = _is_channels_last(input, weight)
    sides = list(padding[::2])
    if not _is_torchs(padding, padding_mode):
        input, sides = _with_border(input, padding, padding_mode), [0] * len(sides)

    def convolve(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return _aten.convolution(x, w, b, stride, sides, dilation, False, [0] * len(sides), groups)

    if input.is_complex():
        output = _add_bias(_of_complex(convolve, input, weight), bias)
    else:
        output = convolve(input, weight, bias)
    return _in_format(output, channels_last)


@decomposes("conv_transpose")
def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    channels_last = _is_channels_last(input, weight)
    if padding_mode != "zeros":
        size = [n + before + after for n, (before, after) in zip(output_size, _pairs(padding), strict=True)]
        bordered = conv_transpose(input, weight, None, size, stride, [0] * len(padding), dilation, groups, "zeros")
        output = _add_bias(_without_border(bordered, output_size, padding, padding_mode), bias)
        return _in_format(output, channels_last)
    # The whole of what the links reach, from which the output is cut; it may end further on, where no tap arrives.
    reach = [
        (n - 1) * step + spread * (kernel - 1) + 1
        for n, step, spread, kernel in zip(input.shape[2:], stride, dilation, weight.shape[2:], strict=True)
    ]
    before = list(padding[::2])
    after = [wanted - (n - amount) for wanted, n, amount in zip(output_size, reach, before, strict=True)]
    # torch cuts by as much on both sides, and then adds less than a step, or less than the distance of two taps.
    extra = [more + amount for more, amount in zip(after, before, strict=True)]
    fits = all(
        amount >= 0 and 0 <= more < max(step, spread)
        for amount, more, step, spread in zip(before, extra, stride, dilation, strict=True)
    )
    none = [0] * len(stride)

    def transpose(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        cut, added = (before, extra) if fits else (none, none)
        return _aten.convolution(x, w, b, stride, cut, dilation, True, added, groups)

    if fits and not input.is_complex():
        return _in_format(transpose(input, weight, bias), channels_last)
    output = _of_complex(transpose, input, weight)
    if not fits:
        output = _pad_zeros(output, [(-amount, more) for amount, more in zip(before, after, strict=True)])
    return _in_format(_add_bias(output, bias), channels_last)


@decomposes("conv_weight_grad")
def conv_weight_grad(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    channels_last: bool,
) -> Tensor:
    sides = list(padding[::2])
    if not _is_torchs(padding, padding_mode):
        input, sides = _with_border(input, padding, padding_mode), [0] * len(sides)
    shape = (grad.shape[1], input.shape[1] // groups, *kernel_size)

    def weight_grad(dy: Tensor, x: Tensor) -> Tensor:
        weight = dy.new_zeros(shape)  # for its shape alone: the gradient does not depend on it
        only_weight = [False, True, False]
        _, dw, _ = _aten.convolution_backward(
            dy, x, weight, None, stride, sides, dilation, False, [0] * len(sides), groups, only_weight
        )
        return dw

    return _in_format(_of_complex(weight_grad, grad, input), channels_last)


@decomposes("channel_sum")
def channel_sum(input: Tensor) -> Tensor:
    return input.sum([0, *range(2, input.dim())])

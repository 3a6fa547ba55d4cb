"""The poolings. Names as in :mod:`scratchnn.ops.pool`.

We say where a maximum was by its *offset*, the number of its tap within the window; torch by its index into the plane.
Along each dimension a window begins at some position and its taps are ``dilation`` apart, so either follows from the
other. By indices, gradients are scattered and numbers are gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from scratchnn.decompositions._table import decomposes, is_half
from scratchnn.ops.pool.max import _adaptive_taps, offset_dtype

_aten = torch.ops.aten


# torch's poolings take planes and volumes; a signal is a plane of a single row.


def _planes(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def _with_row(numbers: Sequence[int], row: int = 1) -> list[int]:
    return [row, *numbers] if len(numbers) == 1 else list(numbers)


def _finish(planes: Tensor, reference: Tensor) -> Tensor:
    """As many dimensions as the reference has, in its memory format."""
    result = planes.squeeze(2) if reference.dim() == 3 else planes
    return result.contiguous(memory_format=suggest_memory_format(reference))


# The windows of maxima


class Windows(NamedTuple):
    """Windows over planes or volumes of ``size``, with numbers for each dimension.

    ``begin``: the positions where they begin, as tensors that broadcast over N x C x the outputs.
    """

    begin: list[Tensor]
    taps: list[int]
    dilation: list[int]
    size: list[int]

    def offsets(self, indices: Tensor) -> Tensor:
        """The numbers of the taps at indices into the flattened plane."""
        places = _digits(indices, self.size)
        offsets = torch.zeros_like(indices)
        for place, begin, taps, dilation in zip(places, self.begin, self.taps, self.dilation, strict=True):
            offsets = offsets * taps + (place - begin) // dilation
        return offsets if self.gapless else torch.where(self.hold_pixels(), offsets, 0)

    def indices(self, offsets: Tensor) -> Tensor:
        """The reverse; -1 for a window that holds no pixel."""
        numbers = _digits(offsets.long(), self.taps)
        indices = torch.zeros_like(numbers[0])
        for number, begin, dilation, size in zip(numbers, self.begin, self.dilation, self.size, strict=True):
            indices = indices * size + begin + number * dilation
        return indices if self.gapless else torch.where(self.hold_pixels(), indices, -1)

    @property
    def gapless(self) -> bool:
        """Padding is at most half a window, so only one with gaps between its taps can lie in it wholly."""
        return all(dilation == 1 for dilation in self.dilation)

    def hold_pixels(self) -> Tensor:
        """Whether any tap of a window is inside of the image."""
        holds = []
        for begin, taps, dilation, size in zip(*self, strict=True):
            first = (dilation - 1 - begin).clamp(min=0) // dilation
            holds.append((first < taps) & (begin + first * dilation < size))
        return math.prod(holds[1:], start=holds[0])


def _digits(numbers: Tensor, bases: Sequence[int]) -> list[Tensor]:
    """The digits of numbers in mixed bases, the last the fastest: the positions that were ravelled to an index."""
    digits = []
    for base in reversed(bases):
        digits.append(numbers % base)
        numbers = numbers // base
    return digits[::-1]


def _along(dim: int, rank: int, positions: Tensor) -> Tensor:
    """Positions, the same in all planes or N x C x outputs, along a spatial dimension."""
    shape = [positions.shape[-1] if d == dim else 1 for d in range(rank)]
    return positions.reshape(*positions.shape[:-1], *shape)


def _sliding(
    planes: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Windows:
    """The sliding windows of ``planes`` of outputs, over an image of ``size``."""
    stride, padding = _with_row(stride), _with_row(padding, row=0)
    outputs, device = planes.shape[2:], planes.device
    begin = [
        _along(dim, len(outputs), torch.arange(count, device=device) * stride[dim] - padding[dim])
        for dim, count in enumerate(outputs)
    ]
    return Windows(begin, _with_row(kernel), _with_row(dilation), _with_row(size))


def _adaptive(planes: Tensor, size: Sequence[int]) -> Windows:
    outputs, size, device = planes.shape[2:], _with_row(size), planes.device
    begin = [
        _along(dim, len(outputs), torch.arange(count, device=device) * size[dim] // count)
        for dim, count in enumerate(outputs)
    ]
    return Windows(begin, _adaptive_taps(size, outputs), [1] * len(outputs), size)


def _fractional(planes: Tensor, samples: Tensor, size: Sequence[int], kernel: Sequence[int]) -> Windows:
    """In the arithmetic of the samples, as in torch, or the windows would be others."""
    outputs, rank = planes.shape[2:], len(kernel)
    begin = []
    for dim, count in enumerate(outputs):
        u = samples.select(2, 1 - dim if rank == 2 else dim).unsqueeze(2)  # of planes, the width comes first
        last = size[dim] - kernel[dim]
        step = samples.new_full((), last) / max(count - 1, 1)
        o = torch.arange(count, device=samples.device)
        sampled = ((o.to(samples.dtype) + u) * step).long() - (u * step).long()
        begin.append(_along(dim, rank, torch.where(o == count - 1, last, sampled)))
    return Windows(begin, list(kernel), [1] * rank, list(size))


def _scattered(grad: Tensor, offsets: Tensor, windows: Windows) -> Tensor:
    """``dx[i] = sum of dy[o] over the windows o whose maximum is x[i]``, rounded once."""
    dy = _planes(grad).flatten(2)
    dy = dy.float() if is_half(dy) else dy
    indices = windows.indices(_planes(offsets)).flatten(2)
    if not windows.gapless:
        dy, indices = torch.where(indices < 0, 0, dy), indices.clamp(min=0)
    dx = dy.new_zeros(*dy.shape[:2], math.prod(windows.size)).scatter_add(2, indices, dy)
    return _finish(dx.reshape(*dy.shape[:2], *windows.size).to(grad.dtype), offsets)


def _gathered(input: Tensor, offsets: Tensor, windows: Windows) -> Tensor:
    """``y[o] = x[i]`` with i the maximum of window o; zero where there is none."""
    indices = windows.indices(_planes(offsets))
    x = _planes(input).flatten(2)
    y = x.gather(2, indices.flatten(2).clamp(min=0)).reshape(indices.shape)
    return _finish(y if windows.gapless else torch.where(indices < 0, 0, y), offsets)


# Max pooling over sliding windows


@decomposes("max_pool")
def max_pool(
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    return max_pool_with_offsets(input, kernel, stride, padding, dilation, ceil_mode)[0]


@decomposes("max_pool_with_offsets")
def max_pool_with_offsets(
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    pool = _aten.max_pool3d_with_indices if len(kernel) == 3 else _aten.max_pool2d_with_indices
    x = _planes(input)
    y, indices = pool(
        x, _with_row(kernel), _with_row(stride), _with_row(padding, row=0), _with_row(dilation), ceil_mode
    )
    windows = _sliding(indices, input.shape[2:], kernel, stride, padding, dilation)
    return _finish(y, input), _finish(windows.offsets(indices).to(offset_dtype(kernel)), input)


@decomposes("max_pool_backward")
def max_pool_backward(
    grad: Tensor,
    offsets: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return _scattered(grad, offsets, _sliding(_planes(offsets), size, kernel, stride, padding, dilation))


@decomposes("max_pool_gather")
def max_pool_gather(
    input: Tensor,
    offsets: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    windows = _sliding(_planes(offsets), input.shape[2:], kernel, stride, padding, dilation)
    return _gathered(input, offsets, windows)


@decomposes("max_pool_indices")
def max_pool_indices(
    offsets: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    planes = _planes(offsets)
    return _finish(_sliding(planes, size, kernel, stride, padding, dilation).indices(planes), offsets)


# Over a given number of windows


@decomposes("adaptive_max_pool")
def adaptive_max_pool(input: Tensor, output_size: Sequence[int]) -> Tensor:
    return adaptive_max_pool_with_offsets(input, output_size)[0]


@decomposes("adaptive_max_pool_with_offsets")
def adaptive_max_pool_with_offsets(input: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    pool = _aten.adaptive_max_pool3d if len(output_size) == 3 else _aten.adaptive_max_pool2d
    y, indices = pool(_planes(input), _with_row(output_size))
    dtype = offset_dtype(_adaptive_taps(input.shape[2:], output_size))
    return _finish(y, input), _finish(_adaptive(indices, input.shape[2:]).offsets(indices).to(dtype), input)


@decomposes("adaptive_max_pool_backward")
def adaptive_max_pool_backward(grad: Tensor, offsets: Tensor, size: Sequence[int]) -> Tensor:
    return _scattered(grad, offsets, _adaptive(_planes(offsets), size))


@decomposes("adaptive_max_pool_gather")
def adaptive_max_pool_gather(input: Tensor, offsets: Tensor) -> Tensor:
    return _gathered(input, offsets, _adaptive(_planes(offsets), input.shape[2:]))


@decomposes("adaptive_max_pool_indices")
def adaptive_max_pool_indices(offsets: Tensor, size: Sequence[int]) -> Tensor:
    planes = _planes(offsets)
    return _finish(_adaptive(planes, size).indices(planes), offsets)


# Over windows that lie at random


@decomposes("fractional_max_pool")
def fractional_max_pool(
    input: Tensor, samples: Tensor, kernel: Sequence[int], output_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    pool = _aten.fractional_max_pool3d if len(kernel) == 3 else _aten.fractional_max_pool2d
    y, indices = pool(input, kernel, output_size, samples)
    offsets = _fractional(indices, samples, input.shape[2:], kernel).offsets(indices)
    return _finish(y, input), _finish(offsets.to(offset_dtype(kernel)), input)


@decomposes("fractional_max_pool_backward")
def fractional_max_pool_backward(
    grad: Tensor, offsets: Tensor, samples: Tensor, size: Sequence[int], kernel: Sequence[int]
) -> Tensor:
    return _scattered(grad, offsets, _fractional(offsets, samples, size, kernel))


@decomposes("fractional_max_pool_gather")
def fractional_max_pool_gather(input: Tensor, offsets: Tensor, samples: Tensor, kernel: Sequence[int]) -> Tensor:
    return _gathered(input, offsets, _fractional(offsets, samples, input.shape[2:], kernel))


@decomposes("fractional_max_pool_indices")
def fractional_max_pool_indices(offsets: Tensor, samples: Tensor, size: Sequence[int], kernel: Sequence[int]) -> Tensor:
    return _finish(_fractional(offsets, samples, size, kernel).indices(offsets), offsets)


# Unpooling


@decomposes("max_unpool")
def max_unpool(input: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
    x, places = input.flatten(2), indices.flatten(2)
    y = x.new_zeros(*x.shape[:2], math.prod(output_size)).scatter(2, places, x)
    return y.reshape(*x.shape[:2], *output_size).contiguous(memory_format=suggest_memory_format(input))


@decomposes("max_unpool_backward")
def max_unpool_backward(grad: Tensor, indices: Tensor) -> Tensor:
    dx = grad.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)
    return dx.contiguous(memory_format=suggest_memory_format(indices))


# Averages


def _image(grad: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """What a gradient is to be the gradient of: torch reads its shape and its layout."""
    image = grad.new_zeros(*grad.shape[:2], *_with_row(size))
    if not channels_last or len(size) == 1:
        return image
    return image.contiguous(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)


def _wide(x: Tensor, rank: int) -> Tensor:
    """torch averages volumes in float32 and float64 alone."""
    return x.float() if rank == 3 and is_half(x) else x


@decomposes("avg_pool")
def avg_pool(
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    pool = _aten.avg_pool3d if len(kernel) == 3 else _aten.avg_pool2d
    windows = _with_row(kernel), _with_row(stride), _with_row(padding, row=0)
    y = pool(_wide(_planes(input), len(kernel)), *windows, ceil_mode, count_include_pad, divisor_override)
    return _finish(y.to(input.dtype), input)


@decomposes("avg_pool_backward")
def avg_pool_backward(
    grad: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    backward = _aten.avg_pool3d_backward if len(kernel) == 3 else _aten.avg_pool2d_backward
    windows = _with_row(kernel), _with_row(stride), _with_row(padding, row=0)
    dy = _wide(grad, len(kernel))
    x = _image(dy, size, channels_last)
    dx = backward(_planes(dy), x, *windows, ceil_mode, count_include_pad, divisor_override)
    return _finish(dx.to(grad.dtype), x if len(size) > 1 else grad)


@decomposes("adaptive_avg_pool")
def adaptive_avg_pool(input: Tensor, output_size: Sequence[int]) -> Tensor:
    if all(size == 1 for size in output_size):
        return _finish(_planes(input).mean([*range(2, max(input.dim(), 4))], keepdim=True), input)
    pool = _aten._adaptive_avg_pool3d if len(output_size) == 3 else _aten._adaptive_avg_pool2d
    return _finish(pool(_planes(input), _with_row(output_size)), input)


@decomposes("adaptive_avg_pool_backward")
def adaptive_avg_pool_backward(grad: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    backward = _aten._adaptive_avg_pool3d_backward if len(size) == 3 else _aten._adaptive_avg_pool2d_backward
    x = _image(grad, size, channels_last)
    return _finish(backward(_planes(grad), x), x if len(size) > 1 else grad)

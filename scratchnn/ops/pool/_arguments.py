"""What the pooling functions share: their arguments in torch's many forms, and vmap's extra dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scratchnn.ops import _common
from scratchnn.ops._common import expand, integer, output_size, remembered


def pooled_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Spatial output size of sliding windows, the arguments checked: ``pooled_size`` of csrc/pool/arguments.cpp.

    Ceil mode adds a window where one covers what is left over, provided it starts inside the input or its
    left padding.
    """
    out = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        if k <= 0 or s <= 0 or p < 0 or d <= 0 or p > k // 2:
            raise RuntimeError(
                "expected kernel_size, stride and dilation greater than zero and padding of at most half of "
                f"kernel_size, but got kernel_size {kernel}, stride {stride}, padding {padding}, "
                f"dilation {dilation}"
            )
        o = output_size(n, k, 2 * p + (s - 1 if ceil_mode else 0), s, d)
        if ceil_mode and (o - 1) * s >= n + p:
            o -= 1
        if n == 0 or o <= 0:
            raise RuntimeError(f"given input size {list(size)} the calculated output size is too small")
        out.append(o)
    return out


def fold(info: Any, in_dims: Sequence[int | None], *tensors: Tensor | None) -> list[Tensor | None]:
    """The mapped dimension of each tensor made part of its batch: pooling treats samples alike."""
    folded = []
    for tensor, dim in zip(tensors, in_dims, strict=False):
        if tensor is not None:
            batched = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = batched.flatten(0, 1)
        folded.append(tensor)
    return folded


def unfold(info: Any, tensor: Tensor) -> Tensor:
    return _common.unfold(tensor, 0, info.batch_size)


def is_channels_last(output: Tensor) -> bool:
    """Whether an operator's output, always without gaps, is channels_last: no columns side by side."""
    return output.stride(-1) != 1


def flag(value: Any, function: str, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{function}(): argument '{name}' must be bool, not {type(value).__name__} {value!r}")
    return value


def batch(input: Any, function: str, rank: int, error: type[Exception] = RuntimeError) -> Tensor:
    """The input with a batch dimension.

    Signals that are not contiguous become planes of a single row, to keep their layout; the numbers for each dimension
    then need one for the row: :func:`with_row`. An input without a batch is made
    contiguous where it is no volume, as in torch.

    Raises:
        TypeError: where it is no tensor.
        error: for too few dimensions.
        RuntimeError: for too many.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}(): argument 'input' must be Tensor, not {type(input).__name__}")
    if input.dim() == rank + 2 and (rank > 1 or input.is_contiguous()):
        return input
    x = input
    if input.dim() == rank + 1:
        x = input.unsqueeze(0) if rank == 3 else input.unsqueeze(0).contiguous()
    if x.dim() != rank + 2:
        kind = error if input.dim() <= rank else RuntimeError
        raise kind(
            f"{function}: expected input of {rank + 1} dimensions, or {rank + 2} with a batch, "
            f"but got {list(input.shape)}"
        )
    return x.unsqueeze(2) if rank == 1 and not x.is_contiguous() else x


def unbatch(output: Tensor, input: Tensor, rank: int) -> Tensor:
    """An output without the dimensions that :func:`batch` gave to the input."""
    if output.dim() == input.dim():
        return output
    if output.dim() > rank + 2:
        output = output.squeeze(2)
    return output if output.dim() == input.dim() else output.squeeze(0)


def with_row(x: Tensor, numbers: list[int], row: int = 1) -> list[int]:
    """Numbers for each dimension of ``x``, which :func:`batch` made of the input: a signal's row has its own."""
    return [row, *numbers] if x.dim() - 2 > len(numbers) else numbers


def check_not_empty(function: str, input: Tensor) -> None:
    """Only the first dimension may be empty."""
    if 0 in input.shape[1:]:
        raise RuntimeError(
            f"{function}: expected input with non-empty channels and spatial dimensions, but got {list(input.shape)}"
        )


def integers(value: Any, name: str) -> int | list[int]:
    """A number or a list of numbers, checked to be whole.

    Every argument is checked for its type before any is for its value: that is the order in which torch complains.
    """
    if isinstance(value, (tuple, list)):
        return [integer(number, name) for number in value]
    return integer(value, name)


def sliding(rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> list[list[int]]:
    """Kernel size, stride (by default the kernel size), padding and dilation, each as a list."""
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        stride = kernel_size
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    checked = {name: integers(value, name) for name, value in given.items()}
    return [expand(value, rank, name) for name, value in checked.items()]


def exactly(value: Any, rank: int, function: str, name: str) -> list[int]:
    """One number for all dimensions, or a list of ``rank``: not, as :func:`expand` has it, of a single one."""
    value = integers(value, name)
    if isinstance(value, list) and len(value) != rank:
        raise RuntimeError(f"{function}: {name} must be a single int or {rank} of them, but got {value}")
    return expand(value, rank, name)


def adaptive_size(function: str, rank: int, input: Tensor, output_size: Any) -> list[int]:
    """The output size of adaptive pooling; None, which one dimension does not know, keeps the input's.

    Raises:
        TypeError: for sizes that are neither integers nor None.
        ValueError: for more sizes than the input has dimensions.
        RuntimeError: for any other wrong number of sizes.
    """
    if rank > 1 and isinstance(output_size, (tuple, list)):
        if len(output_size) >= input.dim():
            raise ValueError(
                f"{function}: input dimension should be at least {len(output_size) + 1} for output_size "
                f"{output_size}, but got {input.dim()}"
            )
        sizes = input.shape[input.dim() - len(output_size) :]
        output_size = tuple([n if o is None else o for o, n in zip(output_size, sizes, strict=True)])
    return _adaptive_size(rank, function, output_size)


@remembered
def _adaptive_size(rank: int, function: str, output_size: Any) -> list[int]:
    return exactly(output_size, rank, function, "output_size")


def float32_under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants them for an operation of its float32 list: half precision widened."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(
        tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor for tensor in tensors
    )

"""The table of decompositions, and what its entries share: how they round, and the order of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._prims_common import compute_elementwise_output_strides

TABLE: dict[OpOverload, Callable[..., Any]] = {}


def decomposes(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function as the decomposition of the operator ``torch.ops.scratchnn.<name>``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        TABLE[getattr(torch.ops.scratchnn, name).default] = function
        return function

    return register


def _copy(old: Tensor, new: Tensor, non_blocking: bool = False) -> Tensor:
    """What is left of ``old.copy_(new)`` where nothing is written: the new numbers in the old type and shape."""
    new = new if new.dtype == old.dtype else new.to(old.dtype)
    return new if new.shape == old.shape else new.expand(old.shape)


# Activations in place end as such copies.
TABLE[torch.ops.aten.copy.default] = _copy


def is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def rounded_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half precision is computed in float32, and the result rounded: as in the kernels."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Tensor:
        if not is_half(args[0]):
            return function(*args)
        wide = [arg.float() if isinstance(arg, Tensor) and is_half(arg) else arg for arg in args]
        return function(*wide).to(args[0].dtype)

    return wrapped


def laid_out_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """The tensor in the order of memory of a reference of its shape, without gaps: as ``empty_like(reference)``."""
    strides = compute_elementwise_output_strides(reference)
    if tensor.stride() == strides:
        return tensor
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    inverse = [order.index(dim) for dim in range(tensor.dim())]
    return tensor.permute(order).contiguous().permute(inverse)

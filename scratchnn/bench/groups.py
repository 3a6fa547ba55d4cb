"""Kinds of cases that goals are set for, told from the layer itself: a new case falls into its groups by what it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import Module

from scratchnn.bench.cases import CONTIGUOUS, Case

__all__ = ["GROUPS", "groups_of"]

NARROW = 32  # channels from which a 3x3 convolution counts as wide

_CONVOLUTION = torch.nn.modules.conv._ConvNd
_INSTANCE_NORM = torch.nn.modules.instancenorm._InstanceNorm


def _is_3x3(case: Case, layer: Module) -> bool:
    """A dense float32 3x3 convolution of stride 1."""
    return (
        type(layer) is torch.nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and case.dtype == torch.float32
    )


def _is_conv_of(*dtypes: torch.dtype) -> Callable[[Case, Module], bool]:
    return lambda case, layer: isinstance(layer, _CONVOLUTION) and case.dtype in dtypes


GROUPS: dict[str, Callable[[Case, Module], bool]] = {
    "3x3 stride 1, 32 channels and more": lambda case, layer: (
        _is_3x3(case, layer) and min(layer.in_channels, layer.out_channels) >= NARROW
    ),
    "3x3 stride 1, 16 channels": lambda case, layer: _is_3x3(case, layer) and layer.in_channels == 16,
    "depthwise convolution": lambda case, layer: (
        isinstance(layer, _CONVOLUTION) and 1 < layer.groups == layer.in_channels and case.dtype == torch.float32
    ),
    "bfloat16 convolution": _is_conv_of(torch.bfloat16),
    "float64 convolution": _is_conv_of(torch.float64),
    "pooling, NCHW": lambda case, _: (
        case.family == "pool" and len(case.shape) == 4 and case.memory_format == CONTIGUOUS
    ),
    "pooling, 3d": lambda case, _: case.family == "pool" and len(case.shape) == 5,
    "InstanceNorm": lambda _, layer: isinstance(layer, _INSTANCE_NORM),
    "LocalResponseNorm": lambda _, layer: isinstance(layer, torch.nn.LocalResponseNorm),
}


def groups_of(case: Case) -> tuple[str, ...]:
    """The names of the groups a case belongs to; a model belongs to none."""
    if case.model:
        return ()
    layer = case.layer()
    return tuple(name for name, belongs in GROUPS.items() if belongs(case, layer))

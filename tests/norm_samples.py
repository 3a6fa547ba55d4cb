"""The layers that normalize by a sample's own statistics, each with torch's and its definition, for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import scratchnn.functional as F
from scratchnn.ops.sample_norm import layer_norm_2d

theirs = torch.nn.functional


def torch_layer_norm_2d(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    y = theirs.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, eps).permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


@dataclass(frozen=True)
class Kind:
    """One layer.

    Attributes:
        parameters: the shape of weight and bias for an input.
        dims: those that share statistics, of an input whose channels are groups x channels of a group, if any.
        groups: of channels, or 0.
        bias: whether there is one.
    """

    name: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    parameters: Callable[[Tensor], Sequence[int]]
    dims: Callable[[Tensor], Sequence[int]]
    groups: int = 0
    bias: bool = True

    def __str__(self) -> str:
        return self.name

    def formula(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``w (x - mu) / sqrt(v + eps) + b`` in differentiable operations."""
        seen = x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:]) if self.groups else x
        dims = list(self.dims(seen))
        centred = seen - seen.mean(dims, keepdim=True) if self.bias else seen
        y = centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        y = y.reshape(x.shape)
        shape = tuple(self.parameters(x))
        if shape == (x.shape[1],) and x.dim() != 2 and self.name not in ("layer1", "rms"):
            shape = (*shape, *[1] * (x.dim() - 2))
        if weight is not None:
            y = y * weight.reshape(shape)
        if bias is not None:
            y = y + bias.reshape(shape)
        return y


def _kinds() -> list[Kind]:
    def channels(x: Tensor) -> Sequence[int]:
        return x.shape[1:2]

    def of_group(x: Tensor) -> Sequence[int]:
        return range(2, x.dim())

    kinds = [
        Kind(
            f"group{groups}",
            lambda x, w=None, b=None, groups=groups: F.group_norm(x, groups, w, b),
            lambda x, w=None, b=None, groups=groups: theirs.group_norm(x, groups, w, b),
            channels,
            of_group,
            groups,
        )
        for groups in (1, 2)
    ]
    kinds.append(
        Kind(
            "instance",
            lambda x, w=None, b=None: F.instance_norm(x, None, None, w, b),
            lambda x, w=None, b=None: theirs.instance_norm(x, None, None, w, b),
            channels,
            of_group,
        )
    )
    kinds.append(
        Kind(
            "layer1",
            lambda x, w=None, b=None: F.layer_norm(x, x.shape[-1:], w, b),
            lambda x, w=None, b=None: theirs.layer_norm(x, x.shape[-1:], w, b),
            lambda x: x.shape[-1:],
            lambda x: (-1,),
        )
    )
    kinds.append(
        Kind(
            "layer3",
            lambda x, w=None, b=None: F.layer_norm(x, x.shape[1:], w, b),
            lambda x, w=None, b=None: theirs.layer_norm(x, x.shape[1:], w, b),
            lambda x: x.shape[1:],
            lambda x: range(1, x.dim()),
        )
    )
    kinds.append(
        Kind(
            "layer2d",
            lambda x, w=None, b=None: layer_norm_2d(x, w, b, 1e-5),
            lambda x, w=None, b=None: torch_layer_norm_2d(x, w, b, 1e-5),
            channels,
            lambda x: (1,),
        )
    )
    kinds.append(
        Kind(
            "rms",
            lambda x, w=None: F.rms_norm(x, x.shape[-1:], w, 1e-5),
            lambda x, w=None: theirs.rms_norm(x, x.shape[-1:], w, 1e-5),
            lambda x: x.shape[-1:],
            lambda x: (-1,),
            bias=False,
        )
    )
    return kinds


KINDS = _kinds()


def affine(kind: Kind, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """A weight and, where the layer has one, a bias."""
    count = 2 if kind.bias else 1
    return tuple(torch.randn(tuple(kind.parameters(x)), dtype=dtype or x.dtype) for _ in range(count))

"""The call that stands for convolution, batch norm, addition and activation in a fused block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import Identity, Module
from torch.nn.modules.module import _has_any_global_hook

from scratchnn.fusion.parts import activation_of, is_conv, is_norm, reason_not_plain
from scratchnn.nn.norm import next_batch
from scratchnn.ops.conv import conv_window
from scratchnn.ops.fused import Activation, conv_batch_norm

__all__ = ["joined"]


def joined(
    input: Tensor,
    conv: Any,
    norm: Any,
    between: Sequence[Module],
    residual: Any,
    activation: Module | str | None,
    recompute: bool,
) -> Tensor:
    """``activation(norm(conv(input)) + residual)``.

    Each layer is looked at anew: one that was given hooks since, or was replaced, is called as a layer.

    Args:
        input: of the convolution.
        conv, norm: the layers.
        between: layers after the normalization that did nothing when the block was fused.
        residual: what is added, or nothing.
        activation: a layer, the name of an operator without parameters, or nothing.
        recompute: as for :func:`scratchnn.ops.fused.conv_batch_norm`.
    """
    rank = is_conv(conv)
    function = Activation(activation) if isinstance(activation, str) else None
    if isinstance(activation, Module):
        function = activation_of(activation)
    if not (
        rank > 0
        and is_norm(norm) == rank
        and isinstance(input, Tensor)
        and input.dim() == rank + 2
        and input.device.type in ("cpu", "meta")
        and conv.weight.is_floating_point()
        and reason_not_plain(conv) is None
        and reason_not_plain(norm) is None
        and all(type(module) is Identity and reason_not_plain(module) is None for module in between)
        and (residual is None or isinstance(residual, Tensor))
        and (activation is None or function is not None)
        and not (isinstance(activation, Module) and reason_not_plain(activation) is not None)
        and not _has_any_global_hook()
    ):
        return _one_by_one(input, conv, norm, between, residual, activation)
    weight = conv.weight
    window = conv_window(rank, weight, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    mean, var, batch_statistics, momentum = next_batch(norm)
    parameters = (mean, var, norm.weight, norm.bias, batch_statistics, momentum, norm.eps)
    return conv_batch_norm(input, weight, conv.bias, window, *parameters, residual, function, recompute)


def _one_by_one(
    input: Tensor, conv: Module, norm: Module, between: Sequence[Module], residual: Any, activation: Module | str | None
) -> Tensor:
    y = norm(conv(input))
    for module in between:
        y = module(y)
    if residual is not None:
        y = y + residual
    if isinstance(activation, str):
        return Activation(activation)(y)
    return y if activation is None else activation(y)

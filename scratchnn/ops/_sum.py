"""The sum over everything but the channels: the gradient of every bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scratchnn.ops._common import Function, unfold

_ops = torch.ops.scratchnn


@torch.library.register_fake("scratchnn::channel_sum")
def _(input: Tensor) -> Tensor:
    return input.new_empty(input.shape[1])


def expand_channels(values: Tensor, shape: torch.Size) -> Tensor:
    """One value per channel, at every image and pixel: the adjoint of the channel sum."""
    return values.reshape(-1, *(1 for _ in shape[2:])).expand(shape)


class ChannelSum(Function, operator="channel_sum"):
    """``s[c] = sum over n, o of g[n, c, o]``."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return _ops.channel_sum(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return expand_channels(grad, ctx.shape)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return ChannelSum.call(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor) -> tuple[Tensor, int]:
        # The mapped dimension becomes part of the channels.
        folded = input.movedim(in_dims[0], 1).flatten(1, 2)
        return unfold(ChannelSum.call(folded), 0, info.batch_size), 0

"""Batch normalization whose batch is spread over several processes.

Each process measures its own part; counts, means and sums of squared deviations are gathered and joined (Chan, Golub
& LeVeque 1979), so parts may differ in size and may be empty. The backward pass adds up the two sums that a batch
normalization's gradient needs. Everything else is batch normalization with given statistics.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scratchnn.ops._common import Function
from scratchnn.ops.batch_norm import check_dtype

__all__ = ["sync_batch_norm"]

_ops = torch.ops.scratchnn


def _count(input: Tensor) -> int:
    return input.numel() // input.shape[1]


def _joined_statistics(input: Tensor, group: Any) -> tuple[Tensor, Tensor, float]:
    """Mean and variance of the whole batch, in float64, and its size."""
    mean, var = _ops.batch_norm_statistics(input)
    own = torch.cat([mean, var, mean.new_tensor([float(_count(input))])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    means, variances, counts = torch.stack(parts).split([mean.numel(), mean.numel(), 1], 1)
    total = counts.sum()
    if total == 0:
        return mean, var, 0.0
    shares = counts / total
    joined = (shares * means).sum(0)
    return joined, (shares * (variances + (means - joined).square())).sum(0), float(total)


class _AllReduce(Function):
    """The sum over all processes; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.call(grad.contiguous(), ctx.group), None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, _: None) -> Tensor:
        return _AllReduce.call(x, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, group: Any) -> tuple[Tensor, int]:
        return _AllReduce.call(x, group), in_dims[0]


class SyncBatchNorm(Function):
    """``y = w x_hat + b`` with the mean and variance of the batches of all processes together."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
        group: Any,
    ) -> Tensor:
        return _ops.batch_norm_eval(input, weight, bias, mean, var, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, bias, mean, var, ctx.count, ctx.eps, ctx.group = inputs
        ctx.bias = bias is not None
        ctx.save_for_backward(input, weight, bias, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """``dx = w r (g - E[g] - x_hat E[g x_hat])``, E over all processes; dw and db are this process' own share."""
        input, weight, bias, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (grad, input, weight)):
            return *_differentiable_backward(ctx, grad, input, weight, bias), None, None, None, None, None
        dx, dw, db = _ops.batch_norm_backward(grad, input, weight, mean, var, ctx.eps, False)
        ones = torch.ones_like(mean)
        w = ones if weight is None else weight.double()
        sums = torch.cat([dw.double(), db.double()])
        dist.all_reduce(sums, group=ctx.group)
        if ctx.count > 0 and input.numel() > 0:
            mean_g_x_hat, mean_g = (sums / ctx.count).chunk(2)
            slope = -w * (var + ctx.eps).rsqrt()
            dtype = torch.promote_types(input.dtype, torch.float32)
            line = ((slope * mean_g_x_hat).to(dtype), (slope * mean_g).to(dtype))
            dx = (dx.to(dtype) + _ops.batch_norm_eval(input.to(dtype), *line, mean, var, ctx.eps)).to(input.dtype)
        return dx, None if weight is None else dw, db if ctx.bias else None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Tensor:
        raise NotImplementedError("sync_batch_norm has no forward-mode derivative")

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        raise NotImplementedError("sync_batch_norm has no vmap: its collectives would run once for each sample")


def _differentiable_backward(
    ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same gradients, of the formula written out: so they can be differentiated again, on all processes alike."""
    with torch.enable_grad():
        dims = [0, *range(2, input.dim())]
        shape = (-1, *[1] * (input.dim() - 2))
        x = input.double()
        mu = _AllReduce.call(x.sum(dims), ctx.group) / ctx.count
        d = x - mu.reshape(shape)
        v = _AllReduce.call(d.square().sum(dims), ctx.group) / ctx.count
        y = d * (v + ctx.eps).rsqrt().reshape(shape)
        if weight is not None:
            y = y * weight.double().reshape(shape)
        if bias is not None:
            y = y + bias.double().reshape(shape)
        sources = [x for x in (input, weight, bias) if x is not None]
        wanted = [x for x in sources if x.requires_grad]
        gradients = dict(
            zip(map(id, wanted), torch.autograd.grad(y, wanted, grad.double(), create_graph=True), strict=True)
        )
    return tuple(None if x is None else gradients.get(id(x)) for x in (input, weight, bias))


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
) -> Tensor:
    """Batch normalization in training, over the batches of all processes of ``group``; see ``batch_norm``.

    Every process must call it, and run its backward pass, in the same order; an empty batch takes part.
    """
    if running_mean is not None and running_var is not None:
        check_dtype(input, running_mean, "running_mean")
        check_dtype(input, running_var, "running_var")
    with torch.no_grad():
        mean, var, count = _joined_statistics(input.detach(), group)
        if running_mean is not None and running_var is not None:
            _ops.batch_norm_update_(running_mean, running_var, mean, var, momentum, int(count))
    return SyncBatchNorm.call(input, weight, bias, mean, var, count, eps, group)

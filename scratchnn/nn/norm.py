"""Normalization layers. Formulas and shapes: :mod:`scratchnn.ops.norm`.

Of torch's classes only the computation is replaced: ``_BatchNorm`` and ``_InstanceNorm`` here take the place of
torch's private classes of these names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm as _AnyBatchNorm

from scratchnn.ops import norm as ops
from scratchnn.ops.sample_norm import layer_norm_2d
from scratchnn.ops.sync_batch_norm import sync_batch_norm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "RMSNorm",
    "SyncBatchNorm",
]


def next_batch(layer: _AnyBatchNorm) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """Counts a batch, and tells how a layer is to normalize it.

    Returns:
        the running mean and variance to use or to update, whether by the batch's own statistics, and their momentum.
    """
    momentum = 0.0 if layer.momentum is None else layer.momentum
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # the plain average of all batches so far
            momentum = 1.0 / float(layer.num_batches_tracked)
    batch_statistics = layer.training or (layer.running_mean is None and layer.running_var is None)
    if layer.training and not layer.track_running_stats:
        return None, None, batch_statistics, momentum
    return layer.running_mean, layer.running_var, batch_statistics, momentum


class _BatchNorm(_AnyBatchNorm):
    """``y = w (x - mu) / sqrt(v + eps) + b``, ``mu``, ``v`` by channel: :func:`scratchnn.functional.batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return self._normalize(input, *next_batch(self))

    def _normalize(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, batch_statistics: bool, momentum: float
    ) -> Tensor:
        return ops.batch_norm(input, mean, var, self.weight, self.bias, batch_statistics, momentum, self.eps)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d`, N x C or N x C x L. See :func:`scratchnn.functional.batch_norm`."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`, N x C x H x W. See :func:`scratchnn.functional.batch_norm`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d`, N x C x D x H x W. See :func:`scratchnn.functional.batch_norm`."""


class LazyBatchNorm1d(_BatchNorm, torch.nn.LazyBatchNorm1d):
    """:class:`torch.nn.LazyBatchNorm1d`: learns the number of channels from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_BatchNorm, torch.nn.LazyBatchNorm2d):
    """:class:`torch.nn.LazyBatchNorm2d`: learns the number of channels from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_BatchNorm, torch.nn.LazyBatchNorm3d):
    """:class:`torch.nn.LazyBatchNorm3d`: learns the number of channels from its first input."""

    cls_to_become = BatchNorm3d


class SyncBatchNorm(_BatchNorm):
    """As :class:`torch.nn.SyncBatchNorm`: batch normalization over the batches of all processes of a group.

    Unlike torch's it takes tensors on the CPU, as models trained with gloo have them, and can be differentiated
    twice. Batches may differ in size from process to process, and may be empty. In evaluation, without a process
    group, and alone in one, it is batch normalization. Under ``torch.func`` and forward-mode differentiation only
    these are supported.

    It is not derived from torch's class, since ``DistributedDataParallel`` refuses to train that on a CPU.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.shape[1] == 0:
            raise ValueError(f"expected input channels, at dimension 1, to be non-zero (got {tuple(input.shape)})")

    def _normalize(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, batch_statistics: bool, momentum: float
    ) -> Tensor:
        if self.training and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) > 1:
                return sync_batch_norm(input, mean, var, self.weight, self.bias, momentum, self.eps, group)
        return super()._normalize(input, mean, var, batch_statistics, momentum)

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module:
        """The module with every batch normalization layer, torch's or ours, replaced by this one.

        Parameters and buffers are shared with the layers replaced. A module that is itself such a layer is not
        changed: its replacement is the result.
        """
        result = module
        if isinstance(module, _AnyBatchNorm):
            result = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                bias=module.bias is not None,
            )
            if module.affine:
                result.weight, result.bias = module.weight, module.bias
            result.running_mean, result.running_var = module.running_mean, module.running_var
            result.num_batches_tracked = module.num_batches_tracked
            result.training = module.training
            if hasattr(module, "qconfig"):
                result.qconfig = module.qconfig
        for name, child in module.named_children():
            result.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return result


class _InstanceNorm(torch.nn.modules.instancenorm._InstanceNorm):
    """``y = w (x - mu) / sqrt(v + eps) + b``, ``mu``, ``v`` by channel of a sample."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return ops.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d`, N x C x L or C x L. See :func:`scratchnn.functional.instance_norm`."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """:class:`torch.nn.InstanceNorm2d`, N x C x H x W or C x H x W. See :func:`scratchnn.functional.instance_norm`."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """:class:`torch.nn.InstanceNorm3d`, one more dimension. See :func:`scratchnn.functional.instance_norm`."""


class LazyInstanceNorm1d(_InstanceNorm, torch.nn.LazyInstanceNorm1d):
    """:class:`torch.nn.LazyInstanceNorm1d`: learns the number of channels from its first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_InstanceNorm, torch.nn.LazyInstanceNorm2d):
    """:class:`torch.nn.LazyInstanceNorm2d`: learns the number of channels from its first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_InstanceNorm, torch.nn.LazyInstanceNorm3d):
    """:class:`torch.nn.LazyInstanceNorm3d`: learns the number of channels from its first input."""

    cls_to_become = InstanceNorm3d


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm`: over the last dimensions. See :func:`scratchnn.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(torch.nn.LayerNorm):
    """Layer normalization of an image over its channels, at each pixel: N x C x H x W, in either memory format.

    ``y = w (x - mu) / sqrt(v + eps) + b``, ``mu``, ``v`` over the channels of a pixel, ``w``, ``b`` by channel. What
    ConvNeXt (Liu et al. 2022) and its relatives compute with two permutations around a LayerNorm; the names of its
    parameters are the same.

    Args:
        num_channels: C.
        eps: added to the variance.
        elementwise_affine: learn a weight and a bias.
        bias: learn a bias, where there is a weight.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")
        if input.shape[1:2] != self.normalized_shape:
            raise RuntimeError(
                f"expected an input of {self.normalized_shape[0]} channels, N x C x H x W, but got {list(input.shape)}"
            )
        return layer_norm_2d(input, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    """:class:`torch.nn.GroupNorm`: over groups of channels. See :func:`scratchnn.functional.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """:class:`torch.nn.RMSNorm`: over the last dimensions. See :func:`scratchnn.functional.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """:class:`torch.nn.LocalResponseNorm`: over neighbouring channels.

    See :func:`scratchnn.functional.local_response_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

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
    r""":class:`torch.nn.BatchNorm1d`: each channel with mean 0 and variance 1 over a batch's samples and positions.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    In training the mean and the (biased) variance are the batch's own, and the running ones move towards them; in
    evaluation they are the running ones, and the layer is a fixed linear map, which :func:`scratchnn.fuse` folds into
    the convolution before it.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the batch's; None for the plain average of all
            batches.
        affine: learn w and b.
        track_running_stats: keep running statistics; else the batch's are used in evaluation as well.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C)`` or ``(N, C, L)``.
        - Output: the same.
        - ``weight``, ``bias``, ``running_mean`` and ``running_var`` are ``(C)``.

    Raises:
        ValueError: for an input that is not 2D or 3D; in training for one of a single number in each channel.
        RuntimeError: for another number of channels, or a type that does not fit.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.batch_norm`.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    r""":class:`torch.nn.BatchNorm2d`: each channel with mean 0 and variance 1 over a batch's samples and pixels.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    In training the mean and the (biased) variance are the batch's own, and the running ones move towards them; in
    evaluation they are the running ones, and the layer is a fixed linear map, which :func:`scratchnn.fuse` folds into
    the convolution before it.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the batch's; None for the plain average of all
            batches.
        affine: learn w and b.
        track_running_stats: keep running statistics; else the batch's are used in evaluation as well.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, H, W)``.
        - Output: the same.
        - ``weight``, ``bias``, ``running_mean`` and ``running_var`` are ``(C)``.

    Raises:
        ValueError: for an input that is not 4D; in training for one of a single number in each channel.
        RuntimeError: for another number of channels, or a type that does not fit.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.batch_norm`.

    Example:
        >>> layer = scratchnn.nn.BatchNorm2d(16)
        >>> y = layer(5 + 3 * torch.randn(8, 16, 10, 10))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    r""":class:`torch.nn.BatchNorm3d`: each channel with mean 0 and variance 1 over a batch's samples and voxels.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    In training the mean and the (biased) variance are the batch's own, and the running ones move towards them; in
    evaluation they are the running ones, and the layer is a fixed linear map, which :func:`scratchnn.fuse` folds into
    the convolution before it.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the batch's; None for the plain average of all
            batches.
        affine: learn w and b.
        track_running_stats: keep running statistics; else the batch's are used in evaluation as well.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, D, H, W)``.
        - Output: the same.
        - ``weight``, ``bias``, ``running_mean`` and ``running_var`` are ``(C)``.

    Raises:
        ValueError: for an input that is not 5D; in training for one of a single number in each channel.
        RuntimeError: for another number of channels, or a type that does not fit.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.batch_norm`.
    """


class LazyBatchNorm1d(_BatchNorm, torch.nn.LazyBatchNorm1d):
    r""":class:`torch.nn.LazyBatchNorm1d`, a :class:`BatchNorm1d` that learns C, its channels, from its first input.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`BatchNorm1d`.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C)`` or ``(N, C, L)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`BatchNorm1d`.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5.
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_BatchNorm, torch.nn.LazyBatchNorm2d):
    r""":class:`torch.nn.LazyBatchNorm2d`, a :class:`BatchNorm2d` that learns C, its channels, from its first input.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`BatchNorm2d`.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C, H, W)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`BatchNorm2d`.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5.
    """

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_BatchNorm, torch.nn.LazyBatchNorm3d):
    r""":class:`torch.nn.LazyBatchNorm3d`, a :class:`BatchNorm3d` that learns C, its channels, from its first input.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`BatchNorm3d`.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C, D, H, W)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`BatchNorm3d`.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; lecture, section 7.5.
    """

    cls_to_become = BatchNorm3d


class SyncBatchNorm(_BatchNorm):
    r"""As :class:`torch.nn.SyncBatchNorm`: batch normalization over the batches of all processes of a group.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_c}{\sqrt{v_c + \epsilon}}

    Unlike torch's it takes tensors on the CPU, as models trained with gloo have them, and can be differentiated
    twice. Batches may differ in size from process to process, and may be empty. In evaluation, without a process
    group, and alone in one, it is batch normalization. Under ``torch.func`` and forward-mode differentiation only
    these are supported.

    It is not derived from torch's class, since ``DistributedDataParallel`` refuses to train that on a CPU.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the batch's; None for the plain average of all
            batches.
        affine: learn w and b.
        track_running_stats: keep running statistics; else the batch's are used in evaluation as well.
        process_group: the processes that share their statistics; all, if not given.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, *)``; N may differ from process to process.
        - Output: the same.

    Raises:
        ValueError: for an input of fewer than two dimensions or without channels; in training for a single number in
            each channel of all batches together.
        RuntimeError: for another number of channels, or a type that does not fit.

    Source: Peng et al. 2018, "MegDet"; Ioffe & Szegedy 2015; lecture, section 7.5.
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

        Args:
            module: any, as a whole or a part of a model.
            process_group: of the new layers.

        Returns:
            the module itself, or its replacement.
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
    r""":class:`torch.nn.InstanceNorm1d`: each channel of each sample with mean 0 and variance 1 over its positions.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    The same in training and in evaluation, unless running statistics are kept: these are then used in evaluation.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the mean of the samples'.
        affine: learn w and b; by default neither.
        track_running_stats: keep running statistics; by default none.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: the same.
        - ``weight`` and ``bias``, where learned, are ``(C)``.

    Raises:
        ValueError: for an input that is not 2D or 3D, of another number of channels where there are parameters, or with
            a single number in each channel of a sample.
        RuntimeError: for a type that does not fit the parameters.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.instance_norm`.
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    r""":class:`torch.nn.InstanceNorm2d`: each channel of each sample with mean 0 and variance 1 over its pixels.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    The same in training and in evaluation, unless running statistics are kept: these are then used in evaluation.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the mean of the samples'.
        affine: learn w and b; by default neither.
        track_running_stats: keep running statistics; by default none.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: the same.
        - ``weight`` and ``bias``, where learned, are ``(C)``.

    Raises:
        ValueError: for an input that is not 3D or 4D, of another number of channels where there are parameters, or with
            a single number in each channel of a sample.
        RuntimeError: for a type that does not fit the parameters.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.instance_norm`.

    Example:
        >>> y = scratchnn.nn.InstanceNorm2d(16)(5 + 3 * torch.randn(8, 16, 10, 10))
        >>> bool(y.mean((2, 3)).abs().max() < 1e-5)
        True
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    r""":class:`torch.nn.InstanceNorm3d`: each channel of each sample with mean 0 and variance 1 over its voxels.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    The same in training and in evaluation, unless running statistics are kept: these are then used in evaluation.

    Args:
        num_features: C, the channels of the input.
        eps: added to the variance.
        momentum: the running statistics move by this part towards the mean of the samples'.
        affine: learn w and b; by default neither.
        track_running_stats: keep running statistics; by default none.
        device, dtype: of the parameters and statistics.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: the same.
        - ``weight`` and ``bias``, where learned, are ``(C)``.

    Raises:
        ValueError: for an input that is not 4D or 5D, of another number of channels where there are parameters, or with
            a single number in each channel of a sample.
        RuntimeError: for a type that does not fit the parameters.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.instance_norm`.
    """


class LazyInstanceNorm1d(_InstanceNorm, torch.nn.LazyInstanceNorm1d):
    r""":class:`torch.nn.LazyInstanceNorm1d`: learns C, its channels, from its first input.

    It then turns into an ordinary :class:`InstanceNorm1d`.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`InstanceNorm1d`, but parameters and running
            statistics are the default here, as in torch.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`InstanceNorm1d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5.
    """

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_InstanceNorm, torch.nn.LazyInstanceNorm2d):
    r""":class:`torch.nn.LazyInstanceNorm2d`: learns C, its channels, from its first input.

    It then turns into an ordinary :class:`InstanceNorm2d`.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`InstanceNorm2d`, but parameters and running
            statistics are the default here, as in torch.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`InstanceNorm2d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5.
    """

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_InstanceNorm, torch.nn.LazyInstanceNorm3d):
    r""":class:`torch.nn.LazyInstanceNorm3d`: learns C, its channels, from its first input.

    It then turns into an ordinary :class:`InstanceNorm3d`.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nc}}{\sqrt{v_{nc} + \epsilon}}

    Args:
        eps, momentum, affine, track_running_stats, bias: as in :class:`InstanceNorm3d`, but parameters and running
            statistics are the default here, as in torch.
        device, dtype: of the parameters and statistics.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: the same.

    Raises:
        ValueError, RuntimeError: as :class:`InstanceNorm3d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization"; lecture, section 7.5.
    """

    cls_to_become = InstanceNorm3d


class LayerNorm(torch.nn.LayerNorm):
    r""":class:`torch.nn.LayerNorm`: each sample with mean 0 and variance 1 over its last dimensions.

    .. math:: y = w \hat{x} + b, \qquad \hat{x} = \frac{x - \mu}{\sqrt{v + \epsilon}}

    The same in training and in evaluation.

    Args:
        normalized_shape: the sizes of the last dimensions, over which the mean and the variance are taken.
        eps: added to the variance.
        elementwise_affine: learn w and b, a number for each position.
        bias: learn b, where w is learned.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(*, *normalized_shape)``.
        - Output: the same.
        - ``weight`` and ``bias`` are of ``normalized_shape``.

    Raises:
        RuntimeError: where the input does not end with ``normalized_shape``, or its type does not fit the parameters'.

    Source: Ba, Kiros & Hinton 2016, "Layer Normalization"; lecture, section 7.5. See
    :func:`scratchnn.functional.layer_norm`.

    Example:
        >>> y = scratchnn.nn.LayerNorm(64)(5 + 3 * torch.randn(8, 64))
        >>> bool(y.mean(-1).abs().max() < 1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(torch.nn.LayerNorm):
    r"""Layer normalization of an image over its channels, at each pixel, in either memory format.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{nhw}}{\sqrt{v_{nhw} + \epsilon}}

    What ConvNeXt and its relatives compute with two permutations around a LayerNorm; the names of its parameters are
    the same.

    Args:
        num_channels: C, the channels of the input.
        eps: added to the variance.
        elementwise_affine: learn w and b.
        bias: learn b, where w is learned.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(N, C, H, W)``.
        - Output: the same.
        - ``weight`` and ``bias`` are ``(C)``.

    Raises:
        ValueError: for an input that is not 4D.
        RuntimeError: for another number of channels, or a type that does not fit the parameters'.

    Source: Liu et al. 2022, "A ConvNet for the 2020s"; Ba, Kiros & Hinton 2016; lecture, section 7.5.

    Example:
        >>> y = scratchnn.nn.LayerNorm2d(16)(5 + 3 * torch.randn(8, 16, 10, 10))
        >>> bool(y.mean(1).abs().max() < 1e-5)
        True
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
    r""":class:`torch.nn.GroupNorm`: each group of channels of a sample with mean 0 and variance 1.

    .. math:: y = w_c \hat{x} + b_c, \qquad \hat{x} = \frac{x - \mu_{ng}}{\sqrt{v_{ng} + \epsilon}}

    The same in training and in evaluation. With one group it is a layer normalization of the whole sample, with C
    groups an instance normalization.

    Args:
        num_groups: groups of neighbouring channels.
        num_channels: C, a multiple of it.
        eps: added to the variance.
        affine: learn w and b, a number for each channel.
        device, dtype: of the parameters.
        bias: learn b, where w is learned.

    Shape:
        - Input: ``(N, C, *)``.
        - Output: the same.
        - ``weight`` and ``bias`` are ``(C)``.

    Raises:
        ValueError: when made, where C is no multiple of the groups; when called, for a single number in each group.
        RuntimeError: for another number of channels, no pixels, or a type that does not fit the parameters'.

    Source: Wu & He 2018, "Group Normalization"; lecture, section 7.5. See :func:`scratchnn.functional.group_norm`.

    Example:
        >>> x = torch.randn(8, 16, 10, 10)
        >>> one_each = scratchnn.nn.GroupNorm(16, 16)(x)
        >>> torch.allclose(one_each, scratchnn.nn.InstanceNorm2d(16)(x), atol=1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    r""":class:`torch.nn.RMSNorm`: each sample over the root mean square of its last dimensions.

    .. math:: y = w \, \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}}

    Args:
        normalized_shape: the sizes of the last dimensions, over which the mean is taken.
        eps: added to the mean square; if not given, the machine epsilon of the type computed in.
        elementwise_affine: learn w, a number for each position.
        device, dtype: of the parameters.

    Shape:
        - Input: ``(*, *normalized_shape)``.
        - Output: the same.
        - ``weight`` is of ``normalized_shape``.

    Raises:
        RuntimeError: where the input does not end with ``normalized_shape``.
        ValueError: where it has fewer dimensions.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization". See :func:`scratchnn.functional.rms_norm`.

    Example:
        >>> scratchnn.nn.RMSNorm(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]], grad_fn=<NormalizeBackward>)
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    r""":class:`torch.nn.LocalResponseNorm`: each number damped by the squares in neighbouring channels.

    .. math:: y_c = x_c \Bigl( k + \frac{\alpha}{\mathrm{size}} \sum_{c'} x_{c'}^2 \Bigr)^{-\beta}

    The sum runs over ``size // 2`` channels before c, ``(size - 1) // 2`` after it, and c itself.

    Args:
        size: the number of channels in the sum.
        alpha, beta, k: of the formula.

    Shape:
        - Input: ``(N, C, *)`` with at least three dimensions.
        - Output: the same.

    Raises:
        ValueError: for less than three dimensions.
        RuntimeError: for a size that is not positive.

    Source: Krizhevsky, Sutskever & Hinton 2012, section 3.3. See :func:`scratchnn.functional.local_response_norm`.

    Example:
        >>> scratchnn.nn.LocalResponseNorm(5)(torch.randn(8, 16, 10, 10)).shape
        torch.Size([8, 16, 10, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

"""Normalization: subtract a mean, divide by a standard deviation, over the index sets that the layer chooses.

Batch normalization is in ``batch_norm`` (over several processes, ``sync_batch_norm``), layer, RMS, group and instance
normalization in ``sample_norm``, their common derivation in ``_norm_terms``; local response normalization, which
divides by a power of neighbouring channels' squares, in ``local_response``.
"""

from scratchnn.ops.batch_norm import batch_norm
from scratchnn.ops.local_response import local_response_norm
from scratchnn.ops.sample_norm import group_norm, instance_norm, layer_norm, rms_norm

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"]

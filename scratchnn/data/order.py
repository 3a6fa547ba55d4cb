"""Randomness that depends on nothing but the seed and the place it is used at.

The order of an epoch and the augmentation of a step are functions of ``(seed, epoch)`` and
``(seed, epoch, step)``. A run that is interrupted and resumed, at whatever step, therefore sees exactly what
an uninterrupted one sees, and no generator state has to be carried along.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ORDER, _AUGMENTATION = 1, 2


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """A random order of the images of an epoch, cut into batches.

    Args:
        count: number of images.
        batch_size: images in a batch; the last may be smaller.
        seed, epoch: what the order follows from.

    Returns:
        the indices of each batch, int64.

    Example:
        >>> from scratchnn.data import epoch_batches
        >>> [len(batch) for batch in epoch_batches(10, batch_size=4, seed=0, epoch=0)]
        [4, 4, 2]
    """
    order = torch.randperm(count, generator=_generator(seed, _ORDER, epoch, 0))
    return order.split(batch_size)


def augmentation_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """The generator that augments the ``step``-th batch of an epoch.

    Args:
        seed, epoch, step: what its numbers follow from.

    Returns:
        a new generator, on the CPU.
    """
    return _generator(seed, _AUGMENTATION, epoch, step)


def _generator(*place: int) -> torch.Generator:
    # SeedSequence mixes its words, so that neighbouring places give unrelated streams.
    word = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))

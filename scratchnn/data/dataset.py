"""Labelled images in memory, and what is computed from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images and what they show.

    Attributes:
        images: ``uint8 [N, 3, H, W]``, 0 is black and 255 is full.
        labels: ``int64 [N]``, indices into :attr:`Dataset.classes`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes.

    Attributes:
        name: a short name, fit for a folder.
        source: what :func:`scratchnn.data.load` finds the same data by, from any folder.
        train: what the weights are fitted to.
        test: what they are judged by.
        classes: the name of each label.
        mirrored: whether an image and its mirror image show the same thing (not so for digits).
        notes: sentences about choices made on the way here that a user should read.
    """

    name: str
    source: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mirrored: bool = True
    notes: tuple[str, ...] = ()

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """See :func:`channel_mean_and_std`; computed from the training images alone."""
        return channel_mean_and_std(self.train.images)

    def digest(self) -> str:
        """A hash of every pixel and label, to tell whether two runs saw the same data."""
        sha = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            sha.update(repr(tuple(tensor.shape)).encode())
            sha.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        return sha.hexdigest()


def channel_mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, on the scale where 255 is 1.

    A pixel has only 256 values, so counting them gives both moments exactly, whatever the number of images:
    ``mean = sum_v v count[v] / n``, ``std^2 = sum_v (v - mean)^2 count[v] / n``.

    Args:
        images: ``uint8 [N, C, H, W]``.

    Returns:
        Two ``float64 [C]``. The deviation is at least one grey level, so that dividing by it is safe.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return mean, variance.sqrt().clamp(min=1 / 255)

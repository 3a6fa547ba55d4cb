"""Images for training: CIFAR-10, folders, archives, and the digits that come with scikit-learn.

Data sets of this size fit into memory, so they are arrays of bytes there; a batch is augmented and normalised
by a handful of tensor operations, and there are no worker processes.
"""

from scratchnn.data.augment import normalise, random_crop_flip
from scratchnn.data.dataset import Dataset, Split, channel_mean_and_std
from scratchnn.data.order import augmentation_generator, epoch_batches
from scratchnn.data.source import load

__all__ = [
    "Dataset",
    "Split",
    "augmentation_generator",
    "channel_mean_and_std",
    "epoch_batches",
    "load",
    "normalise",
    "random_crop_flip",
]

"""scikit-learn's handwritten digits: 1,797 images of 8x8 that come with the library, no download."""

from __future__ import annotations

import torch

from scratchnn.data.dataset import Dataset, Split
from scratchnn.data.decode import resize
from scratchnn.data.layout import stratified_split
from scratchnn.errors import require


def load_digits(size: int) -> Dataset:
    """The digits scaled to ``size x size`` and repeated in three channels; a fifth is for testing."""
    require("sklearn", extra="train")
    from sklearn.datasets import load_digits as load

    source = load()
    ink = torch.from_numpy(source.images)[:, None]  # [N, 1, 8, 8], whole numbers from 0 to 16
    grey = (ink * 255 / 16).round().to(torch.uint8)
    images = resize(grey, size).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(source.target).to(torch.int64)
    train, test = stratified_split(labels)
    return Dataset(
        name="digits",
        source="digits",
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        classes=tuple(str(name) for name in source.target_names),
        mirrored=False,
        notes=(f"digits of scikit-learn: {len(test)} of {len(labels)}, always the same ones, are for testing",),
    )

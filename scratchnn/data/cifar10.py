"""CIFAR-10 as its authors publish it, through torchvision.

Krizhevsky: *Learning Multiple Layers of Features from Tiny Images*, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html: 50,000 images for training and 10,000 for testing, 32x32, ten
classes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scratchnn.data.dataset import Dataset, Split
from scratchnn.data.decode import resize
from scratchnn.errors import UserError

FOLDER = "cifar-10-batches-py"


def find_cifar10(*roots: Path) -> Path | None:
    """The first of ``roots`` that holds an unpacked CIFAR-10, or ``None``."""
    return next((root for root in roots if (root / FOLDER).is_dir()), None)


def load_cifar10(root: Path, size: int, download: bool = False) -> Dataset:
    """Load CIFAR-10 from ``root / "cifar-10-batches-py"``.

    Args:
        root: the folder that holds it.
        size: height and width of the images; other than 32, they are scaled.
        download: whether to fetch it to ``root`` when it is not there.

    Raises:
        UserError: when it cannot be fetched, or is incomplete (torchvision knows its checksums).
    """
    from torchvision.datasets import CIFAR10

    try:
        splits = [CIFAR10(str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        action = "be downloaded to" if download else "be read from"
        raise UserError(f"CIFAR-10 cannot {action} {root} ({' '.join(str(error).split())})") from error
    train, test = (
        Split(
            resize(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), size),
            torch.tensor(split.targets, dtype=torch.int64),
        )
        for split in splits
    )
    return Dataset(
        name="cifar10",
        source=str(root.resolve()),
        train=train,
        test=test,
        classes=tuple(splits[0].classes),
        notes=(f"CIFAR-10 of {root}",),
    )

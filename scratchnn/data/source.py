"""From the value of ``--data`` to images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from scratchnn.data.cache import decoded_images, default_directory
from scratchnn.data.cifar10 import FOLDER, find_cifar10, load_cifar10
from scratchnn.data.dataset import Dataset, Split
from scratchnn.data.digits import load_digits
from scratchnn.data.layout import arrange
from scratchnn.data.tree import ARCHIVE_SUFFIXES, is_archive
from scratchnn.errors import UserError

SMALLEST_IMAGE, LARGEST_IMAGE = 16, 512


def load(
    source: str = "auto",
    image_size: int = 32,
    cache: Path | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Dataset:
    """Load a data set.

    Args:
        source: ``"cifar10"`` (downloaded to the cache unless it is there or in ``./data``), ``"digits"``, the
            path of a folder or an archive with one folder of images a class (see
            :mod:`scratchnn.data.layout`) or of a folder that holds ``cifar-10-batches-py``, or ``"auto"``:
            CIFAR-10 if it is on the disk already and the digits otherwise; it downloads nothing.
        image_size: height and width that images are scaled and cropped to.
        cache: folder for decoded archives and downloads, ``~/.cache/scratchnn`` unless given.
        progress: wraps the files while they are decoded, to show how far it is.

    Returns:
        the images of training and test, with their labels.

    Raises:
        UserError: when there is no such data, or it is damaged.
    """
    if not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
        raise UserError(f"the image size must be from {SMALLEST_IMAGE} to {LARGEST_IMAGE}, got {image_size}")
    cache = default_directory() if cache is None else cache
    if source == "auto":
        root = find_cifar10(Path("data"), cache)
        return load_digits(image_size) if root is None else load_cifar10(root, image_size)
    if source == "digits":
        return load_digits(image_size)
    if source == "cifar10":
        root = find_cifar10(Path("data"), cache)
        return load_cifar10(root or cache, image_size, download=root is None)
    return _load_path(Path(source).expanduser(), image_size, cache, progress)


def _load_path(path: Path, image_size: int, cache: Path, progress: Callable[[Iterable], Iterable]) -> Dataset:
    if not path.exists():
        raise UserError(f"there is no data at {path}, and no data set of that name (cifar10, digits, auto)")
    if path.is_dir():
        if path.resolve().name == FOLDER:
            path = path.resolve().parent
        if find_cifar10(path):
            return load_cifar10(path, image_size)
    elif not is_archive(path):
        raise UserError(f"{path} is neither a folder nor an archive ({' '.join(ARCHIVE_SUFFIXES)})")
    images, names, cache_notes = decoded_images(path, image_size, cache, progress)
    layout = arrange(names, path)
    return Dataset(
        name=path.resolve().name.split(".")[0] or "images",
        source=str(path.resolve()),
        train=Split(images[layout.train], layout.train_labels),
        test=Split(images[layout.test], layout.test_labels),
        classes=layout.classes,
        notes=(*layout.notes, *cache_notes),
    )

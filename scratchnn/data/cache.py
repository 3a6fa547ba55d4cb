"""Decode a folder or an archive once, and keep the pixels for the next run."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scratchnn.data.atomic import replace_file
from scratchnn.data.decode import decode_image
from scratchnn.data.tree import fingerprint, read_images
from scratchnn.errors import UserError

_FORMAT = 1  # to be raised when decoding changes, so that older arrays are not taken for newer ones


def default_directory() -> Path:
    """``$XDG_CACHE_HOME/scratchnn``, or ``~/.cache/scratchnn``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scratchnn"


def cache_file(path: Path, size: int, directory: Path) -> Path:
    """Where the pixels of ``path`` at ``size x size`` are kept; another content has another name."""
    key = hashlib.sha256(f"{_FORMAT} {size} {fingerprint(path)}".encode()).hexdigest()[:16]
    return directory / f"{path.resolve().name.split('.')[0]}-{size}-{key}.pt"


def decoded_images(
    path: Path, size: int, directory: Path, progress: Callable[[Iterable], Iterable] = iter
) -> tuple[Tensor, list[str], tuple[str, ...]]:
    """Every image below ``path``, from the cache if it is there.

    Args:
        path: a folder or an archive.
        size: height and width that images are scaled and cropped to.
        directory: where the cache is.
        progress: wraps the files while they are decoded, to show how far it is.

    Returns:
        ``uint8 [N, 3, size, size]``, the ``N`` names, and what should be said about the cache.
    """
    kept = cache_file(path, size, directory)
    found = _read(kept)
    if found is not None:
        return *found, (f"pixels read from {kept}",)
    arrays, names = [], []
    for name, content in progress(read_images(path)):
        arrays.append(decode_image(content, size, name=f"{name} of {path}"))
        names.append(name)
    if not arrays:
        raise UserError(f"{path} holds no images")
    images = torch.from_numpy(np.stack(arrays))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(kept) as file:
            torch.save({"images": images, "names": names}, file)
    except (UserError, OSError) as error:
        return images, names, (f"{len(names)} images decoded, not cached ({error})",)
    return images, names, (f"{len(names)} images decoded, pixels kept in {kept}",)


def _read(path: Path) -> tuple[Tensor, list[str]] | None:
    """What :func:`decoded_images` kept, or ``None`` when it is not there or no longer readable."""
    try:
        with zipfile.ZipFile(path) as container:
            if container.testzip() is not None:
                return None
        content = torch.load(path, weights_only=True)
        return content["images"], content["names"]
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, KeyError):
        return None

"""Small folders of images that two classes can be told apart in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, colour: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Noise that is brightest in channel ``colour``; the same ``number`` gives the same picture."""
    pixels = np.random.default_rng([number, colour]).integers(0, 160, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., colour] += 90
    return Image.fromarray(pixels)


def png(number: int, colour: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """The picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture(number, colour, size).save(buffer, format="PNG")
    return buffer.getvalue()


def split_tree(train: int = 12, test: int = 4) -> dict[str, bytes]:
    """File names and contents in ``ImageFolder`` layout: classes ``blue`` and ``red`` in two splits."""
    return {
        f"{split}/{name}/{number:03d}.png": png(number + offset, colour)
        for split, count, offset in (("train", train, 0), ("test", test, 1000))
        for name, colour in (("blue", 2), ("red", 0))
        for number in range(count)
    }


def write_folder(tree: dict[str, bytes], folder: Path) -> Path:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(tree: dict[str, bytes], path: Path) -> Path:
    """A tar file, compressed as its name says."""
    kind = path.suffix[1:].replace("tgz", "gz")
    with tarfile.open(path, "w" if kind == "tar" else f"w:{kind}") as archive:
        for name, content in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(tree: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path

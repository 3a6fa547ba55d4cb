"""From the bytes of an image file to pixels of a fixed size."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scratchnn.errors import UserError


def decode_image(content: bytes, size: int, name: str) -> np.ndarray:
    """Decode an image file of any common format, colour mode and size.

    The shorter side is scaled to ``size`` and the middle square is kept; an image that already is
    ``size x size`` keeps its pixels.

    Args:
        content: the bytes of the file.
        size: height and width of the result.
        name: what to call the file when it is damaged.

    Returns:
        ``uint8 [3, size, size]``.

    Raises:
        UserError: naming the file, when it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
            pixels = ImageOps.fit(_to_rgb(upright), (size, size), method=Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged files
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"the image {name} cannot be decoded ({reason})") from error
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255; keep the upper byte instead.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resize(images: Tensor, size: int) -> Tensor:
    """Scale a batch of square images: ``uint8 [N, C, S, S] -> uint8 [N, C, size, size]``."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)

"""Batches for training and testing: random crops and flips of a whole batch at once, and normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def random_crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = True) -> Tensor:
    """Shift each image by up to ``padding`` pixels, and mirror half of them left to right.

    As in section 4.2 of https://arxiv.org/abs/1512.03385: pad with ``padding`` black pixels on each side and
    cut a window of the original size at a random place. All the windows are read with one gather; reading
    the columns of a window backwards mirrors it.

    Args:
        images: ``[N, C, H, W]`` of any dtype.
        generator: the only source of randomness.
        padding: black pixels added on each side.
        flip: whether to mirror as well.

    Returns:
        ``[N, C, H, W]`` of the same dtype, in channels_last order.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = torch.arange(height) + top  # [N, H]
    columns = torch.arange(width).expand(count, width)  # [N, W]
    if flip:
        mirror = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(mirror, columns.flip(1), columns)
    columns = columns + left
    image = torch.arange(count)
    # [N, 1, 1], [N, H, 1] and [N, 1, W] index together; the channels, which are sliced, come last.
    windows = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2)


def normalise(
    images: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """``(images / 255 - mean) / std`` for each channel, as one multiplication and one addition.

    Args:
        images: ``uint8 [N, C, H, W]``.
        mean, std: ``[C]``, on the scale where 255 is 1.
        memory_format: layout of the result.

    Returns:
        ``float32 [N, C, H, W]``.
    """
    scale = (1 / (255 * std)).float()[:, None, None]
    offset = (-mean / std).float()[:, None, None]
    images = images.to(torch.float32, memory_format=memory_format)
    return images.mul_(scale).add_(offset)

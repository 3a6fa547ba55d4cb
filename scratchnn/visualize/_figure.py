"""What all pictures share: empty figures, colours, and many small images as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, GREY, DARK = "#3b6ea8", "#d1603d", "#8a8a8a", "#4a4a4a"
SERIES = (BLUE, ORANGE, "#5a9e6f", "#8c6bb1", "#c9a227", DARK)
SIGNED, UNSIGNED = "RdBu_r", "viridis"  # red is positive, blue negative, white 0
GAP = 1  # pixels between the tiles of a mosaic


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. No pyplot: it would keep state in the process and look for a screen."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def describe(figure: Figure, words: str) -> Figure:
    """The figure with the words for those who cannot see it, as its label."""
    figure.set_label(words)
    return figure


def grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` axes in rows of ``columns``, each of ``width x height`` inches."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = new_figure(columns * width, rows * height)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def bare(axes: Axes) -> None:
    """A picture needs no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def dress(axes: Axes, xlabel: str = "", ylabel: str = "") -> None:
    """A chart: a light grid, two spines."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black")


def mosaic(tiles: Tensor) -> np.ndarray:
    """Tiles ``[rows, columns, h, w]`` or ``[rows, columns, h, w, 3]`` as one image, with gaps of NaN (RGB: white)."""
    rows, columns, h, w, *colours = tiles.shape
    shape = (rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, *colours)
    picture = np.full(shape, 1.0 if colours else np.nan)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (h + GAP), c * (w + GAP)
            picture[top : top + h, left : left + w] = tiles[r, c].numpy()
    return picture


def in_rows(tiles: Tensor, columns: int) -> Tensor:
    """``[n, h, w, ...]`` as ``[rows, columns, h, w, ...]``, filled up with NaN."""
    columns = min(len(tiles), columns)
    rows = math.ceil(len(tiles) / columns)
    missing = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), math.nan)
    return torch.cat([tiles, missing]).unflatten(0, (rows, columns))


def rgb(image: Tensor) -> np.ndarray:
    """``uint8`` or ``float [C, H, W]`` as matplotlib shows it: ``[H, W]`` of one channel, ``[H, W, 3]`` of three.

    Bytes go from 0 to 255. Floating images, which may be normalised, are stretched to use all of the range.
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is [1, H, W] or [3, H, W], got {list(image.shape)}")
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        image = image.double() / 255
    else:
        image = image.double()
        low, high = image.min(), image.max()
        image = (image - low) / (high - low) if high > low else torch.zeros_like(image)
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def show(axes: Axes, image: Tensor) -> None:
    """Draw one image; a single channel is grey."""
    axes.imshow(rgb(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(axes)


def labels(count: int, names: Sequence[str] | None, what: str) -> Sequence[str]:
    """The names, one for each of ``count``."""
    if names is None:
        return [""] * count
    if len(names) != count:
        raise ValueError(f"there are {count} {what} but {len(names)} titles")
    return names

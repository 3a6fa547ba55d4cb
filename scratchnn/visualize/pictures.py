"""Images, filters, and feature maps in both of their views (lecture, sections 7.2 and 7.2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from scratchnn.visualize._figure import (
    GAP,
    SERIES,
    SIGNED,
    UNSIGNED,
    bare,
    describe,
    dress,
    grid,
    in_rows,
    labels,
    mosaic,
    new_figure,
    show,
)

__all__ = ["feature_maps", "feature_vectors", "filters", "images"]


def images(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Pictures side by side.

    Args:
        images: ``[N, 3, H, W]`` or ``[N, 1, H, W]``; bytes, or floating numbers, which are stretched from their least
            to their largest, each image by itself.
        titles: one for each image.
        columns: images in a row.

    Returns:
        the figure.

    Raises:
        ValueError: for another shape, or another number of titles.
    """
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images are [N, C, H, W] with N >= 1, got {list(images.shape)}")
    names = labels(len(images), titles, "images")
    figure, axes = grid(len(images), columns, 1.25, 1.45 if titles else 1.25)
    for ax, image, name in zip(axes, images, names, strict=True):
        show(ax, image)
        ax.set_title(name, fontsize=9)
    return describe(figure, f"images: {', '.join(titles)}" if titles else f"{len(images)} images")


def filters(
    layer: torch.nn.Module | Tensor, image_shape: tuple[int, int, int] | None = None, limit: int = 16, columns: int = 8
) -> Figure:
    """The filters of a layer, as the pictures that each of them matches best.

    Filters as deep as a colour image are drawn in colour, grey being 0, each scaled by its own largest weight. Others
    are drawn channel by channel, a filter to a row, red for positive and blue for negative, all on one scale.

    Args:
        layer: a convolution, a linear layer, or a weight ``[K, C, *]``.
        image_shape: for a linear layer, ``(C, H, W)`` of the images that it flattens.
        limit: at most so many filters, and so many channels of each, the first ones.
        columns: colour pictures in a row.

    Returns:
        the figure.

    Raises:
        TypeError: when the layer has no weight.
        ValueError: when the weight is a matrix and ``image_shape`` is missing or does not fit.
    """
    weight = layer if isinstance(layer, Tensor) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight to draw")
    w = _as_images(weight.detach().cpu().double(), image_shape)[:limit]
    if w.shape[1] == 3:
        largest = w.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-300)
        tiles = in_rows((0.5 + w / (2 * largest)).permute(0, 2, 3, 1), columns).nan_to_num(1.0)
        return describe(
            _mosaic_figure(tiles, 0.85, None), f"{len(w)} filters of {w.shape[2]} x {w.shape[3]} pixels, in colour"
        )
    w = w[:, :limit]
    figure = _mosaic_figure(w, 0.5, SIGNED)
    axes = figure.axes[0]
    height, width = w.shape[2] + GAP, w.shape[3] + GAP
    axes.set_yticks([k * height + (height - GAP - 1) / 2 for k in range(w.shape[0])], range(w.shape[0]), fontsize=7)
    axes.set_xticks([c * width + (width - GAP - 1) / 2 for c in range(w.shape[1])], range(w.shape[1]), fontsize=7)
    axes.tick_params(length=0)
    axes.set_ylabel("filter k", fontsize=8)
    axes.set_xlabel("input channel c", fontsize=8)
    return describe(figure, f"{len(w)} filters of {' x '.join(map(str, w.shape[1:]))} weights, {_range(w)}")


def _as_images(weight: Tensor, image_shape: tuple[int, int, int] | None) -> Tensor:
    """Any weight as ``[K, C, H, W]``: sequences are one pixel high, slices of volumes count as channels."""
    if weight.dim() == 2:
        if image_shape is None:
            raise ValueError("the weight is a matrix: give the image_shape (C, H, W) that its columns stand for")
        if len(image_shape) != 3 or torch.Size(image_shape).numel() != weight.shape[1]:
            raise ValueError(f"image_shape {tuple(image_shape)} does not have {weight.shape[1]} numbers")
        return weight.unflatten(1, image_shape)
    if weight.dim() == 3:
        return weight.unsqueeze(2)
    if weight.dim() == 5:
        return weight.flatten(1, 2)
    if weight.dim() != 4:
        raise ValueError(f"a weight has 2 to 5 dimensions, got {list(weight.shape)}")
    return weight


def _mosaic_figure(tiles: Tensor, inches: float, colours: str | None) -> Figure:
    """Tiles ``[rows, columns, h, w(, 3)]`` as one picture, each about ``inches`` wide; with a scale, if not RGB."""
    rows, columns, h, w = tiles.shape[:4]
    width = max(inches * columns, 1.5)
    figure = new_figure(width + (1.1 if colours else 0), max(inches * rows * h / w, 0.5) + 0.3)
    axes = figure.subplots()
    if colours is None:
        axes.imshow(mosaic(tiles), interpolation="nearest")
        bare(axes)
        return figure
    numbers = tiles[tiles.isfinite()]
    largest = float(numbers.abs().max()) or 1.0
    low = 0.0 if colours == UNSIGNED else -largest
    picture = axes.imshow(mosaic(tiles), cmap=colours, vmin=low, vmax=largest, interpolation="nearest")
    bare(axes)
    scale = figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02, aspect=12)
    scale.outline.set_visible(False)
    scale.ax.tick_params(labelsize=7)
    return figure


def feature_maps(maps: Tensor, limit: int = 16, columns: int = 8) -> Figure:
    """A layer's output as a list of images, one for each channel: where in the image each filter responds.

    All on one scale: from 0 to the largest number where none is negative (activation maps after ReLU), otherwise red
    for positive and blue for negative.

    Args:
        maps: ``[C, H, W]``, or ``[1, C, H, W]``; see :func:`layer_outputs`.
        limit: at most so many channels, the first ones.
        columns: maps in a row.

    Returns:
        the figure.

    Raises:
        ValueError: for another shape.
    """
    maps = _one_sample(maps)[:limit]
    figure = _mosaic_figure(in_rows(maps, columns), 1.05, SIGNED if bool((maps < 0).any()) else UNSIGNED)
    return describe(figure, f"{len(maps)} maps of {maps.shape[1]} x {maps.shape[2]} numbers, {_range(maps)}")


def feature_vectors(maps: Tensor, positions: Sequence[tuple[int, int]], image: Tensor | None = None) -> Figure:
    """The same output as a vector of channels at every position: what the layer has to say about a place.

    Args:
        maps: ``[C, H, W]``, or ``[1, C, H, W]``.
        positions: rows and columns of the maps to draw the vectors of.
        image: ``[3, H', W']``, the input: each position is marked in it, at the place that it stands for.

    Returns:
        the figure.

    Raises:
        ValueError: for another shape, or a position outside of the maps.
    """
    maps = _one_sample(maps)
    channels, height, width = maps.shape
    if not positions:
        raise ValueError("there are no positions to draw the vectors of")
    for h, w in positions:
        if not (0 <= h < height and 0 <= w < width):
            raise ValueError(f"position {(h, w)} is outside of maps of {height} x {width}")
    rows = len(positions)
    figure = new_figure(7.5, max(2.2, 0.75 * rows + 0.6))
    spec = figure.add_gridspec(rows, 2, width_ratios=(1, 2.2))
    background = figure.add_subplot(spec[:, 0])
    if image is None:
        background.imshow(maps.norm(dim=0).numpy(), cmap="gray", interpolation="nearest")
        background.set_title("length of the vectors", fontsize=8)
        bare(background)
        scale = (1.0, 1.0)
    else:
        show(background, image)
        scale = (image.shape[1] / height, image.shape[2] / width)
    shared = None
    for number, (h, w) in enumerate(positions):
        colour = SERIES[number % len(SERIES)]
        x, y = (w + 0.5) * scale[1] - 0.5, (h + 0.5) * scale[0] - 0.5
        background.scatter([x], [y], s=70, color=colour, edgecolor="white", linewidth=1.2)
        axes = figure.add_subplot(spec[number, 1], sharex=shared, sharey=shared)
        shared = shared or axes
        axes.bar(range(channels), maps[:, h, w].numpy(), color=colour, width=0.8)
        axes.axhline(0, color="black", linewidth=0.5)
        dress(axes, "channel" if number == rows - 1 else "")
        axes.tick_params(labelsize=7, labelbottom=number == rows - 1)
        axes.set_title(f"({h}, {w})", fontsize=8, loc="left", color=colour, pad=2)
    return describe(
        figure, f"vectors of {channels} channels at the positions {', '.join(f'({h}, {w})' for h, w in positions)}"
    )


def _range(numbers: Tensor) -> str:
    return f"from {float(numbers.min()):.2g} to {float(numbers.max()):.2g}"


def _one_sample(maps: Tensor) -> Tensor:
    maps = maps.detach().cpu().double()
    if maps.dim() == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.dim() != 3:
        raise ValueError(f"feature maps of one sample are [C, H, W], got {list(maps.shape)}")
    return maps

"""The four normalizations as index sets: which numbers of the N x C x HW cube share a mean and a variance."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scratchnn.visualize._figure import BLUE, describe, new_figure

__all__ = ["index_sets", "normalizations"]

PALE = "#ededed"
KINDS = ("batch", "layer", "instance", "group")


def index_sets(kind: str, shape: tuple[int, int, int], groups: int = 2) -> Tensor:
    """The number of the set that each element of ``[N, C, HW]`` belongs to.

    Args:
        kind: ``"batch"`` (a set for each channel), ``"layer"`` (each sample), ``"instance"`` (each channel of each
            sample) or ``"group"`` (each group of channels of each sample).
        shape: ``(N, C, HW)``.
        groups: of group normalization; divides ``C``.

    Returns:
        ``int64 [N, C, HW]``: elements with the same number are normalised together.

    Raises:
        ValueError: for an unknown kind, or groups that do not divide the channels.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    samples, channels, _ = shape
    if kind == "group" and (groups < 1 or channels % groups):
        raise ValueError(f"{channels} channels cannot be divided into {groups} groups")
    n, c = torch.arange(samples)[:, None, None], torch.arange(channels)[None, :, None]
    number = {
        "batch": lambda: c,
        "layer": lambda: n,
        "instance": lambda: n * channels + c,
        "group": lambda: n * groups + c // (channels // groups),
    }[kind]()
    return number.expand(shape).contiguous()


def normalizations(shape: tuple[int, int, int] = (4, 6, 5), groups: int = 2) -> Figure:
    """The well-known picture (figure 2 of Wu & He 2018): in each cube one set of numbers is coloured.

    Args:
        shape: ``(N, C, HW)`` of the cubes.
        groups: of group normalization.

    Returns:
        the figure.
    """
    import mpl_toolkits.mplot3d  # noqa: F401 - registers the projection

    figure = new_figure(10, 3)
    for position, kind in enumerate(KINDS):
        axes = figure.add_subplot(1, 4, position + 1, projection="3d")
        sets = index_sets(kind, shape, groups)
        chosen = sets == sets[0, 0, 0]
        # The nearest edge of the cube is sample 0, channel 0: x is C, y is N, z is HW.
        cube = chosen.permute(1, 0, 2).numpy()
        colours = np.where(cube, BLUE, PALE)
        axes.voxels(np.ones_like(cube), facecolors=colours, edgecolor="#555555", linewidth=0.4, shade=False)
        axes.view_init(elev=24, azim=-128)
        axes.set_box_aspect(cube.shape)
        axes.set_xlabel("C", labelpad=-14)
        axes.set_ylabel("N", labelpad=-14)
        axes.zaxis.set_rotate_label(False)
        axes.set_zlabel("H, W", labelpad=-11, rotation=90)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_zticks([])
        title = f"group norm, {groups} groups" if kind == "group" else f"{kind} norm"
        axes.set_title(title, fontsize=11)
    return describe(
        figure,
        "cubes N x C x HW, in each a set of numbers that share a mean: one channel of all samples (batch norm), "
        "all channels of one sample (layer norm), one channel of one sample (instance norm), "
        f"{shape[1] // groups} of {shape[1]} channels of one sample (group norm)",
    )

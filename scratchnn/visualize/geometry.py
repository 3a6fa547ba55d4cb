"""Which input pixels an output pixel reads: padding, stride and depth (lecture, section 7.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.modules import conv, pooling

from scratchnn import backends, functional
from scratchnn.ops._common import output_size
from scratchnn.visualize._figure import DARK, GREY, ORANGE, SERIES, UNSIGNED, bare, describe, grid, new_figure
from scratchnn.visualize.layers import named_layers

__all__ = ["influence", "padding_usage", "pixel_use", "receptive_field", "windows"]

_WINDOWS = (
    conv._ConvNd,
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._LPPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
)


def pixel_use(size: tuple[int, int], kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """How many windows of a convolution or a pooling hold each input pixel.

    It is the input gradient of a convolution whose weights, and whose outputs' gradients, are all 1:
    ``use[i] = sum over o, t of [i = o S - P + t D]``.

    Args:
        size: height and width of the image.
        kernel_size, stride, padding, dilation: one number, or one for each dimension, as for ``Conv2d``.

    Returns:
        ``int64 [H, W]``.

    Raises:
        RuntimeError: when the window is larger than the padded image.
    """
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    image = torch.zeros(1, 1, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(1, 1, *kernel, dtype=torch.float64)
    functional.conv2d(image, weight, None, stride, padding, dilation).sum().backward()
    return image.grad[0, 0].round().long()


def padding_usage(
    size: tuple[int, int], kernel_size: int, paddings: Sequence[int] = (0, 1), stride: int = 1, dilation: int = 1
) -> Figure:
    """How often each input pixel is read, a picture for each padding; see :func:`pixel_use`.

    Args:
        size: height and width of the image, in pixels.
        kernel_size, stride, dilation: of the convolution, in pixels, the same in both dimensions.
        paddings: the paddings to compare, in pixels.

    Returns:
        the figure.

    Raises:
        ValueError: as :func:`pixel_use`.
    """
    uses = [pixel_use(size, kernel_size, stride, padding, dilation) for padding in paddings]
    largest = max(int(use.max()) for use in uses)
    figure, axes = grid(len(uses), 4, 2.6, 2.8)
    for ax, use, padding in zip(axes, uses, paddings, strict=True):
        ax.imshow(use.numpy(), cmap=UNSIGNED, vmin=0, vmax=largest, interpolation="nearest")
        bare(ax)
        if max(size) <= 12:
            for h in range(size[0]):
                for w in range(size[1]):
                    colour = "white" if use[h, w] < 0.6 * largest else "black"
                    ax.text(w, h, str(int(use[h, w])), ha="center", va="center", color=colour, fontsize=8)
        ax.set_title(f"K = {kernel_size}, S = {stride}, P = {padding}", fontsize=9)
    read = ", ".join(
        f"{int(use.min())} to {int(use.max())} times with padding {padding}"
        for use, padding in zip(uses, paddings, strict=True)
    )
    return describe(figure, f"how often each of {size[0]} x {size[1]} pixels is read: {read}")


def windows(size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Figure:
    """The windows of a convolution or a pooling along one dimension, a row for each output pixel.

    Input pixels are grey squares in the top row, padding is white and dashed. The title has the output-size rule with
    these numbers.

    Args:
        size: of the input.
        kernel_size, stride, padding, dilation: as for ``Conv1d``.

    Returns:
        the figure.

    Raises:
        ValueError: when the window is larger than the padded input.
    """
    outputs = output_size(size, kernel_size, 2 * padding, stride, dilation)
    if outputs < 1:
        raise ValueError(
            f"a window of {dilation * (kernel_size - 1) + 1} pixels does not fit into {size} + 2 * {padding} pixels"
        )
    width = size + 2 * padding
    figure = new_figure(max(0.34 * width, 4.2), 0.3 * (outputs + 1) + 0.9)
    axes = figure.subplots()
    for i in range(-padding, size + padding):
        inside = 0 <= i < size
        look = {"facecolor": "#dddddd"} if inside else {"facecolor": "white", "linestyle": (0, (2, 2))}
        axes.add_patch(Rectangle((i + 0.06, 0.06), 0.88, 0.88, edgecolor=GREY, linewidth=0.8, **look))
        axes.text(i + 0.5, 0.52, str(i) if inside else "0", ha="center", va="center", fontsize=7, color=DARK)
    for o in range(outputs):
        for t in range(kernel_size):
            left = o * stride - padding + t * dilation
            axes.add_patch(Rectangle((left + 0.06, o + 1.12), 0.88, 0.76, color=SERIES[o % 2]))
        axes.text(-padding - 0.4, o + 1.5, f"o = {o}", ha="right", va="center", fontsize=7)
    axes.set_xlim(-padding - 2, size + padding)
    axes.set_ylim(outputs + 1.1, -0.1)
    axes.set_aspect("equal")
    bare(axes)
    kernel = f"{dilation} ({kernel_size} - 1) - 1" if dilation > 1 else f"{kernel_size}"
    axes.set_title(f"floor(({size} + 2 · {padding} - {kernel}) / {stride}) + 1 = {outputs} outputs", fontsize=9)
    return describe(
        figure,
        f"{outputs} windows of {kernel_size} pixels over {size} pixels, "
        f"with stride {stride}, padding {padding} and dilation {dilation}",
    )


def influence(model: torch.nn.Module, inputs: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """How strongly each input pixel moves the central output pixel of layers.

    The mean, over samples and input channels, of ``|d y / d x|``, ``y`` being a random combination of the channels of
    the layer's central pixel. It is exactly 0 outside of the receptive field. Inside, it shows that the field's
    centre counts most: Luo, Li, Urtasun & Zemel 2016, "Understanding the Effective Receptive Field in Deep
    Convolutional Neural Networks". Computed on a copy of the model, in evaluation mode and in float64.

    Args:
        model: any module that is called with images.
        inputs: ``[N, C, H, W]``. ReLU and maximum pooling pass on some gradients only, others in each sample: a few
            samples are needed to see all of the field.
        names: of the layers, as in ``model.named_modules()``; unless given, all convolutions and poolings.

    Returns:
        For each layer with an output of four dimensions, in the order of the calls, ``float64 [H, W]``.

    Raises:
        ValueError: when the model has no layer of such a name.
    """
    twin = copy.deepcopy(model).double().eval().requires_grad_(False)
    modules = named_layers(twin, names)
    if names is None:
        modules = {name: module for name, module in modules.items() if isinstance(module, _WINDOWS)}
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
            if output.dim() == 4:
                outputs[name] = output[:, :, output.shape[2] // 2, output.shape[3] // 2].clone()

        return hook

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    x = inputs.detach().double().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    fields = {}
    with backends.conv.flags(allow_winograd=False):  # whose zeros are not exact
        twin(x)
        for name, centre in outputs.items():
            mix = torch.randn(centre.shape, generator=generator, dtype=torch.float64).to(centre.device)
            (gradient,) = torch.autograd.grad((mix * centre).sum(), x, retain_graph=True)
            fields[name] = gradient.abs().mean(dim=(0, 1)).cpu()
    return fields


def receptive_field(model: torch.nn.Module, inputs: Tensor, names: Iterable[str] | None = None) -> Figure:
    """The pixels that the centre of each layer's output depends on, growing from layer to layer.

    The brighter, the stronger (each picture by itself); the frame holds all that have any influence. What
    :func:`influence` computes is drawn.

    Args:
        model, inputs, names: as of :func:`influence`.

    Returns:
        the figure.

    Raises:
        ValueError: as :func:`influence`; when no layer has an output of four dimensions.
    """
    fields = influence(model, inputs, names)
    if not fields:
        raise ValueError("none of these layers has an output N x C x H x W")
    figure, axes = grid(len(fields), 6, 1.6, 1.85)
    extents = {}
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        ax.imshow((field / field.max().clamp(min=1e-300)).sqrt().numpy(), cmap="magma", interpolation="nearest")
        bare(ax)
        extents[name] = _frame(ax, field)
        ax.set_title(f"{name}\n{extents[name]}", fontsize=8)
    return describe(figure, "receptive fields: " + "; ".join(f"{name} {extent}" for name, extent in extents.items()))


def _frame(axes: Axes, field: Tensor) -> str:
    """Draw a frame around all that has any influence, and say how large it is."""
    rows, columns = (field > 0).nonzero(as_tuple=True)
    if len(rows) == 0:
        return "nothing"
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=ORANGE, linewidth=1.6, clip_on=False)
    )
    return f"{height} x {width}"

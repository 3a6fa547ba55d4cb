"""What every layer of a model puts out, and its statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from scratchnn.visualize._figure import BLUE, GREY, ORANGE, describe, dress, new_figure

__all__ = ["LayerStatistics", "activation_statistics", "layer_outputs", "layer_statistics"]


def layer_outputs(model: torch.nn.Module, inputs: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The output of layers in one forward pass, in the order they are called in.

    The model runs in the mode it is in, without gradients, and is left as it was: running statistics that this pass
    would move are those of copies.

    Args:
        model: any module.
        inputs: its input.
        names: of the layers, as in ``model.named_modules()``; unless given, those without layers of their own. A layer
            that is called more than once shows its last call.

    Returns:
        the output of each layer, by its name.

    Raises:
        ValueError: when the model has no layer of such a name, or did not call it.

    Example:
        >>> from scratchnn.visualize import layer_outputs
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> {name: tuple(output.shape) for name, output in layer_outputs(model, torch.randn(1, 3, 8, 8)).items()}
        {'0': (1, 8, 6, 6), '1': (1, 8, 6, 6)}
    """
    modules = named_layers(model, names)
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: torch.nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                outputs.pop(name, None)
                outputs[name] = output.detach().clone()  # before an activation in place writes over it

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            functional_call(model, {name: buffer.clone() for name, buffer in model.named_buffers()}, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    if names is not None:
        for name in modules:
            if name not in outputs:
                raise ValueError(f"layer {name!r} was not called, or its output is no tensor")
    return outputs


def named_layers(model: torch.nn.Module, names: Iterable[str] | None) -> dict[str, torch.nn.Module]:
    """The layers of these names; unless given, those without layers of their own."""
    modules = dict(model.named_modules())
    if names is None:
        return {name: module for name, module in modules.items() if not any(module.children())}
    names = list(names)
    for name in names:
        if name not in modules:
            raise ValueError(f"the model has no layer {name!r}; print(model) shows their names")
    return {name: modules[name] for name in names}


class LayerStatistics(NamedTuple):
    """The numbers that a layer put out, over the batch and everything else.

    Attributes:
        name: of the layer.
        type: its class.
        mean: of the numbers.
        std: their standard deviation.
        zeros: which share of them is exactly 0: what a ReLU lets through nothing of.
    """

    name: str
    type: str
    mean: float
    std: float
    zeros: float


def layer_statistics(
    model: torch.nn.Module, inputs: Tensor, names: Iterable[str] | None = None
) -> list[LayerStatistics]:
    """Mean, standard deviation and share of zeros of each layer's output.

    Args:
        model: any module.
        inputs: its input.
        names: of the layers, as in ``model.named_modules()``; unless given, those without layers of their own.

    Returns:
        the statistics of each layer, in the order of the calls.

    Raises:
        ValueError: when the model has no layer of such a name, or did not call it.
    """
    modules = dict(model.named_modules())
    statistics = []
    for name, output in layer_outputs(model, inputs, names).items():
        numbers = output.double()
        std, mean = torch.std_mean(numbers, correction=0)
        zeros = (numbers == 0).double().mean()
        statistics.append(LayerStatistics(name, type(modules[name]).__name__, float(mean), float(std), float(zeros)))
    return statistics


def activation_statistics(
    model: torch.nn.Module, inputs: Tensor, names: Iterable[str] | None = None, title: str = ""
) -> Figure:
    """Layer by layer from top to bottom, the mean of the output with its standard deviation, and the share of zeros.

    A signal that fades or grows from layer to layer, and units that are all zero, show here.

    Args:
        model: any module.
        inputs: its input.
        names: of the layers, as in ``model.named_modules()``; unless given, those without layers of their own.
        title: of the figure.

    Returns:
        the figure.

    Raises:
        ValueError: when the model has no layer of such a name, or did not call it;
            when there are no layers whose outputs are tensors.
    """
    statistics = layer_statistics(model, inputs, names)
    if not statistics:
        raise ValueError("the model has no layers whose outputs are tensors")
    rows = range(len(statistics))
    figure = new_figure(7.5, 1.0 + 0.2 * len(statistics))
    if title:
        figure.suptitle(title, fontsize=10)
    spread, zeros = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    spread.axvline(0, color=GREY, linewidth=0.8)
    spread.errorbar(
        [s.mean for s in statistics],
        rows,
        xerr=[s.std for s in statistics],
        fmt="o",
        markersize=4,
        color=BLUE,
        elinewidth=2.5,
        alpha=0.85,
    )
    zeros.barh(rows, [100 * s.zeros for s in statistics], color=ORANGE, height=0.7)
    zeros.set_xlim(0, 100)
    dress(spread, "mean, and one standard deviation to each side")
    dress(zeros, "zeros (%)")
    spread.set_yticks(rows, [f"{s.name}  {s.type}" for s in statistics], fontsize=7)
    spread.set_ylim(len(statistics) - 0.4, -0.6)
    numbers = (f"{s.name} {s.type} {s.mean:.2g} and {s.std:.2g}, {s.zeros:.0%} zeros" for s in statistics)
    return describe(
        figure, f"mean and standard deviation of layers{f', {title}' if title else ''}: " + "; ".join(numbers)
    )

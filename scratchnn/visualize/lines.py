"""Functions with their derivatives, and curves of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from scratchnn.visualize._figure import BLUE, GREY, ORANGE, SERIES, describe, dress, grid, new_figure

__all__ = ["activation_functions", "curves"]


def activation_functions(
    functions: Mapping[str, Callable[[Tensor], Tensor]], low: float = -4, high: float = 4, columns: int = 4
) -> Figure:
    """Functions of one number and their derivatives, which autograd computes.

    Args:
        functions: by name, functions or modules that work element by element.
        low, high: the interval.
        columns: panels in a row.

    Returns:
        the figure.
    """
    figure, axes = grid(len(functions), columns, 2.3, 1.9)
    for ax, (name, function) in zip(axes, functions.items(), strict=True):
        x = torch.linspace(low, high, 401, dtype=torch.float64, requires_grad=True)
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.plot(x.detach().numpy(), y.detach().numpy(), color=BLUE, linewidth=1.8, label="f")
        ax.plot(x.detach().numpy(), slope.numpy(), color=ORANGE, linewidth=1.3, linestyle="--", label="f'")
        dress(ax)
        ax.set_title(name, fontsize=9)
        ax.set_ylim(-1.6, 2.6)
        ax.tick_params(labelsize=7)
    axes[0].legend(frameon=False, fontsize=8, loc="best")
    return describe(figure, f"functions f and their derivatives f', from {low:g} to {high:g}: {', '.join(functions)}")


def curves(
    series: Mapping[str, Sequence[float]], xlabel: str = "step", ylabel: str = "loss", smooth: int = 1
) -> Figure:
    """Numbers over their position, a line for each series.

    Args:
        series: the numbers, by name.
        xlabel, ylabel: of the axes.
        smooth: draw the mean of so many numbers up to each one as the line, and the numbers themselves faintly.

    Returns:
        the figure.
    """
    figure = new_figure(6.5, 3.2)
    axes = figure.subplots()
    ends = []
    for (name, numbers), colour in zip(series.items(), SERIES * (len(series) // len(SERIES) + 1), strict=False):
        numbers = torch.as_tensor(numbers, dtype=torch.float64)
        steps = torch.arange(1, len(numbers) + 1)
        if smooth > 1:
            axes.plot(steps.numpy(), numbers.numpy(), color=colour, linewidth=0.6, alpha=0.3)
        line = _trailing_mean(numbers, smooth)
        axes.plot(steps.numpy(), line.numpy(), color=colour, linewidth=1.8, label=name)
        if len(line):
            ends.append(f"{name} from {float(line[0]):.3g} to {float(line[-1]):.3g}")
    dress(axes, xlabel, ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return describe(figure, f"{ylabel or 'numbers'} over {xlabel or 'their position'}: {'; '.join(ends)}")


def _trailing_mean(numbers: Tensor, count: int) -> Tensor:
    """The mean of the last ``count`` numbers, at the beginning of as many as there are."""
    sums = torch.cat([numbers.new_zeros(1), numbers.cumsum(0)])
    ends = torch.arange(1, len(numbers) + 1)
    starts = (ends - count).clamp(min=0)
    return (sums[ends] - sums[starts]) / (ends - starts)

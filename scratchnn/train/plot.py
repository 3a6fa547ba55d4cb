"""The picture of a run, drawn from its tables alone."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scratchnn.data.atomic import replace_file
from scratchnn.train.log import read_table

_TRAIN, _TEST = "#3b6ea8", "#d1603d"
_GREY = "#8a8a8a"


def plot_curves(directory: Path, title: str) -> Path:
    """Draw loss and accuracy of the run in ``directory`` to its ``curves.png``.

    The thin line is the loss of each step; the points are means over an epoch (train) and over all test
    images after it (test).
    """
    steps, epochs = read_table(directory / "steps.csv"), read_table(directory / "epochs.csv")
    ends = [0, *(row["step"] for row in epochs)]

    def position(step: float) -> float:
        """Steps as epochs, so that both tables share an axis; the last epoch may be a short one."""
        return step * (len(epochs) / ends[-1])

    # No pyplot: it would keep state in the process and look for a screen.
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    loss, accuracy = figure.subplots(1, 2)

    ticks = [position(row["step"]) for row in epochs]
    loss.plot(
        [position(row["step"]) for row in steps],
        [row["loss"] for row in steps],
        color=_TRAIN,
        alpha=0.3,
        linewidth=0.8,
    )
    _curve(loss, ticks, [row["train_loss"] for row in epochs], _TRAIN, "train")
    _curve(loss, ticks, [row["test_loss"] for row in epochs], _TEST, "test")
    _dress(loss, "cross-entropy")
    loss.set_ylim(bottom=0)

    _curve(accuracy, ticks, [100 * row["train_accuracy"] for row in epochs], _TRAIN, "train")
    _curve(accuracy, ticks, [100 * row["test_accuracy"] for row in epochs], _TEST, "test")
    _dress(accuracy, "accuracy (%)")
    accuracy.set_xlim(loss.get_xlim())
    accuracy.annotate(
        f"{100 * epochs[-1]['test_accuracy']:.2f}",
        (ticks[-1], 100 * epochs[-1]["test_accuracy"]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right",
        color=_TEST,
        fontsize=9,
    )

    path = directory / "curves.png"
    with replace_file(path) as file:
        figure.savefig(file, format="png")
    return path


def _curve(axes: Axes, x: list[float], y: list[float], colour: str, label: str) -> None:
    marker = "o" if len(x) <= 40 else None
    axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)


def _dress(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_GREY, labelcolor="black")
    axes.legend(frameon=False)

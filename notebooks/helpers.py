"""What the notebooks share: their images, source code shown from its file, and a small training loop.

Nothing here is part of the library; each notebook imports from here what it uses.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import Tensor

from scratchnn import data

__all__ = ["accuracy", "compare", "examples", "fit", "images", "show_cpp", "show_python", "small_data"]

ROOT = Path(__file__).resolve().parent.parent

torch.set_printoptions(precision=4, sci_mode=False, linewidth=110)


# Figures


def png(figure: Figure) -> tuple[str, dict[str, str]]:
    """A figure as it is shown, and its label as the words for those who cannot see it."""
    return print_figure(figure, base64=True), {"alt": figure.get_label()}


if get_ipython() is not None:
    get_ipython().display_formatter.formatters["image/png"].for_type(Figure, png)  # where it is a cell's last value


# Images


def images() -> data.Dataset:
    """The images, as ``make demo`` finds them: CIFAR-10 if it is on the disk, and handwritten digits otherwise.

    ``make notebooks DATA=cifar10`` (or a folder, or an archive of images) chooses others, through the environment
    variable DATA. Paths are those seen from the project's folder.
    """
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        return data.load(os.environ.get("DATA", "auto"))
    finally:
        os.chdir(here)


def small_data(dataset: data.Dataset, train: int, test: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Some of the images, normalised: ``x_train [N, 3, H, W], y_train [N], x_test, y_test``.

    As many as there are, where there are fewer; the same ones for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = dataset.mean_and_std()
    parts: list[Tensor] = []
    for split, count in ((dataset.train, train), (dataset.test, test)):
        chosen = torch.randperm(len(split), generator=generator)[:count]
        parts += [data.normalise(split.images[chosen], mean, std), split.labels[chosen]]
    return tuple(parts)


def examples(dataset: data.Dataset, count: int = 8) -> tuple[Tensor, list[str]]:
    """Test images of different classes as they are, ``uint8 [count, 3, H, W]``, and the names of their classes."""
    labels = dataset.test.labels
    places = [int((labels == k).nonzero()[5]) for k in range(min(count, len(dataset.classes)))]
    return dataset.test.images[places], [dataset.classes[int(labels[place])] for place in places]


# Source code


def show_cpp(path: str, *names: str) -> Markdown:
    """Functions and structs of a C++ file with the comments above them, as they are in the file now."""
    text = (ROOT / path).read_text()
    return Markdown("\n\n".join(f"`{path}`\n```cpp\n{cpp_definition(text, name)}\n```" for name in names))


def cpp_definition(text: str, name: str) -> str:
    """The definition of ``name`` in C++ source: from the comment above it to its closing brace.

    Raises:
        ValueError: when the text does not define it.
    """
    lines = text.splitlines()
    start = re.compile(rf"[^\s#/}}](?!.*;$).*\b{re.escape(name)}\b(?:\(| \{{|<)|struct {re.escape(name)}\b")
    for first, line in enumerate(lines):
        if not start.match(line):
            continue
        last = next(i for i in range(first, len(lines)) if re.fullmatch(r"\};?", lines[i]))
        while first > 0 and lines[first - 1].startswith(("//", "template")):
            first -= 1
        return "\n".join(lines[first : last + 1])
    raise ValueError(f"there is no definition of {name}")


def show_python(*objects: Any) -> Markdown:
    """The source of Python functions and classes, as it is in the file now."""
    blocks = []
    for thing in objects:
        path = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
        blocks.append(f"`{path}`\n```python\n{textwrap.dedent(inspect.getsource(thing)).rstrip()}\n```")
    return Markdown("\n\n".join(blocks))


# Numbers


def compare(ways: Mapping[str, Callable[[], Tensor]]) -> Markdown:
    """Several ways to the same result: how far each is from the first, and about how long it takes.

    One run after a warm-up: good for an order of magnitude. Notebook 07 measures.
    """
    rows, truth = [], None
    for name, way in ways.items():
        start = time.perf_counter()
        result = way().detach().double()
        seconds = time.perf_counter() - start
        if seconds < 0.1:  # the first call also pays for set-up
            start = time.perf_counter()
            way()
            seconds = time.perf_counter() - start
        truth = result if truth is None else truth
        error = float((result - truth).norm() / truth.norm())
        rows.append(f"| {name} | {error:.1e} | {_about(seconds)} |")
    return Markdown("\n".join(["| way | relative difference | takes about |", "|---|---|---|", *rows]))


def _about(seconds: float) -> str:
    """One digit and a unit."""
    scale, unit = next(u for u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= u[0] or u[0] == 1e-6)
    return f"{float(f'{seconds / scale:.1g}'):g} {unit}"


# Training


def fit(
    model: torch.nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float = 0.05, batch: int = 64, seed: int = 0
) -> list[float]:
    """Stochastic gradient descent with momentum on the cross-entropy.

    Args:
        model: is trained in place.
        x, y: images ``[N, 3, H, W]`` and labels ``[N]``.
        epochs: passes over them; the learning rate falls from ``lr`` to 0 along half a cosine.
        batch: images a step.
        seed: of the order of the images.

    Returns:
        The loss of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(batch)[: len(x) // batch]:
            loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """Which share of the images ``x [N, 3, H, W]`` the model, in evaluation mode, gives its label ``y [N]``."""
    model.eval()
    right = sum(
        int((model(images).argmax(1) == labels).sum())
        for images, labels in zip(x.split(256), y.split(256), strict=True)
    )
    return right / len(x)

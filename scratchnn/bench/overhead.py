"""What a call costs where there is next to nothing to compute: ``scratchnn bench --overhead``.

Every layer is called on a tensor of a few dozen numbers, ours and torch's in turn, so that what is timed is Python,
dispatch and the recording of the graph. One thread, and the processor time of the process: what other programs take
does not count.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module

import scratchnn
from scratchnn.bench.timing import Spread, geometric_mean, interleave, ratio

__all__ = ["CALLS", "Call", "Overhead", "measure_overhead"]

WITHOUT, RECORDED, WITH_BACKWARD = "no gradient", "recorded", "with backward"

# How much longer than torch's a call may take, by design.
BOUNDS = {WITHOUT: 1.5, RECORDED: 2.0, WITH_BACKWARD: 2.0}


@dataclass(frozen=True)
class Call:
    """A layer and the shapes of its inputs.

    ``build`` makes it from a namespace with torch.nn's names. ``copies`` says that it writes into its input, and is
    therefore given a copy, on both sides.
    """

    name: str
    build: Callable[[ModuleType], Module]
    shapes: tuple[tuple[int, ...], ...]
    copies: bool = False


@dataclass
class Overhead:
    """Seconds that a call of one layer takes, by the way it is called; ``ratios`` are ours over torch's."""

    name: str
    ours: dict[str, Spread]
    theirs: dict[str, Spread]
    ratios: dict[str, Spread]


def _calls() -> list[Call]:
    def layer(name: str, *args: Any, shape: tuple[int, ...], variant: str = "", **options: Any) -> Call:
        title = f"{name} {variant}".strip()
        return Call(title, lambda nn: getattr(nn, name)(*args, **options), (shape,), bool(options.get("inplace")))

    calls = []
    for rank in (1, 2, 3):
        image = (2, 4, *[4] * rank)
        calls += [
            layer(f"Conv{rank}d", 4, 4, 3, shape=image),
            layer(f"ConvTranspose{rank}d", 4, 4, 3, shape=image),
            layer(f"MaxPool{rank}d", 2, shape=image),
            layer(f"AvgPool{rank}d", 2, shape=image),
            layer(f"AdaptiveMaxPool{rank}d", 1, shape=image),
            layer(f"AdaptiveAvgPool{rank}d", 1, shape=image),
            layer(f"LPPool{rank}d", 2, 2, shape=image),
            layer(f"BatchNorm{rank}d", 4, shape=image),
            Call(f"BatchNorm{rank}d eval", lambda nn, r=rank: getattr(nn, f"BatchNorm{r}d")(4).eval(), (image,)),
            layer(f"InstanceNorm{rank}d", 4, shape=image),
        ]
    image = (2, 4, 4, 4)
    calls += [
        layer("Conv2d", 4, 4, 3, padding=1, padding_mode="reflect", shape=image, variant="reflect"),
        layer("Conv2d", 4, 4, 3, padding="same", shape=image, variant="same"),
        layer("Conv2d", 4, 4, 3, groups=4, padding=1, shape=image, variant="depthwise"),
        layer("FractionalMaxPool2d", 2, output_size=2, shape=image),
        layer("FractionalMaxPool3d", 2, output_size=2, shape=(2, 4, 4, 4, 4)),
        layer("LayerNorm", 8, shape=(2, 8)),
        layer("GroupNorm", 2, 4, shape=image),
        layer("RMSNorm", 8, shape=(2, 8)),
        layer("LocalResponseNorm", 3, shape=image),
        layer("Linear", 8, 8, shape=(2, 8)),
        Call("Bilinear", lambda nn: nn.Bilinear(4, 4, 4), ((2, 4), (2, 4))),
        layer("Identity", shape=image),
    ]
    calls += [
        layer(name, shape=image)
        for name in (
            *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
            *("Mish", "PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "SiLU", "Sigmoid", "Softmax2d", "Softplus"),
            *("Softshrink", "Softsign", "Tanh", "Tanhshrink"),
        )
    ]
    calls += [layer(name, 1, shape=image) for name in ("Softmax", "LogSoftmax", "Softmin", "GLU")]
    calls.append(layer("Threshold", 0.1, 0.0, shape=image))
    calls += [layer(name, inplace=True, shape=image, variant="in place") for name in ("ReLU", "Hardswish", "SiLU")]
    return calls


CALLS = _calls()


def measure_overhead(call: Call, seconds: float) -> Overhead:
    """Time one layer, ``seconds`` for each of the three ways to call it. Call it with one thread."""
    layers = []
    for namespace in (scratchnn.nn, torch.nn):
        torch.manual_seed(0)
        layers.append(call.build(namespace))
    overhead = Overhead(call.name, {}, {}, {})
    for name in BOUNDS:
        inputs = tuple(torch.randn(shape, requires_grad=name != WITHOUT) for shape in call.shapes)
        candidates = [_candidate(name, layer, inputs, call.copies) for layer in layers]
        with warnings.catch_warnings(), torch.set_grad_enabled(name != WITHOUT):
            warnings.simplefilter("ignore")
            ours, theirs = interleave(candidates, seconds, clock=time.process_time)
        overhead.ours[name], overhead.theirs[name] = Spread.of(ours), Spread.of(theirs)
        overhead.ratios[name] = ratio(theirs, ours)
    return overhead


def _candidate(name: str, layer: Module, inputs: tuple[torch.Tensor, ...], copies: bool) -> Callable[[], object]:
    def run() -> torch.Tensor:
        return layer(*(x.clone() for x in inputs)) if copies else layer(*inputs)

    if name != WITH_BACKWARD:
        return run
    wanted = [*inputs, *layer.parameters()]
    grad = torch.randn_like(run()).detach()
    return lambda: torch.autograd.grad(run(), wanted, grad)


def heading() -> str:
    """The heading of the table, in microseconds."""
    return f"{'microseconds, ours / torch':<28}" + "".join(f"{name:>28}" for name in BOUNDS)


def row(overhead: Overhead) -> str:
    """A line of the table; an exclamation mark where a call takes longer than it may."""
    cells = []
    for name, bound in BOUNDS.items():
        ours, theirs = (1e6 * side[name].median for side in (overhead.ours, overhead.theirs))
        quotient = overhead.ratios[name].median
        cells.append(f"{ours:9.1f} /{theirs:6.1f} {quotient:6.2f}x{'!' if quotient > bound else ' '}".rjust(28))
    return f"{overhead.name:<28}{''.join(cells)}"


def summary(results: list[Overhead]) -> str:
    """The geometric means, and which calls take longer than they may."""
    lines = []
    for name, bound in BOUNDS.items():
        quotients = {result.name: result.ratios[name].median for result in results}
        slow = [f"{layer} {quotient:.2f}x" for layer, quotient in quotients.items() if quotient > bound]
        lines.append(
            f"{name}: geometric mean {geometric_mean(list(quotients.values())):.2f}x torch's time; "
            f"above {bound}x: {', '.join(slow) or 'none'}"
        )
    return "\n".join(lines)


def write(results: list[Overhead], about: dict[str, Any], file: Path) -> None:
    """The results as JSON."""
    file.write_text(json.dumps({"about": about, "results": [asdict(result) for result in results]}, indent=1) + "\n")

"""What is timed, as data: one line a case, for any namespace with ``torch.nn``'s names.

Sizes are those of residual networks on CIFAR-10 (32x32 pixels, batches of 128) and ImageNet (batches of 32),
plus one of each kind of convolution that runs through code of its own. To add a case, add a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from scratchnn import models
from scratchnn.bench.cost import Cost, Work, model_cost

# What is timed of a layer, and of a model. "forward" runs without gradients.
FORWARD, FORWARD_BACKWARD, TRAINING_STEP = "forward", "forward+backward", "training step"

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """A layer, its input, and how it is run.

    Attributes:
        label: what sets it apart within its family; the name adds shape, layout and type.
        family: the family of layers it belongs to, by which results are grouped.
        build: makes the layer from the namespace it is given.
        shape: the shape of the input.
        memory_format: a key of :data:`MEMORY_FORMATS`; channels_last for anything but images means nothing.
        dtype: of input and parameters.
        training: whether the layer is in training mode.
        input_gradient: whether the input needs a gradient; that of a network's first layer does not.
        model: whether this is a whole model, timed as one step of training instead of a backward pass.
        format_matters: whether torch is given the choice between both memory formats.
    """

    label: str
    family: str
    build: Callable[[ModuleType], torch.nn.Module]
    shape: tuple[int, ...]
    memory_format: str = "channels_last"
    dtype: torch.dtype = torch.float32
    training: bool = True
    input_gradient: bool = True
    model: bool = False
    format_matters: bool = True

    @property
    def name(self) -> str:
        """Unique, and readable in a table: label, batch size, image, and what is not the usual."""
        batch, *rest = self.shape
        words = [self.label, f"n{batch}"]
        if self.is_image:
            words.insert(1, "x".join(map(str, rest[1:])))
            if self.memory_format == "contiguous":
                words.append("nchw")
        if self.dtype != torch.float32:
            words.append(str(self.dtype).removeprefix("torch."))
        return " ".join(words)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 4

    @property
    def passes(self) -> tuple[str, str]:
        """What is timed."""
        return (FORWARD, TRAINING_STEP if self.model else FORWARD_BACKWARD)

    def torch_formats(self) -> tuple[str, ...]:
        """The memory formats torch is timed in, that of the case first."""
        if not (self.is_image and self.format_matters):
            return (self.memory_format,)
        return (self.memory_format, *(name for name in MEMORY_FORMATS if name != self.memory_format))

    def cost(self) -> Cost:
        """The work of a forward and of a backward pass; computes nothing but shapes."""
        with torch.device("meta"):
            model = self.build(torch.nn).to(self.dtype).train(self.training)
            input = torch.empty(self.shape, dtype=self.dtype, requires_grad=self.input_gradient)
            return model_cost(model, input)

    def work(self, which: str) -> Work:
        """The work of one of :attr:`passes`."""
        cost = self.cost()
        return cost.forward if which == FORWARD else cost.forward + cost.backward


def _conv(
    label: str,
    n: int,
    channels: tuple[int, int],
    size: int,
    kernel: int,
    *,
    layout: str = "channels_last",
    dtype: torch.dtype = torch.float32,
    input_gradient: bool = True,
    **options: int,
) -> Case:
    """A convolution without bias, as before a norm, padded so that stride 1 keeps the size."""
    options.setdefault("padding", options.get("dilation", 1) * (kernel // 2))
    c, k = channels
    return Case(
        label=f"{label} {c}" if c == k else f"{label} {c}->{k}",
        family="conv",
        build=lambda nn: nn.Conv2d(c, k, kernel, bias=False, **options),
        shape=(n, c, size, size),
        memory_format=layout,
        dtype=dtype,
        input_gradient=input_gradient,
    )


def _convolutions() -> list[Case]:
    return [
        _conv("3x3", 128, (16, 16), 32, 3),
        _conv("3x3", 128, (32, 32), 16, 3),
        _conv("3x3", 128, (64, 64), 8, 3),
        _conv("3x3", 64, (64, 64), 32, 3),
        _conv("3x3", 32, (64, 64), 56, 3),
        _conv("3x3", 32, (128, 128), 28, 3),
        _conv("3x3", 32, (256, 256), 14, 3),
        _conv("3x3", 1, (64, 64), 56, 3),
        _conv("3x3", 128, (16, 16), 32, 3, layout="contiguous"),
        _conv("3x3", 32, (64, 64), 56, 3, layout="contiguous"),
        _conv("3x3", 32, (256, 256), 14, 3, layout="contiguous"),
        _conv("3x3 stem", 128, (3, 16), 32, 3, input_gradient=False),
        _conv("3x3 s2", 128, (16, 32), 32, 3, stride=2),
        _conv("3x3 s2", 128, (32, 64), 16, 3, stride=2),
        _conv("3x3 s2", 32, (64, 128), 56, 3, stride=2),
        _conv("1x1", 16, (64, 256), 56, 1),
        _conv("1x1", 16, (256, 64), 56, 1),
        _conv("1x1", 32, (512, 128), 28, 1),
        _conv("1x1", 32, (512, 128), 28, 1, layout="contiguous"),
        _conv("1x1 s2", 32, (64, 128), 56, 1, stride=2),
        _conv("1x1 s2", 16, (256, 512), 56, 1, stride=2),
        _conv("7x7 s2 stem", 16, (3, 64), 224, 7, stride=2, input_gradient=False),
        _conv("7x7 s2 stem", 16, (3, 64), 224, 7, stride=2, input_gradient=False, layout="contiguous"),
        _conv("5x5", 64, (32, 64), 16, 5),
        _conv("3x3 dilated 2", 32, (64, 64), 28, 3, dilation=2),
        _conv("3x3 depthwise", 32, (64, 64), 56, 3, groups=64),
        _conv("3x3 depthwise", 32, (64, 64), 56, 3, groups=64, layout="contiguous"),
        _conv("3x3 s2 depthwise", 32, (128, 128), 56, 3, stride=2, groups=128),
        _conv("3x3 32 groups", 32, (128, 128), 28, 3, groups=32),
        _conv("3x3", 32, (64, 64), 28, 3, dtype=torch.float64),
        _conv("1x1", 32, (256, 64), 28, 1, dtype=torch.float64),
    ]


def _linear(n: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        label=f"linear {inputs}->{outputs}",
        family="linear",
        build=lambda nn: nn.Linear(inputs, outputs),
        shape=(n, inputs),
        memory_format="contiguous",
        dtype=dtype,
    )


def _linears() -> list[Case]:
    return [
        _linear(128, 512, 10),
        _linear(128, 2048, 1000),
        _linear(128, 512, 512),
        _linear(1, 512, 512),
        _linear(128, 512, 512, torch.float64),
    ]


def _pool(label: str, shape: tuple[int, int, int], layout: str, build: Callable) -> Case:
    n, c, size = shape
    return Case(f"{label} {c}", "pool", build, (n, c, size, size), layout)


def _pools() -> list[Case]:
    kinds: list[tuple[str, tuple[int, int, int], Callable]] = [
        ("max 3x3 s2", (16, 64, 112), lambda nn: nn.MaxPool2d(3, stride=2, padding=1)),
        ("max 2x2 s2", (64, 64, 56), lambda nn: nn.MaxPool2d(2)),
        ("avg 2x2 s2", (64, 64, 56), lambda nn: nn.AvgPool2d(2)),
        ("avg 3x3 s1", (64, 64, 56), lambda nn: nn.AvgPool2d(3, stride=1, padding=1)),
        ("global avg", (128, 64, 8), lambda nn: nn.AdaptiveAvgPool2d(1)),
        ("global avg", (32, 512, 7), lambda nn: nn.AdaptiveAvgPool2d(1)),
        ("global avg", (64, 256, 14), lambda nn: nn.AdaptiveAvgPool2d(1)),
        ("adaptive avg 7x7", (64, 256, 14), lambda nn: nn.AdaptiveAvgPool2d(7)),
    ]
    return [_pool(label, shape, layout, build) for label, shape, build in kinds for layout in _BOTH_LAYOUTS]


def _norm(c: int, n: int, size: int, layout: str, training: bool) -> Case:
    return Case(
        label=f"batch norm {'train' if training else 'eval'} {c}",
        family="norm",
        build=lambda nn: nn.BatchNorm2d(c),
        shape=(n, c, size, size),
        memory_format=layout,
        training=training,
    )


def _norms() -> list[Case]:
    return [
        _norm(c, n, size, layout, training)
        for training in (True, False)
        for layout in _BOTH_LAYOUTS
        for c, n, size in ((16, 128, 32), (64, 32, 56), (256, 32, 14))
    ]


def _relu(n: int, c: int, size: int) -> Case:
    return Case(
        f"relu {c}",
        "activation",
        lambda nn: nn.ReLU(),
        (n, c, size, size),
        "channels_last",
        format_matters=False,
    )


def _model(name: str) -> Case:
    return Case(
        label=name,
        family="model",
        build=lambda nn: models.build(name, nn=nn),
        shape=(128, 3, 32, 32),
        input_gradient=False,
        model=True,
    )


_BOTH_LAYOUTS = ("channels_last", "contiguous")

CASES: list[Case] = [
    *_convolutions(),
    *_linears(),
    *_pools(),
    *_norms(),
    _relu(128, 16, 32),
    _relu(64, 64, 56),
    _model("resnet20"),
]


def families() -> list[str]:
    """The families in the order of the table."""
    return list(dict.fromkeys(case.family for case in CASES))


def select(cases: Sequence[Case], family: Sequence[str] | None = None, pattern: str | None = None) -> list[Case]:
    """The cases of these families (all unless given) whose "family name" contains the regular expression.

    Raises:
        re.error: when ``pattern`` is not a regular expression.
    """
    expression = re.compile(pattern or "", re.IGNORECASE)
    return [
        case
        for case in cases
        if (not family or case.family in family) and expression.search(f"{case.family} {case.name}")
    ]


def borrowed(model: torch.nn.Module) -> list[str]:
    """The layers within ``model`` that scratchnn does not compute: ``scratchnn.nn`` fell through to torch."""
    leaves = [layer for layer in model.modules() if not list(layer.children())]
    return sorted(
        {
            type(layer).__name__
            for layer in leaves
            if not type(layer).__module__.startswith("scratchnn")
            and not isinstance(layer, (torch.nn.Identity, torch.nn.Flatten))  # compute nothing
        }
    )

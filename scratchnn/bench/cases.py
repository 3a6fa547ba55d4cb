"""What a case is: a layer or a model, its input, and how it is run. ``layers.py`` and ``networks.py`` list them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.nn import Module

from scratchnn.bench.cost import Cost, Work, model_cost
from scratchnn.classes import kind_of

# What is timed of a layer, and of a model. "forward" runs without gradients, and a model in evaluation mode.
FORWARD, FORWARD_BACKWARD, TRAINING_STEP = "forward", "forward+backward", "training step"

MODEL = "model"  # the family of whole models; all others are families of layers

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"


@dataclass(frozen=True)
class Case:
    """A layer, its input, and how it is run.

    Attributes:
        label: what sets it apart within its family; the name adds shape, layout and type.
        family: the family of layers it belongs to, by which results are grouped.
        build: makes the layer from the namespace it is given.
        shape: the shape of the input: images and volumes are ``[N, C, H, W]`` and ``[N, C, D, H, W]``.
        net: where such a layer is found.
        memory_format: "channels_last" or "contiguous", which is all there is of anything but images and volumes.
        dtype: of input and parameters.
        training: whether the layer is in training mode.
        input_gradient: whether the input needs a gradient; that of a network's first layer does not.
        format_matters: whether torch is given the choice between both memory formats.
    """

    label: str
    family: str
    build: Callable[[ModuleType], Module]
    shape: tuple[int, ...]
    net: str = ""
    memory_format: str = CHANNELS_LAST
    dtype: torch.dtype = torch.float32
    training: bool = True
    input_gradient: bool = True
    format_matters: bool = True

    def __post_init__(self) -> None:
        if not self.has_formats:
            object.__setattr__(self, "memory_format", CONTIGUOUS)

    @property
    def name(self) -> str:
        """Unique, and readable in a table: label, batch size, image, and what is not the usual."""
        batch, *rest = self.shape
        words = [self.label, *(["x".join(map(str, rest[1:]))] if len(rest) > 1 else []), f"n{batch}"]
        if self.has_formats and self.memory_format == CONTIGUOUS:
            words.append("nchw" if len(self.shape) == 4 else "ncdhw")
        if self.dtype != torch.float32:
            words.append(str(self.dtype).removeprefix("torch."))
        return " ".join(words)

    @property
    def model(self) -> bool:
        """Whether this is a whole model, timed as one step of training instead of a backward pass."""
        return self.family == MODEL

    @property
    def has_formats(self) -> bool:
        """Whether the input is an image or a volume, which can be laid out in two ways."""
        return len(self.shape) in (4, 5)

    @property
    def passes(self) -> tuple[str, str]:
        """What is timed."""
        return (FORWARD, TRAINING_STEP if self.model else FORWARD_BACKWARD)

    def torch_formats(self) -> tuple[str, ...]:
        """The memory formats torch is timed in, that of the case first."""
        if not (self.has_formats and self.format_matters):
            return (self.memory_format,)
        return (self.memory_format, *({CHANNELS_LAST, CONTIGUOUS} - {self.memory_format}))

    def layout(self, memory_format: str) -> torch.memory_format:
        """torch's name for a memory format, which depends on the rank of the input."""
        if memory_format == CONTIGUOUS:
            return torch.contiguous_format
        return torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d

    def layer(self) -> Module:
        """torch's layer on the meta device: no numbers, but all there is to know of it."""
        with torch.device("meta"):
            return self.build(torch.nn).to(self.dtype).train(self.training)

    def cost(self) -> Cost:
        """The work of a forward and of a backward pass; computes nothing but shapes."""
        input = torch.empty(self.shape, dtype=self.dtype, device="meta", requires_grad=self.input_gradient)
        return model_cost(self.layer(), input)

    def work(self, which: str) -> Work:
        """The work of one of :attr:`passes`."""
        cost = self.cost()
        return cost.forward if which == FORWARD else cost.forward + cost.backward


def families(cases: Sequence[Case]) -> list[str]:
    """The families in the order of the table.

    Args:
        cases: any.

    Returns:
        each family once.
    """
    return list(dict.fromkeys(case.family for case in cases))


def select(cases: Sequence[Case], family: Sequence[str] | None = None, pattern: str | None = None) -> list[Case]:
    """The cases of these families (all unless given) whose "family name" contains the regular expression.

    Args:
        cases: to choose from.
        family: those to take; all unless given.
        pattern: a regular expression, without regard to case.

    Returns:
        the cases, in their order.

    Raises:
        re.error: when ``pattern`` is not a regular expression.
    """
    expression = re.compile(pattern or "", re.IGNORECASE)
    return [
        case
        for case in cases
        if (not family or case.family in family) and expression.search(f"{case.family} {case.name}")
    ]


def borrowed(model: Module, *, lacking: bool = True) -> list[str]:
    """The layers within ``model`` that scratchnn does not compute.

    Args:
        model: of ``scratchnn.nn``, or converted.
        lacking: count also layers that scratchnn has none of, such as dropout: torch's on both sides.

    Returns:
        the names of their classes, each once.
    """
    leaves = [layer for layer in model.modules() if not list(layer.children())]
    theirs = [layer for layer in leaves if not _ours(layer) and not isinstance(layer, _COMPUTE_NOTHING)]
    return sorted({type(layer).__name__ for layer in theirs if lacking or kind_of(type(layer))})


_COMPUTE_NOTHING = (torch.nn.Identity, torch.nn.Flatten)


def _ours(layer: Module) -> bool:
    """Also where our class lies beneath one derived from torch's, as ``scratchnn.convert`` leaves it."""
    return any(kind.__module__.startswith("scratchnn.") for kind in type(layer).__mro__)

"""One call of a layer, and what is known of it: a node of the tree that :func:`scratchnn.summary` gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

__all__ = ["Extent", "Layer", "ReceptiveField"]


class Extent(NamedTuple):
    """A receptive field along one axis.

    Attributes:
        size: pixels that an output sees, far from the border; the most of any, where they differ.
        stride: pixels from the field of one output to that of its neighbour; 0 where all see the same; not whole
            where the layer enlarges the image.
        offset: where the field of the first output begins; negative in the padding.
        whole: every output sees all there is.
    """

    size: int
    stride: Fraction
    offset: int
    whole: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"size": self.size, "stride": float(self.stride), "offset": self.offset, "whole": self.whole}


ReceptiveField = dict[int, tuple[Extent, ...]]  # by the number of the input, one for each axis of it


@dataclass
class Layer:
    """One call of a layer. Numbers are of the layer and of all it calls; ``own`` of nothing else.

    Attributes:
        name: in the model; empty for the model itself.
        type: the name of its class.
        call: which of its calls this is, from 0.
        shapes: of its outputs; None for a layer that was never called and is listed for its parameters.
        own_parameters: numbers in parameters that belong to this layer and to none before it.
        own_trainable: of these, those that need a gradient.
        own_forward: multiply-adds in the forward pass.
        own_backward: multiply-adds in the backward pass.
        own_saved: bytes of memory kept for the backward pass, parameters aside; a tensor that several layers keep
            counts with the first of them.
        receptive_field: of its first output.
        algorithm: what scratchnn computes it by; empty where that is not a layer's own.
        parts: the calls that it makes, in order.
    """

    name: str
    type: str
    call: int = 0
    shapes: list[tuple[int, ...]] | None = None
    own_parameters: int = 0
    own_trainable: int = 0
    own_forward: int = 0
    own_backward: int = 0
    own_saved: int = 0
    receptive_field: ReceptiveField = field(default_factory=dict)
    algorithm: str = ""
    parts: list[Layer] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Numbers in parameters."""
        return sum(layer.own_parameters for layer in self.walk())

    @property
    def trainable(self) -> int:
        """Numbers in parameters that need a gradient."""
        return sum(layer.own_trainable for layer in self.walk())

    @property
    def forward(self) -> int:
        """Multiply-adds of the forward pass."""
        return sum(layer.own_forward for layer in self.walk())

    @property
    def backward(self) -> int:
        """Multiply-adds of the backward pass."""
        return sum(layer.own_backward for layer in self.walk())

    @property
    def saved(self) -> int:
        """Bytes kept for the backward pass, parameters aside."""
        return sum(layer.own_saved for layer in self.walk())

    def walk(self) -> Iterator[Layer]:
        """This call and all below it, in the order in which they begin."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "call": self.call,
            "shapes": None if self.shapes is None else [list(shape) for shape in self.shapes],
            "parameters": self.parameters,
            "trainable": self.trainable,
            "forward": self.forward,
            "backward": self.backward,
            "saved": self.saved,
            "receptive_field": {
                str(number): [extent.to_dict() for extent in extents]
                for number, extents in self.receptive_field.items()
            },
            "algorithm": self.algorithm,
            "parts": [part.to_dict() for part in self.parts],
        }

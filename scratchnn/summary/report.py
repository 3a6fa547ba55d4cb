"""A summary for people, as text and Markdown, and for programs, as dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from scratchnn.summary.layer import Extent, Layer

__all__ = ["Summary"]

SCHEMA = 1

HEAD = (
    "layer",
    "class",
    "output",
    "parameters",
    "mult-adds",
    "backward",
    "saved",
    "field",
    "stride",
    "offset",
    "algorithm",
)
NUMBERS = range(3, 7)  # the columns of numbers, which stand to the right


@dataclass
class Summary:
    """What :func:`scratchnn.summary` found out about a model. Printed, it is a table.

    Attributes:
        model: the call of the model: a tree, whose numbers include those of the parts.
        inputs: the shapes of the inputs.
        dtype: the type of the parameters.
        training: whether the model was in training mode.
    """

    model: Layer
    inputs: list[tuple[int, ...]]
    dtype: str
    training: bool

    @property
    def parameters(self) -> int:
        """Numbers in all parameters, each counted once: ``sum(p.numel() for p in model.parameters())``."""
        return self.model.parameters

    @property
    def trainable(self) -> int:
        """Of the parameters, those that need a gradient."""
        return self.model.trainable

    @property
    def forward(self) -> int:
        """Multiply-adds of a forward pass: half of what ``torch.utils.flop_counter`` counts."""
        return self.model.forward

    @property
    def backward(self) -> int:
        """Multiply-adds of a backward pass, likewise."""
        return self.model.backward

    @property
    def saved(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, parameters aside."""
        return self.model.saved

    def __getitem__(self, name: str) -> Layer:
        """The first call of the layer of this name in the model.

        Raises:
            KeyError: where the model has no such layer, or never calls it.
        """
        for layer in self.model.walk():
            if layer.name == name and layer.shapes is not None:
                return layer
        raise KeyError(f"the model calls no layer {name!r}")

    def __str__(self) -> str:
        rows = [list(HEAD), *([f"{'  ' * depth}{cells[0]}", *cells[1:]] for depth, cells in self._rows())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]

        def line(row: Sequence[str]) -> str:
            cells = [
                cell.rjust(width) if column in NUMBERS else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        return "\n".join([self._title(), "", *map(line, rows), "", *self._totals()])

    def markdown(self) -> str:
        """The same table in Markdown."""
        rows = [[f"{'&emsp;' * depth}{cells[0]}", *cells[1:]] for depth, cells in self._rows()]
        rule = ["---:" if column in NUMBERS else "---" for column in range(len(HEAD))]
        table = [f"| {' | '.join(row)} |" for row in (HEAD, rule, *rows)]
        return "\n".join([self._title(), "", *table, "", *(f"- {total}" for total in self._totals())]) + "\n"

    def dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "schema": SCHEMA,
            "inputs": [list(shape) for shape in self.inputs],
            "dtype": self.dtype,
            "training": self.training,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "forward": self.forward,
            "backward": self.backward,
            "saved": self.saved,
            "model": self.model.to_dict(),
        }

    def _title(self) -> str:
        shapes = ", ".join(map(_times, self.inputs)) or "no input"
        mode = "training" if self.training else "evaluation"
        return f"{self.model.type} for {shapes}, {self.dtype}, in {mode}"

    def _totals(self) -> list[str]:
        fixed = self.parameters - self.trainable
        return [
            f"parameters: {self.parameters:,}" + (f", {fixed:,} of them fixed" if fixed else ""),
            f"multiply-adds: {self.forward:,} forward, {self.backward:,} backward",
            f"saved for backward: {_bytes(self.saved)}, parameters aside",
        ]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        yield from _rows_of(self.model, "", 0)


def _rows_of(layer: Layer, above: str, depth: int) -> Iterator[tuple[int, list[str]]]:
    name = layer.name.removeprefix(f"{above}.") if above else layer.name
    if layer.call:
        name += f" (call {layer.call + 1})"
    field, stride, offset = _field_cells(layer)
    yield (
        depth,
        [
            name or "(model)",
            layer.type,
            "not called" if layer.shapes is None else ", ".join(map(_times, layer.shapes)),
            f"{layer.parameters:,}" if layer.parameters else "",
            _short(layer.forward),
            _short(layer.backward),
            _bytes(layer.saved) if layer.saved else "",
            field,
            stride,
            offset,
            layer.algorithm,
        ],
    )
    for part in layer.parts:
        yield from _rows_of(part, layer.name, depth + 1)


def _field_cells(layer: Layer) -> list[str]:
    """Size, stride and offset; of each input that the layer depends on, where there are several."""
    columns = [
        [_along(extents, lambda extent: "all" if extent.whole else str(extent.size)) for extents in _of(layer)],
        [_along(extents, lambda extent: _fraction(extent.stride)) for extents in _of(layer)],
        [_along(extents, lambda extent: str(extent.offset)) for extents in _of(layer)],
    ]
    return ["; ".join(cells) for cells in columns]


def _of(layer: Layer) -> list[tuple[Extent, ...]]:
    return [extents for _, extents in sorted(layer.receptive_field.items())]


def _along(extents: Sequence[Extent], cell: Any) -> str:
    """One cell for all axes where they agree."""
    cells = [cell(extent) for extent in extents]
    return cells[0] if len(set(cells)) == 1 else "x".join(cells)


def _fraction(value: Fraction) -> str:
    return str(value) if value else ""


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _short(count: int) -> str:
    for unit, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.2f} {letter}"
    return str(count) if count else ""


def _bytes(size: int) -> str:
    return f"{_short(size)}B" if size >= 1000 else f"{size} B"

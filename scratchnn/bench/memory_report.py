"""``scratchnn bench --memory`` in words: rows for the terminal, a JSON file, a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scratchnn.bench import targets
from scratchnn.bench.measure import FUSED, LAYERS, name_of
from scratchnn.bench.memory import KeptResult, PeakResult
from scratchnn.bench.targets import Standing

__all__ = ["MemoryReport"]

SCHEMA = 2
PEAK_GOALS = {LAYERS: 0.8, FUSED: 0.6}
PEAK_NET = "CIFAR ResNet-18"

EXPLANATION = (
    "kept for backward: what autograd saves of a forward pass, each storage once, in our memory format, in KB of 1000 "
    "bytes; parameters and buffers are left out; 'input' is the caller's tensor, 'output' the result, 'other' is made "
    "for the backward pass alone. EXCEEDS: ours keeps more than torch's, with or without the input."
)
PEAK_EXPLANATION = (
    "peak of a training step: the most that torch's allocator gave out at once, above what lived before the step; "
    "activations: the same without what outlives it, the parameters' gradients; (resident): by how much the process "
    "grew. ratio = ours / torch's, in torch's better memory format."
)

_PEAK_COLUMNS = (
    *("model", "scratchnn", "(resident)", "torch.nn", "(resident)", "ratio"),
    *("activations", "torch.nn", "ratio", "compiled"),
)


@dataclass
class MemoryReport:
    """What was measured of memory, with what it depends on.

    Attributes:
        date: when the run started, in UTC.
        versions: of the software.
        hardware: the processor and its cores.
        kept: by layer case.
        peaks: by model.
    """

    date: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    kept: list[KeptResult] = field(default_factory=list)
    peaks: list[PeakResult] = field(default_factory=list)

    def to_json(self) -> str:
        """Everything, bytes as they were measured."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    def standings(self) -> list[Standing]:
        """The goals about memory."""
        exceeding = sum(result.exceeds for result in self.kept)
        standings = [
            Standing(
                "layers that keep more for backward than torch's",
                0,
                exceeding if self.kept else None,
                len(self.kept),
                at_most=True,
                unit="",
            )
        ]
        for side, goal in PEAK_GOALS.items():
            found = [result for result in self.peaks if (result.net, result.side) == (PEAK_NET, side)]
            name = f"{PEAK_NET}, peak activation memory of a training step" + ("" if side == LAYERS else f", {side}")
            ratio = found[0].activations_ratio if found else None
            standings.append(Standing(name, goal, ratio, len(found), at_most=True))
        return standings

    def markdown(self) -> str:
        """The goals and all results."""
        lines = [
            f"{self.hardware['processor']}, {self.hardware['threads']} threads  ",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()) + "  ",
            f"Measured {self.date[:10]}.",
            "",
            *targets.markdown(self.standings()),
        ]
        if self.peaks:
            lines += [
                "",
                PEAK_EXPLANATION,
                "",
                f"| {' | '.join(_PEAK_COLUMNS)} |",
                "|---|" + "---:|" * (len(_PEAK_COLUMNS) - 1),
                *(f"| {' | '.join(_peak_cells(result))} |" for result in self.peaks),
            ]
        if self.kept:
            lines += [
                "",
                EXPLANATION,
                "",
                "| family | case | as in | scratchnn: input | output | other | torch.nn: input | output | other | |",
                "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
            ]
            for result in self.kept:
                cells = [result.family, result.case, result.net, *_kept_cells(result), _excess(result)]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def kept_header(width: int) -> str:
    """The heading of :func:`kept_row`, in kilobytes."""
    columns = "".join(f"{name:>12}" for name in ("input", "output", "other") * 2)
    return f"  {'':<{width}}{'scratchnn':>36}{'torch.nn':>36}\n  {'case, KB kept':<{width}}{columns}"


def kept_row(result: KeptResult, width: int) -> str:
    """The row of one case, in kilobytes."""
    cells = "".join(f"{cell:>12}" for cell in _kept_cells(result))
    return f"  {result.case:<{width}}{cells}  {_excess(result)}".rstrip()


def peak_rows(results: Sequence[PeakResult], width: int) -> Iterator[str]:
    """The rows of one model."""
    for result in results:
        name, *cells = _peak_cells(result)
        remark = f"torch in {result.torch_format}"
        yield f"  {name:<{width}}" + "".join(f"{cell:>13}" for cell in cells) + f"  {remark}"


def peak_header(width: int) -> str:
    """The heading of :func:`peak_rows`, in megabytes."""
    _, *names = _PEAK_COLUMNS
    return f"  {'model, MB at the peak':<{width}}" + "".join(f"{name:>13}" for name in names)


def _kept_cells(result: KeptResult) -> list[str]:
    return [
        f"{size / 1e3:.1f}" for side in (result.ours, result.torch) for size in (side.input, side.output, side.other)
    ]


def _excess(result: KeptResult) -> str:
    """By how many bytes ours is above torch's."""
    if not result.exceeds:
        return ""
    return f"EXCEEDS by {max(result.ours.own - result.torch.own, result.ours.all - result.torch.all)} B"


def _peak_cells(result: PeakResult) -> list[str]:
    ours, theirs = result.ours, result.torch[result.torch_format]
    activations = min(peak.activations for peak in result.torch.values())
    compiled = None if result.compiled is None else result.compiled.allocated
    return [
        name_of(result.case, result.side),
        *map(_megabytes, (ours.allocated, ours.resident, theirs.allocated, theirs.resident)),
        f"{result.ratio:.2f}x",
        *map(_megabytes, (ours.activations, activations)),
        f"{result.activations_ratio:.2f}x",
        _megabytes(compiled),
    ]


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"

"""``scratchnn accuracy``: a table of rounding errors, ours beside torch's."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.accuracy.measure import SEEDS, Result, measure_all
from scratchnn.environment import describe_hardware, describe_versions
from scratchnn.errors import UserError

HELP = "measure the rounding errors of scratchnn's layers and torch's against float64"

LARGER_ERRORS = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    families = list(dict.fromkeys(layer.family for layer in LAYERS))
    parser.add_argument("--family", action="append", choices=families, help="only this family; may be repeated")
    parser.add_argument("--layer", action="append", metavar="NAME", help="only this layer, as Conv2d; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to this Markdown file as well")


def run(args: argparse.Namespace) -> int:
    """Measure what the options select.

    Returns:
        0; 1 where an error of ours is larger than the factor allowed times torch's.
    """
    layers = _select(args)
    lines = [*_heading(), ""]
    print("\n".join(lines))
    results = []
    for result in _shown(layers):
        results.append(result)
    if args.out is not None:
        args.out.write_text(markdown(results))
    larger = [f"{result.layer}, {_short(result.dtype)}, {name}" for result, name in larger_errors(results)]
    print(f"{len(results)} layers x dtypes; larger than allowed: {'; '.join(larger) or 'none'}")
    return LARGER_ERRORS if larger else 0


def _select(args: argparse.Namespace) -> list[Layer]:
    layers = [
        layer
        for layer in LAYERS
        if (not args.family or layer.family in args.family) and (not args.layer or layer.name in args.layer)
    ]
    if not layers:
        raise UserError("no layer has such a family and name")
    return layers


def larger_errors(results: list[Result]) -> Iterator[tuple[Result, str]]:
    """What is less exact than torch's by more than the factor allowed."""
    for result in results:
        for name, errors in result.errors.items():
            if errors.ratio > result.allowed:
                yield result, name


def _heading() -> list[str]:
    versions, hardware = describe_versions(), describe_hardware()
    return [
        f"scratchnn {versions['scratchnn']}, torch {versions['torch']}, {hardware['processor']}, "
        f"{hardware['instruction_set']}, {hardware['threads']} threads",
        f"Relative error (L2) against float64, ours / torch's, medians of {SEEDS} draws; 0 is exact.",
    ]


def _shown(layers: list[Layer]) -> Iterator[Result]:
    """The results, each printed when it is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for result in measure_all(layers):
            cells = "  ".join(f"{name} {_cell(result, name)}" for name in result.errors)
            print(f"{result.layer!s:44}{_short(result.dtype):10}{cells}", flush=True)
            yield result


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cell(result: Result, name: str) -> str:
    errors = result.errors.get(name)
    if errors is None:
        return ""
    mark = " (!)" if errors.ratio > result.allowed else ""
    return f"{errors.ours.relative:.1e} / {errors.theirs.relative:.1e}{mark}".replace("0.0e+00", "0")


def markdown(results: list[Result]) -> str:
    """The table as a page."""
    columns = list(dict.fromkeys(name for result in results for name in result.errors))
    heading = _heading()
    lines = [
        "# Accuracy",
        "",
        f"Written by `scratchnn accuracy --out ACCURACY.md`: {heading[0]}.",
        "",
        heading[1] + " dx, dw and db are the gradients of the input, the weight and the bias, dx2 that of a second "
        "input. An exclamation mark stands where our error is more than twice torch's, or in plain "
        "convolutions of 3x3 in height and width, which may use Winograd's algorithm, more than four times.",
        "",
        f"| layer | dtype | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for result in results:
        cells = " | ".join(_cell(result, name) for name in columns)
        lines.append(f"| {result.layer} | {_short(result.dtype)} | {cells} |")
    return "\n".join(lines) + "\n"

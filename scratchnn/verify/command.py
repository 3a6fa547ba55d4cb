"""``scratchnn verify``: from the name of a model to a verdict, tables, their JSON and Markdown files, and a picture."""

from __future__ import annotations

import argparse
import copy
import json
import re
import warnings
from collections import Counter
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.nn import Module

import scratchnn
from scratchnn.environment import describe_hardware, describe_versions
from scratchnn.errors import UserError, require
from scratchnn.targets import zoo
from scratchnn.targets.target import MODEL_HELP, Target, parse_size
from scratchnn.targets.zoo import Inputs
from scratchnn.testing.models import call_arguments, compare_models
from scratchnn.testing.nested import named_tensors
from scratchnn.verify.measure import measure_costs
from scratchnn.verify.report import (
    HEAD_OF_MODELS,
    Report,
    aligned,
    heading,
    layer_table,
    markdown,
    markdown_of_many,
    row_of_model,
    summary,
)
from scratchnn.verify.target import load

HELP = "prove that a model computes on scratchnn's layers what it computes on torch's"

NOT_EQUIVALENT = 1

SEEDS, FACTOR, SECONDS = 3, 4.0, 0.05
GROUPS = {f"torchvision:{task}": list(names) for task, names in zoo.REPRESENTATIVES.items()}
GROUPS = {"torchvision:all": [name for names in GROUPS.values() for name in names], **GROUPS}
CONTEXTS = {"convert": nullcontext, "override": scratchnn.override}  # what to run ours in
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{MODEL_HELP}; {', '.join(GROUPS)} for one of each family of torchvision's",
    )
    parser.add_argument(
        "--mode",
        choices=CONTEXTS,
        default="convert",
        help="give the layers to scratchnn.convert, or run the model as it is under scratchnn.override",
    )
    parser.add_argument("--weights", metavar="NAME", help="weights to download, as DEFAULT (default: new, random ones)")
    parser.add_argument(
        "--input-size", metavar="C,H,W", help="size of one input, or one number for square images (default: small)"
    )
    parser.add_argument("--batch", type=int, help="inputs in a batch (default: what suits the model)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of model and inputs (default float32)")
    parser.add_argument(
        "--train", action=argparse.BooleanOptionalAction, default=True, help="compare a training step as well"
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"draws of inputs, judged by medians (default {SEEDS})"
    )
    parser.add_argument(
        "--factor", type=float, default=FACTOR, help=f"how many times torch's error ours may be (default {FACTOR:g})"
    )
    parser.add_argument("--threads", type=int, help="threads that compute (default: torch's choice)")
    parser.add_argument(
        "--speed", action=argparse.BooleanOptionalAction, default=True, help="time the layers and the model as well"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/verify"), help="folder for the results (default runs/verify)"
    )


def run(args: argparse.Namespace) -> int:
    """Verify what the options name.

    Returns:
        0 where it is equivalent; 1 where it is not.
    """
    size = parse_size(args.input_size)
    for name in ("batch", "seeds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be 1 or more, got {value}")
    if not args.factor > 0:
        raise UserError(f"--factor must be above 0, got {args.factor:g}")
    require("matplotlib", extra="train")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.model in GROUPS:
        return _verify_many(GROUPS[args.model], args)
    target = load(args.model, size=size, batch=args.batch, weights=args.weights, dtype=DTYPES[args.dtype])
    report = _verify(target, args)
    print("\n".join([*heading(report), "", *aligned(layer_table(report)), "", *summary(report)]))
    from scratchnn.verify.chart import draw

    data, page, picture = _files(args.out, args.model, "json", "md", "png")
    data.write_text(report.to_json())
    page.write_text(markdown(report))
    draw(report, picture)
    print(f"files: {data}, {page}, {picture}")
    return report.comparison.exit_code


def _files(folder: Path, name: str, *suffixes: str) -> list[Path]:
    """Where the files of a run go."""
    folder.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"\W+", "-", name).strip("-")
    return [folder / f"{words}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.{suffix}" for suffix in suffixes]


def _verify(target: Target, args: argparse.Namespace) -> Report:
    ours, context = copy.deepcopy(target.model), CONTEXTS[args.mode]
    taken, left = _turn_over(ours) if args.mode == "convert" else _reroute(copy.deepcopy(ours), target.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's own, at each of its runs
        try:
            comparison = compare_models(
                ours,
                target.model,
                target.inputs.evaluation,
                training_inputs=target.inputs.training,
                loss=target.inputs.loss,
                train=args.train,
                seeds=args.seeds,
                factor=args.factor,
                context=context,
            )
        except ValueError as error:
            raise UserError(f"{target.name} cannot be verified: {error}") from error
        report = Report(
            model=target.name,
            mode=args.mode,
            settings={
                "dtype": args.dtype,
                "inputs": _describe(target),
                "seeds": args.seeds,
                "train": args.train,
                "weights": args.weights or "new",
            },
            environment=describe_versions() | describe_hardware(),
            taken=taken,
            left=left,
            comparison=comparison,
        )
        if args.speed and comparison.ran:
            report.whole, report.costs = measure_costs(ours, target.model, target.inputs, context, SECONDS)
    return report


def _turn_over(model: Module) -> tuple[dict[str, int], dict[str, int]]:
    """Convert a model; gives how many layers of each class, and how many of our kinds were left for which reason."""
    conversion = scratchnn.convert(model)
    left = Counter(f"{layer.type}: {layer.reason}" for layer in conversion.missed.values())
    return dict(Counter(conversion.converted.values()).most_common()), dict(left.most_common())


def _reroute(model: Module, inputs: Inputs) -> tuple[dict[str, int], dict[str, int]]:
    """Call a model in evaluation; gives how many calls of each function went to ours, and how many did not and why."""
    args, kwargs = call_arguments(inputs.evaluation, 0)
    with torch.no_grad(), scratchnn.override() as routed:
        model.eval()(*args, **kwargs)
    left = {f"{name}: {reason}": count for (name, reason), count in routed.left.most_common()}
    return dict(routed.calls.most_common()), left


def _describe(target: Target) -> str:
    shapes = Counter(
        "x".join(map(str, tensor.shape)) for tensor in named_tensors(target.inputs.evaluation(0), "").values()
    )
    return ", ".join(f"{count} of {shape}" if count > 1 else shape for shape, count in shapes.items())


def _verify_many(names: list[str], args: argparse.Namespace) -> int:
    """Several models of torchvision's, one line each."""
    if args.input_size is not None or args.batch is not None or args.weights is not None:
        raise UserError(f"{args.model} chooses inputs itself: leave --input-size, --batch and --weights out")
    data, page = _files(args.out, args.model, "json", "md")
    reports: list[Report] = []
    widths = [max(map(len, names)), *(max(len(head), 9) for head in HEAD_OF_MODELS[1:])]

    def show(row: list[str]) -> None:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)

    show(HEAD_OF_MODELS)
    failed = []
    for name in names:
        try:
            report = _verify(load(f"torchvision:{name}", dtype=DTYPES[args.dtype]), args)
        except UserError as error:  # the others may be verified all the same
            print(f"{name}: {error}", flush=True)
            failed.append(name)
            continue
        show(row_of_model(report))
        if not report.comparison.passed:
            failed.append(name)
        reports.append(report)  # on file at once: the next model may take minutes
        data.write_text(json.dumps([report.to_dict(layers=False) for report in reports], indent=1) + "\n")
        page.write_text(markdown_of_many(reports))
    print(f"{len(names)} models; not equivalent: {', '.join(failed) or 'none'}")
    if reports:
        print(f"files: {data}, {page}")
    return NOT_EQUIVALENT if failed else 0

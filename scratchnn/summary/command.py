"""``scratchnn summary``: a model by its name, as a table, Markdown or JSON."""

from __future__ import annotations

import argparse
import json
import warnings

import torch

from scratchnn.convert import convert
from scratchnn.errors import UserError
from scratchnn.summary import summary
from scratchnn.targets.target import MODEL_HELP, build, parse_size
from scratchnn.targets.zoo import published_size
from scratchnn.testing.models import call_arguments

HELP = "show a model as a tree of layers, with what each of them is, costs and sees"

FORMATS = {
    "text": str,
    "markdown": lambda found: found.markdown().rstrip(),
    "json": lambda found: json.dumps(found.dict(), indent=1),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--input-size",
        metavar="C,H,W",
        help="size of one input, or one number for square images (default: that of torchvision's weights, or small)",
    )
    parser.add_argument(
        "--batch", type=int, help="inputs in a batch (default 1; 4 for a factory that brings no inputs)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of model and inputs (default float32)")
    parser.add_argument("--train", action="store_true", help="as in training (default: as in evaluation)")
    parser.add_argument("--convert", action="store_true", help="of the model on scratchnn's layers")
    parser.add_argument(
        "--compute", action="store_true", help="run it with numbers, for models whose shapes depend on them"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of what is printed (default text)")


def run(args: argparse.Namespace) -> int:
    """Print the summary of the model that the options name."""
    size = parse_size(args.input_size)
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch must be 1 or more, got {args.batch}")
    source, _, name = args.model.rpartition(":")
    if source == "torchvision":
        size = size or published_size(name)
    # A factory may bring its inputs, and then takes neither size nor batch.
    batch = args.batch or (1 if source in ("torchvision", "timm") or size is not None else None)
    target = build(args.model, size=size, batch=batch, dtype=DTYPES[args.dtype])
    if args.convert:
        convert(target.model)
    drawn = target.inputs.training if args.train else target.inputs.evaluation
    positional, named = call_arguments(drawn, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's own
            found = summary(target.model.train(args.train), inputs=named or positional, compute=args.compute)
    except Exception as error:
        advice = str(error).replace("pass compute=True", "give --compute")
        raise UserError(f"{args.model} cannot be summarized: {type(error).__name__}: {advice}") from error
    print(FORMATS[args.format](found))
    return 0

"""``scratchnn train``: from command-line options to a trained model and its files."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import scratchnn
from scratchnn.data import Dataset, load
from scratchnn.data.atomic import remove_leftovers
from scratchnn.environment import describe_hardware, describe_versions
from scratchnn.errors import UserError, require
from scratchnn.train import checkpoint
from scratchnn.train.config import Config, flag
from scratchnn.train.log import (
    read_table,
    write_json,
)
from scratchnn.train.stop import StopRequest

HELP = "train a network on images and leave its weights, tables and curves in a folder"

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

_FILES = ("config.json", "checkpoint.pt", "steps.csv", "epochs.csv", "summary.json", "curves.png")

# A resumed run may move to another machine or folder; everything else follows from its checkpoint.
_FREE_ON_RESUME = ("data", "threads")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options; those of :class:`Config` are left out of the result unless given."""
    hyper = parser.add_argument_group("hyper-parameters")
    hints = typing.get_type_hints(Config)
    for option in dataclasses.fields(Config):
        unit, default = option.metadata["unit"], option.default
        facts = ", ".join(fact for fact in (unit, "" if default is None else f"default {default}") if fact)
        text = option.metadata["help"] + (f" ({facts})" if facts else "")
        settings: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if hints[option.name] is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = _scalar(hints[option.name])
            settings["choices"] = option.metadata["choices"]
            settings["metavar"] = None if option.metadata["choices"] else option.name.upper()
        hyper.add_argument(flag(option.name), **settings)
    run_options = parser.add_argument_group("the run")
    run_options.add_argument("--out", type=Path, help="folder for its files (default runs/MODEL-DATA)")
    run_options.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out, with the options it was started with",
    )
    run_options.add_argument(
        "--cache", type=Path, help="folder for decoded archives and downloads (default ~/.cache/scratchnn)"
    )
    run_options.add_argument(
        "--no-keep-memory",
        dest="keep_memory",
        action="store_false",
        help="give freed memory back to the system after each layer: slower, smaller",
    )


def run(args: argparse.Namespace) -> int:
    """Train as the options say.

    Returns:
        0, or 130 when the run was interrupted and saved.
    """
    require("tqdm", "matplotlib", extra="train")
    if args.keep_memory:
        scratchnn.keep_memory()
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Config) if field.name in args}
    return _resume(args, given) if args.resume else _start(args, Config(**given))


def _start(args: argparse.Namespace, config: Config) -> int:
    out = args.out or _default_folder(config)
    _refuse_used(out)
    dataset = _load_data(config, args.cache)
    # What `auto` or a relative path stands for may be something else when the run is resumed.
    config = dataclasses.replace(config, data=dataset.source)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    return _train(config, dataset, out, None)


def _resume(args: argparse.Namespace, given: dict[str, Any]) -> int:
    out = args.out or _default_folder(Config(**given))
    content = checkpoint.load(out / "checkpoint.pt")
    stored = content["config"]
    for name, value in given.items():
        if name not in _FREE_ON_RESUME and value != stored[name]:
            raise UserError(
                f"the run in {out} has {flag(name)} {stored[name]} and cannot be resumed with {value}, "
                f"leave the option out or start anew in another --out"
            )
    config = Config(**{**stored, **given})
    dataset = _load_data(config, args.cache)
    remove_leftovers(out)
    return _train(config, dataset, out, content)


def _train(config: Config, dataset: Dataset, out: Path, resumed: dict[str, Any] | None) -> int:
    from scratchnn.train.loop import Stopped, Trainer
    from scratchnn.train.plot import plot_curves

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config, dataset, out)
    if resumed is None:
        write_json(out / "config.json", _description(config, trainer.data))
    else:
        trainer.resume(resumed)
        print(f"continuing {out} after step {trainer.progress.step} of {trainer.total_steps}")
    progress = trainer.progress
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"{config.model} of {config.layers} layers, {parameters:,} parameters; "
        f"{len(dataset.train):,} images of {len(dataset.classes)} classes; "
        f"{trainer.total_steps:,} steps; threads: {torch.get_num_threads()}",
        flush=True,
    )
    with StopRequest() as stop:
        try:
            trainer.fit(stop)
        except Stopped:
            print(
                f"stopped in epoch {progress.epoch + 1} after step {progress.step}, continue with: "
                f"scratchnn train --out {shlex.quote(str(out))} --resume"
            )
            return INTERRUPTED
    last = read_table(out / "epochs.csv")[-1]
    results = {name: last[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")}
    write_json(
        out / "summary.json",
        {
            "model": config.model,
            "layers": config.layers,
            "data": dataset.name,
            "parameters": parameters,
            "epochs": progress.epoch,
            "steps": progress.step,
            **results,
            "train_seconds": round(progress.seconds, 3),
            "images_per_second": round(trainer.speed(), 1),
        },
    )
    plot_curves(out, f"{config.model} of {config.layers} layers on {dataset.name}")
    print(f"test accuracy: {results['test_accuracy']:.2%}")
    print(f"files: {out} ({', '.join(_FILES)})")
    return 0


def _load_data(config: Config, cache: Path | None) -> Dataset:
    from tqdm import tqdm

    def progress(files: Iterable) -> Iterable:
        return tqdm(files, desc="decoding", unit="image", leave=False, disable=not sys.stderr.isatty())

    dataset = load(config.data, config.image_size, cache, progress)
    for note in dataset.notes:
        print(f"data: {note}", flush=True)
    return dataset


def _default_folder(config: Config) -> Path:
    data = Path(config.data).expanduser().resolve().name.split(".")[0]
    return Path("runs") / f"{config.model}-{data or 'images'}"


def _refuse_used(out: Path) -> None:
    """A run is never overwritten, not even a part of it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file")
    if any((out / name).exists() for name in _FILES):
        raise UserError(f"{out} already holds a run: continue it with --resume, or choose another --out")


def _description(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "units": Config.units(),
        "data": data,
        "versions": describe_versions(),
        "hardware": describe_hardware(),
    }


def _scalar(hint: Any) -> type:
    """``int`` for ``int | None``, and a plain type as it is."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint

"""Save a run between two steps and continue it as if it had never stopped.

A checkpoint holds tensors, numbers and strings only; ``torch.load(path, weights_only=True)`` reads it, so
that one from a stranger cannot run code.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import scratchnn
from scratchnn.data.atomic import replace_file
from scratchnn.errors import UserError

_FORMAT = 1
_PARTS = {"config", "data", "model", "optimizer", "progress", "random_state"}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs that are over, their test included.
        batch: batches of the current epoch that are done.
        step: optimizer steps done since the start.
        loss_sum: sum of the loss over the images of the current epoch.
        correct: images of the current epoch that were classified correctly while training.
        seen: images of the current epoch that were trained on.
        images: images trained on since the start.
        seconds: time spent in training steps since the start.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    images: int = 0
    seconds: float = 0.0


def save(
    path: Path,
    config: dict[str, Any],
    data: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Replace the checkpoint at ``path`` in one step, whatever happens meanwhile.

    Args:
        path: the file.
        config: the hyper-parameters.
        data: what identifies the images, see :func:`scratchnn.train.log.describe_data`.
        model, optimizer, progress: the state of the run.
    """
    content = {
        "format": _FORMAT,
        "version": scratchnn.__version__,
        "config": config,
        "data": data,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        # The order of the images and their augmentation need no state; dropout in a model would.
        "random_state": torch.get_rng_state(),
    }
    with replace_file(path) as file:
        torch.save(content, file)


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Args:
        path: of the file.

    Returns:
        its content, by name.

    Raises:
        UserError: when there is no such file, or it is damaged, or something else.
    """
    if not path.is_file():
        raise UserError(f"there is nothing to resume: {path} does not exist")
    damaged = UserError(f"{path} is damaged or not a checkpoint of scratchnn train")
    try:
        # torch.load does not compare checksums: a changed bit would pass for a weight.
        with zipfile.ZipFile(path) as container:
            if container.testzip() is not None:
                raise damaged
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise damaged from error
    if not isinstance(content, dict) or not {"format", "version"} <= content.keys():
        raise damaged
    if content["format"] != _FORMAT:
        raise UserError(f"{path} was written by scratchnn {content['version']}, which this one cannot read")
    if not content.keys() >= _PARTS:
        raise damaged
    return content


def restore(content: dict[str, Any], path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a loaded checkpoint into ``model`` and ``optimizer`` and return how far the run is.

    Args:
        content: as :func:`load` gives it.
        path: where that is from, for messages.
        model, optimizer: that get the state.

    Returns:
        how far the run was.

    Raises:
        UserError: when its weights are those of another model.
    """
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"the weights in {path} do not fit the model {content['config']['model']}") from error
    torch.set_rng_state(content["random_state"])
    return Progress(**content["progress"])

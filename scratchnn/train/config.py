"""Every hyper-parameter of a run in one place, with its unit, its default and its limits.

The command line is made from this table and the run keeps a copy of it, so that the three cannot disagree.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from scratchnn.errors import UserError
from scratchnn.models import names
from scratchnn.train.schedule import SCHEDULES

LAYERS = ("scratchnn", "torch")
MEMORY_FORMATS = ("channels_last", "contiguous")


def _option(default: Any, help: str, unit: str = "", choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "unit": unit, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What determines the weights that come out of a run, apart from the machine.

    Raises:
        UserError: for a value outside its limits, naming the option.
    """

    data: str = _option("auto", "cifar10, digits, a folder or archive of images, or auto", "name or path")
    image_size: int = _option(32, "height and width that images are scaled and cropped to", "pixels")
    model: str = _option("resnet20", "the network", choices=tuple(names()))
    layers: str = _option("scratchnn", "whose layers compute it", choices=LAYERS)
    memory_format: str = _option("channels_last", "order of the values in memory", choices=MEMORY_FORMATS)
    epochs: int = _option(5, "passes over the training images", "epochs")
    max_steps: int | None = _option(None, "stop after so many steps, if that is sooner", "steps")
    batch_size: int = _option(128, "images that each step averages the gradient of", "images")
    lr: float = _option(0.1, "largest learning rate", "weight per gradient")
    schedule: str = _option("cosine", "course of the learning rate after the warm-up", choices=SCHEDULES)
    warmup: float = _option(0.15, "share of the steps over which the learning rate rises", "fraction of steps")
    momentum: float = _option(0.9, "Nesterov momentum", "fraction kept per step")
    weight_decay: float = _option(5e-4, "pull of weights towards 0, not of norms and biases", "1 per lr and step")
    label_smoothing: float = _option(0.0, "share of each label spread over all classes", "probability")
    augment: bool = _option(True, "shift the training images at random, and mirror them where data allow it")
    seed: int = _option(0, "what the weights, the order of the images and the augmentation follow from")
    threads: int | None = _option(None, "threads that compute, the machine's cores unless given", "threads")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            choices = option.metadata["choices"]
            if choices and getattr(self, option.name) not in choices:
                self._refuse(option.name, f"must be one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "max_steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                self._refuse(name, "must be 1 or more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            self._refuse("lr", "must be a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            self._refuse("weight_decay", "must be a number from 0 on")
        for name in ("warmup", "momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                self._refuse(name, "must be from 0 on and below 1")
        if not 0 <= self.seed < 2**63:
            self._refuse("seed", "must be from 0 on and below 2^63")

    def _refuse(self, name: str, rule: str) -> None:
        raise UserError(f"{flag(name)} {rule}, got {getattr(self, name)}")

    @classmethod
    def units(cls) -> dict[str, str]:
        """The unit of each hyper-parameter that has one."""
        return {option.name: option.metadata["unit"] for option in dataclasses.fields(cls) if option.metadata["unit"]}

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of steps that the run has."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


def flag(name: str) -> str:
    """The command-line option of a hyper-parameter.

    Args:
        name: of the hyper-parameter.

    Returns:
        the option.

    Example:
        >>> from scratchnn.train.config import flag
        >>> flag("batch_size")
        '--batch-size'
    """
    return "--" + name.replace("_", "-")

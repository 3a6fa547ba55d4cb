"""What ``MODEL`` on the command line means: a model of torchvision or timm, or a function of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.errors import UserError
from scratchnn.targets import zoo
from scratchnn.targets.zoo import Inputs
from scratchnn.testing.nested import map_tensors

__all__ = ["MODEL_HELP", "Target", "build", "parse_size"]

MODEL_HELP = "torchvision:NAME, timm:NAME, path/to/file.py:factory or module:factory"

SIZE, BATCH = (3, 64, 64), 4  # of images, for models that nothing is known of


@dataclass
class Target:
    """A model on torch's layers, and what to call it with.

    Attributes:
        name: as it was asked for.
        model: the model.
        inputs: its arguments.
        new: whether its weights are those of its constructor.
    """

    name: str
    model: Module
    inputs: Inputs
    new: bool = False


def build(
    name: str,
    *,
    size: tuple[int, ...] | None = None,
    batch: int | None = None,
    weights: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Target:
    """Build the model that ``name`` stands for.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``.
        size: of one input without its batch; None for one that suits the model.
        batch: how many inputs; None likewise.
        weights: those to load, for torchvision's and timm's models; None for new ones.
        dtype: of the model and its inputs.

    Returns:
        the model and its inputs.

    Raises:
        UserError: where there is no such model, or it refuses the inputs.
    """
    source, _, rest = name.rpartition(":")
    if not source or not rest:
        raise UserError(f"{name!r} names no model: give {MODEL_HELP}")
    torch.manual_seed(0)
    if source == "torchvision":
        model, inputs = zoo.load(rest, size, batch, weights)
    elif source == "timm":
        model, inputs = _from_timm(rest, size, batch, weights)
    else:
        if weights is not None:
            raise UserError(f"--weights is for torchvision and timm: load those of {name} in {rest}()")
        model, inputs = _from_factory(source, rest, size, batch)
    new = source in ("torchvision", "timm") and weights is None
    return Target(name, model.to(dtype), _cast(inputs, dtype), new)


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """The size of an input as given to ``--input-size``: ``C,H,W``, or one number for square images of three channels.

    Args:
        text: what was given; None where nothing was.

    Returns:
        the size, None likewise.

    Raises:
        UserError: for anything but whole numbers above 0.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"--input-size must be whole numbers above 0, as 3,64,64, got {text!r}")
    return (3, *numbers * 2) if len(numbers) == 1 else numbers


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def casting(draw: Any) -> Any:
        return lambda seed: map_tensors(cast, draw(seed))

    return Inputs(casting(inputs.evaluation), casting(inputs.training), inputs.loss)


def images(size: tuple[int, ...] | None, batch: int | None) -> Inputs:
    """Random images as the only argument."""
    shape = (batch or BATCH, *(size or SIZE))

    def draw(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return Inputs(draw, draw)


def _from_timm(
    name: str, size: tuple[int, ...] | None, batch: int | None, weights: str | None
) -> tuple[Module, Inputs]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f"timm:{name} needs timm, install it with: pip install timm") from error
    try:
        model = timm.create_model(name, pretrained=weights is not None)
    except RuntimeError as error:
        raise UserError(f"timm {timm.__version__} cannot build {name}: {error}") from error
    return model, images(size or model.pretrained_cfg.get("input_size"), batch)


def _from_factory(source: str, factory: str, size: tuple[int, ...] | None, batch: int | None) -> tuple[Module, Inputs]:
    """The model that a function makes, and the inputs if it gives these as well."""
    module = _import(source)
    function = getattr(module, factory, None)
    if not callable(function):
        raise UserError(f"{source} has no function {factory}")
    try:
        made = function()
    except Exception as error:
        raise UserError(f"{source}:{factory}() raises {type(error).__name__}: {error}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, Module):
        raise UserError(
            f"{source}:{factory}() must return a torch.nn.Module, or one and its inputs, not {type(model).__name__}"
        )
    if inputs is None:
        return model, images(size, batch)
    if size is not None or batch is not None:
        raise UserError(f"{source}:{factory}() brings its own inputs: leave --input-size and --batch out")
    draw = inputs if callable(inputs) and not isinstance(inputs, Tensor) else lambda seed: inputs
    return model, Inputs(draw, draw)


def _import(source: str) -> ModuleType:
    """The module that a path or a dotted name stands for."""
    path = Path(source)
    if path.suffix != ".py":
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise UserError(f"there is no module {error.name} to import for {source}") from error
    if not path.is_file():
        raise UserError(f"there is no file {source}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle and dataclasses look for its classes
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{source} raises {type(error).__name__}: {error}") from error
    return module

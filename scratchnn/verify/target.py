"""The model that a comparison is about: found by its name, with weights that say something, and tried once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from scratchnn.errors import UserError
from scratchnn.targets.target import Target, build
from scratchnn.targets.zoo import Inputs
from scratchnn.testing.models import call_arguments
from scratchnn.verify.prepare import prepare

__all__ = ["load"]


def load(name: str, **options: Any) -> Target:
    """Build the model that ``name`` stands for, ready to be compared.

    Args:
        name, options: as for :func:`scratchnn.targets.target.build`.

    Returns:
        the model and its inputs.

    Raises:
        UserError: where there is no such model, or it cannot be called with such inputs.
    """
    target = build(name, **options)
    try:
        if target.new:
            args, kwargs = call_arguments(target.inputs.training, 0)
            prepare(target.model, lambda model: model(*args, **kwargs))
        _try(target.model, target.inputs)
    except Exception as error:
        raise UserError(f"{name} cannot be called with such inputs: {type(error).__name__}: {error}") from error
    return target


def _try(model: Module, inputs: Inputs) -> None:
    """Call the model once as in evaluation, which changes nothing of it."""
    modes = [(module, module.training) for module in model.modules()]
    args, kwargs = call_arguments(inputs.evaluation, 0)
    with torch.no_grad():
        model.eval()(*args, **kwargs)
    for module, training in modes:
        module.training = training

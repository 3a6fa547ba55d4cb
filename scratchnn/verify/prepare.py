"""New weights that a comparison can learn something from.

A model fresh from its constructor has biases of zero, scales of one and statistics that are nobody's: a layer that
forgets its bias would pass, and in evaluation the activations of a deep network grow without bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["prepare"]


def prepare(model: Module, run: Callable[[Module], Any], seed: int = 0) -> None:
    """Draw anew what is constant among the parameters, and let the batch norms see a batch, in place.

    Args:
        model: with weights from its constructor.
        run: calls the model with a batch, as in training.
        seed: of the random numbers.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and (parameter == parameter.flatten()[0]).all():
                _vary(parameter)
        norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        before = [(layer, layer.momentum) for layer in norms], [(layer, layer.training) for layer in model.modules()]
        for layer in norms:
            layer.momentum = 1.0  # the batch's statistics themselves
        run(model.train())
        for layer, momentum in before[0]:
            layer.momentum = momentum
        for layer, training in before[1]:
            layer.training = training


def _vary(parameter: torch.Tensor) -> None:
    constant = parameter.flatten()[0].item()
    if constant != 0:
        parameter.mul_(torch.rand_like(parameter) + 0.5)
    elif parameter.dim() < 2:
        parameter.normal_(std=0.1)
    else:
        parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))

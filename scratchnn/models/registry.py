"""The models by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from scratchnn.models import cifar, vgg

_MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    function.__name__: function
    for function in (
        cifar.resnet8,
        cifar.resnet20,
        cifar.resnet32,
        cifar.resnet44,
        cifar.resnet56,
        cifar.resnet110,
        cifar.resnet18,
        vgg.vgg8,
    )
}


def names() -> list[str]:
    """The names that :func:`build` knows.

    Returns:
        them, as a new list.
    """
    return list(_MODELS)


def build(name: str, num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> torch.nn.Module:
    """Build a model with fresh weights, drawn from torch's global generator.

    Args:
        name: one of :func:`names`.
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> from scratchnn import models
        >>> models.build("vgg8", num_classes=5)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}, choose from {', '.join(names())}")
    return _MODELS[name](num_classes=num_classes, in_channels=in_channels, nn=nn)

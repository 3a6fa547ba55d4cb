"""``torch.nn``'s names, with scratchnn's layers in place of torch's where there is one.

``import scratchnn.nn as nn`` makes an existing model file run on scratchnn: every name that is not ours falls
through to ``torch.nn``. :func:`implemented` lists ours. Each layer is a subclass of the torch layer it stands
for, so ``isinstance``, ``repr``, ``state_dict``, initial weights and pickles are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch.nn as _torch_nn

from scratchnn.nn.activation import ReLU
from scratchnn.nn.conv import Conv2d
from scratchnn.nn.linear import Linear
from scratchnn.nn.norm import BatchNorm2d
from scratchnn.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "Linear",
    "MaxPool2d",
    "ReLU",
    "implemented",
]


def implemented() -> dict[str, type[_torch_nn.Module]]:
    """The layers computed by scratchnn, by name."""
    return {name: globals()[name] for name in __all__ if name != "implemented"}


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})

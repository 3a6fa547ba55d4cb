"""``torch.nn``'s names, with scratchnn's layers in place of torch's where there is one.

``import scratchnn.nn as nn`` makes an existing model file run on scratchnn: every name that is not ours falls
through to ``torch.nn``; :func:`implemented` lists ours, and ``nn.functional`` is :mod:`scratchnn.functional`. Each
layer but ``SyncBatchNorm`` is a subclass of the torch layer it stands for, so ``isinstance``, ``repr``,
``state_dict``, initial weights and pickles are torch's own.
"""

from __future__ import annotations

import sys as _sys
from typing import Any

import torch.nn as _torch_nn

from scratchnn import functional
from scratchnn.nn import activation, conv, linear, norm, pool
from scratchnn.nn.activation import *
from scratchnn.nn.conv import *
from scratchnn.nn.linear import *
from scratchnn.nn.norm import *
from scratchnn.nn.pool import *

# As in torch, `nn.functional` and `import scratchnn.nn.functional as F` lead to the functions.
_sys.modules[f"{__name__}.functional"] = functional

_FAMILIES = (conv, pool, norm, linear, activation)

__all__ = ["implemented"]
for _family in _FAMILIES:
    __all__ += _family.__all__


def implemented() -> dict[str, type[_torch_nn.Module]]:
    """The layers computed by scratchnn, by name.

    Returns:
        name and class of each.

    Example:
        >>> scratchnn.nn.implemented()["Conv2d"] is scratchnn.nn.Conv2d
        True
    """
    return {name: getattr(family, name) for family in _FAMILIES for name in family.__all__}


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})

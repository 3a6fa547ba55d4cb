"""What the operators that write into their arguments become in a program without writes.

``torch.compile`` and ``torch.export`` trace such programs: a write is replaced by a new tensor, which is copied over
the old one where the program ends. Of an operator it knows nothing about, torch makes a higher-order operator that
names it (``auto_functionalized``), where no decomposition reaches it. These are the same steps as operators of their
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scratchnn.ops._elementwise import ROWS

_library = torch.library.Library("scratchnn", "IMPL")


def _activation(name: str) -> Callable[..., None]:
    operator = getattr(torch.ops.scratchnn, name).default

    def write(input: Tensor, *parameters: float) -> None:
        input.copy_(operator(input, *parameters))

    return write


def batch_norm_update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, count: int
) -> None:
    """``running = (1 - momentum) running + momentum batch``, with the unbiased variance; in float64, rounded once."""
    if count == 0:  # nothing is learnt from an empty batch
        return
    unbiased = count / (count - 1) if count > 1 else math.inf
    for running, batch, factor in ((running_mean, mean, 1), (running_var, var, unbiased)):
        running.copy_(torch.add((1 - momentum) * running.double(), batch, alpha=momentum * factor))


for _row in ROWS:
    if _row.in_place is not None:
        _library.impl(f"{_row.name}_", _activation(_row.name), "Functionalize")
_library.impl("batch_norm_update_", batch_norm_update, "Functionalize")

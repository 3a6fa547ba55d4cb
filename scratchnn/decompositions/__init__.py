"""Every operator of scratchnn in operators of torch: for graphs that are to run where scratchnn is not.

One module for each family. The function hides the package of the same name: it is ``scratchnn.decompositions()``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch._ops import OpOverload

from scratchnn.decompositions._table import TABLE

__all__ = ["decompositions"]

FAMILIES = ("activation", "conv", "linear", "norm", "pool")


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """The decomposition of every operator ``torch.ops.scratchnn.*``, forward and backward, into ATen operators.

    The numbers are those of the operators but for rounding; shapes, types and orders of memory are the same. The random
    slopes of ``RReLU`` follow from the seed as before.

    Returns:
        a new table for :meth:`torch.export.ExportedProgram.run_decompositions`, ``make_fx`` or AOTAutograd. Update
        ``torch.export.default_decompositions()`` with it to go on to the core ATen operators.

    Example::

        program = torch.export.export(model, inputs).run_decompositions(scratchnn.decompositions())
        torch.export.save(program, "model.pt2")
    """
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")  # enters its operators into the table; only now, it takes a while
    return dict(TABLE)

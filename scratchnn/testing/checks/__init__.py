"""The checks, in the order of the report.

A check gets a :class:`~scratchnn.testing.experiment.Trial` and yields findings. To add one, write a function under
``@check`` in the file it belongs to; its docstring is its description.
"""

from scratchnn.testing.checks import numbers, state, calls, bits  # noqa: F401, I001 - registers them, in this order
from scratchnn.testing.checks.registry import CHECKS, Check

__all__ = ["CHECKS", "Check"]

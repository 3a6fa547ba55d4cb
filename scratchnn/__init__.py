"""The layers of convolutional networks, from scratch: a drop-in for ``torch.nn`` in readable C++.

Start with ``import scratchnn.nn as nn``, or turn an existing model over with :func:`convert`.
"""

from scratchnn import backends, functional, nn
from scratchnn._version import __version__
from scratchnn.convert import convert
from scratchnn.decompositions import decompositions
from scratchnn.memory import keep_memory
from scratchnn.ops import _flops as _flops
from scratchnn.ops import _functionalize as _functionalize
from scratchnn.ops._common import kernels

__all__ = ["__version__", "backends", "convert", "decompositions", "functional", "keep_memory", "kernels", "nn"]

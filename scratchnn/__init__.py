"""The layers of convolutional networks, from scratch: a drop-in for ``torch.nn`` in readable C++.

Start with ``import scratchnn.nn as nn``, turn an existing model over with :func:`convert` (and back with
:func:`restore`), or run it as it is inside of :class:`override`.
"""

from scratchnn import backends, functional, nn, tracing
from scratchnn._version import __version__
from scratchnn.convert import convert
from scratchnn.decompositions import decompositions
from scratchnn.explain import explain
from scratchnn.fuse import fuse, unfuse
from scratchnn.memory import keep_memory
from scratchnn.ops import _flops as _flops
from scratchnn.ops import _functionalize as _functionalize
from scratchnn.ops._common import kernels
from scratchnn.override import override
from scratchnn.restore import restore
from scratchnn.summary import summary

__all__ = [
    "__version__",
    "backends",
    "convert",
    "decompositions",
    "explain",
    "functional",
    "fuse",
    "keep_memory",
    "kernels",
    "nn",
    "override",
    "restore",
    "summary",
    "unfuse",
]

tracing.install()

"""The layers of convolutional networks, from scratch, in C++ and PyTorch."""

from scratchnn.memory import keep_memory

from scratchnn._version import __version__

__all__ = ["keep_memory", "__version__"]

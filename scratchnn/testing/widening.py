"""Running a model in float64 that was written for a narrower type: the truth that its own results are held against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scratchnn.testing.nested import map_tensors, named_tensors

__all__ = ["widening"]

_NARROW = (torch.float32, torch.float16, torch.bfloat16)

_DRAWS = (
    torch.ops.aten.bernoulli,
    torch.ops.aten.bernoulli_,
    torch.ops.aten.exponential_,
    torch.ops.aten.normal,
    torch.ops.aten.normal_,
    torch.ops.aten.rand,
    torch.ops.aten.rand_like,
    torch.ops.aten.randn,
    torch.ops.aten.randn_like,
    torch.ops.aten.uniform_,
)


@contextmanager
def widening(dtype: torch.dtype) -> Iterator[None]:
    """Inside of the block what would be float32, or narrower, is float64, and does not say so.

    - Who asks for a type by name (``x.float()``, ``torch.zeros(3)``) gets float64.
    - Who asks a tensor of float64 for its type is told the narrower one, so that he does as he does with that.
    - From the same seed torch draws other random numbers in float64, and the dropout of a model would be another one:
      they are drawn in the narrower type, and widened.

    Args:
        dtype: the type that the model was written for.
    """
    with _Told(dtype), _Widened(dtype):
        yield


class _Told(TorchFunctionMode):
    """What tensors say when they are asked for their type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        asked = getattr(function, "__self__", None) is Tensor.dtype
        return self.dtype if asked and result == torch.float64 else result


class _Widened(TorchDispatchMode):
    """What operators make, and draw."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function.overloadpacket in _DRAWS:
            return self._draw(function, args, kwargs)
        if kwargs.get("dtype") in _NARROW:
            kwargs["dtype"] = torch.float64
        result = function(*args, **kwargs)
        made = isinstance(result, Tensor) and not named_tensors((args, kwargs), "")  # of nothing, in the default type
        return result.double() if made and result.dtype in _NARROW else result

    def _draw(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        narrow_args, narrow_kwargs = map_tensors(self._narrow, (args, kwargs))
        if kwargs.get("dtype") == torch.float64:
            narrow_kwargs["dtype"] = self.dtype
        drawn = function(*narrow_args, **narrow_kwargs)
        in_place = function.overloadpacket.__name__.endswith("_")
        return args[0].copy_(drawn) if in_place else drawn.double()

    def _narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype == torch.float64 else tensor

"""Running a model in float64 that was written for a narrower type: the truth that its own results are held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scratchnn.testing.trees import map_tensors, tensors

__all__ = ["Widening"]

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


class Widening(TorchDispatchMode):
    """Inside of it, what would be float32, or narrower, is float64.

    - A model may ask for a type by name (``x.float()``, ``torch.zeros(3)``): it gets float64.
    - From the same seed torch draws other random numbers in float64, and the dropout of a model would be another one:
      they are drawn in the narrower type, and widened.

    Args:
        dtype: the type that the model was written for.
    """

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
        made = isinstance(result, Tensor) and not tensors((args, kwargs))  # of nothing, in the default type
        return result.double() if made and result.dtype in _NARROW else result

    def _draw(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        narrow_args, narrow_kwargs = map_tensors(self._narrow, (args, kwargs))
        if kwargs.get("dtype") == torch.float64:
            narrow_kwargs["dtype"] = self.dtype
        drawn = function(*narrow_args, **narrow_kwargs)
        in_place = function.overloadpacket.__name__.endswith("_")
        return args[0].copy_(drawn) if in_place else drawn.double()

    def _narrow(self, tensor: Tensor, path: str) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype == torch.float64 else tensor

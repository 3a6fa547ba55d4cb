"""Tensors inside of what layers take and give: lists, tuples, dicts, and objects that hold some as attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

__all__ = ["map_tensors", "tensors"]


def tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor in a nested value by its path, as ``[0]['boxes']``; the path of a bare tensor is empty."""
    found: dict[str, Tensor] = {}

    def take(tensor: Tensor, path: str) -> Tensor:
        found[path] = tensor
        return tensor

    map_tensors(take, value)
    return found


def map_tensors(function: Callable[[Tensor, str], Any], value: Any, path: str = "") -> Any:
    """The nested value with ``function(tensor, path)`` in place of each tensor; all else is the same object.

    Objects of other classes are looked into where they hold tensors, or lists of them, as attributes: torchvision's
    ``ImageList`` does.
    """
    if isinstance(value, Tensor):
        return function(value, path)
    if isinstance(value, Mapping):
        items = {key: map_tensors(function, item, f"{path}[{key!r}]") for key, item in value.items()}
        rebuilt = copy.copy(value)
        rebuilt.update(items)
        return rebuilt
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item, f"{path}[{index}]") for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    attributes = _attributes(value)
    if attributes:
        rebuilt = copy.copy(value)
        for name, item in attributes.items():
            rebuilt.__dict__[name] = map_tensors(function, item, f"{path}.{name}")
        return rebuilt
    return value


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that are tensors or plain collections with tensors in them."""
    if isinstance(value, (Module, type)) or not hasattr(value, "__dict__"):
        return {}
    return {name: item for name, item in vars(value).items() if _holds_tensors(item)}


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)

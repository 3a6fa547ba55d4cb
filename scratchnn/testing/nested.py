"""Tensors inside of tuples, lists, dictionaries and objects: what layers take and give, with a name for each.

Of objects the dataclasses are walked over, and those that hold tensors, or collections of them, as attributes, as
torchvision's ``ImageList`` does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

__all__ = ["leaves", "map_tensors", "named_tensors"]


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Whatever is no container, named by the path that leads to it: ``output[0]``, ``output['boxes']``."""
    if isinstance(value, Mapping):
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = [(f"{name}.{field}", getattr(value, field)) for field in value._fields]
    elif isinstance(value, (tuple, list)):
        parts = [(f"{name}[{position}]", part) for position, part in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{name}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif attributes := _attributes(value):
        parts = [(f"{name}.{attribute}", part) for attribute, part in attributes.items()]
    else:
        yield name, value
        return
    for part_name, part in parts:
        yield from leaves(part, part_name)


def named_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors among the :func:`leaves`."""
    return {path: leaf for path, leaf in leaves(value, name) if isinstance(leaf, Tensor)}


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same collections and objects with ``function`` of every tensor in its place."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        rebuilt = copy.copy(value)
        rebuilt.update({key: map_tensors(function, part) for key, part in value.items()})
        return rebuilt
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, part) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, part) for part in value)
    if attributes := _attributes(value):
        rebuilt = copy.copy(value)
        vars(rebuilt).update({name: map_tensors(function, part) for name, part in attributes.items()})
        return rebuilt
    return value


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that are tensors or collections with tensors in them."""
    if isinstance(value, (Tensor, Module, type)) or not hasattr(value, "__dict__"):
        return {}
    return {name: part for name, part in vars(value).items() if _holds_tensors(part)}


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)

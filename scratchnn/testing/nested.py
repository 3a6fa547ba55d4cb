"""Tensors inside of tuples, lists and dictionaries: what layers take and give, walked over with a name for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

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
    else:
        yield name, value
        return
    for part_name, part in parts:
        yield from leaves(part, part_name)


def named_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors among the :func:`leaves`."""
    return {path: leaf for path, leaf in leaves(value, name) if isinstance(leaf, Tensor)}


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same tuples, lists and dictionaries with ``function`` of every tensor in its place."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, part) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, part) for part in value)
    return value

"""Choosing layers of a model: what ``include`` and ``exclude`` may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch.nn import Module

from scratchnn.classes import TORCHS

__all__ = ["reasons_not_chosen", "selector"]


def reasons_not_chosen(
    model: Module, include: Any, exclude: Any, is_layer: Callable[[Module], bool], call: str
) -> dict[str, str]:
    """The names of the layers of ``model`` that are not to be changed, and which of the two arguments says so.

    Args:
        model: where the layers are.
        include, exclude: as for :func:`selector`; nothing for all, and for none.
        is_layer: tells which modules are in question.
        call: the function to tell of in errors.

    Raises:
        TypeError, ValueError: as :func:`selector`.
    """
    included = selector(model, Module if include is None else include, f"{call}: argument 'include'")
    excluded = selector(model, () if exclude is None else exclude, f"{call}: argument 'exclude'")
    layers = {name: module for name, module in model.named_modules() if is_layer(module)}
    reasons = {name: "excluded" for name, module in layers.items() if excluded(name, module)}
    return reasons | {name: "not included" for name, module in layers.items() if not included(name, module)}


def selector(model: Module, chosen: Any, call: str) -> Callable[[str, Module], bool]:
    """Tells of a layer of ``model``, by its name and itself, whether it is among those chosen.

    Args:
        model: where the layers are.
        chosen: one of the following, or a list of them.

            - a name as in ``model.named_modules()``, or a pattern of names (``"layer1.*.conv?"``): these, and all
              layers within;
            - a class, torch's, ours or any other: layers of this class or derived ones, and all layers within;
            - a function of ``(name, module)``: layers for which it answers true.
        call: the function and argument to tell of in errors.

    Raises:
        TypeError: for anything else.
        ValueError: for a name that the model does not have, or a pattern that none matches: a slip of the pen would
            choose other layers than meant, and not be noticed.
    """
    paths = list(model.named_modules(remove_duplicate=False))  # a shared layer goes by each of its names
    names: set[str] = set()
    functions = []
    for item in chosen if isinstance(chosen, (list, tuple, set, frozenset)) else (chosen,):
        if isinstance(item, str):
            found = {name for name, _ in paths if fnmatchcase(name, item)}
            if not found:
                raise ValueError(f"{call}: the model has no layer {item!r}")
            names |= found
        elif isinstance(item, type) and issubclass(item, Module):
            kind = TORCHS.get(item, item)  # ours derive from torch's: either stands for both
            names |= {name for name, module in paths if isinstance(module, kind)}
        elif callable(item) and not isinstance(item, (type, Module)):
            functions.append(item)
        else:
            raise TypeError(
                f"{call} must be made of names, classes of layers and functions of (name, module), but got {item!r}"
            )
    within = {id(module) for name, module in paths if not names.isdisjoint(_and_above(name))}
    return lambda name, module: id(module) in within or any(function(name, module) for function in functions)


def _and_above(name: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a`` and the model itself."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""

"""The way back: scratchnn's layers become torch's, in place.

For tools that look at a layer's class (quantisation, export to other formats) and for files to be read where scratchnn
is not installed. As in :mod:`scratchnn.convert`, of a layer nothing changes but its class.

The function hides the module of the same name: it is ``scratchnn.restore(model)``, and whatever else is here
is imported with ``from scratchnn.restore import Restoration``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module

from scratchnn import functional, nn
from scratchnn.classes import beneath, put_beneath, torchs_for
from scratchnn.report import Left, summary
from scratchnn.selection import reasons_not_chosen

__all__ = ["Restoration", "restore"]


@dataclass
class Restoration:
    """What :func:`restore` did, layer by layer. Printed, it is a summary.

    Attributes:
        model: the model that was given, itself.
        restored: the name of each layer that torch computes again, and of its class.
        left: the name of each layer that is still scratchnn's, its class and the reason.
    """

    model: Module = field(repr=False)
    restored: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)

    def __str__(self) -> str:
        return summary("restored", self.restored, self.left)


def restore(model: Module, *, include: Any = None, exclude: Any = None, verbose: bool = False) -> Restoration:
    """Give every layer of scratchnn in ``model`` back to torch, in place, whether it was converted or built so.

    Each becomes a layer of the torch class that it stands for; one that was converted, of the class that it had.
    ``LayerNorm2d`` becomes torchvision's, which has the same parameters and results. In a graph of ``torch.fx`` the
    functions of scratchnn become torch's as well. Left are layers that torch lacks (``GlobalAvgPool``, ``Maxout``), and
    classes that were derived from scratchnn's by whoever wrote them.

    Args:
        model: any module, a single layer included.
        include, exclude: the layers to restore, and to leave: as for :func:`scratchnn.convert`.
        verbose: print the summary.

    Returns:
        what was restored and what was left, with reasons; its ``model`` is the one given. If nothing was left, the
        model can be saved whole, and loaded without scratchnn.

    Raises:
        TypeError: where ``model`` is not a module, or ``include`` or ``exclude`` is of another type.
        ValueError: where a name or pattern in them matches nothing in the model, which is then as it was.

    Example:
        >>> model = scratchnn.nn.Sequential(scratchnn.nn.Conv2d(3, 8, 3), scratchnn.nn.ReLU())
        >>> print(scratchnn.restore(model))
        2 of 2 layers restored
          1 Conv2d
          1 ReLU
    """
    if not isinstance(model, Module):
        raise TypeError(f"restore(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    not_chosen = reasons_not_chosen(model, include, exclude, _is_ours, "restore()")
    restoration = Restoration(model)
    for name, module in model.named_modules():
        if not _is_ours(module):
            continue
        before = type(module).__name__
        reason = not_chosen.get(name) or _turn_back(module)
        if reason is None:
            restoration.restored[name] = before
        else:
            restoration.left[name] = Left(before, reason)
    if verbose:
        print(restoration)
    return restoration


def _is_ours(module: Module) -> bool:
    if isinstance(module, torch.fx.GraphModule):
        return any(_is_ours_called(node) for node in module.graph.nodes)
    return isinstance(module, tuple(nn.implemented().values()))


def _is_ours_called(node: torch.fx.Node) -> bool:
    """Whether a node of a graph calls a function or an operator of scratchnn."""
    names = (getattr(node.target, "__module__", None) or "").split(".")
    return node.op == "call_function" and (names[0] == "scratchnn" or names[:3] == ["torch", "_ops", "scratchnn"])


def _turn_back(module: Module) -> str | None:
    """Change the layer's class; gives the reason where torch has none for it."""
    if isinstance(module, torch.fx.GraphModule):
        return _rewrite(module)
    cls = beneath(type(module))
    theirs = torchs_for(cls)
    if theirs is not None:
        put_beneath(module, theirs)
        return None
    if cls in nn.implemented().values():
        return "torch has no such layer"
    ours = next(base for base in cls.__mro__ if base in nn.implemented().values())
    return f"its class was derived from scratchnn's {ours.__name__}"


def _rewrite(module: torch.fx.GraphModule) -> str | None:
    """Put torch's functions into a graph for ours of the same name; gives the reason where there is none."""
    theirs = {
        getattr(functional, name): getattr(torch.nn.functional, name)
        for name in functional.__all__
        if hasattr(torch.nn.functional, name)
    }
    for node in module.graph.nodes:
        if _is_ours_called(node) and node.target in theirs:
            node.target = theirs[node.target]
            node.meta.pop("is_wrapped", None)  # the mark of functions that torch.fx was told of
    module.recompile()
    rest = sorted({node.target.__name__ for node in module.graph.nodes if _is_ours_called(node)})
    return f"its graph calls {', '.join(rest)} of scratchnn" if rest else None

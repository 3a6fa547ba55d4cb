"""Joining the layers of a model's blocks: convolution, batch norm, addition and activation as one operation.

A block is fused by giving it another class, as a layer is converted (:mod:`scratchnn.convert`). Its layers, parameters,
buffers and their names are what they were. :func:`scratchnn.unfuse` is the way back.

The function hides the module of the same name: it is ``scratchnn.fuse(model)``, and whatever else is here is imported
with ``from scratchnn.fuse import Fusion``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.nn import Module

from scratchnn.classes import beneath, put_beneath
from scratchnn.fusion.block import Plan, class_for, class_of
from scratchnn.fusion.graph import Untraceable, has_parts
from scratchnn.fusion.parts import looks_like_conv
from scratchnn.report import Left, summary
from scratchnn.selection import reasons_not_chosen

__all__ = ["Fusion", "Left", "Unfusion", "fuse", "unfuse"]


@dataclass
class Fusion:
    """What :func:`fuse` did. Printed, it is a summary.

    Attributes:
        model: the model that was given, itself.
        fused: the name of each convolution that is computed together with what follows it, and the names of all that
            is joined: ``{"layer1.0.conv2": "Conv2d + BatchNorm2d + add + ReLU"}``.
        left: the name of each convolution in a block with batch norm that stayed by itself, its class and the reason;
            and of each such block that could not be fused at all.
    """

    model: Module = field(repr=False)
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)

    def __str__(self) -> str:
        return summary("fused", self.fused, self.left)


@dataclass
class Unfusion:
    """What :func:`unfuse` did. Printed, it is a summary.

    Attributes:
        model: the model that was given, itself.
        unfused: the name of each block whose layers are computed one by one again, and of its class.
    """

    model: Module = field(repr=False)
    unfused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return summary("unfused", self.unfused, {})


def fuse(
    model: Module, *, include: Any = None, exclude: Any = None, recompute: bool = True, verbose: bool = False
) -> Fusion:
    """Join convolution, batch norm, and an addition and an activation after them, in place.

    In training such layers are one operation, which keeps for the backward pass one tensor where they kept two or
    three: see :mod:`scratchnn.ops.fused`. In evaluation, batch norm goes into the weights of the convolution, at each
    call. Numbers, parameters, buffers and ``state_dict`` are those of the model as it was.

    Layers of torch are joined as well as scratchnn's, and are computed by scratchnn then; what is not joined stays
    what it is. Joined are layers that a module has among its direct parts, or in a ``ModuleList``, and whose outputs
    nothing but the next one takes.

    Args:
        model: any module.
        include: the convolutions to join, all if not given: as for :func:`scratchnn.convert`.
        exclude: the convolutions to leave, in the same forms.
        recompute: compute outputs again in the backward pass where that needs no convolution, rather than keep them:
            less memory, for some passes over them.
        verbose: print the summary.

    Returns:
        what was fused and what was left, with reasons; its ``model`` is the one given.

    Raises:
        TypeError: where ``model`` is not a module, or ``include`` or ``exclude`` is of another type.
        ValueError: where a name or pattern in them matches nothing in the model, which is then as it was.

    Example:
        >>> nn = scratchnn.nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(scratchnn.fuse(model))
        1 of 1 layers fused
          1 Conv2d + BatchNorm2d + ReLU
    """
    if not isinstance(model, Module):
        raise TypeError(f"fuse(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    not_chosen = reasons_not_chosen(model, include, exclude, looks_like_conv, "fuse()")
    fusion = Fusion(model)
    for name, module in model.named_modules():
        if not has_parts(module):
            continue
        prefix = f"{name}." if name else ""
        if getattr(module, "_fusion", None) is not None:
            fusion.left[name] = Left(type(module).__name__, "already fused")
            continue
        chosen = {path[len(prefix) :]: why for path, why in not_chosen.items() if path.startswith(prefix)}
        plan = Plan(chosen, recompute)
        reason = _fuse_block(module, plan)
        if reason is not None:
            fusion.left[name] = Left(type(module).__name__, reason)
            continue
        for version in plan.versions:
            for path, label in version.joins.items():
                fusion.fused[prefix + path] = label
            for path, why in version.left.items():
                fusion.left[prefix + path] = Left(type(module.get_submodule(path)).__name__, why)
    if verbose:
        print(fusion)
    return fusion


def _fuse_block(module: Module, plan: Plan) -> str | None:
    """Change the block's class; gives the reason where that cannot be done."""
    try:
        plan.trace(module)
        if any(version.joins for version in plan.versions):
            cls = beneath(type(module))
            put_beneath(module, class_for(class_of(cls) or cls))
            module._fusion = plan
    except Untraceable as reason:
        return str(reason)
    except TypeError as error:
        return f"its class cannot be changed: {error}"
    return None


def unfuse(model: Module, *, verbose: bool = False) -> Unfusion:
    """Have the layers of every fused block in ``model`` computed one by one again, in place.

    Args:
        model: any module.
        verbose: print the summary.

    Returns:
        the blocks that were fused; its ``model`` is the one given.

    Raises:
        TypeError: where ``model`` is not a module.

    Example:
        >>> nn = scratchnn.nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> _ = scratchnn.fuse(model)
        >>> print(scratchnn.unfuse(model))
        1 of 1 layers unfused
          1 Sequential
    """
    if not isinstance(model, Module):
        raise TypeError(f"unfuse(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    unfusion = Unfusion(model)
    for name, module in model.named_modules():
        cls = class_of(beneath(type(module)))
        if cls is not None:
            put_beneath(module, cls)
            vars(module).pop("_fusion", None)
            unfusion.unfused[name] = cls.__name__
    if verbose:
        print(unfusion)
    return unfusion

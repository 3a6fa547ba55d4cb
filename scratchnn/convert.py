"""Turning an existing model over: torch's layers become scratchnn's, in place.

Our layers are subclasses of torch's and add no state, so a layer is turned over by giving it another class
(:mod:`scratchnn.classes`). All it holds stays as it is: parameters and buffers (an optimizer keeps its references, tied
weights stay tied), hooks, names, training mode, and the identity of the layer itself. :func:`scratchnn.restore` is the
way back.

The function hides the module of the same name: it is ``scratchnn.convert(model)``, and whatever else is here
is imported with ``from scratchnn.convert import Conversion``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from scratchnn import nn
from scratchnn.classes import beneath, kind_of, methods_of, ours_for, put_beneath, stray
from scratchnn.report import Left, summary
from scratchnn.selection import reasons_not_chosen

__all__ = ["Conversion", "Left", "convert"]


@dataclass
class Conversion:
    """What :func:`convert` did, layer by layer. Printed, it is a summary.

    Attributes:
        model: the model that was given, itself.
        converted: the name of each layer that scratchnn now computes, and of its class.
        left: the name of each layer that stayed as it was, its class and the reason.
        missed: those of ``left`` that scratchnn has a layer for, and that were to be converted: empty where nothing of
            these families remains with torch. ``assert not conversion.missed, conversion`` makes sure.
    """

    model: Module = field(repr=False)
    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    missed: dict[str, Left] = field(default_factory=dict)

    def __str__(self) -> str:
        return summary("converted", self.converted, self.left)


def convert(model: Module, *, include: Any = None, exclude: Any = None, verbose: bool = False) -> Conversion:
    """Give every layer of ``model`` that scratchnn has to scratchnn, in place.

    A class derived from a torch layer keeps its own methods: its ``super()`` now leads to our layer. If its
    ``forward`` instead calls the function of ``torch.nn.functional`` that torch's layer calls, that call is rerouted as
    by :func:`scratchnn.override`. If it does neither, the layer computes what it did before and is left alone. Also
    left: layers that scratchnn lacks, that are already its own, quantised, compiled by TorchScript or not on the CPU.
    Lazy layers are converted before they have seen an input and become ours. Other functions that ``forward`` methods
    call, such as ``torch.nn.functional.relu``, are not layers and stay torch's; :func:`scratchnn.override` is for them.

    Args:
        model: any module, a single layer included.
        include: the layers to convert; all, if not given. A name (``"layer1"``), a pattern of names
            (``"layer1.*.conv?"``), a class of layers or blocks, a function of ``(name, module)`` that answers true or
            false, or a list of these. A name, a pattern and a class stand for all layers within as well.
        exclude: the layers to leave, in the same forms, of those to be included.
        verbose: print the summary.

    Returns:
        what was converted and what was left, with reasons; its ``model`` is the one given.

    Raises:
        TypeError: where ``model`` is not a module, or ``include`` or ``exclude`` is of another type.
        ValueError: where a name or pattern in them matches nothing in the model, which is then as it was.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Dropout())
        >>> print(scratchnn.convert(model))
        1 of 2 layers converted
          1 Conv2d
        1 left as they were
          1 Dropout: scratchnn has no such layer (1)
    """
    if not isinstance(model, Module):
        raise TypeError(f"convert(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    not_chosen = reasons_not_chosen(
        model, include, exclude, lambda module: kind_of(type(module)) is not None, "convert()"
    )
    conversion = Conversion(model)
    gathered = any(_is_fully_sharded(module) for module in model.modules())
    for name, module in model.named_modules():
        kind = kind_of(type(module))
        if kind is None and _is_container(module):
            continue
        before = _class_name(module)
        if isinstance(module, tuple(nn.implemented().values())):
            reason = "already scratchnn's"
        elif name in not_chosen:
            reason = not_chosen[name]
        else:
            reason = _reason_to_leave(module, kind, gathered) or _turn_over(module)
            scripted = isinstance(module, torch.jit.ScriptModule) and before in nn.implemented()  # known by name alone
            if reason is not None and (kind is not None or scripted):
                conversion.missed[name] = Left(before, reason)
        if reason is None:
            conversion.converted[name] = before
        else:
            conversion.left[name] = Left(before, reason)
    if verbose:
        print(conversion)
    return conversion


def _is_container(module: Module) -> bool:
    """True where a module only holds layers, and perhaps parameters of a model's own.

    A layer of torch with parameters beside its parts, such as ``MultiheadAttention``, computes by itself.
    """
    if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.fx.GraphModule)):
        return True
    if not module._modules or _is_quantised(module):
        return False
    has_parameters = any(True for _ in module.parameters(recurse=False))
    return not (has_parameters and type(module).__module__.startswith("torch.nn.modules."))


def _is_quantised(module: Module) -> bool:
    return type(module).__module__.startswith(("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized."))


def _is_fully_sharded(module: Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def _class_name(module: Module) -> str:
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _reason_to_leave(module: Module, kind: type[Module] | None, gathered: bool) -> str | None:
    """Why a layer cannot be turned over.

    Args:
        module: the layer.
        kind: what :func:`kind_of` says of it.
        gathered: whether ``fully_shard`` puts the parameters together before they are used.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by TorchScript"
    if kind is None:
        return "quantised" if _is_quantised(module) else "scratchnn has no such layer"
    cls = beneath(type(module))
    if cls is not kind and cls.__module__.startswith("torch.") and not cls.__module__.startswith("torch.nn."):
        return f"torch's own variant of {kind.__name__}"
    for tensor in (*module.parameters(), *module.buffers()):
        reason = _reason_not_served(tensor, gathered)
        if reason is not None:
            return reason
    for name in sorted({"forward", *methods_of(kind)}):
        if name in vars(module):
            return f"{name} is replaced on the layer itself"
    name, calls = stray(cls)
    if name is not None and not calls:
        return f"its {name} does not call super().{name}()"
    return None


def _reason_not_served(tensor: Tensor, gathered: bool) -> str | None:
    if tensor.device.type not in ("cpu", "meta"):
        return f"on {tensor.device.type}: scratchnn's kernels run on the CPU"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return f"its parameters have the layout {tensor.layout}"
    if is_traceable_wrapper_subclass(tensor) and not (gathered and _is_sharded_by_rows(tensor)):
        return f"its parameters are of type {type(tensor).__name__}"
    return None


def _is_sharded_by_rows(tensor: Tensor) -> bool:
    """Whether a tensor is spread as ``fully_shard`` does it; a mesh of two dimensions may be anything."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) and tensor.device_mesh.ndim == 1


def _turn_over(module: Module) -> str | None:
    """Change the layer's class; gives the reason where Python refuses."""
    try:
        put_beneath(module, ours_for(beneath(type(module))))
    except TypeError as error:
        return f"its class cannot be changed: {error}"
    return None

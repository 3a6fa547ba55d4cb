"""Turning an existing model over: torch's layers become scratchnn's, in place.

Our layers are subclasses of torch's and add no state, so a layer is turned over by giving it another class.
All it holds stays as it is: parameters and buffers (an optimizer keeps its references, tied weights stay
tied), hooks, names, training mode, and the identity of the layer itself.

The function hides the module of the same name: it is ``scratchnn.convert(model)``, and whatever else is here
is imported with ``from scratchnn.convert import Conversion``.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from scratchnn import nn

__all__ = ["Conversion", "Left", "convert"]

# Some of ours stand for no layer of torch's.
_OURS = {getattr(torch.nn, name): layer for name, layer in nn.implemented().items() if hasattr(torch.nn, name)}


class Left(NamedTuple):
    """A layer that was not converted: the name of its class, and why."""

    type: str
    reason: str


@dataclass
class Conversion:
    """What :func:`convert` did, layer by layer. Printed, it is a summary.

    Attributes:
        model: the model that was given, itself.
        converted: the name of each layer that scratchnn now computes, and of its class.
        left: the name of each layer that stayed as it was, its class and the reason.
    """

    model: Module = field(repr=False)
    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)

    def __str__(self) -> str:
        total = len(self.converted) + len(self.left)
        lines = [f"{len(self.converted)} of {total} layers converted"]
        lines += [f"  {count} {name}" for name, count in Counter(self.converted.values()).most_common()]
        if self.left:
            lines.append(f"{len(self.left)} left as they were")
        for left, count in Counter(self.left.values()).most_common():
            names = [name or "the model itself" for name, other in self.left.items() if other == left]
            some = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            lines.append(f"  {count} {left.type}: {left.reason} ({some})")
        return "\n".join(lines)


def convert(model: Module, *, verbose: bool = False) -> Conversion:
    """Give every layer of ``model`` that scratchnn has to scratchnn, in place.

    A class derived from a torch layer keeps its own methods: its ``super()`` now leads to our layer. If its
    ``forward`` never gets there, the layer computes what it did before and is left alone. Also left: layers
    that scratchnn lacks, that are already its own, quantised or not on the CPU. Lazy layers are converted before
    they have seen an input and become ours. Functions that ``forward`` methods call, such as
    ``torch.nn.functional.relu``, are not layers and stay torch's.

    Args:
        model: any module, a single layer included.
        verbose: print the summary.

    Returns:
        what was converted and what was left, with reasons; its ``model`` is the one given.

    Raises:
        TypeError: where ``model`` is not a module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"convert(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    conversion = Conversion(model)
    for name, module in model.named_modules():
        kind = _kind(type(module))
        if kind is None and _is_container(module):
            continue
        before = type(module).__name__
        reason = _reason_to_leave(module, kind) or _turn_over(module)
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
    if not module._modules:
        return False
    return not type(module).__module__.startswith("torch.") or not any(True for _ in module.parameters(False))


def _kind(cls: type) -> type[Module] | None:
    """The torch layer that a class is, or derives from, among those scratchnn has."""
    return next((base for base in cls.__mro__ if base in _OURS), None)


def _reason_to_leave(module: Module, kind: type[Module] | None) -> str | None:
    if isinstance(module, tuple(_OURS.values())):
        return "already scratchnn's"
    if kind is None:
        return "scratchnn has no such layer"
    cls = _own_class(module)
    if cls is not kind and cls.__module__.partition(".")[0] == "torch":
        return f"torch's own variant of {kind.__name__}"
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            return f"on {tensor.device.type}: scratchnn's kernels run on the CPU"
        if tensor.is_quantized:
            return "quantised"
    return _reason_why_never_reached(module, cls, kind)


def _own_class(module: Module) -> type[Module]:
    """The class of a layer; under a parametrization, the one beneath that which torch slipped over it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _reason_why_never_reached(module: Module, cls: type[Module], kind: type[Module]) -> str | None:
    """Why a call of the layer never arrives at our method, if so: judged by the names its methods mention."""
    ours = {name for name, member in vars(_OURS[kind]).items() if inspect.isfunction(member)}
    for name in {"forward", *ours}:
        if name in vars(module):
            return f"{name} is replaced on the layer itself"
        for base in cls.__mro__[: cls.__mro__.index(kind)]:
            if name not in vars(base):
                continue
            mentioned = set(_names_in(vars(base)[name]))
            if not ({"super", name} <= mentioned or (ours - {name}) & mentioned):
                return f"its {name} does not call super().{name}()"
    return None


def _names_in(method: Any) -> Iterator[str]:
    """Every global and attribute that a function mentions, functions inside of it included."""
    pending = [getattr(inspect.unwrap(method), "__code__", None)]
    while pending:
        code = pending.pop()
        if code is not None:
            yield from code.co_names
            pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _turn_over(module: Module) -> str | None:
    """Change the layer's class; gives the reason where Python refuses."""
    try:
        target = _class_for(_own_class(module))
        if parametrize.is_parametrized(module):
            type(module).__bases__ = (target,)  # this class is the layer's alone
        else:
            module.__class__ = target
    except TypeError as error:
        return f"its class cannot be changed: {error}"
    return None


@functools.cache
def _class_for(cls: type[Module]) -> type[Module]:
    """Our layer for a torch layer; for a class derived from one, a class of its name with ours beneath it.

    Made once for each class, so that layers of one class are of one class afterwards.
    """
    if cls in _OURS:
        return _OURS[cls]

    def reduce(self: Module, protocol: Any) -> tuple:
        # Pickle finds classes by their name, and this one has none of its own: it is made again from ``cls``.
        function, arguments, *state = super(converted, self).__reduce_ex__(protocol)
        arguments = tuple(cls if argument is converted else argument for argument in arguments)
        return _rebuild, (cls, function, arguments), *state

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        namespace["__reduce_ex__"] = reduce

    converted = types.new_class(cls.__name__, (cls, _OURS[_kind(cls)]), exec_body=fill)
    return converted


def _rebuild(cls: type[Module], function: Callable[..., Module], arguments: tuple) -> Module:
    """An unpickled or copied layer of a converted class, before its state is put in."""
    return function(*(_class_for(cls) if argument is cls else argument for argument in arguments))

"""Which class a layer has on either side: ours for torch's, and torch's for ours.

Our layers are subclasses of torch's and add no state, so a layer changes sides by being given another class. A class
that somebody derived from a layer of torch gets a counterpart of its own, with ours beneath it; the classes that torch
itself slips over a layer (parametrizations, ``fully_shard``) are kept, and what is beneath them changes.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from scratchnn import nn
from scratchnn.override import NAMES, Rerouting

__all__ = ["OURS", "TORCHS", "beneath", "kind_of", "ours_for", "put_beneath", "reduced", "stray", "torchs_for"]

# Some of ours stand for no layer of torch's.
OURS = {getattr(torch.nn, name): layer for name, layer in nn.implemented().items() if hasattr(torch.nn, name)}
TORCHS = {ours: theirs for theirs, ours in OURS.items()}

_derived_from: dict[type[Module], type[Module]] = {}  # a class made by ours_for: what it was made for


def kind_of(cls: type) -> type[Module] | None:
    """The torch layer that a class is, or derives from, among those scratchnn has."""
    return next((base for base in cls.__mro__ if base in OURS), None)


# What torch slips over a layer.


def beneath(cls: type) -> type:
    """A layer's class, without those that torch slipped over it."""
    while (inner := _next_beneath(cls)) is not None:
        cls = inner
    return cls


def _next_beneath(cls: type) -> type | None:
    if cls.__module__ == parametrize.__name__ and len(cls.__bases__) == 1:
        return cls.__bases__[0]
    if len(cls.__bases__) == 2 and cls.__bases__[0].__module__.startswith("torch.distributed."):
        return cls.__bases__[1]
    return None


def put_beneath(module: Module, cls: type[Module]) -> None:
    """Give a layer the class ``cls``, beneath those that torch slipped over it.

    Raises:
        TypeError: where Python refuses, as for classes with another layout in memory.
    """
    module.__class__ = _with_beneath(type(module), cls)


def _with_beneath(outer: type, cls: type[Module]) -> type:
    before = _next_beneath(outer)
    if before is None:
        return cls
    inner = _with_beneath(before, cls)
    *mixins, _ = outer.__bases__
    members = {name: member for name, member in vars(outer).items() if name not in ("__dict__", "__weakref__")}
    made = type(outer.__name__, (*mixins, inner), members)
    if not mixins:
        # A parametrization: torch makes a class for each layer, with properties for its weights. Copies of the layer
        # share it, so it is not this one's to change.
        return made
    # For distributed training: torch makes a class for each class of layers.
    _distributed.setdefault((*mixins, before), outer)
    return _distributed.setdefault((*mixins, inner), made)


_distributed: dict[tuple[type, ...], type] = {}


# From torch to ours.


@functools.cache
def ours_for(cls: type[Module]) -> type[Module]:
    """Our layer for a torch layer; for a class derived from one, a class of its name with ours beneath it.

    Made once for each class, so that layers of one class are of one class afterwards.

    Raises:
        TypeError: where Python cannot derive from the class.
    """
    if cls in OURS:
        return OURS[cls]
    kind = kind_of(cls)
    calls = stray(cls)[1]

    def reduce(self: Module, protocol: Any) -> tuple:
        return reduced(super(converted, self).__reduce_ex__(protocol), converted, cls)

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        namespace["__reduce_ex__"] = reduce
        if calls:
            namespace["forward"] = _rerouted_forward(cls, calls)
        become = vars(cls).get("cls_to_become")  # what a lazy layer turns into
        if become is not None and kind_of(become) is not None:
            namespace["cls_to_become"] = ours_for(become)

    converted = types.new_class(cls.__name__, (cls, OURS[kind]), exec_body=fill)
    _derived_from[converted] = cls
    return converted


def reduced(parts: tuple, made: type[Module], cls: type[Module], *made_for: Callable[..., type[Module]]) -> tuple:
    """What ``__reduce_ex__`` gives for an instance of a class that was made for ``cls``.

    Pickle finds classes by their name, and such a class has none of its own: it is made again.

    Args:
        parts: what the class beneath gives.
        made: the instance's class.
        cls: what it was made for.
        made_for: the function that makes it, if not :func:`ours_for`.
    """
    function, arguments, *state = parts
    arguments = tuple(cls if argument is made else argument for argument in arguments)
    return _rebuild, (cls, function, arguments, *made_for), *state


def _rebuild(
    cls: type[Module],
    function: Callable[..., Module],
    arguments: tuple,
    made_for: Callable[[type[Module]], type[Module]] = ours_for,
) -> Module:
    """An unpickled or copied layer of a class that was made for ``cls``, before its state is put in."""
    return function(*(made_for(cls) if argument is cls else argument for argument in arguments))


def _rerouted_forward(cls: type[Module], names: frozenset[str]) -> Callable[..., Any]:
    """The ``forward`` of ``cls``, with torch's functions of these names computed by ours."""
    mode = Rerouting(names)
    theirs = cls.forward

    @functools.wraps(theirs)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return theirs(self, *args, **kwargs)

    return forward


def stray(cls: type[Module]) -> tuple[str | None, frozenset[str]]:
    """Whether a call of a derived layer arrives at our method, judged by the names that its methods mention.

    Returns:
        the first of its methods that computes by itself, if there is one; and of the functions of
        ``torch.nn.functional`` that torch's layer calls, those that this class calls itself.
    """
    kind = kind_of(cls)
    ours = methods_of(kind)
    for name in sorted({"forward", *ours}):
        for base in cls.__mro__[: cls.__mro__.index(kind)]:
            if name in vars(base):
                mentioned = set(_names_in(vars(base)[name]))
                if not ({"super", name} <= mentioned or (ours - {name}) & mentioned):
                    return name, _functions_behind(kind) & _functions_behind(cls)
    return None, frozenset()


def methods_of(kind: type[Module]) -> set[str]:
    """The names of the methods that our layer computes by."""
    return {name for name, member in vars(OURS[kind]).items() if inspect.isfunction(member)}


def _functions_behind(cls: type[Module]) -> frozenset[str]:
    """The functions of ``torch.nn.functional`` mentioned in ``forward``, and in what is called there."""
    mentioned: set[str] = set()
    pending: list[Any] = [cls.forward]
    while pending:
        function = inspect.unwrap(pending.pop())
        for name in set(_names_in(function)) - mentioned:
            mentioned.add(name)
            called = getattr(function, "__globals__", {}).get(name)
            if inspect.isfunction(called) and not (called.__module__ or "").startswith("torch."):
                pending.append(called)
            method = getattr(cls, name, None)
            if inspect.isfunction(method):
                pending.append(method)
    return NAMES & mentioned


def _names_in(method: Any) -> Iterator[str]:
    """Every global and attribute that a function mentions, functions inside of it included."""
    pending = [getattr(inspect.unwrap(method), "__code__", None)]
    while pending:
        code = pending.pop()
        if code is not None:
            yield from code.co_names
            pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


# From ours to torch.


def torchs_for(cls: type[Module]) -> type[Module] | None:
    """The class that a layer of ours has in torch; nothing, where there is none."""
    if cls is nn.LayerNorm2d:  # of the same parameters, settings and results
        from torchvision.models.convnext import LayerNorm2d

        return LayerNorm2d
    return TORCHS.get(cls) or _derived_from.get(cls)

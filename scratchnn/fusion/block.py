"""The class of a fused block: that of the block, with the rewritten ``forward``."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from scratchnn.classes import reduced
from scratchnn.fusion.graph import Rewritten, Untraceable, rewrite

__all__ = ["Plan", "class_for", "class_of"]


class Plan:
    """What a fused block keeps of its fusion. A copy, or one that was pickled, is traced anew.

    Attributes:
        chosen: for each convolution that is not to be joined, why.
        recompute: as for :func:`scratchnn.fuse`.
        versions: the rewritten ``forward``: one, or one for each mode.
    """

    def __init__(self, chosen: Mapping[str, str], recompute: bool) -> None:
        self.chosen, self.recompute = dict(chosen), recompute
        self.versions: list[Rewritten] = []

    def trace(self, module: Module) -> None:
        """
        Raises:
            Untraceable: as :func:`scratchnn.fusion.graph.rewrite`.
        """
        self.versions = rewrite(module, self.chosen.get, self.recompute)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "versions": []}


_made_for: dict[type[Module], type[Module]] = {}


def class_of(cls: type[Module]) -> type[Module] | None:
    """The class that a fused block had before; nothing for other classes."""
    return _made_for.get(cls)


@functools.cache
def class_for(cls: type[Module]) -> type[Module]:
    """The class of a fused block that was of class ``cls``: of the same name, and made once.

    Raises:
        TypeError: where Python cannot derive from the class.
    """

    @functools.wraps(cls.forward)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        plan = self._fusion
        if plan is not None and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            for version in plan.versions:
                if version.holds_for(self):
                    return version.function(self, args[0])
        return super(fused, self).forward(*args, **kwargs)

    def reduce(self: Module, protocol: Any) -> tuple:
        return reduced(super(fused, self).__reduce_ex__(protocol), fused, cls, class_for)

    def set_state(self: Module, state: dict[str, Any]) -> None:
        super(fused, self).__setstate__(state)
        try:
            if self._fusion is not None:
                self._fusion.trace(self)
        except Untraceable:  # its class or its parts were changed meanwhile: it computes one by one
            self._fusion.versions = []

    members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members |= {"forward": forward, "__reduce_ex__": reduce, "__setstate__": set_state}
    members["_fusion"] = None  # until there is a plan, and in what code makes of the class, as slices of a Sequential
    fused = types.new_class(cls.__name__, (cls,), exec_body=lambda namespace: namespace.update(members))
    _made_for[fused] = cls
    return fused

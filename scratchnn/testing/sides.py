"""The computations that are held together: the layer under test, its reference, and the reference in float64."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from scratchnn.testing.cases import Arguments, Draw, set_seed

__all__ = ["Pair", "Side", "Sides", "Subject", "Unshareable"]


class Unshareable(Exception):
    """The state of one layer does not fit into the other, by name or by position."""


@dataclass(frozen=True)
class Subject:
    """A layer or function to experiment on, once.

    Attributes:
        layer: a module, or a function.
        names: what a parameter or buffer is called in the reference, where the layer calls it otherwise.
    """

    layer: Callable[..., Any]
    names: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, arguments: Arguments, seed: int = 0) -> Any:
        """Call it, with torch's random numbers beginning at ``seed``."""
        set_seed(seed)
        return self.layer(*arguments.args, **arguments.kwargs)

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that are trained, by the reference's names."""
        if not isinstance(self.layer, Module):
            return {}
        return {self.names.get(name, name): p for name, p in self.layer.named_parameters() if p.requires_grad}

    def buffers(self) -> dict[str, Tensor]:
        """All buffers, by the reference's names."""
        if not isinstance(self.layer, Module):
            return {}
        return {self.names.get(name, name): buffer for name, buffer in self.layer.named_buffers()}


class Sides(NamedTuple):
    """Copies for one experiment, all with the same weights; ``truth`` is the reference in float64."""

    ours: Subject
    theirs: Subject
    truth: Subject


class Side:
    """One of the two computations, as it was given: a module, a factory of modules, or a function.

    A factory is called without arguments and returns a module. What is given is never changed: experiments get copies.
    """

    def __init__(self, given: Callable[..., Any]) -> None:
        if not callable(given):
            raise TypeError(f"expected a module, a factory of modules or a function, got {type(given).__name__}")
        self._given = given
        self.is_factory = not isinstance(given, Module) and _returns_a_module(given)

    def make(self, seed: int = 0) -> Callable[..., Any]:
        """A layer of its own; from a factory, with the initial weights of this seed."""
        if self.is_factory:
            set_seed(seed)
            return self._given()
        if isinstance(self._given, Module):
            try:
                return copy.deepcopy(self._given)
            except Exception as error:
                raise ValueError(
                    f"{self.name} cannot be copied ({error}): give a factory, a function that makes it anew"
                ) from error
        return self._given

    @property
    def name(self) -> str:
        """For the report: the class of the module, or the function, with where it is defined."""
        layer = self.make() if self.is_factory else self._given
        kind = type(layer) if isinstance(layer, Module) or not hasattr(layer, "__name__") else layer
        return f"{kind.__module__ or 'torch'}.{getattr(kind, '__qualname__', kind.__name__)}"


def _returns_a_module(given: Callable[..., Any]) -> bool:
    """Whether a callable can be called without arguments and then gives a module."""
    if isinstance(given, type):
        return issubclass(given, Module)
    try:
        parameters = inspect.signature(given).parameters.values()
    except (TypeError, ValueError):  # built into torch: a function
        return False
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if any(p.default is p.empty and p.kind not in variadic for p in parameters):
        return False
    try:
        return isinstance(given(), Module)
    except Exception:
        if any(p.kind in variadic for p in parameters):
            return False  # a function of any number of tensors, which wants some
        raise


class Pair:
    """Both sides with the same weights, as many copies as are asked for.

    Args:
        ours, theirs: the two.
        draw: draws the arguments of a call, for lazy layers, which take their shape from the first one.
        perturb: give random numbers to every parameter and buffer of the state whose entries are all equal, such as
            the ones and zeros of a new normalization: a layer that ignored them would pass otherwise.
        seed: of initial and random numbers.

    Raises:
        Unshareable: where the weights of one do not fit into the other.
    """

    def __init__(self, ours: Side, theirs: Side, draw: Draw, *, perturb: bool, seed: int) -> None:
        self._factories = (ours, theirs)
        self._ours, self._theirs = ours.make(seed), theirs.make(seed)
        self._names: dict[str, str] = {}
        self._lazy = [_materialize(layer, draw, seed) for layer in (self._ours, self._theirs)]
        if not self.modules:
            return
        if perturb:
            _perturb(self._ours, seed)
        self._names = share_state(self._ours, self._theirs)
        if self._ours.training != self._theirs.training:
            self._theirs.train(self._ours.training)

    @property
    def modules(self) -> bool:
        """Whether both are modules: functions have neither state nor modes."""
        return isinstance(self._ours, Module) and isinstance(self._theirs, Module)

    def fresh(self, seed: int) -> tuple[Module, Module] | None:
        """New layers with the initial weights of a seed; None where a side is no factory, or lazy."""
        if not all(side.is_factory for side in self._factories) or any(self._lazy):
            return None
        ours, theirs = (side.make(seed) for side in self._factories)
        return ours, theirs

    def original(self, dtype: torch.dtype, device: torch.device, seed: int) -> Module:
        """The layer under test as its factory made it, while experiments get copies, which may have lost something."""
        side = self._factories[0]
        if not side.is_factory or self._lazy[0]:
            return _converted(copy.deepcopy(self._ours), dtype, device)
        layer = side.make(seed)
        share_state(self._ours, layer)
        return _converted(layer, dtype, device)

    def sides(self, dtype: torch.dtype, device: torch.device) -> Sides:
        """Fresh copies in a dtype, and the truth: the reference with its rounded weights in float64."""
        ours, theirs = (_converted(copy.deepcopy(layer), dtype, device) for layer in (self._ours, self._theirs))
        wide = torch.complex128 if dtype.is_complex else torch.float64
        truth = _converted(copy.deepcopy(theirs), wide, device)
        return Sides(Subject(ours, self._names), Subject(theirs), Subject(truth))


def _materialize(layer: Callable[..., Any], draw: Draw, seed: int) -> bool:
    """Let a lazy layer see an input; tells whether it was one."""
    if not isinstance(layer, Module) or not any(is_lazy(x) for x in _tensors(layer)):
        return False
    arguments = draw(torch.get_default_dtype(), seed)
    with torch.no_grad():
        layer(*arguments.args, **arguments.kwargs)
    return True


def _tensors(module: Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _converted(layer: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    """The layer in a dtype; real weights that become complex get an imaginary part."""
    if not isinstance(layer, Module):
        return layer
    if not dtype.is_complex:
        return layer.to(device, dtype)
    real = {name: x for name, x in layer.state_dict().items() if x.is_floating_point()}
    layer.to(device, dtype)
    with torch.no_grad():
        for name, x in layer.state_dict().items():
            if name in real:
                x.copy_(torch.complex(*(part.to(dtype.to_real()) for part in (real[name], real[name].roll(1)))))
    return layer


@torch.no_grad()
def _perturb(module: Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    for x in module.state_dict().values():
        if (x.is_floating_point() or x.is_complex()) and x.numel() and (x == x.flatten()[0]).all():
            # Upwards only: variances and slopes stay positive.
            x += 0.5 * torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)


def share_state(source: Module, target: Module) -> dict[str, str]:
    """Copy the state of one module into the other: by name or, what has no namesake, by position.

    Returns:
        the names in ``target`` of what ``source`` calls otherwise.

    Raises:
        Unshareable: where what is left over on both sides is not of the same number and shapes.
    """
    given, taken = source.state_dict(), target.state_dict()
    left = [name for name in given if name not in taken]
    right = [name for name in taken if name not in given]
    names = dict(zip(left, right, strict=False))
    named = {names.get(name, name): value for name, value in given.items()}
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    expected = {name: tuple(value.shape) for name, value in taken.items()}
    if shapes != expected:
        raise Unshareable(
            f"the weights cannot be shared: the module's state has {_listed(given)}, the reference's {_listed(taken)}"
        )
    with torch.no_grad():
        for name, value in target.state_dict().items():
            value.copy_(named[name])
    return names


def _listed(state: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items()) or "nothing"

"""What the families share: the Function base class, the output-size rule, autocast, memory formats."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from scratchnn import _C
from scratchnn.ops._when_imported import when_imported

__all__ = [
    "Function",
    "autocast",
    "bilinear_tangent",
    "empty_as",
    "expand",
    "integer",
    "kernels",
    "operation",
    "output_size",
    "remembered",
    "suggest_memory_format",
    "unfold",
]


torch.autograd.graph.Node.register(_C.Node)

_transformed: dict[str, type[torch.autograd.Function]] = {}


def _apply_transformed(name: str, *args: Any) -> Any:
    """A Function under a ``torch.func`` transform, in compiled code.

    Dynamo takes such a call into its graph as it is, to be traced by AOTAutograd, which can do all that eager mode
    can. Dynamo itself can not: it has no ``vmap`` and no ``jvp`` of a Function, does not notice all gradients that are
    asked for, and takes second derivatives to be zero.
    """
    return _transformed[name].apply(*args)


when_imported("torch._dynamo", lambda: torch.compiler.allow_in_graph(_apply_transformed))


class Function:
    """An operation with its derivatives: ``torch.autograd.Function``, cheap in eager mode and still transformable.

    Subclasses are written as a ``torch.autograd.Function`` in the ``setup_context`` style: static methods
    ``forward(*args)``, ``setup_context(ctx, inputs, output)``, ``backward``, ``jvp`` and ``vmap``. torch has no single
    form that serves everywhere, so :meth:`call` takes one of several that are made from these:

    - ordinary tensors in eager mode, nearly always: ``scratchnn._C.Function``, in C++ (csrc/python/function.cpp),
      since torch's own takes longer to record a small layer than the layer takes to compute;
    - ``torch.compile``: torch's Function without ``jvp`` and ``vmap``, which Dynamo refuses to trace;
    - a ``torch.func`` transform: torch's Function with everything, as written, which Dynamo is told not to look into;
    - other modes, subclasses of tensors, forward-mode derivatives: torch's Function in its older style, which spares
      the call the binding of its signature.

    A class may have ``overwriting`` as well: its ``backward`` for a first gradient that nobody else has or will ask
    for, so that it may be overwritten with the gradient of the first argument. It spares the memory, and traffic to it.

    A class whose ``forward`` does nothing but call an operator with its own arguments, a NamedTuple among them standing
    for its fields, names it: ``class Conv(Function, operator="conv")``. The C++ form then calls it without Python.
    """

    call: Callable[..., Any]  # apply the function: what every functional calls
    _eager: type[torch.autograd.Function]
    _traced: type[torch.autograd.Function]
    _transformed: type[torch.autograd.Function]
    _name: str

    def __init_subclass__(cls, operator: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

        def forward(ctx: Any, *args: Any) -> Any:
            output = cls.forward(*args)
            cls.setup_context(ctx, args, output)
            return output

        def jvp(ctx: Any, *tangents: Any) -> Any:
            # torch switches forward mode off for a jvp, and with it, silently, the jvp of a transform around this one.
            with forward_ad._set_fwd_grad_enabled(True):
                return cls.jvp(_WithoutTangents(ctx), *tangents)

        def function(*names: str, **members: Any) -> type[torch.autograd.Function]:
            members |= {name: getattr(cls, name) for name in names}
            statics = {name: staticmethod(member) for name, member in members.items()}
            return type(cls.__name__, (torch.autograd.Function,), statics)

        cls._eager = function("backward", "jvp", forward=forward)
        cls._traced = function("forward", "setup_context", "backward")
        cls._transformed = function("forward", "setup_context", "backward", "vmap", jvp=jvp)
        cls._name = f"{cls.__module__}.{cls.__qualname__}"
        _transformed[cls._name] = cls._transformed
        overwriting = getattr(cls, "overwriting", None)
        formulas = cls.forward, cls.setup_context, cls.backward, cls._not_ordinary
        ordinary = _C.Function(cls.__name__, *formulas, operator, overwriting)

        def call(*args: Any) -> Any:
            return cls._compiled(*args) if is_dynamo_compiling() else ordinary(*args)

        cls.call = staticmethod(call)

    @classmethod
    def _compiled(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return _apply_transformed(cls._name, *args)
        return cls._traced.apply(*args)

    @classmethod
    def _not_ordinary(cls, *args: Any) -> Any:
        if is_compiling():
            return cls._compiled(*args)
        if torch._C._are_functorch_transforms_active():
            return cls._transformed.apply(*args)
        if forward_ad._current_level >= 0:
            return cls._eager.apply(*args)
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return cls._eager.apply(*args)
        return cls.forward(*args)


def operation(name: str) -> Callable[..., Any]:
    """``torch.ops.scratchnn.<name>``, which refuses to be differentiated, for cheap calls on ordinary tensors."""
    packet = getattr(torch.ops.scratchnn, name)
    ordinary = _C.Function(name, packet, None, None, packet, name)

    def call(*args: Any) -> Any:
        return packet(*args) if is_dynamo_compiling() else ordinary(*args)

    return call


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which turns a layer's numbers into checked ones, with its results for earlier arguments kept.

    As ``functools.lru_cache``, but 1, True and 1.0 differ, and lists and symbols are passed on. What it gives must not
    be changed.
    """
    kept = _C.Remembered(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args) if is_dynamo_compiling() else kept(*args)

    return call


class _WithoutTangents:
    """The ``ctx`` of a ``jvp``, where what was saved carries no tangents of the derivative that is being taken."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        # torch has one level, and calls it the current one only where forward mode was entered by its own name.
        return tuple(None if x is None else forward_ad.unpack_dual(x, level=0).primal for x in self._ctx.saved_tensors)


def bilinear_tangent(
    function: type[Function],
    operands: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    *rest: Any,
) -> Tensor:
    """The forward derivative of ``f(a, b)``, linear in each: ``f(da, b) + f(a, db)``; no tangent counts as zero."""
    (a, b), (da, db) = operands, tangents
    if db is None:
        return function.call(da, b, *rest)
    if da is None:
        return function.call(a, db, *rest)
    return function.call(da, b, *rest) + function.call(a, db, *rest)


def output_size(size: int, kernel: int, padding: int, stride: int, dilation: int) -> int:
    """The output-size rule along one dimension: ``floor((W + P - D (K - 1) - 1) / S) + 1``.

    ``padding`` is the sum of both sides. The same rule in C++ is ``output_size`` in ``csrc/common/geometry.h``.
    """
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def integer(value: Any, name: str) -> int:
    """One whole number, of any type torch takes for one: ``int``, NumPy's integers, integer tensors.

    Raises:
        TypeError: for everything else, booleans included.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"argument '{name}' must be made of ints, but got {value!r} of type {type(value).__name__}"
        ) from None


def expand(value: int | Sequence[int], rank: int, name: str) -> list[int]:
    """One number for all spatial dimensions, or one for each, as a list of ``rank`` numbers.

    Raises:
        RuntimeError: for any other count, as torch's own layers do.
        TypeError: for anything but whole numbers, and lists and tuples of them.
    """
    if not isinstance(value, (list, tuple)):
        return [integer(value, name)] * rank
    values = [integer(number, name) for number in value]
    if len(values) == 1:
        return values * rank
    if len(values) != rank:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {rank} values to match the spatial "
            f"dimensions, but got {name}={values}"
        )
    return values


def unfold(tensor: Tensor, dim: int, size: int) -> Tensor:
    """A vmapped dimension of ``size`` that was folded into ``dim`` by itself again, before ``dim``; it may be empty."""
    return tensor.unflatten(dim, (size, tensor.shape[dim] // max(size, 1)))


def empty_as(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A new tensor of ``shape`` in the memory format of ``like``: what every kernel's output looks like."""
    return like.new_empty(shape).contiguous(memory_format=suggest_memory_format(like))


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast wants them for an operation of its lower-precision list.

    Floating tensors other than float64 become the autocast type of their device; without autocast nothing
    changes.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    first = next(tensor for tensor in tensors if tensor is not None)
    device = first.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )


@contextmanager
def kernels(which: str) -> Iterator[None]:
    """Run this thread on the readable kernels (``"naive"``) or on the fast ones (``"fast"``, the default).

    The naive kernels are the nested loops of each layer's formula in ``csrc/<family>/naive.cpp``: the same
    results, slowly. The choice holds for forward and backward passes run inside the block.

    Args:
        which: ``"naive"`` or ``"fast"``.

    Returns:
        a context manager; blocks nest, and the innermost counts.

    Raises:
        ValueError: for any other name.

    Example:
        >>> layer, x = scratchnn.nn.Conv2d(3, 8, kernel_size=3), torch.randn(2, 3, 8, 8)
        >>> with scratchnn.kernels("naive"):
        ...     slow = layer(x)
        >>> torch.allclose(slow, layer(x), atol=1e-5)
        True
    """
    if which not in ("naive", "fast"):
        raise ValueError(f"kernels are 'naive' or 'fast', got {which!r}")
    before = torch.ops.scratchnn.request_naive_kernels(which == "naive")
    try:
        yield
    finally:
        torch.ops.scratchnn.request_naive_kernels(before)

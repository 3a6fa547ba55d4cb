"""Activations that are computed again in the backward pass, rather than kept for it.

What a convolution is given is most often ``y = f(norm(z) + r)``, made by the layers before. Batch norm needs ``z`` for
its own backward pass, so z is there when the convolution needs y: y follows from it element by element, and the
residual r is such a y in its turn, or one that is kept. A :class:`Source` lists the steps; :func:`remember` and
:func:`recall` tie it to y itself, for those that y is passed to.

Fused blocks (:mod:`scratchnn.ops.fused`) keep sources wherever they can. Layers one by one do so where it costs next
to nothing: batch norm tells where its output comes from (:func:`normalized`), an activation that only cuts numbers off
hands that on and keeps nothing itself (:func:`cut_off`), and a convolution keeps the source in place of its input if
its own backward pass takes far longer than computing the input again (:func:`way_to`). The activation comes after the
convolution in the backward pass, and finds in the memo what the convolution had.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from scratchnn import _C
from scratchnn.ops._common import operation

if TYPE_CHECKING:
    from scratchnn.ops._elementwise import Activation

__all__ = [
    "MOST_STEPS",
    "NO_LIMITS",
    "Memo",
    "Source",
    "Step",
    "Way",
    "apply_step",
    "cut_off",
    "history",
    "is_computed_again",
    "is_recorded",
    "kept",
    "layers_recompute",
    "normalized",
    "recall",
    "remember",
    "split",
    "way_to",
]

batch_norm_add_clamp = operation("batch_norm_add_clamp")

# A residual network adds to the sum of all blocks before: from this many steps on, the sum itself is kept.
MOST_STEPS = 3

# Layers one by one: smaller tensors are not worth the bookkeeping, and a convolution that multiplies each number of its
# input by fewer weights keeps it. Computing it again takes the time of one or two hundred of these products.
_LEAST_BYTES, _LEAST_PRODUCTS = 1 << 20, 256

_layers_recompute = True

NO_LIMITS = -math.inf, math.inf


class Step(NamedTuple):
    """``y = f(w (z - mean) / sqrt(var + eps) + b + r)``: what of it is not a tensor."""

    eps: float
    activation: Activation | None


class Memo:
    """The value of an activation while several backward passes in a row ask for it."""

    value: Tensor | None = None


class Source(NamedTuple):
    """An activation, or the way to it.

    Attributes:
        base: the activation where there are no steps; else what the first step adds, or nothing.
        steps: each adds the result of the one before.
        tensors: z, mean, var, w and b of each step in turn.
        memo: where the value is kept for a while, if it is dear.
    """

    base: Tensor | None
    steps: tuple[Step, ...] = ()
    tensors: tuple[Tensor | None, ...] = ()
    memo: Memo | None = None

    def then(self, step: Step, *tensors: Tensor | None) -> Source:
        """One more step, of these tensors, which adds this."""
        return Source(self.base, (*self.steps, step), (*self.tensors, *tensors), Memo())

    def saved(self) -> tuple[Tensor | None, ...]:
        """The tensors to save for the backward pass, ``count`` of them; :meth:`restored` takes them back."""
        return self.base, *self.tensors

    @property
    def count(self) -> int:
        return 1 + 5 * len(self.steps)

    def restored(self, base: Tensor | None, *tensors: Tensor | None) -> Source:
        return Source(base, self.steps, tensors, self.memo)

    def without_tensors(self) -> Source:
        return Source(None, self.steps, (), self.memo)

    def value(self) -> Tensor | None:
        """The activation, without history where it is computed."""
        if not self.steps:
            return self.base
        if self.memo is not None and self.memo.value is not None:
            return self.memo.value
        y = self.fresh()
        if self.memo is not None:
            self.memo.value = y
        return y

    def fresh(self) -> Tensor:
        """The activation, computed by its steps, for the caller alone."""
        y = None if self.base is None else self.base.detach()
        for i, step in enumerate(self.steps):
            y = apply_step(step, *self.tensors[5 * i : 5 * i + 5], y)
        return y


def apply_step(
    step: Step,
    z: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """The result of a step, bit by bit what the forward pass made of z."""
    with torch.no_grad():
        limits, rest = split(step.activation)
        y = batch_norm_add_clamp(z, weight, bias, mean, var, residual, step.eps, *limits)
        return y if rest is None else rest.overwrite(y)


def split(activation: Activation | None) -> tuple[tuple[float, float], Activation | None]:
    """What of an activation the kernels of batch norm compute themselves, and what is left for its own operator."""
    limits = NO_LIMITS if activation is None else activation.limits
    return (NO_LIMITS, activation) if limits is None else (limits, None)


# Which activation comes from where. Tensors are held weakly: whoever keeps y does not keep z by that.


class _Known(NamedTuple):
    versions: list[int]  # of y and of all tensors of the source
    base: TensorWeakRef | None
    source: Source  # of tensors other than z and the base
    outputs: tuple[TensorWeakRef, ...]  # the z of each step


_known: Any = WeakTensorKeyDictionary()


def _versions(y: Tensor, source: Source) -> list[int]:
    return [tensor._version for tensor in (y, *source.saved()) if tensor is not None]


def remember(y: Tensor, source: Source) -> None:
    """Tell that y can be computed again, as long as nobody changes it, or what it is computed from."""
    light = tuple(None if i % 5 == 0 else tensor for i, tensor in enumerate(source.tensors))
    _known[y] = _Known(
        _versions(y, source),
        None if source.base is None else TensorWeakRef(source.base),
        source._replace(base=None, tensors=light),
        tuple(TensorWeakRef(z) for z in source.tensors[::5]),
    )


def kept(y: Tensor) -> None:
    """Tell that y is kept for the backward pass anyway, so that it can be a base at no cost."""
    remember(y, Source(y))


def recall(y: Tensor, changes: int = 0) -> Source | None:
    """Where y comes from, if that is known and as it was, or y was, so many changes in place ago."""
    known = _known.get(y)
    if known is None:
        return None
    base = None if known.base is None else known.base()
    tensors = list(known.source.tensors)
    tensors[::5] = [output() for output in known.outputs]
    if (base is None and known.base is not None) or any(z is None for z in tensors[::5]):
        return None
    source = known.source._replace(base=base, tensors=tuple(tensors))
    versions = _versions(y, source)
    versions[0] -= changes
    return source if versions == known.versions else None


# Layers one by one.


def layers_recompute(allow: bool | None = None) -> bool:
    """Whether they may compute inputs again at all. Sets it, if told to, and gives back what was in force before."""
    global _layers_recompute
    before = _layers_recompute
    if allow is not None:
        _layers_recompute = allow
    return before


def is_recorded(ctx: Any, tensor: Tensor) -> bool:
    """Whether plain autograd alone will have what ``ctx`` saves, of a tensor that is large enough.

    Not in compiled code, nor under transforms or modes, which have other forms of ctx. Saved tensors in other hands are
    gone, or differ from one forward pass to its repetition (checkpointing).
    """
    return (
        not is_compiling()
        and type(ctx) is _C.Context
        and _layers_recompute
        and tensor.nbytes >= _LEAST_BYTES
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def is_computed_again(z: Tensor) -> bool:
    """Whether the output that batch norm makes of z may be: its statistics are wanted as they were measured then."""
    traced = is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return not traced and _layers_recompute and z.nbytes >= _LEAST_BYTES


def normalized(
    y: Tensor, z: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    """Tell that y is z, normalized; gradients are off.

    The parameters are copied: others than their own layer see them then, which may have left their places by that time
    (sharded training), and had they been changed it would be for that layer to complain.
    """
    weight = None if weight is None else weight.clone()
    bias = None if bias is None else bias.clone()
    # What remember() does, for every batch norm of every model.
    versions = [tensor._version for tensor in (y, z, mean, var, weight, bias) if tensor is not None]
    source = Source(None, (Step(eps, None),), (None, mean, var, weight, bias))
    _known[y] = _Known(versions, None, source, (TensorWeakRef(z),))


def cut_off(x: Tensor, y: Tensor, activation: Activation) -> Source | None:
    """Where y comes from, and tell so, if it is a normalized x with limits; x may have been overwritten by it.

    The memo is for the activation to empty, whose backward pass is the last to ask.
    """
    source = recall(x, changes=1 if x is y else 0)
    if source is None or len(source.steps) != 1 or source.base is not None or source.steps[0].activation is not None:
        return None
    source = source._replace(steps=(source.steps[0]._replace(activation=activation),), memo=Memo())
    remember(y, source)
    return source


def _history_of(x: Tensor) -> Tensor:
    return x.new_zeros(()).expand(x.shape)


def _pass_on(ctx: Any, grad: Tensor) -> Tensor:
    return grad


# A zero of x's shape, in no memory, with x's history: added to what x is computed to be again, it makes that
# differentiable by all that x came from.
history = _C.Function("History", _history_of, lambda ctx, inputs, output: None, _pass_on, _history_of, None)


class Way(NamedTuple):
    """What a convolution knows of its input, other than tensors.

    Attributes:
        source: where it comes from.
        again: it is computed again, and the tensors of the source are kept; else it is kept itself.
        history: of the input that is computed again, where it has one.
    """

    source: Source
    again: bool
    history: Tensor | None

    def input(self, saved: tuple[Tensor | None, ...], passes_on: bool) -> Tensor:
        """The input, from what :func:`way_to` gave to save.

        Args:
            saved: those tensors.
            passes_on: whether the input's own gradient is asked for too, which is for those it came from to compute.
        """
        memo = self.source.memo
        if not self.again:
            (x,) = saved
            if memo is not None and passes_on:
                memo.value = x.detach()
            return x
        x = self.source.restored(*saved).value()
        if memo is not None and not passes_on:
            memo.value = None
        return x + self.history if torch.is_grad_enabled() and self.history is not None else x


def way_to(input: Tensor, products: float) -> tuple[Way | None, tuple[Tensor | None, ...]]:
    """What to know of a convolution's input, and the tensors to save.

    Args:
        input: as it is given.
        products: by how many weights each of its numbers is multiplied.
    """
    source = recall(input)
    if source is None or not source.steps:
        return None, (input,)
    again = products >= _LEAST_PRODUCTS
    past = None
    if again and input.requires_grad:
        with torch.enable_grad():
            past = history(input)
    return Way(source.without_tensors(), again, past), source.saved() if again else (input,)

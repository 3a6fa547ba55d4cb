"""Activations that are computed again in the backward pass, rather than kept for it.

What a convolution is given is most often ``y = f(norm(z) + r)``, made by the block before. That block needs ``z`` for
its own backward pass, so z is there when the next one needs y: y follows from it element by element, and the residual
r is such a y in its turn, or one that is kept. A :class:`Source` lists the steps; :func:`remember` and :func:`recall`
tie it to y itself, for the blocks that y is passed to.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from scratchnn.ops._common import operation
from scratchnn.ops._elementwise import FUNCTIONS, FUNCTIONS_IN_PLACE

__all__ = ["NO_LIMITS", "Activation", "Memo", "Source", "Step", "apply_step", "kept", "recall", "remember", "split"]

batch_norm_add_clamp = operation("batch_norm_add_clamp")

# A residual network adds to the sum of all blocks before: from this many steps on, the sum itself is kept.
MOST_STEPS = 3


class Activation(NamedTuple):
    """A row of :data:`scratchnn.ops._elementwise.ROWS` and its parameters."""

    name: str
    parameters: tuple[float, ...] = ()

    def __call__(self, input: Tensor) -> Tensor:
        return FUNCTIONS[self.name].call(input, *self.parameters)

    def overwrite(self, input: Tensor) -> Tensor:
        """The same, in the memory of the input where there is such an operation."""
        function = FUNCTIONS_IN_PLACE.get(self.name)
        return self(input) if function is None else function.call(input, *self.parameters)

    @property
    def limits(self) -> tuple[float, float] | None:
        """Those between which it is the identity, and constant outside, if it is of this kind."""
        if self.name == "relu":
            return 0.0, math.inf
        return self.parameters if self.name == "hardtanh" else None


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
        y = None if self.base is None else self.base.detach()
        for i, step in enumerate(self.steps):
            y = apply_step(step, *self.tensors[5 * i : 5 * i + 5], y)
        if self.memo is not None:
            self.memo.value = y
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


def recall(y: Tensor) -> Source | None:
    """Where y comes from, if that is known and as it was."""
    known = _known.get(y)
    if known is None:
        return None
    base = None if known.base is None else known.base()
    tensors = list(known.source.tensors)
    tensors[::5] = [output() for output in known.outputs]
    if (base is None and known.base is not None) or any(z is None for z in tensors[::5]):
        return None
    source = known.source._replace(base=base, tensors=tuple(tensors))
    return source if _versions(y, source) == known.versions else None

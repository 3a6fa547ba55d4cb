"""Two models that shall compute the same: where they part, forward and backward, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.testing.model_report import LayerReport, ModelReport
from scratchnn.testing.model_runs import EVALUATION, TRAINING, Arguments, Draw, Group, Key, dtype_of, widened
from scratchnn.testing.nested import named_tensors
from scratchnn.testing.recording import CallName
from scratchnn.testing.verdict import Check, merge

__all__ = ["Projection", "call_arguments", "compare_models"]


def compare_models(
    ours: Module,
    reference: Module,
    inputs: Any,
    *,
    training_inputs: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    train: bool = True,
    seeds: int = 1,
    factor: float = 4.0,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> ModelReport:
    """Hold a model against another one, layer by layer and as a whole, both measured against float64.

    Both are run in evaluation and through one step of training, with the same numbers, and beside them the reference in
    float64, which is the truth; both are left as they were. Of every layer that contains no others it asks:

    - *by itself*, called again with what the reference's layer was given and with the gradient that came back to it:
      output, gradients and running statistics;
    - *in the model*: its output after all the layers before it, and the gradient that arrives there from all the layers
      behind it. Of layers that contain others, and of the whole model, these are asked as well.

    An error may be ``factor`` times the reference's own, plus two rounding steps. A rounding error can turn a decision
    over, such as whether a ReLU lets a number pass or which box is kept, after which everything differs a thousandfold,
    on either side. So the models are run a second time with the decisions forced: every innermost layer is made to hand
    on the numbers that the reference's handed on. What fails on its own and passes there is called ``turned``, and
    passes: gradients always, outputs where the error is too large to be the rounding errors of the layers before.

    Dropout and the like draw the same numbers on all sides, and in float64 as well. Where a layer draws or decides
    otherwise there, ours has to agree with the reference itself to half the digits.

    Args:
        ours: the model in question. Its layers must have the names that they have in ``reference``, and the same
            weights.
        reference: what it shall be equivalent to, narrower than float64.
        inputs: what the models are called with: a tuple of arguments, a dict of keyword arguments, or anything else as
            the only argument. A function is called with the number of the draw (0, 1, ...) and gives these.
        training_inputs: the same for training, where they differ.
        loss: makes a number of the model's output in training. By default it is the sum of all numbers of the output,
            each times a random one.
        train: compare a step of training as well. If the reference is in training mode, both are trained in the mode
            that its layers are in, so that frozen ones stay frozen; else all layers are set to training.
        seeds: repeat all with other inputs (if they are a function) and random numbers so often, and judge the medians.
        factor: how many times as large as the reference's an error may be.
        context: what to run ours in, such as ``scratchnn.override``.

    Returns:
        a report; print it.

    Raises:
        TypeError: where a model is not a module.
        ValueError: where the names or the weights of the layers differ, where the reference computes in float64, or not
            at all in float64.

    Example:
        >>> import copy
        >>> from scratchnn.testing import compare_models
        >>> theirs = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> ours = scratchnn.convert(copy.deepcopy(theirs)).model
        >>> compare_models(ours, theirs, torch.randn(5, 8)).passed
        True
    """
    _require_comparable(ours, reference)
    if seeds < 1:
        raise ValueError(f"compare_models(): 'seeds' must be 1 or more, got {seeds}")
    draws = []
    truth = widened(reference)
    with torch.random.fork_rng(devices=[]):
        for seed in range(seeds):
            draw = Draw(ours, reference, truth, factor, context, seed)
            draw.compare(EVALUATION, call_arguments(inputs, seed))
            if train:
                given = inputs if training_inputs is None else training_inputs
                draw.compare(TRAINING, call_arguments(given, seed), loss or Projection(seed))
            draws.append(draw)
    return _report(ours, reference, draws, factor)


def _require_comparable(ours: Module, reference: Module) -> None:
    for name, model in (("ours", ours), ("reference", reference)):
        if not isinstance(model, Module):
            raise TypeError(
                f"compare_models(): argument '{name}' must be a torch.nn.Module, not {type(model).__name__}"
            )
    _require_same("layers", dict(ours.named_modules()), dict(reference.named_modules()))
    for what in ("parameters", "buffers"):
        mine, theirs = (dict(getattr(model, f"named_{what}")()) for model in (ours, reference))
        _require_same(what, mine, theirs)
        for name, tensor in theirs.items():
            if torch.nn.parameter.is_lazy(tensor) or torch.nn.parameter.is_lazy(mine[name]):
                raise ValueError(f"compare_models(): '{name}' has no shape yet: call both models once before")
            if tensor.dtype in (torch.float64, torch.complex128):
                raise ValueError(f"compare_models(): '{name}' is {tensor.dtype}, and nothing wider can judge it")
            if not _identical(mine[name], tensor):
                raise ValueError(f"compare_models(): '{name}' differs, load the state_dict of one model into the other")


def _require_same(what: str, ours: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    ours_only, theirs_only = ([name for name in a if name not in b] for a, b in ((ours, reference), (reference, ours)))
    if ours_only or theirs_only:
        raise ValueError(
            f"compare_models(): the names of the {what} must agree; only ours has {_some(ours_only)}, "
            f"only the reference has {_some(theirs_only)}"
        )


def _some(names: list[str]) -> str:
    return (", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")) or "none"


def _identical(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def call_arguments(inputs: Any, seed: int) -> Arguments:
    """``(args, kwargs)`` of a call, from what :func:`compare_models` takes as ``inputs``."""
    if callable(inputs) and not isinstance(inputs, Tensor):
        inputs = inputs(seed)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class Projection:
    """The default loss: the sum of all numbers of the output, each times a random one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, output: Any) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        terms = []
        for tensor in named_tensors(output, "output").values():
            if tensor.requires_grad:
                real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                # Numbers of bfloat16 are exact in every type.
                numbers = torch.randn(real.shape, generator=generator, dtype=torch.bfloat16)
                terms.append((real * numbers.to(real.dtype)).sum())
        if not terms:
            raise ValueError("compare_models(): no output needs a gradient; pass train=False to compare outputs alone")
        return torch.stack([term.to(terms[0].dtype) for term in terms]).sum()


def _report(ours: Module, reference: Module, draws: list[Draw], factor: float) -> ModelReport:
    free, forced = (_merged([getattr(draw, side) for draw in draws]) for side in ("free", "forced"))
    orders = [shapes for draw in draws for shapes in draw.shapes.values()]
    shapes = {name: shape for order in reversed(orders) for name, shape in order.items()}
    leaves = set().union(*(draw.leaves for draw in draws))
    layers = {
        name: LayerReport(name, type(ours.get_submodule(name.layer)).__name__, shapes[name], name in leaves)
        for name in _in_order(orders)
    }
    # What every layer gives when the numbers that it is given are right.
    alone = [found for key, found in free.items() if key.group == Group.ALONE_FORWARD]
    alone += [found for key, found in forced.items() if key.group == Group.FORWARD]
    faulty = any(found.large and not found.passed for found in alone)
    whole = []
    for key, found in free.items():
        judged = _judge(key, found, forced.get(key), faulty)
        checks = whole if key.call is None else getattr(layers[key.call], key.group)
        checks.append(judged)
    return ModelReport(
        type(ours).__name__,
        type(reference).__name__,
        dtype_of(reference),
        factor,
        len(draws),
        [*layers.values()],
        whole,
    )


def _merged(draws: list[dict[Key, Check]]) -> dict[Key, Check]:
    """The checks of all draws, as one of each that knows the reference's usual error in the model."""
    merged = {key: merge([draw[key] for draw in draws if key in draw]) for key in {k: None for d in draws for k in d}}
    errors: dict[tuple[str, str], list[float]] = {}
    for key, found in merged.items():
        if key.group in (Group.FORWARD, Group.BACKWARD) and found.comparison is not None:
            errors.setdefault((key.phase, key.group), []).append(found.comparison.theirs.relative)
    usual = {of: median(values) for of, values in errors.items()}
    return {
        key: found if key.alone else replace(found, usual=usual.get((key.phase, key.direction), 0.0))
        for key, found in merged.items()
    }


def _judge(key: Key, free: Check, forced: Check | None, faulty: bool) -> Check:
    """What the models left to themselves gave; if that fails, what they gave with the same decisions.

    Gradients are judged by that always, outputs if a decision explains the error: if it is large, though no layer is
    ``faulty``.
    """
    if free.passed or forced is None:
        return free
    if key.direction == Group.BACKWARD or (free.large and forced.passed and not faulty):
        return replace(forced, turned=True, free=free.comparison)
    return free


def _in_order(orders: list[dict[CallName, Any]]) -> list[CallName]:
    """The calls of several runs in one order, each after the one it followed in its own."""
    merged: list[CallName] = []
    for order in orders:
        position = 0
        for name in order:
            if name not in merged:
                merged.insert(position, name)
            position = merged.index(name) + 1
    return merged

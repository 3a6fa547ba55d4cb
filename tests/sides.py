"""Every layer beside torch's: the same weights, the same inputs, whatever is done to them.

The tests of what PyTorch does *around* layers (differentiation, transforms, copies, processes) do not ask for numbers
of their own: torch's layer in the same place is the specification. :func:`agree` does one thing to both.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

import scratchnn
from scratchnn.accuracy.layers import LAYERS, Layer

BATCHED = [layer for layer in LAYERS if layer.batch]
IMAGES = [layer for layer in LAYERS if len(layer.shapes[0]) in (4, 5)]

# What the dear tests walk through in the quick suite: of what a layer is for signals, images and volumes, the one for
# images, since one Function serves all ranks; and no lazy layer, which is of the plain class once it has been called.
FEW = [layer for layer in LAYERS if not re.search("[13]d|Lazy|64 channels|256 channels|1024", str(layer))]

ROUNDED_BY_TORCH = {"Hardsigmoid": 1e-6}  # its slope of 1/6 is torch's in float32, in float64 too

SAMPLES = 2  # of each batch: what is tested here does not depend on how many there are


def of(layers: Iterable[Layer], dear: bool = False) -> pytest.MarkDecorator:
    """One test for each layer; if they are dear, those of layers that are not among the ``FEW`` are slow ones."""

    def marked(layer: Layer) -> Any:
        slow = dear and layer not in FEW
        return pytest.param(layer, id=str(layer).replace(" ", "_"), marks=[pytest.mark.slow] if slow else [])

    return pytest.mark.parametrize("layer", [marked(layer) for layer in layers])


def quiet(test: Callable[..., None]) -> Callable[..., None]:
    """On one thread, since the tensors are tiny, and with no warnings.

    Layers may warn, of an implicit dimension or a size that is not what they expect: so does torch.
    """

    @functools.wraps(test)
    def wrapped(*args: object, **kwargs: object) -> None:
        torch.set_num_threads(1)  # a test leaves torch as it was: see conftest.py
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test(*args, **kwargs)

    return wrapped


def pair(layer: Layer, dtype: torch.dtype = torch.float64) -> tuple[Module, Module]:
    """Ours and torch's, with the same weights and statistics; no weight is what it was initialized to."""
    ours, theirs = layer.build(scratchnn.nn).to(dtype), layer.theirs().to(dtype)
    inputs = layer.draw(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in (ours, theirs):
            if any(map(torch.nn.parameter.is_lazy, module.parameters())):
                module(*inputs)
        tensors = zip(*((*module.parameters(), *module.buffers()) for module in (ours, theirs)), strict=True)
        for mine, other in tensors:
            if other.is_floating_point():
                spread = 0.5 if other.dim() < 2 else (other[0].numel()) ** -0.5
                other.uniform_(-spread, spread, generator=generator)
                if other.dim() < 2:  # variances and slopes are positive
                    other.add_(1)
            mine.copy_(other)
    return ours, theirs


def draw(layer: Layer, dtype: torch.dtype = torch.float64, samples: int = SAMPLES) -> tuple[Tensor, ...]:
    """Inputs of a few samples, and small images where the layer takes any."""
    return replace(layer, shapes=tuple((samples, *shape[1:]) for shape in _small(layer))).draw(dtype)


def _small(layer: Layer) -> tuple[tuple[int, ...], ...]:
    if layer.family == "linear" or layer.name in ("LayerNorm", "RMSNorm", "Maxout"):
        return layer.shapes
    size = {3: 10, 4: 6, 5: 4 if "Unpool" in layer.name else 5}  # unpooling gives an even size
    return tuple((*shape[:2], *[size[len(shape)]] * (len(shape) - 2)) for shape in layer.shapes)


def leaves(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs as autograd's leaves, but for whole numbers; views stay views."""
    return tuple(x.detach().requires_grad_() if x.is_floating_point() or x.is_complex() else x for x in inputs)


def differentiable(module: Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All leaves that a call of the module may be differentiated by: inputs, then parameters."""
    return [x for x in (*inputs, *module.parameters()) if x.requires_grad]


def weighting(output: Tensor, seed: int = 7) -> Tensor:
    """A random tensor like ``output``: the incoming gradient of a test."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(output.shape, dtype=output.dtype, generator=generator)


def close(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Two nests of tensors are equal up to rounding: ``rtol`` of the largest number of each tensor."""
    mine, structure = pytree.tree_flatten(found)
    others, expected_structure = pytree.tree_flatten(expected)
    assert structure == expected_structure
    for value, other in zip(mine, others, strict=True):
        if isinstance(other, Tensor) and other.numel() and (other.is_floating_point() or other.is_complex()):
            atol = rtol * max(1.0, other.abs().nan_to_num(0, 0, 0).max().item())
        else:
            atol = 0.0
        torch.testing.assert_close(value, other, rtol=0, atol=atol, equal_nan=True)


def outcome(action: Callable[..., Any], module: Module, inputs: Sequence[Tensor]) -> Any:
    """What the action gives, as detached tensors, or the error it raises."""
    torch.manual_seed(1)  # for the layers that draw
    try:
        result = action(module, *inputs)
    except Exception as error:
        return error
    return pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), result)


def agree(
    layer: Layer,
    action: Callable[..., Any],
    inputs: Sequence[Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    rtol: float | None = None,
    lacking: str | None = None,
) -> Any:
    """``action(module, *inputs)`` gives the same nest of tensors for our layer as for torch's, or the same error.

    Args:
        lacking: a pattern for the errors by which torch says that it lacks what is asked: ours must have it.

    Returns:
        what it gives for ours.
    """
    if rtol is None:
        rtol = ROUNDED_BY_TORCH.get(layer.name, 1e-9)
    inputs = draw(layer, dtype) if inputs is None else inputs
    found, expected = (outcome(action, module, leaves(inputs)) for module in pair(layer, dtype))
    if isinstance(expected, Exception) and not (lacking and re.search(lacking, str(expected))):
        assert isinstance(found, Exception), f"torch refuses: {type(expected).__name__}: {expected}"
        assert type(found) is type(expected), f"{found!r}\ninstead of torch's {expected!r}"
    elif isinstance(found, Exception):
        raise AssertionError(f"torch does this, but ours raises {type(found).__name__}: {found}") from found
    elif not isinstance(expected, Exception):
        close(found, expected, rtol)
    return found

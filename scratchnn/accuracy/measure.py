"""Rounding errors of a layer: its output and gradients, ours and torch's, beside the same layer in float64.

Both sides have the same weights and inputs, rounded to the dtype once; the float64 layer computes on those rounded
numbers, so that what is left is the error of the computation. An error is the norm of the difference over the norm of
the truth.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import Layer
from scratchnn.testing.errors import Comparison, exact

SEEDS = 5

# How much larger than torch's our error may be: a sum of other shape has other errors, by chance alone.
FACTOR, WINOGRAD_FACTOR = 2.0, 4.0


@dataclass
class Result:
    """The errors of a layer in one dtype.

    Attributes:
        layer: the example.
        dtype: of weights and inputs.
        errors: medians over several seeds, by what was computed: ``output``, ``dx``, ``dw``, ``db``.
        allowed: the largest ratio to torch's error that counts as equally exact.
    """

    layer: Layer
    dtype: torch.dtype
    errors: dict[str, Comparison]
    allowed: float


def measure(layer: Layer, dtype: torch.dtype, seeds: int = SEEDS) -> Result:
    """The errors of one layer, ours and torch's.

    Args:
        layer: the example.
        dtype: of weights and inputs.
        seeds: how many draws of both.

    Returns:
        the medians over the draws.
    """
    runs = [_errors_of_a_run(layer, dtype, seed) for seed in range(seeds)]
    errors = {name: Comparison.median([run[name] for run in runs]) for name in runs[0]}
    return Result(layer, dtype, errors, allowed_factor(layer))


def measure_all(layers: Sequence[Layer]) -> Iterator[Result]:
    """The errors of all layers, in every dtype each serves.

    Args:
        layers: the examples.

    Returns:
        the result of each layer and dtype, as it is measured.
    """
    for layer in layers:
        for dtype in layer.dtypes:
            yield measure(layer, dtype)


def allowed_factor(layer: Layer) -> float:
    """How many times torch's error ours may be: more where Winograd's algorithm may be used.

    Those are convolutions of 3x3 in height and width, dense ones and in groups of 8 channels and more, of any type:
    half precision and complex numbers are computed in float32.

    Args:
        layer: the example.

    Returns:
        the factor.
    """
    module = layer.theirs()
    may_use_winograd = (
        layer.family == "conv"
        and module.kernel_size[-2:] == (3, 3)
        and {*module.stride, *module.dilation} == {1}
        and (module.groups == 1 or module.in_channels // module.groups >= 8)
    )
    return WINOGRAD_FACTOR if may_use_winograd else FACTOR


def _errors_of_a_run(layer: Layer, dtype: torch.dtype, seed: int) -> dict[str, Comparison]:
    inputs = layer.draw(dtype, seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    ours = run(_made(layer.build(scratchnn.nn), dtype, inputs, seed), inputs, seed)
    theirs = run(_made(layer.theirs(), dtype, inputs, seed), inputs, seed)
    truth = run(_made(layer.theirs(), dtype, inputs, seed).to(wide), tuple(exact(x) for x in inputs), seed, dtype)
    return {name: Comparison.of(ours[name], theirs[name], true) for name, true in truth.items()}


def _made(module: Module, dtype: torch.dtype, inputs: tuple[Tensor, ...], seed: int) -> Module:
    """The module with weights and statistics that are the same for all who ask with this seed."""
    module.to(dtype)
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        with torch.no_grad():
            module(*inputs)
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if "running" in name or tensor.dim() < 2:  # variances and slopes are positive
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
            else:
                wide = torch.complex128 if tensor.is_complex() else torch.float64
                scale = 1 / math.sqrt(tensor[0].numel())
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=wide) * scale)
    return module


def run(
    module: Module, inputs: tuple[Tensor, ...], seed: int = 0, rounded: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The output and the gradients of a module for a random gradient.

    Args:
        module: any.
        inputs: what to call it with.
        seed: of the gradient, and of what the module draws.
        rounded: the type that the gradient is rounded to first.

    Returns:
        the tensors by name: ``output``, ``dx``, ``dw``, ``db``.
    """
    torch.manual_seed(seed)
    leaves = {}
    arguments = []
    for position, x in enumerate(inputs):
        if x.is_floating_point() or x.is_complex():
            x = leaves["dx" if position == 0 else f"dx{position + 1}"] = x.detach().requires_grad_()
        arguments.append(x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    leaves |= dict(zip(("dw", "db"), parameters, strict=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about implicit dimensions and the like
        output = module(*arguments)
    generator = torch.Generator().manual_seed(2000 + seed)
    wide = torch.complex128 if output.is_complex() else torch.float64
    grad = torch.randn(output.shape, generator=generator, dtype=wide).to(rounded or output.dtype).to(output.dtype)
    gradients = torch.autograd.grad(output, list(leaves.values()), grad)
    return {"output": output.detach()} | dict(zip(leaves, gradients, strict=True))

"""How much work a layer is: multiply-adds and the bytes that have to move, from shapes alone.

Both are lower bounds that do not depend on the algorithm, so that the rates computed from them compare:

- *Operations* count every multiply-add of the layer's formula as two, and nothing else: comparisons, copies
  and lone additions are free. A convolution that gets by with fewer multiplications (Winograd) is credited
  with all of them, and its rate may exceed what the processor could multiply.
- *Bytes* count each tensor once: inputs and parameters read, outputs and gradients written. A layer that has
  to pass twice over a tensor too large for the cache, such as batch norm in training, cannot reach the speed
  of a copy by this count; one whose tensors stay in the cache can exceed it. A norm's running statistics,
  a few numbers a channel, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """Operations (two for each multiply-add) and bytes moved."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Cost:
    """The work of a forward pass, and of the backward pass alone."""

    forward: Work = Work()
    backward: Work = Work()

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward)


def layer_cost(layer: torch.nn.Module, input: Tensor, output: Tensor) -> Cost:
    """The cost of one layer; of the tensors only shape, dtype and ``requires_grad`` are looked at.

    Raises:
        NotImplementedError: for a layer whose formula is not here.
    """
    x, y = input.numel(), output.numel()
    parameters = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
    input_gradients = 1 if input.requires_grad else 0

    def work(flops: int, numbers: int, further_bytes: int = 0) -> Work:
        return Work(flops, numbers * input.element_size() + further_bytes)

    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, torch.nn.Linear)):
        # y = w x: each output is a sum over the taps of its group's channels (or over the input features); turned
        # round, each input goes to as many outputs.
        taps = layer.weight[0].numel()
        forward = work(2 * (x if isinstance(layer, _TRANSPOSED) else y) * taps, x + parameters + y)
        # dw = dy x and dx = w dy, each as many multiply-adds as the forward pass.
        gradients = 1 + input_gradients
        backward = work(gradients * forward.flops, y + x + 2 * parameters + input_gradients * x)
    elif isinstance(layer, _NORMS):
        # Own statistics: one multiply-add an element for the variance, one for y = a x + b; given ones: the latter.
        # Backward: one for the gradient of the weight, and for dx = a dy + b x + c two (given statistics: a dy).
        given = getattr(layer, "track_running_stats", False) and not layer.training
        forward = work((2 if given else 4) * x, x + parameters + y)
        backward = work((2 if given else 6) * x, y + 2 * x + 2 * parameters)
    elif isinstance(layer, torch.nn.LocalResponseNorm):
        # A sum of squares over the window; backward another one, of dy y / s.
        forward, backward = work(2 * layer.size * x, x + y), work(2 * layer.size * x, y + y + x + x)
    elif any(kind.__module__ == torch.nn.modules.activation.__name__ for kind in type(layer).__mro__):
        forward, backward = work(0, x + parameters + y), work(0, y + y + x + 2 * parameters)  # dx from dy and x or y
    elif isinstance(layer, _AVERAGES):
        forward, backward = work(0, x + y), work(0, y + x)
    elif isinstance(layer, _MAXIMA):
        # Where in its window each maximum was fits in a byte.
        forward, backward = work(0, x + y), work(0, y + x, further_bytes=y)
    elif isinstance(layer, _POWERS):
        forward, backward = work(0, x + y), work(0, y + y + x + x)  # dx from dy, y and x
    elif isinstance(layer, torch.nn.Dropout):
        # Which numbers stay fits in a byte; out of training it is the identity.
        if not layer.training or layer.p == 0:
            return Cost()
        forward, backward = work(0, x + y, further_bytes=y), work(0, y + x, further_bytes=y)
    elif isinstance(layer, (torch.nn.Identity, torch.nn.Flatten)):
        return Cost()
    else:
        raise NotImplementedError(f"no formula for the cost of {type(layer).__name__}")
    return Cost(forward, backward)


def model_cost(model: torch.nn.Module, input: Tensor) -> Cost:
    """The cost of a layer or of a whole model: the sum over its layers, found by running it forward once.

    On meta tensors that computes nothing. What a model does between its layers (adding a shortcut, functions called
    without a layer, modules that are not torch's) and the optimizer's update are left out.
    """
    total = Cost()

    def add(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer_cost(layer, inputs[0], output)

    leaves = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(add) for layer in leaves if _is_torchs(layer)]
    try:
        model(input)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _is_torchs(layer: torch.nn.Module) -> bool:
    """A layer of torch.nn, or of a class derived from one."""
    kinds = type(layer).__mro__
    return any(kind.__module__.startswith("torch.nn.modules") for kind in kinds[: kinds.index(torch.nn.Module)])


def _ranks(*names: str) -> tuple[type[torch.nn.Module], ...]:
    return tuple(getattr(torch.nn, f"{name}{rank}d") for name in names for rank in (1, 2, 3))


_CONVOLUTIONS, _TRANSPOSED = _ranks("Conv"), _ranks("ConvTranspose")
_NORMS = (*_ranks("BatchNorm", "InstanceNorm"), torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm)
_AVERAGES, _MAXIMA = _ranks("AvgPool", "AdaptiveAvgPool"), _ranks("MaxPool", "AdaptiveMaxPool")
_POWERS = _ranks("LPPool")

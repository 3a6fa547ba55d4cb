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

    if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
        # y = w x: each output is a sum over the taps of its group's channels (or over the input features).
        taps = layer.weight[0].numel()
        forward = work(2 * y * taps, x + parameters + y)
        # dw = dy x and dx = w dy, each as many multiply-adds as the forward pass.
        gradients = 1 + input_gradients
        backward = work(gradients * forward.flops, y + x + 2 * parameters + input_gradients * x)
    elif isinstance(layer, torch.nn.BatchNorm2d):
        # Training: one multiply-add an element for the variance, one for y = a x + b; evaluation: the latter.
        # Backward: one for the gradient of the weight, and for dx = a dy + b x + c two (evaluation: a dy).
        forward = work((4 if layer.training else 2) * x, x + parameters + y)
        backward = work((6 if layer.training else 2) * x, y + 2 * x + 2 * parameters)
    elif isinstance(layer, torch.nn.ReLU):
        forward, backward = work(0, x + y), work(0, y + y + x)  # dx from dy and the sign of y
    elif isinstance(layer, (torch.nn.AvgPool2d, torch.nn.AdaptiveAvgPool2d)):
        forward, backward = work(0, x + y), work(0, y + x)
    elif isinstance(layer, torch.nn.MaxPool2d):
        # Where in its window each maximum was fits in a byte.
        forward, backward = work(0, x + y), work(0, y + x, further_bytes=y)
    elif isinstance(layer, (torch.nn.Identity, torch.nn.Flatten)):
        return Cost()
    else:
        raise NotImplementedError(f"no formula for the cost of {type(layer).__name__}")
    return Cost(forward, backward)


def model_cost(model: torch.nn.Module, input: Tensor) -> Cost:
    """The cost of a layer or of a whole model: the sum over its layers, found by running it forward once.

    On meta tensors that computes nothing. What a model does between its layers (adding a shortcut) and the
    optimizer's update are left out.
    """
    total = Cost()

    def add(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer_cost(layer, inputs[0], output)

    counted = [layer for layer in model.modules() if type(layer).__module__.startswith("torch.nn.modules")]
    hooks = [layer.register_forward_hook(add) for layer in counted if not list(layer.children())]
    try:
        model(input)
    finally:
        for hook in hooks:
            hook.remove()
    return total

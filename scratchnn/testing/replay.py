"""One call of one layer made again by itself: the outputs, gradients and statistics that it gives for given numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.testing.errors import exact
from scratchnn.testing.nested import map_tensors, named_tensors
from scratchnn.testing.recording import Call

__all__ = ["Replay"]


class Replay:
    """A layer with the arguments of a recorded call, and the gradients that came back to its outputs.

    Where none came back though a gradient was wanted, they are drawn at random.

    Args:
        layer: to be called; its parameters are used as they are, its buffers changed.
        call: the recorded call, of this layer or of one that stands for it in another model.
        buffers: what its buffers hold before the call.
        widen: compute in float64.
        every: ask for the gradient of every argument, not only of those that wanted one.
        copies: call the layer with copies of the arguments, since it may change them in place.
        seed: for layers that draw random numbers.
    """

    def __init__(
        self,
        layer: Module,
        call: Call,
        buffers: Mapping[str, Tensor],
        *,
        widen: bool = False,
        every: bool = True,
        copies: bool = True,
        seed: int = 0,
    ) -> None:
        def prepare(tensor: Tensor) -> Tensor:
            value = tensor.detach()
            return exact(value) if widen else value

        def leaf(tensor: Tensor) -> Tensor:
            value = prepare(tensor)
            differentiable = value.is_floating_point() or value.is_complex()
            return value.requires_grad_() if differentiable and (every or tensor.requires_grad) else value

        self.layer, self.seed, self.buffers, self.copies = layer, seed, buffers, copies
        assert call.arguments is not None
        self.arguments = map_tensors(leaf, call.arguments)
        self.gradients = {path: prepare(gradient) for path, gradient in (call.gradients or _drawn(call, seed)).items()}
        self.leaves = {
            name: tensor
            for name, tensor in (*_named(self.arguments).items(), *layer.named_parameters())
            if tensor.requires_grad
        }

    def forward(self) -> Any:
        """Call the layer."""
        args, kwargs = map_tensors(Tensor.clone, self.arguments) if self.copies else self.arguments
        return self.layer(*args, **kwargs)

    def forward_backward(self) -> tuple[Tensor | None, ...]:
        """The gradients of what :attr:`leaves` holds; None for each that there is none of."""
        outputs = named_tensors(self.forward(), "")
        paths = [path for path in self.gradients if path in outputs and outputs[path].requires_grad]
        return torch.autograd.grad(
            [outputs[path] for path in paths],
            list(self.leaves.values()),
            [self.gradients[path] for path in paths],
            allow_unused=True,
        )

    def restore(self) -> None:
        """Set the buffers and the random numbers to where they were before the call."""
        with torch.no_grad():
            for name, buffer in self.layer.named_buffers():
                buffer.copy_(self.buffers[name])
        torch.manual_seed(self.seed)

    def outputs(self) -> dict[str, Tensor]:
        """What the layer gives, and what its buffers hold after it."""
        self.restore()
        with torch.no_grad():
            results = map_tensors(Tensor.clone, named_tensors(self.forward(), "output"))
        after = {f"{name} after it": buffer.clone() for name, buffer in self.layer.named_buffers()}
        return results | after

    def gradient_of_each(self) -> dict[str, Tensor]:
        """The gradients by name; empty where none was wanted."""
        if not self.gradients or not self.leaves:
            return {}
        self.restore()
        found = zip(self.leaves, self.forward_backward(), strict=True)
        return {f"gradient of {name}": gradient for name, gradient in found if gradient is not None}


def _drawn(call: Call, seed: int) -> dict[str, Tensor]:
    """Random gradients of the outputs that want one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: torch.randn(output.shape, generator=generator, dtype=output.dtype)
        for path, output in call.outputs.items()
        if output.requires_grad
    }


def _named(arguments: tuple[tuple, dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors among the arguments: ``input`` if there is one, else with their path."""
    found = {name: tensor for part in arguments for name, tensor in named_tensors(part, "input ").items()}
    return {"input": next(iter(found.values()))} if len(found) == 1 else found

"""What a layer is called with: its arguments in every dtype, memory format and batch, and calls that must fail."""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scratchnn.testing.errors import exact
from scratchnn.testing.nested import map_tensors, named_tensors

__all__ = [
    "FORMATS",
    "Arguments",
    "Draw",
    "channels_last",
    "drawer",
    "formatted",
    "part_of_batch",
    "random_like",
    "set_seed",
    "spoiled",
    "strides",
    "wrong_calls",
]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call.

    Attributes:
        args: by position; tuples, lists and dictionaries of tensors among them.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Any]) -> Arguments:
        """The same arguments with ``function`` of every tensor."""
        return Arguments(map_tensors(function, self.args), map_tensors(function, dict(self.kwargs)))

    def copy(self) -> Arguments:
        """Tensors of their own with the same strides, overlaps and gaps, and no history."""
        return self.map(lambda x: copy.deepcopy(x.detach()).requires_grad_(x.requires_grad))

    def exact(self) -> Arguments:
        """The same numbers in float64."""
        return self.map(lambda x: exact(x.detach()).requires_grad_(x.requires_grad))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: ``input`` where there is one, else ``input 1`` and so on; keywords by theirs."""
        if len(self.args) == 1:
            named = named_tensors(self.args[0], "input")
        else:
            named = {}
            for position, value in enumerate(self.args):
                named |= named_tensors(value, f"input {position + 1}")
        for name, value in self.kwargs.items():
            named |= named_tensors(value, name)
        return named

    def differentiable(self) -> dict[str, Tensor]:
        """The tensors to differentiate by: those that require a gradient or, where none does, all floating ones."""
        floating = {name: x for name, x in self.tensors().items() if x.is_floating_point() or x.is_complex()}
        return {name: x for name, x in floating.items() if x.requires_grad} or floating


Draw = Callable[[torch.dtype, int], Arguments]


def drawer(inputs: Any, kwargs: Mapping[str, Any] | None, first: int) -> Draw:
    """How to draw arguments in a dtype: by the caller's function, or from the tensors given.

    The ``first`` seed stands for the tensors as they are; every other one for numbers a few percent off, so that a
    comparison can be repeated on numbers of the same kind.
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)

    def draw(dtype: torch.dtype, seed: int) -> Arguments:
        set_seed(seed)
        if callable(inputs):
            args = inputs(dtype, seed)
            arguments = Arguments(args if isinstance(args, tuple) else (args,), dict(kwargs or {}))
        else:
            arguments = Arguments(tuple(inputs), dict(kwargs or {}))
            if seed != first:
                arguments = arguments.map(_a_little_off)
        return arguments.map(lambda x: _cast(x, dtype)).copy()

    return draw


def _a_little_off(x: Tensor) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        return x
    return (x * (1 + 0.01 * torch.randn_like(x))).detach().requires_grad_(x.requires_grad)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating tensors in ``dtype``; real numbers that become complex get an imaginary part."""
    if not (x.is_floating_point() or x.is_complex()):
        return x
    if dtype.is_complex and not x.is_complex():
        value = torch.complex(*(part.to(dtype.to_real()) for part in (x.detach(), x.detach().roll(1))))
    else:
        value = x.detach().to(dtype)
    return value.requires_grad_(x.requires_grad)


def set_seed(seed: int) -> None:
    """``torch.manual_seed``, which queues each call for accelerators that were not used yet, with a formatted stack."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def random_like(tensor: Tensor, name: str, seed: int, rounded: torch.dtype) -> Tensor:
    """Normal numbers in the shape and layout of a tensor, the same ones in every dtype but for rounding to one.

    Who asks with the same name and seed gets the same numbers.
    """
    numbers = _numbers(tensor.shape, zlib.crc32(name.encode()) + seed, tensor.is_complex())
    if rounded.is_complex == tensor.is_complex():
        numbers = numbers.to(rounded)
    return torch.empty_like(tensor, requires_grad=False).copy_(numbers)


@functools.lru_cache(maxsize=2)  # all sides ask for the same ones, one after the other
def _numbers(shape: torch.Size, seed: int, is_complex: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128 if is_complex else torch.float64)


# Memory formats.


def channels_last(rank: int) -> torch.memory_format | None:
    """The memory format that images (4 dimensions) and volumes (5) have beside the contiguous one."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(rank)


def strides(x: Tensor) -> tuple[int, ...]:
    """The strides that say something: none of an empty tensor, none of dimensions of size 1."""
    return tuple(stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1) if x.numel() else ()


def _channels_last(x: Tensor) -> Tensor | None:
    format = channels_last(x.dim())
    return None if format is None else x.contiguous(memory_format=format)


def _sliced(x: Tensor) -> Tensor | None:
    """Every other number of rows, and a margin: gaps everywhere, and a first number at an odd address."""
    if x.dim() < 1:
        return None
    larger = x.new_zeros([*(size + 1 for size in x.shape[:-1]), 2 * x.shape[-1] + 1])
    view = larger[(*[slice(1, None)] * (x.dim() - 1), slice(1, None, 2))]
    return view.copy_(x)


def _transposed(x: Tensor) -> Tensor | None:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else None


def _expanded(x: Tensor) -> Tensor | None:
    """The first sample, repeated with a stride of 0."""
    return x[:1].contiguous().expand(x.shape) if x.dim() > 1 and x.shape[0] > 1 else None


FORMATS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "transposed": _transposed,
    "expanded": _expanded,
}


def formatted(arguments: Arguments, format: str) -> Arguments | None:
    """The arguments in a memory format, those tensors that have it; None where the first has not."""
    tensors = list(arguments.tensors().values())
    rank = tensors[0].dim()

    def laid_out(x: Tensor) -> Tensor:
        value = FORMATS[format](x.detach()) if x.dim() == rank else None
        return x if value is None else value.requires_grad_(x.requires_grad)

    return None if FORMATS[format](tensors[0].detach()) is None else arguments.map(laid_out)


# Batches.


def part_of_batch(arguments: Arguments, part: int | slice) -> Arguments:
    """These samples alone: the part of every tensor that has as many entries along dimension 0 as the first has."""
    size = _batch_size(arguments)

    def cut(x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[0] != size:
            return x
        return x.detach()[part].clone().requires_grad_(x.requires_grad)

    return arguments.map(cut)


def _batch_size(arguments: Arguments) -> int | None:
    first = next(iter(arguments.tensors().values()))
    return first.shape[0] if first.dim() else None


# Calls that should fail, or whose result is special.


def spoiled(arguments: Arguments, value: float) -> Arguments:
    """One number of every floating tensor, in its middle, replaced by ``value``, an infinity or NaN."""

    def spoil(x: Tensor) -> Tensor:
        if not (x.is_floating_point() or x.is_complex()) or x.numel() == 0:
            return x
        x = copy.deepcopy(x.detach())
        x[tuple(size // 2 for size in x.shape)] = value
        return x

    return arguments.map(spoil)


def wrong_calls(arguments: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Calls of the kind a user makes by mistake, derived from good arguments; each spoils one tensor.

    Some are no mistake for every layer: what matters is that two layers answer alike.
    """
    for name, tensor in arguments.tensors().items():
        for what, value in _wrong(tensor):
            yield f"{name}: {what}", _replaced(arguments, tensor, value)
    yield "no arguments", Arguments((), {})
    yield "too many arguments", Arguments((*arguments.args, *[object()] * 8), arguments.kwargs)


def _wrong(x: Tensor) -> Iterator[tuple[str, Any]]:
    yield "a number", 1.5
    yield "a string", "tensor"
    yield "None", None
    yield "a list of numbers", [0.5, 1.5]
    yield "no dimensions", x.new_zeros(())
    yield "one dimension", x.new_zeros(x.shape[-1:] if x.dim() else (3,))
    yield "two dimensions more", x[None, None]
    if x.dim() > 1:
        yield "one channel more", torch.cat([x, x[:, :1]], 1)
        yield "one channel less", x[:, :-1]
        yield "one number more along the last dimension", torch.cat([x, x[..., :1]], -1)
    if x.dim() > 2:
        yield "no pixels along the last dimension", x[..., :0]
        yield "no pixels", x[(..., *[slice(0, 0)] * (x.dim() - 2))]
    if x.is_floating_point():
        yield "whole numbers", x.to(torch.int64)
        yield "booleans", x > 0
        yield "another floating type", x.to(torch.float32 if x.dtype == torch.float64 else torch.float64)
        yield "complex numbers", x.to(x.dtype.to_complex())


def _replaced(arguments: Arguments, tensor: Tensor, value: Any) -> Arguments:
    return arguments.map(lambda x: value if x is tensor else x)

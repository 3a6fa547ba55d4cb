"""The function :func:`scratchnn.summary`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.classes import kind_of
from scratchnn.explain import Explanation, explain_call
from scratchnn.nn import implemented
from scratchnn.summary.layer import Layer
from scratchnn.summary.report import Summary

__all__ = ["summary"]

Size = Sequence[int]


def summary(
    model: Module,
    input_size: Size | Sequence[Size] | None = None,
    *,
    inputs: Any = None,
    compute: bool = False,
) -> Summary:
    """A model as a tree of layers: shapes, parameters, multiply-adds, memory, receptive fields and algorithms.

    A step of training is run on shapes alone: nothing is computed, no memory is taken, and the batch may be of any
    size. The model stays as it is: mode, parameters, gradients, statistics, attributes, hooks, random numbers. It is
    called in the mode that it is in: ``model.eval()`` before, for evaluation.

    - *Parameters* are counted once, with the first layer that has them.
    - *Multiply-adds* are those of convolutions and products of matrices, half of what ``torch.utils.flop_counter``
      counts, forward and backward. A layer that is called twice costs twice.
    - *Saved* are the bytes that autograd keeps for the backward pass. A tensor that several layers keep counts with the
      first of them; parameters and buffers do not count.
    - The *receptive field* is what one output sees of the input, from the first to the last pixel, through all
      branches; see :class:`scratchnn.summary.Extent`. Batch normalization counts as looking at one number at a time,
      as it does in evaluation; other normalizations see what they average over.
    - The *algorithm* is what scratchnn computes the layer by, or would: see :func:`scratchnn.explain`.

    Args:
        model: of ``torch.nn``, ``scratchnn.nn`` or both, on the CPU or the meta device.
        input_size: the shape of the input, batch included, or a list of shapes for several inputs.
        inputs: what to call the model with instead: a tensor, a tuple of arguments or a dictionary of named ones.
        compute: run the step with numbers, for models whose shapes depend on them. It takes the time and the memory of
            a step of training.

    Returns:
        the summary; print it, or take ``.markdown()`` or ``.dict()``.

    Raises:
        TypeError: where ``model`` is no module or compiled by TorchScript, or a size is not made of whole numbers.
        ValueError: for both or none of ``input_size`` and ``inputs``, negative sizes, and layers that are still lazy.
        RuntimeError: where the model's shapes depend on numbers and ``compute`` is not set; and whatever else the model
            raises.

    Source: Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, 2019.

    Example:
        >>> from scratchnn.models import resnet20
        >>> report = scratchnn.summary(resnet20(), (1, 3, 32, 32))
        >>> report.parameters, report.forward  # numbers, and multiply-adds
        (269722, 40551040)
    """
    from scratchnn.summary.trace import trace  # what it needs is slow to import

    if not isinstance(model, Module):
        raise TypeError(f"summary(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("summary(): the model is compiled by TorchScript, give the one that it was made of")
    if (input_size is None) == (inputs is None):
        raise ValueError("summary(): give either 'input_size' or 'inputs'")
    dtype = _dtype_of(model)
    if inputs is None:
        device = _device_of(model) if compute else torch.device("meta")
        args, kwargs = tuple(_drawn(shape, dtype, device) for shape in _shapes(input_size)), {}
    else:
        args, kwargs = _arguments(inputs)
    try:
        root, innermost = trace(model, (args, kwargs), compute)
    except (RuntimeError, NotImplementedError) as error:
        if compute or not _needs_numbers(error):
            raise
        raise RuntimeError(
            f"summary(): {type(model).__name__} looks at the numbers it computes with, so shapes alone do not do; pass "
            f"compute=True to run it with numbers ({error})"
        ) from error
    _count_parameters(model, root)
    _name_algorithms(root, innermost)
    from scratchnn.testing.nested import named_tensors

    shapes = [tuple(tensor.shape) for tensor in named_tensors((args, kwargs), "").values()]
    return Summary(root, shapes, str(dtype).removeprefix("torch."), model.training)


def _dtype_of(model: Module) -> torch.dtype:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.dtype
    return torch.get_default_dtype()


def _device_of(model: Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _drawn(shape: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0) if device.type == "cpu" else None
    return torch.randn(tuple(shape), dtype=dtype, device=device, generator=generator)


def _shapes(input_size: Size | Sequence[Size]) -> list[tuple[int, ...]]:
    """One shape, or several, as a list of shapes."""
    several = len(input_size) > 0 and all(isinstance(size, Sequence) for size in input_size)
    shapes = [tuple(shape) for shape in (input_size if several else [input_size])]
    for size in (size for shape in shapes for size in shape):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"summary(): sizes must be whole numbers, or several lists of them, but got {input_size!r}")
        if size < 0:
            raise ValueError(f"summary(): sizes must not be negative, but got {input_size!r}")
    return shapes


def _arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _needs_numbers(error: Exception) -> bool:
    """Whether torch says that a tensor without numbers will not do, or meets one that has them."""
    words = ("meta tensor", "meta device", "device meta", "register_meta", "data-dependent")
    return any(each in str(error).lower() for each in words)


def _count_parameters(model: Module, root: Layer) -> None:
    """Give every parameter to the first call of the layer that has it, or to a row of its own below."""
    first: dict[str, Layer] = {}
    for layer in root.walk():
        first.setdefault(layer.name, layer)
    counted: set[int] = set()
    modules = dict(model.named_modules())
    # Called layers in the order of their calls, then those that are never called.
    for name in (*first, *(name for name in modules if name not in first)):
        fresh = [p for p in modules[name].parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, fresh))
        if not fresh:
            continue
        owner = name.partition(".parametrizations")[0] if "parametrizations" in name.split(".") else name
        layer = first.get(owner) or first.get(name)
        if layer is None:
            layer = first[name] = Layer(name, type(modules[name]).__name__)
            above = name.rpartition(".")[0]
            while above not in first:
                above = above.rpartition(".")[0]
            first[above].parts.append(layer)
        layer.own_parameters += sum(p.numel() for p in fresh)
        layer.own_trainable += sum(p.numel() for p in fresh if p.requires_grad)


def _name_algorithms(root: Layer, innermost: dict[int, tuple[Module, list[Tensor]]]) -> None:
    known: dict[Any, Explanation] = {}
    for layer in root.walk():
        if id(layer) not in innermost:  # a block
            continue
        module, tensors = innermost[id(layer)]
        if not tensors or not (isinstance(module, tuple(implemented().values())) or kind_of(type(module))):
            layer.algorithm = "torch"
            continue
        # Layers of one class with the same settings, called with the same shapes, are explained once.
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
        key = (type(module), repr(module), module.training, shapes)
        if key not in known:
            known[key] = explain_call(module, tensors)
        layer.algorithm = known[key].algorithm

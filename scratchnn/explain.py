"""Which algorithm computes a layer, forward and backward, and why.

The layer is run on the meta device, and every operator that it calls is asked for. What a convolution is computed by is
decided in C++ (``csrc/conv/choice.cpp``) and told from there; most other operators have one algorithm.

The function hides the module of the same name: it is ``scratchnn.explain(layer, shape)``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from scratchnn.convert import convert
from scratchnn.ops._elementwise import ROWS

__all__ = ["Explanation", "Step", "explain", "explain_call"]

_ops = torch.ops.scratchnn


class _Algorithm(NamedTuple):
    """The only algorithm of an operator: its name, why it is right, and how it serves half precision."""

    name: str
    reason: str
    half: str = "float32 copies"  # or "registers", where numbers are widened as they are read


_ONE_PASS = _Algorithm("one pass", "each number is read once and written once", "registers")
_WINDOW = _Algorithm("running window", "two additions a number, however long the window")
_TILES = _Algorithm("matrix product", "sums of outer products fill the registers", "registers")
_ASKING = _Algorithm(
    "gathering windows", "each pixel asks its windows: no memory to clear, no two threads at one pixel", "registers"
)
_ALGORITHMS = {
    "channel_sum": _Algorithm("sum in one pass", "it reads every number once, at memory speed", "registers"),
    "linear": _Algorithm("dot products", "the rows of input and weight lie in memory as they are read", "registers"),
    "linear_input_grad": _TILES,
    "linear_weight_grad": _TILES,
    "bilinear": _Algorithm("matrix product", "one input times the weight, then dot products with the other"),
    "bilinear_weight_grad": _Algorithm("matrix product", "one input, scaled by the gradient, times the other"),
    "local_response_norm": _WINDOW,
    "local_response_norm_backward": _WINDOW,
    "batch_norm_train": _Algorithm(
        "statistics, then outputs", "what shares statistics is read again from the cache", "registers"
    ),
    "batch_norm_eval": _Algorithm("one pass", "with fixed statistics it is one multiply-add a number", "registers"),
    "batch_norm_backward": _Algorithm(
        "sums, then gradients", "both sums of a channel are gathered in one pass", "registers"
    ),
    "batch_norm_add_clamp_train": _Algorithm(
        "statistics, then outputs",
        "addition and clamp cost no pass of their own: they end batch norm's last",
        "registers",
    ),
    "batch_norm_add_clamp": _Algorithm("one pass", "batch norm, addition and clamp meet each number once", "registers"),
    "batch_norm_add_clamp_backward": _Algorithm(
        "sums, then gradients", "the clamp's mask is applied on the way", "registers"
    ),
    "normalize": _Algorithm(
        "statistics, then outputs", "what shares statistics is read again from the cache", "registers"
    ),
    "normalize_backward": _Algorithm(
        "sums, then gradients", "both sums of a set are gathered in one pass", "registers"
    ),
    "max_pool": _Algorithm("windows over vectors", "many maxima are found at once", "registers"),
    "max_pool_backward": _ASKING,
    "avg_pool": _Algorithm(
        "windows over vectors", "many sums are taken at once, row by row of the window", "registers"
    ),
    "avg_pool_backward": _ASKING,
    "fractional_max_pool": _Algorithm("plane by plane", "each plane has windows of its own", "registers"),
    "fractional_max_pool_backward": _Algorithm("scattering", "each plane has windows of its own"),
    "max_unpool": _Algorithm("scattering", "each number knows its place", "registers"),
    "max_unpool_backward": _Algorithm("gathering", "each number knows its place", "registers"),
    "softmax": _Algorithm("row by row", "the numbers that are divided by one sum are read together", "registers"),
}
_ALGORITHMS |= {
    f"{name}{ending}": _ALGORITHMS["softmax"]
    for name in ("softmax", "softmin", "log_softmax")
    for ending in ("", "_backward")
}
_ALGORITHMS |= {name: _ONE_PASS for name in ("prelu", "glu", "maxout", "rrelu_train", *(row.name for row in ROWS))}

# The gradients that an operator gives in the backward pass; all of them at once, if nothing is said here.
_GRADIENTS = {
    "conv_weight_grad": "weight gradient",
    "linear_weight_grad": "weight gradient",
    "bilinear_weight_grad": "weight gradient",
    "channel_sum": "bias gradient",
    "conv": "input gradient",
    "conv_transpose": "input gradient",
    "linear": "input gradient",
    "linear_input_grad": "input gradient",
    "bilinear": "input gradient",
}


class Step(NamedTuple):
    """What one operator of a layer does.

    Attributes:
        what: ``"forward"``, ``"input gradient"``, ``"weight gradient"``, ``"bias gradient"`` or ``"gradients"``.
        operator: that computes it, of ``torch.ops.scratchnn``.
        algorithm: its name.
        reason: why this one.
    """

    what: str
    operator: str
    algorithm: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.algorithm}, because {self.reason}"


@dataclass
class Explanation:
    """What :func:`explain` found out. Printed, it is a sentence for each step.

    Attributes:
        layer: as it prints itself.
        shapes: of its inputs.
        dtype: of its inputs.
        steps: the operators that it calls, in order.
        torchs: why torch computes it, where no operator of ours does.
    """

    layer: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    steps: list[Step] = field(default_factory=list)
    torchs: str = ""

    @property
    def algorithm(self) -> str:
        """That of the forward pass; ``"torch"`` for what torch computes."""
        names = [step.algorithm for step in self.steps if step.what == "forward"]
        return " + ".join(dict.fromkeys(names)) or "torch"

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        said = [str(step) for step in self.steps] or [self.torchs]
        return "\n".join([f"{self.layer} for {shapes} in {self.dtype}", *(f"  {sentence}" for sentence in said)])

    def dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "layer": self.layer,
            "shapes": [list(shape) for shape in self.shapes],
            "dtype": self.dtype,
            "algorithm": self.algorithm,
            "steps": [step._asdict() for step in self.steps],
            "torch": self.torchs,
        }


def explain(layer: Module, *shapes: Sequence[int], dtype: torch.dtype | None = None) -> Explanation:
    """Say which algorithm computes a layer on this processor, forward and backward, and why.

    Nothing is computed, and the layer stays as it is. The algorithm follows from the layer, the shape without its
    batch, the type and the processor's instruction set; from ``scratchnn.backends.conv.allow_winograd`` and
    :func:`scratchnn.kernels`, as they are when this is called; never from the number of threads or from a race.

    Args:
        layer: of ``scratchnn.nn``, or of ``torch.nn``: then what scratchnn would do after :func:`scratchnn.convert`.
        shapes: of its inputs, batch included; one for most layers.
        dtype: of the inputs; the layer's own unless given.

    Returns:
        the explanation; print it.

    Raises:
        TypeError: where ``layer`` is not a module, or compiled by TorchScript.
        ValueError: without a shape, and for lazy layers that have seen no input.
        RuntimeError, ValueError: where the layer does not take inputs of these shapes: its own errors.

    Example:
        >>> print(scratchnn.explain(scratchnn.nn.MaxPool2d(2), (8, 16, 32, 32)))
        MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False) for 8x16x32x32 in float32
          forward: windows over vectors, because many maxima are found at once
          gradients: gathering windows, because ...
    """
    if not isinstance(layer, Module):
        raise TypeError(f"explain(): argument 'layer' must be a torch.nn.Module, not {type(layer).__name__}")
    if any(isinstance(part, torch.jit.ScriptModule) for part in layer.modules()):
        raise TypeError("explain(): the layer is compiled by TorchScript, give the one that it was made of")
    if not shapes:
        raise ValueError("explain(): give the shape of the layer's input")
    tensors = [*layer.parameters(), *layer.buffers()]
    if any(map(is_lazy, tensors)):
        raise ValueError("explain(): the layer is lazy and has no shape yet, call it once before")
    floating = [tensor.dtype for tensor in tensors if _has_gradient(tensor)]
    dtype = dtype or next(iter(floating), torch.get_default_dtype())
    return explain_call(layer, [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes])


def explain_call(layer: Module, inputs: Sequence[Tensor]) -> Explanation:
    """The same for a call with inputs like these, whose numbers are not read; the layer is as :func:`explain` needs it.

    Args:
        layer: the layer.
        inputs: tensors of any device.

    Returns:
        the explanation.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`explain`.
    """
    dtype = str(inputs[0].dtype).removeprefix("torch.")
    explanation = Explanation(str(layer), tuple(tuple(x.shape) for x in inputs), dtype)
    twin = _twin(layer)
    left = convert(twin).left
    recording = _Recording()
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        tensors = [*layer.named_parameters(), *layer.named_buffers()]
        given = {name: torch.empty_like(x, device="meta").requires_grad_(x.requires_grad) for name, x in tensors}
        inputs = [torch.empty_like(x, device="meta").requires_grad_(_has_gradient(x)) for x in inputs]
        with recording:
            # What is written in place must not be a leaf.
            output = functional_call(twin, given, tuple(x.clone() if x.requires_grad else x for x in inputs))
            recording.forward = False
            outputs = [x for x in (output if isinstance(output, tuple) else (output,)) if x.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    explanation.steps = list(dict.fromkeys(recording.steps))
    if not explanation.steps:
        reasons = dict.fromkeys(each.reason for each in left.values()) or ["scratchnn has no such layer"]
        explanation.torchs = f"torch computes it: {', '.join(reasons)}"
    return explanation


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _twin(layer: Module) -> Module:
    """A copy that shares the tensors, but neither the classes of its parts nor what is registered with them.

    It has no hooks: those are for calls that compute something.
    """
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    for name, value in vars(layer).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            vars(twin)[name] = OrderedDict()
    for name in ("_parameters", "_buffers"):
        vars(twin)[name] = dict(vars(layer)[name])
    vars(twin)["_modules"] = {name: part if part is None else _twin(part) for name, part in layer._modules.items()}
    return twin


class _Recording(TorchDispatchMode):
    """The operators of ours that run, explained."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.forward = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.namespace == "scratchnn":
            step = self._explained(func._schema.name.partition("::")[2], args)
            if step is not None:
                self.steps.append(step)
        return func(*args, **(kwargs or {}))

    def _explained(self, name: str, args: tuple) -> Step | None:
        what = "forward" if self.forward else _GRADIENTS.get(name, "gradients")
        if name.startswith("conv"):
            return Step(what, name, *_explain_convolution(name, args))
        algorithm = _algorithm_of(name)
        if algorithm is None:  # bookkeeping, as of running statistics
            return None
        return Step(what, name, *_on_type(algorithm, args[0].dtype, name))


def _explain_convolution(name: str, args: tuple) -> tuple[str, str]:
    """The choice of ``csrc/conv/choice.cpp``, for the convolution that an operator is, or is a derivative of."""
    if name == "conv":
        input, weight, _, *window = args
        sizes = input.shape, weight.shape
    elif name == "conv_transpose":
        input, weight, _, output_size, *window = args
        sizes = (input.shape[0], weight.shape[1] * window[3], *output_size), weight.shape
    else:  # conv_weight_grad
        grad, input, kernel_size, *window = args
        window = window[:5]
        sizes = input.shape, (grad.shape[1], input.shape[1] // window[3], *kernel_size)
    return _ops.explain_conv(*map(list, sizes), *window, args[0].dtype)


def _algorithm_of(name: str) -> _Algorithm | None:
    """The algorithm of any other operator; variants of one share it."""
    name = name.removesuffix("_").removeprefix("adaptive_").replace("_with_offsets", "")
    stem = name.removesuffix("_backward").removesuffix("_output")
    return _ALGORITHMS.get(name) or (_ONE_PASS if _ALGORITHMS.get(stem) is _ONE_PASS else None)


def _on_type(algorithm: _Algorithm, dtype: torch.dtype, name: str) -> tuple[str, str]:
    """How the numbers of a type come to an algorithm."""
    kernels = _ops.kernels_for(dtype)
    if _ops.kernels_for(torch.float32) == "naive":
        return "naive loops", 'scratchnn.kernels("naive") asks for them'
    if dtype == torch.bfloat16 and name.startswith("linear"):  # a 1x1 convolution, where that has a matrix unit
        chosen, reason = _ops.explain_conv([1, 1, 1], [1, 1, 1], [1], [0, 0], [1], 1, "zeros", dtype)
        if chosen == "matrix unit":
            return chosen, reason
    if dtype.is_complex and name.startswith(("linear", "channel_sum")):
        return f"{algorithm.name} on real and imaginary parts", algorithm.reason
    if kernels == "naive":
        return "naive loops", f"the fast kernels do not serve {str(dtype).removeprefix('torch.')}"
    if kernels == "widened" and algorithm.half == "float32 copies":
        return f"{algorithm.name} on float32 copies", algorithm.reason
    return algorithm.name, algorithm.reason

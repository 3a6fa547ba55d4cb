"""Rerouting: inside a block, torch's functions of our families are computed by scratchnn, whoever calls them.

torch tells a ``TorchFunctionMode`` of every call of its functions and of its tensors' methods before it is made. The
mode here looks the function up in a table and calls ours instead; what the table lacks goes on to torch.

The class hides the module of the same name: it is ``scratchnn.override()``, and whatever else is here is imported with
``from scratchnn.override import ...``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ContextDecorator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode, redispatch_function

from scratchnn import functional as ours
from scratchnn import ops
from scratchnn.ops._elementwise import check_writable

__all__ = ["REROUTED", "Route", "override"]

FAMILIES = {name: tuple(getattr(ops, name).__all__) for name in ("conv", "pool", "norm", "linear", "activation")}


class Route(NamedTuple):
    """Where a function of torch leads.

    Attributes:
        name: of the function in ``torch.nn.functional``; one name for all its forms, those in place and those that
            return indices included.
        function: ours, called with torch's arguments. It may decline with ``NotImplemented``.
    """

    name: str
    function: Callable[..., Any]


# Where torch's other names of a function take their arguments in another order.


def _softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return ours.softmax(input, dim, dtype=dtype)


def _log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return ours.log_softmax(input, dim, dtype=dtype)


def _rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    return ours.rrelu(input, lower, upper, training) if generator is None else NotImplemented


def _rrelu_(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    return ours.rrelu_(input, lower, upper, training) if generator is None else NotImplemented


def _sigmoid_(input: Tensor) -> Tensor:
    return _written_over(input, ours.sigmoid)


def _tanh_(input: Tensor) -> Tensor:
    return _written_over(input, ours.tanh)


def _written_over(input: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    if not (input.is_floating_point() or input.is_complex()):
        return NotImplemented  # torch refuses: the result does not fit into whole numbers
    check_writable(input)
    return input.copy_(function(input))


# torch.nn.functional refuses to normalize single numbers, and so do ours. torch's functions beneath it do not.


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if training and input.dim() > 1 and input.numel() == input.shape[1]:
        return NotImplemented
    return ours.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if use_input_stats and input.dim() > 1 and input.numel() == input.shape[0] * input.shape[1]:
        return NotImplemented
    return ours.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    if input.numel() == num_groups:
        return NotImplemented
    return ours.group_norm(input, num_groups, weight, bias, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return ours.layer_norm(input, normalized_shape, weight, bias, eps)


def _name(function: str) -> str:
    return function.removesuffix("_with_indices").removesuffix("_")


def _table() -> dict[Callable[..., Any], Route]:
    # torch.nn.functional: the same names, arguments and order.
    table = {
        getattr(F, name): Route(_name(name), getattr(ours, name))
        for name in ours.__all__
        if hasattr(F, name)  # maxout and global_avg_pool are not torch's
    }
    # What else torch calls them, where that is another function.
    others: list[tuple[Callable[..., Any], str, Callable[..., Any]]] = [
        (torch.max_pool1d, "max_pool1d", ours.max_pool1d),
        (torch.max_pool1d_with_indices, "max_pool1d", ours.max_pool1d_with_indices),
        (torch.max_pool2d, "max_pool2d", ours.max_pool2d),
        (torch.max_pool3d, "max_pool3d", ours.max_pool3d),
        (torch.adaptive_max_pool1d, "adaptive_max_pool1d", ours.adaptive_max_pool1d_with_indices),
        (torch.batch_norm, "batch_norm", _batch_norm),
        (torch.instance_norm, "instance_norm", _instance_norm),
        (torch.group_norm, "group_norm", _group_norm),
        (torch.layer_norm, "layer_norm", _layer_norm),
        (torch.rms_norm, "rms_norm", ours.rms_norm),
        (torch.relu, "relu", ours.relu),
        (Tensor.relu, "relu", ours.relu),
        (Tensor.relu_, "relu", ours.relu_),
        (torch.threshold, "threshold", ours.threshold),
        (torch.celu, "celu", ours.celu),
        (torch.selu, "selu", ours.selu),
        (torch.rrelu, "rrelu", _rrelu),
        (torch.rrelu_, "rrelu", _rrelu_),
        (Tensor.hardshrink, "hardshrink", ours.hardshrink),
        (Tensor.prelu, "prelu", ours.prelu),
        (torch.sigmoid, "sigmoid", ours.sigmoid),
        (torch.sigmoid_, "sigmoid", _sigmoid_),
        (torch.special.expit, "sigmoid", ours.sigmoid),
        (Tensor.sigmoid, "sigmoid", ours.sigmoid),
        (Tensor.sigmoid_, "sigmoid", _sigmoid_),
        (torch.tanh, "tanh", ours.tanh),
        (torch.tanh_, "tanh", _tanh_),
        (Tensor.tanh, "tanh", ours.tanh),
        (Tensor.tanh_, "tanh", _tanh_),
        (torch.softmax, "softmax", _softmax),
        (torch.special.softmax, "softmax", _softmax),
        (Tensor.softmax, "softmax", _softmax),
        (torch.log_softmax, "log_softmax", _log_softmax),
        (torch.special.log_softmax, "log_softmax", _log_softmax),
        (Tensor.log_softmax, "log_softmax", _log_softmax),
    ]
    return table | {function: Route(name, replacement) for function, name, replacement in others}


REROUTED: dict[Callable[..., Any], Route] = _table()
NAMES = frozenset(route.name for route in REROUTED.values())

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor)
_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.complex128, torch.complex64, torch.complex32),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def reason_to_leave(types: Iterable[type], args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """Why a call stays torch's, if it does: judged by its arguments, before it is made.

    Args:
        types: as a mode gets them, the types of arguments that have a say in what torch's functions do.
        args, kwargs: the call's arguments.
    """
    if torch.jit.is_tracing():
        return "traced by TorchScript"
    if kwargs.get("out") is not None:
        return "writes to out="
    for kind in types:
        if kind not in _PLAIN:
            return f"takes a {kind.__name__}"
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        return "takes no tensor"
    for value in tensors:
        if type(value) not in _PLAIN:
            return f"takes a {type(value).__name__}"
        if value.device.type not in ("cpu", "meta"):
            return f"on {value.device.type}"
        if value.is_quantized:
            return "takes a quantised tensor"
        if value.is_nested:
            return "takes a nested tensor"
        if value.layout != torch.strided:
            return f"takes a tensor of layout {value.layout}"
        if value.dtype not in _TYPES:
            return f"takes a tensor of {value.dtype}"
    return None


def _calls_others(func: Any) -> bool:
    """Whether a function of torch is Python code that may call ours: by itself, or in hooks and checkpoints."""
    return getattr(func, "__module__", None) == F.__name__ or func in (Tensor.backward, torch.autograd.grad)


class Rerouting(TorchFunctionMode):
    """A mode that calls ours in place of torch's functions of some names."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # While this method runs torch has the mode off: neither ours nor torch's function leads back here.
        kwargs = kwargs or {}
        route = REROUTED.get(func)
        if route is None or route.name not in self.names:
            # torch.compile takes such a function as one, and would not have it entered.
            if not torch.compiler.is_compiling() and _calls_others(func):
                with self:
                    return redispatch_function(func, types, args, kwargs)
            return func(*args, **kwargs)
        reason = reason_to_leave(types, args, kwargs)
        if reason is None:
            output = route.function(*args, **kwargs)
            if output is not NotImplemented:
                self.count(route.name)
                return output
            reason = "in a form that is torch's alone"
        self.count(route.name, reason)
        return func(*args, **kwargs)

    def count(self, name: str, reason: str | None = None) -> None:
        """Told of every call of these functions: its name, and why it was left to torch, if it was."""


class override(Rerouting, ContextDecorator):
    """Computes ``torch.nn.functional``'s functions of our families by scratchnn, in any code run inside a block.

    ::

        with scratchnn.override() as routed:
            output = model(images)
        print(routed)

    Rerouted are the functions of :mod:`scratchnn.functional` under all names torch has for them: ``F.relu``,
    ``torch.relu``, ``x.relu()``, ``x.relu_()``. So are those inside torch's own layers and inside other functions of
    ``torch.nn.functional``. A call stays torch's where scratchnn does not serve what it is given: another device, a
    quantised, sparse or nested tensor, a subclass of ``Tensor``, ``out=``. So does what torch calls in C++
    (``torch.lstm``, TorchScript).

    The block holds for the thread that enters it. Blocks nest, and a call is rerouted if any block around it says so. A
    backward pass belongs to the forward pass it comes from, wherever it is run. The same object may be entered again;
    as a decorator (``@scratchnn.override()``) it is entered at each call. ``torch.compile`` traces through, without a
    graph break; compiled calls are not counted.

    Args:
        include: the functions to reroute; all, if not given. A name (``"conv2d"``), a pattern (``"conv*"``), a family
            (``"conv"``, ``"pool"``, ``"norm"``, ``"linear"``, ``"activation"``), one of the functions themselves
            (``torch.relu``), or a list of these. A name stands for all forms: ``"relu"`` for ``relu_`` as well.
        exclude: the functions not to reroute, in the same forms.

    Attributes:
        calls: how many calls were rerouted, by the function's name.
        left: how many calls were left to torch, by name and reason.

    Raises:
        TypeError: where ``include`` or ``exclude`` is of another type.
        ValueError: where one names nothing that can be rerouted.

    Example:
        >>> with scratchnn.override() as routed:
        ...     y = torch.nn.functional.relu(torch.tensor([-1.0, 2.0]))
        >>> y, dict(routed.calls)
        (tensor([0., 2.]), {'relu': 1})
    """

    def __init__(self, *, include: Any = None, exclude: Any = None) -> None:
        names = NAMES if include is None else _named(include, "include")
        super().__init__(names if exclude is None else names - _named(exclude, "exclude"))
        self.calls: Counter[str] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, reason: str | None = None) -> None:
        """Enters a call into :attr:`calls` or :attr:`left`."""
        if torch.compiler.is_compiling():
            return
        if reason is None:
            self.calls[name] += 1
        else:
            self.left[name, reason] += 1

    def __str__(self) -> str:
        rerouted, left = self.calls.total(), self.left.total()
        lines = [f"{rerouted} of {rerouted + left} calls rerouted"]
        lines += [f"  {count} {name}" for name, count in self.calls.most_common()]
        if left:
            lines.append(f"{left} left to torch")
        lines += [f"  {count} {name}: {reason}" for (name, reason), count in self.left.most_common()]
        return "\n".join(lines)


def _named(which: Any, argument: str) -> frozenset[str]:
    """The names that an ``include`` or ``exclude`` stands for."""
    names: set[str] = set()
    for item in which if isinstance(which, (list, tuple, set, frozenset)) else (which,):
        if isinstance(item, str):
            found = {_name(name) for name in FAMILIES.get(item, ())} & NAMES
            found = found or {name for name in NAMES if fnmatchcase(name, item) or name == _name(item)}
        elif callable(item):
            found = {route.name for function, route in REROUTED.items() if item in (function, route.function)}
        else:
            raise TypeError(
                f"override(): argument '{argument}' must be a name, a function or a list of these, not "
                f"{type(item).__name__}"
            )
        if not found:
            raise ValueError(f"override(): argument '{argument}': scratchnn computes no function {item!r}")
        names |= found
    return frozenset(names)

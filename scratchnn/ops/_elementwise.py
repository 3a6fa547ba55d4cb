"""The elementwise activations: one table, and what its rows have in common.

A row names an operator and holds the second derivative; from it come three Functions: the activation, the same in
place, and the gradient, which is what makes double backward work. The formulas themselves are in
``csrc/activation/functions.h``, in the same order.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from scratchnn.ops._common import Function
from scratchnn.ops._recompute import cut_off, is_recorded

_ops = torch.ops.scratchnn


class Row(NamedTuple):
    """One activation.

    Attributes:
        name: of the operator.
        curvature: the derivative of the slope by what is saved, from that and the parameters, as differentiable
            torch expressions; none where the slope is constant in pieces.
        saves_output: the output is kept for the backward pass, else the input. As torch does: an input that is kept
            may not be overwritten later, and neither may an output.
        in_place: what the derivative of the operation in place is made from. ``"output"``: the output, which serves
            the formula as well; ``"inverse"``: the output, by a formula of its own; ``"input"``: a copy of the input;
            nothing where there is no such operation.
        from_output: for which parameters the derivative can be had from the output.
    """

    name: str
    curvature: Callable[..., Tensor] | None = None
    saves_output: bool = False
    in_place: str | None = None
    from_output: Callable[..., bool] = lambda *parameters: True

    @property
    def cuts_off(self) -> bool:
        """Whether it is the identity between limits, and constant outside: see :attr:`Activation.limits`."""
        return self.name in ("relu", "hardtanh")


def _elu(x: Tensor, alpha: float, scale: float = 1.0, width: float = 1.0) -> Tensor:
    inside = x.clamp(max=0) / width
    return torch.where(x <= 0, inside.exp() * (alpha * scale / width**2), 0)


def _elu_output(y: Tensor, width: float = 1.0) -> Tensor:
    return torch.where(y <= 0, torch.full_like(y, 1 / width), 0)


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _silu(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _mish(x: Tensor) -> Tensor:
    s, t = x.sigmoid(), torch.logaddexp(x, torch.zeros_like(x)).tanh()
    dt = (1 - t * t) * s
    return 2 * dt + x * (dt * (1 - s) - 2 * t * dt * s)


def _softsign(x: Tensor) -> Tensor:
    return -2 * x.sgn() / (1 + x.abs()) ** 3


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    s = (x * beta).sigmoid()
    return torch.where(x * beta > threshold, 0, beta * s * (1 - s))


def _gelu(x: Tensor) -> Tensor:
    return (2 - x * x) * (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Tensor) -> Tensor:
    linear = 2 * math.sqrt(2 / math.pi)
    cubic = 0.044715 * linear
    s = (x * (linear + cubic * x * x)).sigmoid()
    inner = linear + 3 * cubic * x * x
    return s * (1 - s) * (2 * inner + x * ((1 - 2 * s) * inner * inner + 6 * cubic * x))


def _tanhshrink(x: Tensor) -> Tensor:
    t = x.tanh()
    return 2 * t * (1 - t * t)


def _log_sigmoid(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (s - 1)


ROWS = [
    Row("relu", saves_output=True, in_place="output"),
    Row("leaky_relu", in_place="output", from_output=lambda slope: slope >= 0),
    Row("threshold", in_place="output"),
    Row("hardtanh", in_place="output"),
    Row("hardsigmoid", in_place="input"),
    Row("hardswish", lambda x: torch.where((x > -3) & (x < 3), torch.full_like(x, 1 / 3), 0), in_place="input"),
    Row("elu", _elu, in_place="inverse", from_output=lambda alpha: alpha >= 0),
    Row("celu", lambda x, alpha: _elu(x, alpha, 1.0, alpha), in_place="inverse", from_output=lambda alpha: alpha >= 0),
    Row("selu", lambda x: _elu(x, *_SELU), in_place="inverse"),
    Row("silu", _silu, in_place="input"),
    Row("mish", _mish, in_place="input"),
    Row("hardshrink"),
    Row("softshrink"),
    Row("sigmoid", lambda y: 1 - 2 * y, saves_output=True),
    Row("log_sigmoid", _log_sigmoid),
    Row("tanh", lambda y: -2 * y, saves_output=True),
    Row("tanhshrink", _tanhshrink),
    Row("softsign", _softsign),
    Row("softplus", _softplus),
    Row("gelu", _gelu),
    Row("gelu_tanh", _gelu_tanh),
]

# The gradients that are taken from the output of an operation in place, where that has a formula of its own.
OUTPUT_ROWS = [
    Row("elu", lambda y, alpha: _elu_output(y)),
    Row("celu", lambda y, alpha: _elu_output(y, alpha)),
    Row("selu", lambda y: _elu_output(y)),
]


class Activation(NamedTuple):
    """A row of :data:`ROWS` and its parameters."""

    name: str
    parameters: tuple[float, ...] = ()

    def __call__(self, input: Tensor) -> Tensor:
        return FUNCTIONS[self.name].call(input, *self.parameters)

    def overwrite(self, input: Tensor) -> Tensor:
        """The same, in the memory of the input where there is such an operation."""
        function = FUNCTIONS_IN_PLACE.get(self.name)
        return self(input) if function is None else function.call(input, *self.parameters)

    @property
    def limits(self) -> tuple[float, float] | None:
        """Those between which it is the identity, and constant outside, if it is of this kind."""
        if self.name == "relu":
            return 0.0, math.inf
        return self.parameters if self.name == "hardtanh" else None


def _mapped_first(info: Any, in_dims: tuple, *tensors: Tensor) -> list[Tensor]:
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def _complex_softsign_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``dx`` of softsign for complex numbers, where ``|x|`` has a derivative of its own."""
    r = x.abs()
    along = (x.conj() * grad).real / (r * (1 + r) ** 2)
    return grad / (1 + r) - x * torch.where(r == 0, 0, along)


def _members(*members: Callable[..., Any]) -> dict[str, staticmethod]:
    return {member.__name__: staticmethod(member) for member in members}


def _spelled_out(forward: Callable[..., Tensor], operator: torch._ops.OpOverload) -> Callable[..., Tensor]:
    """``forward`` with each parameter of its operator in its signature: torch.compile counts them, up to 2.14."""
    names = (argument.name for argument in operator._schema.arguments)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)
    return forward


def _gradient_function(name: str, row: Row) -> type[Function]:
    """The Function of the operator ``name``: ``dx = dy f'(x)`` from ``dy`` and what is saved.

    It is linear in ``dy``, and its derivative by what is saved is the curvature.
    """
    operator = getattr(_ops, name).default
    curvature = row.curvature

    def forward(grad: Tensor, saved: Tensor, *parameters: float) -> Tensor:
        return operator(grad, saved, *parameters)

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, saved, *ctx.parameters = inputs
        # The slope of a function that is linear in pieces has no derivative: dy is not needed for it.
        ctx.save_for_backward(saved, None if curvature is None else grad)
        ctx.save_for_forward(saved, None if curvature is None else grad)

    def by_saved(u: Tensor, grad: Tensor, saved: Tensor, parameters: Sequence[float]) -> Tensor:
        if not u.is_complex():
            return u * grad * curvature(saved, *parameters)
        if row.name != "softsign":
            return u.conj() * grad * curvature(saved, *parameters).conj()
        with torch.enable_grad():
            x = saved if saved.requires_grad else saved.detach().requires_grad_()
            return torch.autograd.grad(_complex_softsign_gradient(grad, x), x, u, create_graph=True)[0]

    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        saved, grad = ctx.saved_tensors
        d_grad = _forward_derivative(name, u, saved, ctx.parameters) if ctx.needs_input_grad[0] else None
        d_saved = None
        if ctx.needs_input_grad[1]:
            d_saved = torch.zeros_like(u) if curvature is None else by_saved(u, grad, saved, ctx.parameters)
        return d_grad, d_saved, *(None for _ in ctx.parameters)

    def jvp(ctx: Any, d_grad: Tensor | None, d_saved: Tensor | None, *_: None) -> Tensor:
        saved, grad = ctx.saved_tensors
        terms = []
        if d_grad is not None:
            terms.append(GRADIENTS[name].call(d_grad, saved, *ctx.parameters))
        if d_saved is not None and curvature is not None:
            terms.append(by_saved(d_saved, grad, saved, ctx.parameters))
        return sum(terms[1:], terms[0]) if terms else torch.zeros_like(saved)

    def vmap(info: Any, in_dims: tuple, grad: Tensor, saved: Tensor, *parameters: float) -> tuple[Tensor, int]:
        return GRADIENTS[name].call(*_mapped_first(info, in_dims, grad, saved), *parameters), 0

    members = _members(_spelled_out(forward, operator), setup_context, backward, jvp, vmap)
    return type(name, (Function,), members, operator=name)


def _forward_derivative(gradient: str, u: Tensor, saved: Tensor, parameters: Sequence[float]) -> Tensor:
    """``u f'(x)``, by the operator that computes ``u conj(f'(x))``."""
    if not u.is_complex() or gradient == "softsign_backward":  # which is not multiplication, but symmetric
        return GRADIENTS[gradient].call(u, saved, *parameters)
    return GRADIENTS[gradient].call(u.conj(), saved, *parameters).conj()


def _save_source(ctx: Any, name: str, input: Tensor, output: Tensor) -> bool:
    """Have the backward pass compute the output again, or find it computed, if it is known how."""
    source = cut_off(input, output, Activation(name, tuple(ctx.parameters)))
    if source is None:
        return False
    ctx.source = source.without_tensors()
    ctx.save_for_backward(*source.saved())
    return True


def _output_of(ctx: Any) -> Tensor:
    """The output of which the source was saved. It has no history, and none is needed: the slope is constant."""
    output = ctx.source.restored(*ctx.saved_tensors).value()
    ctx.source.memo.value = None  # this is the last that asks for it
    return output


def _gradient_over(gradient: str, grad: Tensor, saved: Tensor, parameters: Sequence[float]) -> Tensor:
    """``dx`` in the memory of ``dy``, if that is laid out as what was saved."""
    if grad.stride() != saved.stride():
        return GRADIENTS[gradient].call(grad, saved, *parameters)
    getattr(_ops, gradient + "_").default(grad, saved, *parameters)
    return grad


def _function(row: Row) -> type[Function]:
    """The Function of a row: ``y = f(x)`` in new memory."""
    operator = getattr(_ops, row.name).default
    name, gradient = row.name, row.name + "_backward"
    saves_output, cuts_off = row.saves_output, row.cuts_off

    def forward(input: Tensor, *parameters: float) -> Tensor:
        return operator(input, *parameters)

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, *ctx.parameters = inputs
        saved = output if saves_output else input
        ctx.source = None
        if cuts_off and is_recorded(ctx, output) and _save_source(ctx, name, input, output):
            return
        ctx.save_for_backward(saved)
        ctx.save_for_forward(saved)

    def saved_for(ctx: Any) -> Tensor:
        return _output_of(ctx) if ctx.source is not None else ctx.saved_tensors[0]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return GRADIENTS[gradient].call(grad, saved_for(ctx), *ctx.parameters), *(None for _ in ctx.parameters)

    def overwriting(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient_over(gradient, grad, saved_for(ctx), ctx.parameters), *(None for _ in ctx.parameters)

    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (saved,) = ctx.saved_tensors
        return _forward_derivative(gradient, tangent, saved, ctx.parameters)

    def vmap(info: Any, in_dims: tuple, input: Tensor, *parameters: float) -> tuple[Tensor, int]:
        return FUNCTIONS[name].call(input, *parameters), in_dims[0]

    members = _members(_spelled_out(forward, operator), setup_context, backward, overwriting, jvp, vmap)
    return type(name, (Function,), members, operator=name)


def _function_in_place(row: Row) -> type[Function]:
    """The Function of a row: ``x = f(x)``, with the derivative from the output, where that gives one."""
    operator = getattr(_ops, row.name + "_").default
    name, gradient = row.name, row.name + ("_output_backward" if row.in_place == "inverse" else "_backward")
    cuts_off = row.cuts_off

    def forward(input: Tensor, *parameters: float) -> Tensor:
        operator(input, *parameters)
        return input

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, *ctx.parameters = inputs
        ctx.mark_dirty(input)
        ctx.source = None
        if cuts_off and is_recorded(ctx, output) and _save_source(ctx, name, input, output):
            return
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    def check(parameters: Sequence[float]) -> None:
        if not row.from_output(*parameters):
            raise RuntimeError(
                f"the derivative of {name} in place cannot be had from its output where a parameter is negative, and "
                f"here it is {parameters[0]}: call it without inplace=True"
            )

    def saved_for(ctx: Any) -> Tensor:
        output = _output_of(ctx) if ctx.source is not None else ctx.saved_tensors[0]
        check(ctx.parameters)
        return output

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return GRADIENTS[gradient].call(grad, saved_for(ctx), *ctx.parameters), *(None for _ in ctx.parameters)

    def overwriting(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient_over(gradient, grad, saved_for(ctx), ctx.parameters), *(None for _ in ctx.parameters)

    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (output,) = ctx.saved_tensors
        check(ctx.parameters)
        moved = _forward_derivative(gradient, tangent, output, ctx.parameters)
        return tangent.copy_(moved)  # in place, as autograd demands here

    def vmap(info: Any, in_dims: tuple, input: Tensor, *parameters: float) -> tuple[Tensor, int]:
        return FUNCTIONS_IN_PLACE[name].call(input, *parameters), in_dims[0]

    members = _members(_spelled_out(forward, operator), setup_context, backward, overwriting, jvp, vmap)
    return type(name + "_", (Function,), members)


# Looked up by name where they are called, not closed over: torch.compile traces a Function it finds in a module.
GRADIENTS = {f"{row.name}_backward": _gradient_function(f"{row.name}_backward", row) for row in ROWS}
GRADIENTS |= {
    f"{row.name}_output_backward": _gradient_function(f"{row.name}_output_backward", row) for row in OUTPUT_ROWS
}
FUNCTIONS = {row.name: _function(row) for row in ROWS}
FUNCTIONS_IN_PLACE = {row.name: _function_in_place(row) for row in ROWS if row.in_place is not None}


def in_place(name: str, input: Tensor, from_output: bool, *parameters: float) -> Tensor:
    """The activation in place, with its derivative from the output, or else from a copy of the input."""
    check_writable(input)
    if torch.compiler.is_exporting():  # there the operator is called bare, and in place it refuses to be differentiated
        return input.copy_(FUNCTIONS[name].call(input, *parameters))
    if from_output or not is_differentiated(input):
        return FUNCTIONS_IN_PLACE[name].call(input, *parameters)
    return input.copy_(FUNCTIONS[name].call(input.clone(), *parameters))


def is_differentiated(input: Tensor) -> bool:
    """True where somebody may differentiate what is done to the input."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and input.requires_grad


def check_writable(input: Tensor) -> None:
    """What autograd forbids is refused before the input is overwritten, not after.

    Raises:
        RuntimeError: for a leaf that requires a gradient, a view of one, and a view that autograd cannot follow, as one
            of several that ``unbind`` gives: as every operation of torch in place.
    """
    if not (input.requires_grad and torch.is_grad_enabled()):
        return
    if input.is_leaf:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    if not is_compiling() and input._is_view():
        if input._base.is_leaf and input._base.requires_grad:
            raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")
        if torch._C._autograd._get_creation_meta(input) != torch._C._autograd.CreationMeta.DEFAULT:
            input.mul_(1)  # raises torch's own error, before anything is written


def _register_fakes() -> None:
    def output(input: Tensor, *parameters: float) -> Tensor:
        return torch.empty_like(input)

    def gradient(grad: Tensor, saved: Tensor, *parameters: float) -> Tensor:
        return torch.empty_like(saved)

    def nothing(overwritten: Tensor, *others: Any) -> None:
        return None

    for row in ROWS:
        torch.library.register_fake(f"scratchnn::{row.name}", output)
        torch.library.register_fake(f"scratchnn::{row.name}_backward", gradient)
        torch.library.register_fake(f"scratchnn::{row.name}_backward_", nothing)
        if row.in_place is not None:
            torch.library.register_fake(f"scratchnn::{row.name}_", nothing)
    for row in OUTPUT_ROWS:
        torch.library.register_fake(f"scratchnn::{row.name}_output_backward", gradient)
        torch.library.register_fake(f"scratchnn::{row.name}_output_backward_", nothing)


_register_fakes()

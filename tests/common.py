"""What the tests of all families share: memory formats, the comparison against float64 truth, transforms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scratchnn.testing.cases import strides
from scratchnn.testing.errors import exact, relative_error

__all__ = [
    "ALL_DTYPES",
    "COMPLEX_DTYPES",
    "FAST_DTYPES",
    "HALF_DTYPES",
    "Recording",
    "assert_as_accurate",
    "assert_rounded_once",
    "check_against_torch",
    "exact",
    "gradients",
    "layouts",
    "relative_error",
    "same_error",
    "strides",
]

FAST_DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.bfloat16, torch.float16)
ALL_DTYPES = (*FAST_DTYPES, *HALF_DTYPES)
COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def layouts(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """The same kind of 4-d tensor in every layout users pass: dense ones, and views with gaps or overlaps."""
    n, c, h, w = shape
    yield "contiguous", torch.randn(n, c, h, w, dtype=dtype)
    yield "channels_last", torch.randn(n, c, h, w, dtype=dtype).to(memory_format=torch.channels_last)
    yield "sliced", torch.randn(n, c + 2, h, 2 * w, dtype=dtype)[:, 1:-1, :, ::2]
    yield "transposed", torch.randn(n, c, w, h, dtype=dtype).transpose(2, 3)
    yield "expanded", torch.randn(1, c, 1, w, dtype=dtype).expand(n, c, h, w)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """``(output, *gradients of the floating inputs)`` of a function for an incoming gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]  # views stay views: a clone would close their gaps
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))


def assert_as_accurate(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], truth: Sequence[Tensor], factor: float = 2.0
) -> None:
    """Our error against float64 truth is at most ``factor`` times torch's own, give or take a rounding step.

    In float64 the truth is torch's own result, whose error is not known: there, a few rounding steps more.
    Shapes, dtypes and the output's strides must be torch's as well, and NaN and infinity in the same places.
    """
    for position, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == other.shape, f"tensor {position}: shape {mine.shape}, torch's {other.shape}"
        assert mine.dtype == other.dtype, f"tensor {position}: {mine.dtype}, torch's {other.dtype}"
        if position == 0:
            assert strides(mine) == strides(other), f"output strides {mine.stride()}, torch's {other.stride()}"
        finite = true.isfinite()
        assert torch.equal(mine.isfinite(), other.isfinite()), f"tensor {position}: not finite elsewhere"
        error = relative_error(mine[finite], true[finite])
        steps = 32 if mine.dtype in (torch.float64, torch.complex128) else 2
        allowed = factor * relative_error(other[finite], true[finite]) + steps * torch.finfo(mine.dtype).eps
        assert error <= allowed, f"tensor {position}: error {error:.2e}, allowed {allowed:.2e}"


def assert_rounded_once(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """In half precision, output and gradients are those of float32, rounded once: half a rounding step away."""
    wide = [x.float() for x in inputs]
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    for ours, expected in zip(gradients(function, inputs, grad), gradients(function, wide, grad.float()), strict=True):
        step = torch.finfo(ours.dtype).eps / 2
        scale = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(ours.float(), expected, rtol=1.001 * step, atol=1e-6 * scale + 1e-7)


def check_against_torch(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    factor: float = 2.0,
) -> None:
    """Output and all gradients of ``ours`` beside those of ``theirs``, both against ``theirs`` in float64."""
    inputs64 = [exact(x) for x in inputs]
    with torch.no_grad():
        shape_of_output = theirs(*inputs64)
    grad = torch.randn_like(shape_of_output)
    truth = gradients(theirs, inputs64, grad)
    assert_as_accurate(
        gradients(ours, inputs, grad.to(inputs[0].dtype)),
        gradients(theirs, inputs, grad.to(inputs[0].dtype)),
        truth,
        factor,
    )


def same_error(ours: Callable[[], object], theirs: Callable[[], object]) -> str:
    """Both calls raise, and the same exception type; gives our message back."""
    expected, _ = _raised(theirs)
    assert expected is not None, "torch raises nothing here"
    found, message = _raised(ours)
    assert found is expected, f"{found} instead of {expected}: {message}"
    return message


def _raised(call: Callable[[], object]) -> tuple[type[Exception] | None, str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


class Recording(TorchDispatchMode):
    """The operators that run, ours and torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.names[f"{func.namespace}::{func._schema.name.partition('::')[2]}"] += 1
        return func(*args, **(kwargs or {}))

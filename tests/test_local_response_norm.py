"""Local response normalization against torch, float64 truth and its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import ALL_DTYPES, check_against_torch, gradients, layouts, relative_error, same_error
from torch import Tensor

import scratchnn
import scratchnn.functional as F
from scratchnn import nn

theirs = torch.nn.functional.local_response_norm


def formula(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    channels = x.shape[1]
    s = []
    for c in range(channels):
        window = range(max(0, c - size // 2), min(channels, c + (size - 1) // 2 + 1))
        s.append(k + alpha / size * sum(x[:, i].square() for i in window))
    return x * torch.stack(s, 1) ** -beta


OPTIONS = [
    {"size": 5},
    {"size": 1, "alpha": 2.0},
    {"size": 2, "alpha": 1.0, "beta": 0.5},
    {"size": 4, "alpha": 1.0, "beta": 1.0, "k": 0.5},
    {"size": 3, "alpha": 1.0, "beta": 0.6, "k": 2.0},
    {"size": 40, "alpha": 3.0, "beta": 1.5},
]


def test_the_ladder_formula_naive_fast() -> None:
    x = torch.randn(2, 7, 3, 4)
    for options in OPTIONS:
        with scratchnn.kernels("naive"):
            naive = F.local_response_norm(x, **options)
        torch.testing.assert_close(naive, formula(x, **options), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(F.local_response_norm(x, **options), naive, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_values_and_gradients(options: dict[str, Any], which: str) -> None:
    for dtype in ALL_DTYPES:
        for shape in [(2, 7, 5, 6), (1, 70, 3, 3), (3, 2, 9, 40), (2, 3, 1, 1)]:
            for _, x in layouts(shape, dtype):
                grad = torch.randn(shape, dtype=torch.float64).to(dtype)
                with scratchnn.kernels(which):
                    ours = gradients(lambda x: F.local_response_norm(x, **options), (x,), grad)
                truth = gradients(lambda x: formula(x, **options), (x.double(),), grad.double())
                for mine, exact in zip(ours, truth, strict=True):
                    assert relative_error(mine, exact) <= 8 * torch.finfo(dtype).eps
                format = torch._prims_common.suggest_memory_format(x)
                assert ours[0].is_contiguous(memory_format=format)


def test_beside_torchs() -> None:
    for options in OPTIONS:
        for shape in [(3, 9, 20), (2, 20, 30, 31), (2, 5, 3, 4, 6)]:
            for dtype in (torch.float32, torch.float64):
                x = torch.randn(shape, dtype=dtype)
                check_against_torch(
                    lambda x, o=options: F.local_response_norm(x, **o), lambda x, o=options: theirs(x, **o), [x]
                )


def test_nothing_cancels() -> None:
    """A window that large numbers have left holds only its own."""
    x = torch.ones(1, 12, 2, 2)
    x[:, 3] = 1e12
    y = F.local_response_norm(x, 3, alpha=3.0, k=0.0)
    expected = formula(x.double(), 3, alpha=3.0, k=0.0)
    assert relative_error(y[:, 6:], expected[:, 6:]) < 1e-6


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[4]])
def test_derivatives(options: dict[str, Any]) -> None:
    def function(x: Tensor) -> Tensor:
        return F.local_response_norm(x, **{**options, "alpha": 1.0})

    for shape in [(2, 5, 3), (1, 4, 2, 3)]:
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_transforms_and_compile() -> None:
    x = torch.randn(3, 2, 5, 4, 4)
    function = lambda x: F.local_response_norm(x, 3, alpha=0.5)  # noqa: E731
    mapped = torch.func.vmap(torch.func.grad(lambda x: function(x).cos().sum()))(x)
    expected = torch.stack([torch.func.grad(lambda x: theirs(x, 3, alpha=0.5).cos().sum())(part) for part in x])
    torch.testing.assert_close(mapped, expected)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (2, 3, 7):
        x, grad = torch.randn(2, 2, size, 4, 5)
        for found, other in zip(gradients(compiled, (x,), grad), gradients(function, (x,), grad), strict=True):
            torch.testing.assert_close(found, other)


def test_reproducible() -> None:
    x, grad = torch.randn(2, 40, 12, 30, 31)
    runs = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        runs.append(gradients(lambda x: F.local_response_norm(x, 5), (x,), grad))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    alone = gradients(lambda x: F.local_response_norm(x, 5), (x[3:5],), grad[3:5])
    assert all(torch.equal(a, b[3:5]) for a, b in zip(alone, runs[0], strict=True))


def test_types() -> None:
    """Whole numbers as torch takes them, float32 under autocast, and an error for everything else."""
    whole = torch.randint(-20, 20, (2, 6, 4, 5))
    for x in (whole, whole[..., 0]):
        torch.testing.assert_close(F.local_response_norm(x, 3, alpha=0.5), theirs(x, 3, alpha=0.5))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            mine, other = (f(torch.randn(2, 6, 4, 5).to(dtype), 3) for f in (F.local_response_norm, theirs))
        assert mine.dtype == other.dtype
    same_error(lambda: F.local_response_norm(whole.cfloat(), 3), lambda: theirs(whole.cfloat(), 3))


def test_errors_are_torchs() -> None:
    x = torch.randn(2, 6, 4, 5)
    for arguments in [(x[0, 0], 3), (x, 0), (x, -2), (x, 3.0)]:
        same_error(lambda a=arguments: F.local_response_norm(*a), lambda a=arguments: theirs(*a))
    assert F.local_response_norm(x[:0], 3).shape == (0, 6, 4, 5)


def test_module() -> None:
    ours, other = nn.LocalResponseNorm(3, 0.1, 0.5, 2.0), torch.nn.LocalResponseNorm(3, 0.1, 0.5, 2.0)
    assert repr(ours) == repr(other)
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(ours(x), other(x))

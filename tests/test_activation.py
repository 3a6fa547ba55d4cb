"""Activations against torch, float64 truth and their formula."""

from __future__ import annotations

import pytest
import torch
from common import ALL_DTYPES, check_against_torch, layouts
from torch import Tensor

import scratchnn
import scratchnn.functional as F

OPERATOR_SAMPLES = {
    "relu": lambda: [
        (torch.randn(2, 3, 5),),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),),
    ],
    "relu_": lambda: [(torch.randn(2, 3, 5),)],
    "relu_backward": lambda: [(torch.randn(2, 3, 5), torch.randn(2, 3, 5).relu())],
}


def relu_formula(x: Tensor) -> Tensor:
    return torch.tensor([max(value, 0.0) for value in x.flatten().tolist()], dtype=x.dtype).reshape(x.shape)


def test_the_ladder_formula_naive_fast() -> None:
    x = torch.randn(3, 7, 5)
    with scratchnn.kernels("naive"):
        naive = F.relu(x)
    assert torch.equal(naive, relu_formula(x))
    assert torch.equal(F.relu(x), naive)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_values_and_gradients(dtype: torch.dtype, which: str) -> None:
    for shape in [(2, 3, 5, 7), (0, 3, 2, 2), (1, 1, 1, 1), (4, 16, 33, 65)]:
        for _, x in layouts(shape, dtype):
            with scratchnn.kernels(which):
                check_against_torch(F.relu, torch.nn.functional.relu, [x])


def test_special_values() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0] * 7)
    torch.testing.assert_close(F.relu(x), torch.relu(x), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_derivatives(inplace: bool) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return F.relu(x * 1, inplace)

    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,))


def test_in_place_returns_its_input() -> None:
    x = torch.randn(4, 6, 3)
    expected = torch.relu(x)
    assert F.relu(x[:, ::2], inplace=True).data_ptr() == x.data_ptr()
    assert torch.equal(x[:, ::2], expected[:, ::2])


@pytest.mark.parametrize("inplace", [False, True])
def test_transforms(inplace: bool) -> None:
    def function(x: Tensor) -> Tensor:
        return scratchnn.nn.ReLU(inplace)(x * 1)

    x, v = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(torch.func.vmap(function, in_dims=1)(x), torch.relu(x).T)
    assert torch.equal(torch.func.grad(lambda x: function(x).sum())(x), (x > 0).float())
    assert torch.equal(torch.func.jvp(function, (x,), (v,))[1], v * (x > 0))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), torch.relu(x))


def test_errors_are_torchs() -> None:
    for dtype in (torch.bool, torch.complex64):
        x = torch.zeros(3, dtype=dtype)
        with pytest.raises(RuntimeError):
            torch.relu(x)
        with pytest.raises(RuntimeError, match="relu"):
            F.relu(x)


def test_integers() -> None:
    x = torch.tensor([-3, 0, 5])
    assert torch.equal(F.relu(x), torch.relu(x))

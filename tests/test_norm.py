"""Normalization against torch, float64 truth and its formula."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, FAST_DTYPES, assert_as_accurate, layouts, relative_error, same_error, strides
from torch import Tensor

import scratchnn
import scratchnn.functional as F
from scratchnn import nn
from scratchnn.nn import BatchNorm2d

torch_batch_norm = torch.nn.functional.batch_norm

SHAPES = [
    (4, 5, 7, 9),
    (2, 3, 1, 1),
    (1, 16, 8, 8),
    (3, 17, 6, 5),
    (2, 1, 33, 70),
    (9, 64, 4, 4),
    (3, 130, 2, 3),
    (37, 3, 9, 9),
    (0, 3, 2, 2),
]
OTHER_RANKS = [(5, 64), (70, 3), (4, 3, 130), (4, 20, 3), (2, 3, 4, 5, 6), (2, 3, 0)]


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, bias, running mean and running variance."""
    weight, bias, mean = torch.randn(3, channels, dtype=dtype)
    return weight, bias, mean, torch.rand(channels, dtype=dtype) + 0.5


def samples(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(shape), *parameters(shape[1])


def train_samples() -> list[tuple]:
    x, w, b, _, _ = samples(2, 3, 4, 5)
    return [
        (x, w, b, 1e-5),
        (x.to(memory_format=torch.channels_last), None, None, 1e-5),
        (x.bfloat16(), w, b, 1e-5),
    ]


def backward_samples() -> list[tuple]:
    x, w, _, mean, var = samples(2, 3, 4, 5)
    g = torch.randn_like(x)
    last = x.to(memory_format=torch.channels_last)
    return [
        (g, x, w, mean.double(), var.double(), 1e-5, True),
        (g, last, w, mean, var, 1e-5, True),
        (g.bfloat16(), x.bfloat16(), w, None, var, 1e-5, True),
        (g, last, None, mean, var, 1e-5, False),
        (g.half(), x.half(), w, mean, var, 1e-5, False),
    ]


def eval_samples() -> list[tuple]:
    x, w, b, mean, var = samples(2, 3, 4, 5)
    return [(x, w, b, mean, var, 1e-5), (x.to(memory_format=torch.channels_last), None, None, mean, var, 0.0)]


def normalize_samples() -> list[tuple]:
    x, w, b, _, _ = samples(2, 4, 3, 5)
    last = x.to(memory_format=torch.channels_last)
    return [
        (x, w, b, (2, 2, 2, 15), "group", True, 1e-5),
        (last, w, None, (2, 4, 1, 15), "group", True, 1e-5),
        (x, w, b, (2, 1, 4, 15), "pixel", True, 1e-5),
        (x.bfloat16(), None, None, (24, 1, 5, 1), "row", False, 1e-5),
    ]


def normalize_backward_samples() -> list[tuple]:
    x, w, *_ = samples(2, 4, 3, 5)
    pixel, group = torch.rand(2, 2, 15), torch.rand(2, 2, 2)
    return [
        (torch.randn_like(x), x, w, *group, (2, 2, 2, 15), "group", True, 1e-5, True),
        (torch.randn_like(x), x, w, *pixel, (2, 1, 4, 15), "pixel", True, 1e-5, True),
        (x.half(), x.half(), w, None, group[1], (2, 2, 2, 15), "group", True, 1e-5, True),
        (x.half(), x.half(), None, torch.empty(0), torch.rand(24, 1), (24, 1, 5, 1), "row", False, 1e-5, False),
    ]


def add_clamp_samples() -> list[tuple]:
    """Input, residual, weight and bias, mean and variance, limits: every form of limits and residual there is."""
    no, affine = (None, None), (torch.randn(3), torch.randn(3))
    statistics = torch.randn(3).double(), torch.rand(3).double()
    x = torch.randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    inf = math.inf
    return [
        (x, None, no, statistics, (-inf, inf)),
        (x, last, affine, statistics, (0.0, inf)),
        (last, x, no, statistics, (-0.5, 0.5)),
        (last, None, affine, statistics, (0.0, inf)),
        (torch.randn(2, 3, 37).double(), torch.randn(2, 3, 37).double(), no, statistics, (0.0, 6.0)),
        (x.bfloat16(), x.bfloat16(), affine, statistics, (0.0, inf)),
        (x[:0], x[:0], affine, statistics, (0.0, inf)),
    ]


OPERATOR_SAMPLES = {
    "normalize": normalize_samples,
    "normalize_backward": normalize_backward_samples,
    "local_response_norm": lambda: [(torch.randn(2, 4, 3, 5), 2, 1, 0.1, 0.75, 1.0)],
    "local_response_norm_backward": lambda: [
        (torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5), 2, 1, 0.1, 0.75, 1.0),
        (torch.randn(2, 4, 3).half(), torch.randn(2, 4, 3).half(), 0, 1, 0.1, 0.75, 1.0),
    ],
    "batch_norm_statistics": lambda: [(torch.randn(2, 3, 4, 5),), (torch.randn(2, 3).bfloat16(),)],
    "batch_norm_train": train_samples,
    "batch_norm_update_": lambda: [
        (torch.randn(3), torch.rand(3), torch.randn(3).double(), torch.rand(3).double(), 0.1, 8)
    ],
    "batch_norm_eval": eval_samples,
    "batch_norm_backward": backward_samples,
    "batch_norm_backward_": lambda: [
        (grad, input, *rest) for grad, input, *rest in backward_samples() if grad.stride() == input.stride()
    ],
    "batch_norm_add_clamp_train": lambda: [
        (x, *affine, r, 1e-5, *limits) for x, r, affine, _, limits in add_clamp_samples()
    ],
    "batch_norm_add_clamp": lambda: [
        (x, *affine, *statistics, r, 1e-5, *limits) for x, r, affine, statistics, limits in add_clamp_samples()
    ],
    "batch_norm_add_clamp_backward": lambda: [
        (torch.randn_like(x), x, *affine, *statistics, r, y, 1e-5, *limits, training)
        for x, r, affine, statistics, limits in add_clamp_samples()
        for y, training in ((None, True), (torch.randn_like(x), False))
    ],
    "batch_norm_add_clamp_backward_": lambda: [
        (torch.randn_like(x), x, *affine, *statistics, None if r is None else r.clone(), 1e-5, *limits, training)
        for x, r, affine, statistics, limits in add_clamp_samples()
        for training in (True, False)
        if r is None or r.stride() == x.stride()
    ],
}


def run(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    grad: Tensor,
) -> list[Tensor]:
    """Output, the gradients, and the running statistics afterwards."""
    mean, var = (None if running is None else running.clone() for running in (mean, var))
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_()]
    leaves += [p.detach().clone().requires_grad_() for p in (weight, bias) if p is not None]
    rest = iter(leaves[1:])
    y = function(
        leaves[0],
        mean,
        var,
        None if weight is None else next(rest),
        None if bias is None else next(rest),
        training,
    )
    result = [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]
    return result + [running for running in (mean, var) if running is not None]


def check(x: Tensor, training: bool, affine: bool = True, running: bool = True, narrow: bool = False) -> None:
    """Ours beside torch's, both against a formula in float64."""
    dtype = x.dtype if x.dtype in FAST_DTYPES or narrow else torch.float32
    weight, bias, mean, var = parameters(x.shape[1], dtype)
    if not affine:
        weight = bias = None
    if not running:
        mean = var = None
    grad = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    arguments = (x, weight, bias, mean, var)
    exact = [None if a is None else a.double() for a in arguments]
    truth = run(batch_norm_formula, *exact, training, grad.double())
    ours = run(F.batch_norm, *arguments, training, grad)
    theirs = run(torch_batch_norm, *arguments, training, grad)
    if x.dtype != torch.float64:
        sums = slice(2, 4) if affine else slice(2, 2)  # the gradients of weight and bias: sums that may cancel
        terms = gradient_terms(x, grad, *arguments[3:], training)
        for mine, other, true, scale in zip(ours[sums], theirs[sums], truth[sums], terms, strict=False):
            assert mine.dtype == other.dtype
            error, allowed = ((result.double() - true).norm() for result in (mine, other))
            assert error <= 2 * allowed + 2 * torch.finfo(mine.dtype).eps * scale.norm()
        for results in (ours, theirs, truth):
            del results[sums]
        assert_as_accurate(ours, theirs, truth)
        return
    for mine, other, true in zip(ours, theirs, truth, strict=True):  # the truth itself is no better here
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-11)
    assert strides(ours[0]) == strides(theirs[0])


def gradient_terms(
    x: Tensor, grad: Tensor, mean: Tensor | None, var: Tensor | None, training: bool
) -> tuple[Tensor, Tensor]:
    """The sums of |g x_hat| and of |g|: the scale of the rounding errors of sum g x_hat and of sum g."""
    dims = [0, *range(2, x.dim())]
    statistics = [None, None] if training else [mean.double(), var.double()]
    x_hat = batch_norm_formula(x.double(), *statistics, training=training)
    return (grad.double() * x_hat).abs().sum(dims), grad.double().abs().sum(dims)


def batch_norm_formula(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The definition of the paper, in differentiable tensor operations."""
    dims = [0, *range(2, x.dim())]
    shape = (-1, *[1] * (x.dim() - 2))
    if training:
        count = x.numel() // x.shape[1]
        mu = x.sum(dims) / max(count, 1)
        v = (x - mu.reshape(shape)).square().sum(dims) / max(count, 1)
        if mean is not None and count > 0:
            with torch.no_grad():
                mean.copy_((1 - momentum) * mean + momentum * mu)
                var.copy_((1 - momentum) * var + momentum * v * count / (count - 1))
    else:
        mu, v = mean, var
    y = (x - mu.reshape(shape)) / (v.reshape(shape) + eps).sqrt()
    if weight is not None:
        y = y * weight.reshape(shape)
    if bias is not None:
        y = y + bias.reshape(shape)
    return y


def test_the_ladder_formula_naive_fast() -> None:
    """Numbers one by one in Python, the nested loops, the fast kernels."""
    x, w, b, mean, var = samples(3, 4, 5, 2)
    formula = torch.empty_like(x)
    for c in range(4):
        numbers = x[:, c].flatten().tolist()
        mu = sum(numbers) / len(numbers)
        v = sum((number - mu) ** 2 for number in numbers) / len(numbers)
        y = [w[c].item() * (number - mu) / (v + 1e-5) ** 0.5 + b[c].item() for number in numbers]
        formula[:, c] = torch.tensor(y).reshape(3, 5, 2)
    with scratchnn.kernels("naive"):
        naive = F.batch_norm(x, mean.clone(), var.clone(), w, b, True)
    fast = F.batch_norm(x, mean.clone(), var.clone(), w, b, True)
    torch.testing.assert_close(naive, formula, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast, naive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_values_and_gradients(training: bool, dtype: torch.dtype, which: str) -> None:
    for shape in SHAPES:
        for _, x in layouts(shape, dtype):
            with scratchnn.kernels(which):
                check(x, training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_big(training: bool, dtype: torch.dtype) -> None:
    """More than a block, a chunk, a thread's share of everything."""
    for shape in [(40, 9, 40, 41), (64, 3, 60, 50), (33, 200, 8, 8), (5, 2, 130, 140)]:
        x = torch.randn(shape, dtype=dtype) * 3 + 2
        check(x, training)
        check(x.to(memory_format=torch.channels_last), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_other_ranks(training: bool, dtype: torch.dtype) -> None:
    for shape in OTHER_RANKS:
        check(torch.randn(shape, dtype=dtype), training)
    check(torch.randn(2, 5, 3, 4, 6, dtype=dtype).to(memory_format=torch.channels_last_3d), training)
    check(torch.randn(3, 70, dtype=dtype).T, training)
    check(torch.randn(4, 6, 50, dtype=dtype).transpose(1, 2), training)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_without_parameters_or_statistics(dtype: torch.dtype) -> None:
    for shape in [(3, 5, 8, 8), (4, 7, 2, 2)]:
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        check(x, training=True, affine=False)
        check(x, training=True, running=False)
        check(x, training=True, affine=False, running=False)
        check(x, training=False, affine=False)
        check(x, training=True, narrow=True)
        check(x, training=False, narrow=True)


@pytest.mark.parametrize("which", ["fast", "naive"])
def test_a_large_mean_costs_nothing(which: str) -> None:
    """Sums of squares would cancel here, and torch itself loses digits."""
    for shape in [(8, 6, 32, 32), (64, 6, 3, 3), (300, 6, 7, 7)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            offset = torch.tensor([0.0, 1e2, -1e3, 1e4, 1e4, -1e5]).reshape(1, -1, 1, 1)
            x = (torch.randn(shape) + offset).to(memory_format=layout)
            grad = torch.randn(shape)
            with scratchnn.kernels(which):
                ours = run(F.batch_norm, x, torch.ones(6), torch.zeros(6), None, None, True, grad)
            ones, zeros = torch.ones(6).double(), torch.zeros(6).double()
            truth = run(batch_norm_formula, x.double(), ones, zeros, None, None, True, grad.double())
            for mine, exact in zip(ours, truth, strict=True):
                assert relative_error(mine, exact) < 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_drifting_and_stepped_data(layout: torch.memory_format) -> None:
    """The first numbers say nothing about the rest: the worst case of a sum around a shift."""
    for shape in [(64, 2, 40, 40), (600, 2, 5, 5)]:
        x = torch.randn(shape)
        x[:1] = 1e4
        x += torch.linspace(0, 1e3, shape[0]).reshape(-1, 1, 1, 1)
        x = x.to(memory_format=layout)
        _, mean, var = torch.ops.scratchnn.batch_norm_train(x, None, None, 1e-5)
        torch.testing.assert_close(mean.double(), x.double().mean([0, 2, 3]), rtol=1e-6, atol=0)
        torch.testing.assert_close(var.double(), x.double().var([0, 2, 3], correction=0), rtol=2e-6, atol=0)


def test_the_gradient_may_come_in_any_layout() -> None:
    """A lone sample with strides (C, 1, W C, C) is channels_last to some checks, contiguous to others."""
    for shape in [(1, 4, 6, 5), (1, 4, 1, 5), (3, 4, 6, 5), (2, 1, 6, 5), (1, 40, 8, 8)]:
        n, c, h, w = shape
        x = torch.randn(shape, dtype=torch.float64)
        weight, bias, mean, var = parameters(c, torch.float64)
        value = torch.randn(shape, dtype=torch.float64)
        odd = torch.empty_strided(shape, (c, 1, w * c, c) if n == 1 else (c * h * w, 1, w * c, c)).double()
        for training in (True, False):
            truth = run(batch_norm_formula, x, weight, bias, mean, var, training, value)
            for grad in (
                value,
                value.to(memory_format=torch.channels_last),
                odd.copy_(value),
                value.mT.contiguous().mT,
            ):
                for mine in (x, x.to(memory_format=torch.channels_last)):
                    ours = run(F.batch_norm, mine, weight, bias, mean, var, training, grad)
                    for result, exact in zip(ours, truth, strict=True):
                        torch.testing.assert_close(result, exact, rtol=1e-11, atol=1e-11)


def functions() -> list[Any]:
    """batch_norm as a function of what has a gradient, and such arguments: training or not, affine or not."""
    cases = []
    for shape in [(3, 2, 2, 3), (2, 2, 33), (4, 3)]:
        x = torch.randn(shape, dtype=torch.float64)
        w, b, mean, var = parameters(shape[1], torch.float64)
        for training in (True, False):

            def function(x: Tensor, *affine: Tensor, t: bool = training, m: Tensor = mean, v: Tensor = var) -> Tensor:
                return F.batch_norm(x, None if t else m, None if t else v, *affine, training=t)

            name = f"{len(shape)}d-{'train' if training else 'eval'}"
            cases.append(pytest.param(function, (x, w, b), id=f"{name}-affine"))
            cases.append(pytest.param(function, (x,), id=name))
    return cases


@pytest.mark.parametrize(("function", "arguments"), functions())
def test_derivatives(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    leaves = tuple(argument.clone().requires_grad_() for argument in arguments)
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize(("function", "arguments"), functions())
def test_transforms(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    def formula(x: Tensor, *affine: Tensor) -> Tensor:
        t, m, v = function.__defaults__ or function.__kwdefaults__.values()
        return (
            batch_norm_formula(x, m, v, *affine, training=t)
            if not t
            else batch_norm_formula(x, None, None, *affine, training=True)
        )

    def close(a: Any, b: Any) -> None:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    x, *affine = arguments
    every = tuple(range(len(arguments)))
    for both in (
        lambda f: torch.func.grad(lambda *a: f(*a).cos().sum(), every)(*arguments),
        lambda f: torch.func.jvp(f, arguments, tuple(a.cos() for a in arguments))[1],
    ):
        close(both(function), both(formula))  # fmt: skip
    stacked = torch.stack([x, 2 * x + x.cos(), -x], 1)
    for dims in [(1, *[None] * len(affine)), (1, *[0] * len(affine))]:
        batched = [a if d is None else torch.stack([a, a + 1, 2 * a]) for a, d in zip(affine, dims[1:], strict=True)]
        close(
            torch.func.vmap(function, dims)(stacked, *batched),
            torch.func.vmap(formula, dims)(stacked, *batched),
        )

        def loss(f: Callable[..., Tensor]) -> Callable[..., Any]:
            return torch.func.grad(lambda *args: f(*args).cos().sum(), every)

        close(
            torch.func.vmap(loss(function), dims)(stacked, *batched),
            torch.func.vmap(loss(formula), dims)(stacked, *batched),
        )


def pair(*args: Any, **kwargs: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    return BatchNorm2d(*args, **kwargs), torch.nn.BatchNorm2d(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.3, "eps": 1e-3},
        {"affine": False},
        {"track_running_stats": False},
        {"bias": False},
    ],
)
def test_module_over_several_steps(options: dict[str, Any]) -> None:
    ours, theirs = pair(5, **options)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for _ in range(4):
        x = torch.randn(6, 5, 7, 3) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    for module in (ours, theirs):
        module.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(mine(x), ours(x))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torch.nn.BatchNorm2d)


def test_module_follows_the_flags() -> None:
    """Buffers set to None, and tracking switched off afterwards, as torch treats them."""
    x = torch.randn(4, 5, 3, 3)
    for training in (True, False):
        for tracking in (True, False):
            ours, theirs = pair(5)
            for module in (ours, theirs):
                module.train(training)
                module.track_running_stats = tracking
            torch.testing.assert_close(ours(x), theirs(x))
            for module in (ours, theirs):
                module.running_mean = module.running_var = None
            torch.testing.assert_close(ours(x), theirs(x))
            assert ours.num_batches_tracked == theirs.num_batches_tracked


def test_evaluation_is_a_linear_map() -> None:
    """Lecture 7.5: after training the layer is x -> a x + c, with two numbers for each channel."""
    x, w, b, mean, var = samples(3, 5, 9, 9)
    a = w / (var + 1e-5).sqrt()
    c = b - a * mean
    expected = a.reshape(-1, 1, 1) * x + c.reshape(-1, 1, 1)
    torch.testing.assert_close(F.batch_norm(x, mean, var, w, b), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_reproducible(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """The same bits on any number of threads; in evaluation, for a sample in any batch."""
    before = torch.get_num_threads()
    for shape in [(40, 3, 30, 31), (33, 40, 20, 20), (64, 70, 3, 3), (700, 5, 5, 5)]:
        x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
        arguments = (x, *parameters(shape[1], dtype))
        grad = torch.randn_like(x)
        for training in (True, False):
            runs = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                runs.append(run(F.batch_norm, *arguments, training, grad))
            torch.set_num_threads(before)
            for other in runs[1:]:
                for a, b in zip(runs[0], other, strict=True):
                    assert torch.equal(a, b)
        _, w, b, mean, var = arguments
        whole = F.batch_norm(x, mean, var, w, b)
        for part in (slice(0, 1), slice(3, 10), slice(shape[0] - 1, None)):
            assert torch.equal(F.batch_norm(x[part], mean, var, w, b), whole[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    """Batch norm keeps the dtype of its input under autocast, in torch and here."""
    ours, theirs = pair(4)
    x = torch.randn(3, 4, 5, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = ours(x), theirs(x)
    assert mine.dtype == other.dtype
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile_a_training_step(momentum: float | None) -> None:
    eager = BatchNorm2d(4, momentum=momentum)
    module = copy.deepcopy(eager)

    def step(module: torch.nn.Module, x: Tensor) -> Tensor:
        return module(x).square().mean() + module(2 * x).sin().mean()

    compiled = torch.compile(step, fullgraph=momentum is not None, backend="aot_eager")
    for size in (3, 5, 6):
        x = torch.randn(size, 4, 5, 5)
        expected, loss = step(eager, x), compiled(module, x)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
    for a, b in zip(
        [*module.buffers(), *(p.grad for p in module.parameters())],
        [*eager.buffers(), *(p.grad for p in eager.parameters())],
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    eager.eval()
    torch.testing.assert_close(torch.compile(eager, fullgraph=True, backend="aot_eager")(x), eager(x))


def test_functional_call_and_grad() -> None:
    results = []
    for module in pair(4):
        torch.manual_seed(3)
        x = torch.randn(3, 4, 5, 5)
        params = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.clone() for name, b in module.named_buffers()}

        def loss(p: Any, b: Any, m: torch.nn.Module = module, x: Tensor = x) -> Tensor:
            return torch.func.functional_call(m, (p, b), (x,)).cos().sum()

        results.append((torch.func.grad(loss)(params, buffers), buffers))
        mean, var = torch.zeros(4), torch.ones(4)
        function = F.batch_norm if isinstance(module, BatchNorm2d) else torch_batch_norm
        gx = torch.func.grad(lambda x, f=function, m=mean, v=var: f(x, m, v, training=True).cos().sum())(x)
        results[-1] += (gx, mean, var)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_vmap_with_running_statistics() -> None:
    x = torch.randn(3, 6, 4, 5, 5)
    for function in (F.batch_norm, torch_batch_norm):
        with pytest.raises(RuntimeError, match="running"):
            torch.func.vmap(lambda x, f=function: f(x, torch.zeros(4), torch.ones(4), training=True))(x)
    results = []
    for function in (F.batch_norm, torch_batch_norm):
        mean, var = torch.zeros(3, 4), torch.ones(3, 4)
        y = torch.func.vmap(lambda x, m, v, f=function: f(x, m, v, training=True))(x, mean, var)
        results.append((y, mean, var))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_meta() -> None:
    module = BatchNorm2d(4, device="meta")
    x = torch.empty(3, 4, 5, 6, device="meta").to(memory_format=torch.channels_last)
    for training in (True, False):
        y = module.train(training)(x)
        assert y.shape == x.shape
        assert y.stride() == x.stride()


def test_strided_running_statistics() -> None:
    x, mean, var = torch.randn(4, 3, 5), torch.zeros(3), torch.ones(3)
    both = torch.stack([mean, var], 1)
    F.batch_norm(x, both[:, 0], both[:, 1], training=True)
    F.batch_norm(x, mean, var, training=True)
    assert torch.equal(both, torch.stack([mean, var], 1))


def bad_calls() -> dict[str, Callable[[Any], Any]]:
    x, z, o = torch.randn(2, 3, 4, 4), torch.zeros, torch.ones
    return {
        "than 1 value per channel .*1, 3, 1, 1": lambda f: f(x[:1, :, :1, :1], None, None, training=True),
        "more than 1 value": lambda f: f(torch.randn(1, 3), z(3), o(3), training=True),
        "running_mean should contain 3 elements.* 4": lambda f: f(x, z(4), o(3), training=True),
        "running_var should contain 3 elements.* 4": lambda f: f(x, z(3), o(4), training=True),
        "running_mean should contain 3 elements not 4": lambda f: f(x, z(4), o(3)),
        "running_var should contain 3 elements not 2": lambda f: f(x, z(3), o(2)),
        "weight should contain 3 elements not 5": lambda f: f(x, z(3), o(3), o(5), training=True),
        "bias should contain 3 elements not 6": lambda f: f(x, z(3), o(3), None, o(6)),
        "running_mean must be defined": lambda f: f(x, None, None),
        "running_var must be defined": lambda f: f(x, z(3), None),
        "either both be None": lambda f: f(x, z(3), None, training=True),
        "both be None or neither": lambda f: f(x, None, o(3), training=True),
        "eps must be positive .* 0.0": lambda f: f(x, z(3), o(3), training=True, eps=0.0),
        "eps must be non-negative, but got -1": lambda f: f(x, z(3), o(3), eps=-1.0),
        "not implemented for Long": lambda f: f(x.long(), z(3), o(3)),
        "not implemented for ComplexFloat": lambda f: f(x.cfloat(), z(3), o(3), training=True),
        "expected weight to have the dtype": lambda f: f(x, None, None, o(3).double(), training=True),
        "expected running_mean to have the dtype": lambda f: f(x, z(3).double(), o(3).double()),
        "running_mean to have the dtype": lambda f: f(x, z(3).double(), o(3).double(), training=True),
        "bias to have the dtype": lambda f: f(x, z(3), o(3), o(3), o(3).bfloat16()),
        "one dimension.*1, 3": lambda f: f(x, z(1, 3), o(1, 3), training=True),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_errors_are_torchs(message: str) -> None:
    call = bad_calls()[message]
    with pytest.raises(Exception, match=message):
        call(F.batch_norm)
    same_error(lambda: call(F.batch_norm), lambda: call(torch_batch_norm))


def test_a_failing_call_changes_nothing() -> None:
    mean, var = torch.zeros(3), torch.ones(4)
    with pytest.raises(RuntimeError):
        F.batch_norm(torch.randn(2, 3, 4, 4), mean, var, training=True)
    assert torch.equal(mean, torch.zeros(3))


def test_module_errors_are_torchs() -> None:
    for x in (torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(2, 5, 4, 4), torch.randn(1, 4, 1, 1)):
        ours, theirs = pair(4)
        same_error(lambda m=ours, x=x: m(x), lambda m=theirs, x=x: m(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_saved_statistics_are_measured_again(layout: torch.memory_format) -> None:
    """From a rounded mean, from some number of the channel and from the exact mean: the same gradients."""
    ops = torch.ops.scratchnn
    for shape in [(8, 6, 32, 32), (64, 6, 3, 3), (30, 70, 5, 5)]:
        offset = torch.linspace(-1e5, 1e5, shape[1]).reshape(1, -1, 1, 1)
        x = (torch.randn(shape) + offset).to(memory_format=layout)
        weight, grad = torch.rand(shape[1]) + 0.5, torch.randn(shape)
        for kernels in ("fast", "naive"):
            with scratchnn.kernels(kernels):
                _, mean, var = ops.batch_norm_add_clamp_train(x, None, None, None, 1e-5, -math.inf, math.inf)
                truth = ops.batch_norm_backward(grad.double(), x.double(), weight.double(), mean, var, 1e-5, True)
                for given in (mean, mean.float(), None):
                    ours = ops.batch_norm_backward(grad, x, weight, given, var.to(mean.dtype), 1e-5, True)
                    for mine, exact in zip(ours, truth, strict=True):
                        assert relative_error(mine, exact) < 2e-6
    with pytest.raises(RuntimeError, match="expected a mean beside"):
        ops.batch_norm_backward(grad, x, weight, None, var, 1e-5, False)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_keeps_no_more_than_torchs(dtype: torch.dtype) -> None:
    """Bytes for the backward pass, beside the input."""
    kinds = {
        "BatchNorm2d": (8,),
        "InstanceNorm2d": (8, 1e-5, 0.1, True),
        "GroupNorm": (2, 8),
        "LayerNorm": (5,),
        "RMSNorm": (5,),
    }
    x = torch.randn(3, 8, 6, 5).to(dtype).requires_grad_()
    for name, arguments in kinds.items():
        bytes_kept = []
        for library in (scratchnn.nn, torch.nn):
            module = getattr(library, name)(*arguments).to(dtype)
            known = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
            kept: dict[int, int] = {}

            def pack(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                y = module(x)
            bytes_kept.append(sum(size for place, size in kept.items() if place not in known))
            del y
        assert bytes_kept[0] <= bytes_kept[1], name


@pytest.mark.parametrize("training", [True, False])
def test_parameters_of_any_size_beside_nothing(training: bool) -> None:
    for shape in [(2, 0), (0, 3), (2, 0, 4), (2, 3, 0)]:
        for channels in (1, 3):
            gradients = []
            for library in (scratchnn.nn, torch.nn):
                module = library.BatchNorm1d(channels).train(training)
                x = torch.zeros(shape, requires_grad=True)
                y = module(x)
                assert y.shape == x.shape
                gradients.append(torch.autograd.grad(y.sum(), [x, *module.parameters()]))
                assert torch.equal(module.running_mean, torch.zeros(channels))
            for mine, other in zip(*gradients, strict=True):
                assert torch.equal(mine, other)
    module = scratchnn.nn.BatchNorm1d(1, bias=False).eval()
    assert module(torch.zeros(1, 0, requires_grad=True)).shape == (1, 0)


def test_special_values_stay_in_their_channel() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 4, 9, 9).to(memory_format=layout)
        x[1, 2, 3, 4] = float("nan")
        y = F.batch_norm(x, None, None, training=True)
        assert y.isnan().any((0, 2, 3)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["BatchNorm", "InstanceNorm"])
def test_every_rank_and_the_lazy_forms(kind: str, rank: int) -> None:
    shape = (6, 5, 7, 3, 4)[: rank + 2]
    for name, arguments in ((f"{kind}{rank}d", (5,)), (f"Lazy{kind}{rank}d", ())):
        ours, theirs = (getattr(library, name)(*arguments, affine=True) for library in (scratchnn.nn, torch.nn))
        for _ in range(3):
            x = torch.randn(shape) * 2 + 1
            torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
        assert repr(ours) == repr(theirs)
        assert type(ours) is getattr(scratchnn.nn, f"{kind}{rank}d")
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, other)
        same_error(lambda m=ours: m(torch.randn(2, 5, 2, 2, 2, 2)), lambda m=theirs: m(torch.randn(2, 5, 2, 2, 2, 2)))


def test_gradients_whose_strides_torch_gets_wrong() -> None:
    """torch's backward pass on the CPU errs by more than 100% here."""
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    grad = torch.randn(1, 5, 7, 6, dtype=torch.float64).permute(0, 3, 1, 2)
    for last in (False, True):
        own = x.to(memory_format=torch.channels_last) if last else x
        for function, formula in (
            (F.batch_norm, batch_norm_formula),
            (F.instance_norm, lambda x, *_, **__: batch_norm_formula(x, None, None, training=True)),
        ):
            options = {"training": True} if function is F.batch_norm else {}
            leaves = own.detach().requires_grad_(), own.detach().requires_grad_()
            (found,) = torch.autograd.grad(function(leaves[0], None, None, **options), leaves[0], grad)
            (truth,) = torch.autograd.grad(formula(leaves[1], None, None, training=True), leaves[1], grad)
            torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("kernels", ["fast", "naive"])
@pytest.mark.parametrize("limits", [(-math.inf, math.inf), (0.0, math.inf), (-0.4, 0.6)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 3, 2, 2), (40, 7), (2, 70, 6, 6), (2, 9, 25, 41)])
def test_add_and_clamp(shape: tuple[int, ...], added: bool, limits: tuple[float, float], kernels: str) -> None:
    """Beside the operators one by one: bit by bit forward, and backward whichever way the limits are seen."""
    ops = torch.ops.scratchnn
    for dtype in (torch.float32, torch.float64):
        for last in (False, True):
            torch.manual_seed(2)
            x, r, grad = (torch.randn(shape, dtype=dtype) for _ in range(3))
            if last and len(shape) == 4:
                x = x.to(memory_format=torch.channels_last)
            weight, bias = torch.rand(shape[1], dtype=dtype) + 0.5, torch.randn(shape[1], dtype=dtype)
            residual = r if added else None
            with scratchnn.kernels(kernels):
                n, *statistics = ops.batch_norm_train(x, weight, bias, 1e-5)
                total = n + r if added else n
                expected = total.clamp(*limits)
                y, mean, var = ops.batch_norm_add_clamp_train(x, weight, bias, residual, 1e-5, *limits)
                assert torch.equal(y, expected)
                assert y.stride() == x.stride()
                assert mean.dtype == var.dtype == torch.float64
                assert torch.equal(statistics[0], mean.to(dtype))
                assert torch.equal(statistics[1], var.to(dtype))
                assert torch.equal(ops.batch_norm_add_clamp(x, weight, bias, mean, var, residual, 1e-5, *limits), y)
                g = torch.where((total > limits[0]) & (total < limits[1]), grad, 0)
                for output, training in ((None, True), (y, True), (None, False)):
                    gradients = ops.batch_norm_backward(g, x, weight, mean, var, 1e-5, training)
                    *found, passed = ops.batch_norm_add_clamp_backward(
                        grad, x, weight, bias, mean, var, residual, output, 1e-5, *limits, training
                    )
                    for mine, other in zip(found, gradients, strict=True):
                        torch.testing.assert_close(mine, other)
                    if limits[0] > -math.inf and (added or output is not None):
                        assert torch.equal(passed, g)
                    else:
                        assert passed.numel() == 0
                    if output is not None:
                        continue
                    written, through = torch.empty_like(x).copy_(grad), torch.empty_like(x).copy_(r)
                    parameters = ops.batch_norm_add_clamp_backward_(
                        written, x, weight, bias, mean, var, through if added else None, 1e-5, *limits, training
                    )
                    for mine, other in zip((written, *parameters), found, strict=True):
                        assert torch.equal(mine, other)
                    assert torch.equal(through, g if passed.numel() > 0 else r)


def test_add_and_clamp_keep_nan_and_refuse_what_does_not_fit() -> None:
    ops = torch.ops.scratchnn
    x = torch.randn(2, 3, 6, 6)
    x[0, 1, 2, 3] = math.nan
    mean, var = torch.zeros(3), torch.ones(3)
    y = ops.batch_norm_add_clamp(x, None, None, mean, var, x, 0.0, 0.0, 6.0)
    assert y.isnan().nonzero().tolist() == [[0, 1, 2, 3]]
    with pytest.raises(RuntimeError, match="expected residual of shape"):
        ops.batch_norm_add_clamp(x, None, None, mean, var, x[:1], 0.0, 0.0, 6.0)
    with pytest.raises(RuntimeError, match="residual"):
        ops.batch_norm_add_clamp(x, None, None, mean, var, x.double(), 0.0, 0.0, 6.0)
    with pytest.raises(ValueError, match="is above the upper one"):
        ops.batch_norm_add_clamp(x, None, None, mean, var, x, 0.0, 6.0, 0.0)
    last = x.to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="in the input's order of memory"):
        ops.batch_norm_add_clamp_backward_(last, x, None, None, mean, var, None, 0.0, 0.0, 6.0, True)


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 256, 14, 14), (33, 300, 11, 11), (70, 2000, 8)], ids=str)
def test_frozen_batch_norm_of_many_short_runs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Gradients of constants are computed in the order of memory, image by image."""
    channels = shape[1]
    weight, bias, mean, variance = parameters(channels, dtype)
    x, g = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)

    def gradients(batch_norm: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias = (t.detach().requires_grad_() for t in tensors[:3])
        return torch.autograd.grad(batch_norm(x, *tensors[3:5], weight, bias), (x, weight, bias), tensors[5])

    tensors = [x, weight, bias, mean, variance, g]
    truth = gradients(torch_batch_norm, *(t.double() for t in tensors))
    theirs = gradients(torch_batch_norm, *tensors)
    assert_as_accurate(gradients(F.batch_norm, *tensors), theirs, truth)


LARGE_IMAGES = [
    (nn.InstanceNorm2d(16), (5, 16, 256, 264)),
    (nn.InstanceNorm2d(16, affine=True), (5, 16, 256, 264)),
    (nn.InstanceNorm2d(16, affine=True), (40, 16, 90, 80)),  # none of the samples is large by itself
    (nn.GroupNorm(4, 16), (5, 16, 256, 264)),
]
LARGE_ROWS = [
    (nn.LayerNorm(768), (10, 600, 768)),
    (nn.LayerNorm(1040), (10, 440, 1040)),  # an odd number of vectors
    (nn.RMSNorm(2048), (10, 220, 2048)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("layer", "shape", "memory_format"),
    [
        *(
            (*case, memory_format)
            for case in LARGE_IMAGES
            for memory_format in (torch.preserve_format, torch.channels_last)
        ),
        *((*case, torch.preserve_format) for case in LARGE_ROWS),
    ],
    ids=str,
)
def test_large_tensors_have_the_numbers_of_their_samples(
    layer: torch.nn.Module, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """Large results are written past the cache, by whole lines."""
    layer = copy.deepcopy(layer).to(dtype)
    x, g = (torch.randn(shape, dtype=dtype).to(memory_format=memory_format) for _ in range(2))
    x.requires_grad_()
    assert x.nbytes >= 16 << 20
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, g)
    for i in range(len(x)):
        part = x[i : i + 1].detach().requires_grad_()
        z = layer(part)
        assert torch.equal(y[i : i + 1], z)
        assert torch.equal(dx[i : i + 1], torch.autograd.grad(z, part, g[i : i + 1])[0])

"""Layer, RMS, group and instance normalization against torch, float64 truth and their definition."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, FAST_DTYPES, gradients, layouts, relative_error, same_error, strides
from norm_samples import KINDS, Kind, affine
from torch import Tensor

import scratchnn
import scratchnn.functional as F
from scratchnn import nn

theirs = torch.nn.functional

SHAPES = [
    (4, 6, 7, 9),
    (1, 16, 8, 8),
    (3, 18, 6, 5),
    (2, 2, 33, 70),
    (9, 64, 4, 4),
    (3, 130, 2, 3),
    (0, 4, 2, 2),
]

of_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def check(kind: Kind, x: Tensor, with_affine: bool = True, dtype: torch.dtype | None = None) -> None:
    """Ours beside torch's, both against the definition in float64; the output's layout is the input's."""
    with_affine = with_affine and (kind.name != "instance" or x.numel() > 0)  # torch refuses these weights
    inputs = (x, *(affine(kind, x, dtype) if with_affine else ()))
    exact = [value.double() for value in inputs]
    grad = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    truth = gradients(kind.formula, exact, grad.double())
    ours = gradients(kind.ours, inputs, grad)
    other = gradients(kind.theirs, inputs, grad.contiguous())  # torch is wrong for some strides of grad
    format = torch._prims_common.suggest_memory_format(x)
    assert strides(ours[0]) == strides(torch.empty_like(x, memory_format=format))
    sizes = [1.0, 1.0, *[float(x.numel() / max(p.numel(), 1)) ** 0.5 for p in inputs[1:]]]
    for position, (mine, their, true, size) in enumerate(zip(ours, other, truth, sizes, strict=True)):
        assert (mine.dtype, mine.shape) == (their.dtype, their.shape)
        if not mine.numel():
            continue
        error, allowed = ((value.double() - true).norm().item() for value in (mine, their))
        steps = 64 if mine.dtype == torch.float64 else 2
        scale = max(true.norm().item(), size * mine.numel() ** 0.5)
        assert error <= 2 * allowed + steps * torch.finfo(mine.dtype).eps * scale, f"{kind} result {position}"


def test_the_ladder_formula_naive_fast() -> None:
    """Numbers one by one in Python, the nested loops, the fast kernels: a group norm."""
    x, w, b = torch.randn(3, 4, 5, 2), torch.randn(4), torch.randn(4)
    formula = torch.empty_like(x)
    for n in range(3):
        for group in (slice(0, 2), slice(2, 4)):
            numbers = x[n, group].flatten().tolist()
            mu = sum(numbers) / len(numbers)
            v = sum((number - mu) ** 2 for number in numbers) / len(numbers)
            x_hat = torch.tensor([(number - mu) / (v + 1e-5) ** 0.5 for number in numbers]).reshape(2, 5, 2)
            formula[n, group] = x_hat * w[group].reshape(2, 1, 1) + b[group].reshape(2, 1, 1)
    with scratchnn.kernels("naive"):
        naive = F.group_norm(x, 2, w, b)
    torch.testing.assert_close(naive, formula, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(F.group_norm(x, 2, w, b), naive, rtol=1e-6, atol=1e-6)


@of_kind
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_values_and_gradients(kind: Kind, dtype: torch.dtype, which: str) -> None:
    for shape in SHAPES:
        for _, x in layouts(shape, dtype):
            with scratchnn.kernels(which):
                check(kind, x)


@of_kind
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_big(kind: Kind, dtype: torch.dtype) -> None:
    """More than a block, a strip, a part, a thread's share."""
    for shape in [(3, 12, 60, 50), (33, 200, 8, 8), (2, 300, 30, 30), (70, 4, 3, 1100)]:
        x = torch.randn(shape, dtype=dtype) * 3 + 2
        check(kind, x)
        check(kind, x.to(memory_format=torch.channels_last))


@of_kind
def test_without_parameters_and_with_wide_ones(kind: Kind) -> None:
    for dtype in ALL_DTYPES:
        for shape in [(3, 6, 8, 8), (4, 8, 2, 2)]:
            x = torch.randn(shape, dtype=torch.float64).to(dtype)
            check(kind, x, with_affine=False)
            check(kind, x, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def test_other_ranks() -> None:
    for kind in KINDS:
        if kind.name != "layer2d":
            check(kind, torch.randn(5, 64, 3))
            check(kind, torch.randn(2, 6, 4, 5, 3).to(memory_format=torch.channels_last_3d))
            check(kind, torch.randn(4, 6, 50).transpose(1, 2))
        if kind.name not in ("layer2d", "instance"):
            check(kind, torch.randn(5, 64))


@of_kind
@pytest.mark.parametrize("which", ["fast", "naive"])
def test_a_large_mean_costs_nothing(kind: Kind, which: str) -> None:
    """Sums of squares would cancel here, and torch itself loses digits."""
    for shape in [(2, 6, 32, 32), (3, 64, 5, 5), (2, 96, 9, 7)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            for offset in (1e4, -1e6):
                x = (torch.randn(shape) + offset).to(memory_format=layout)
                grad = torch.randn(shape)
                with scratchnn.kernels(which):
                    ours = gradients(kind.ours, (x,), grad)
                truth = gradients(kind.formula, (x.double(),), grad.double())
                for mine, exact in zip(ours, truth, strict=True):
                    assert (mine.double() - exact).norm() <= 2e-6 * exact.norm() + 1e-7 * x.numel() ** 0.5 / abs(offset)


def test_special_values_stay_in_their_set() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 4, 9, 9).to(memory_format=layout)
        x[1, 2, 3, 4] = float("nan")
        x[2, 0, 0, 0] = float("inf")
        for kind in KINDS:
            assert torch.equal(kind.ours(x).isnan(), kind.theirs(x).isnan()), kind


def test_a_single_number_has_no_gradient() -> None:
    for shape, kind in [((5, 7, 1), "layer1"), ((5, 1, 4, 4), "layer2d"), ((3, 1, 5, 5), "layer2d")]:
        x = torch.randn(shape)
        norm = next(k for k in KINDS if k.name == kind)
        for mine in gradients(norm.ours, (x, *affine(norm, x)), torch.randn(shape))[1:3]:
            assert torch.equal(mine, torch.zeros_like(mine))


@of_kind
def test_reproducible(kind: Kind) -> None:
    """The same bits on any number of threads; and, but for weights' gradients, for a sample in any batch."""
    for shape in [(40, 4, 30, 31), (33, 40, 20, 20), (64, 72, 3, 3), (3, 6, 5, 5)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(memory_format=layout)
            inputs, grad = (x, *affine(kind, x)), torch.randn(shape).to(memory_format=layout)
            runs = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                runs.append(gradients(kind.ours, inputs, grad))
            for other in runs[1:]:
                assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
            for part in (slice(0, 1), slice(1, 3)):
                alone = gradients(kind.ours, (x[part], *inputs[1:]), grad[part])
                assert torch.equal(alone[0], runs[0][0][part])
                assert torch.equal(alone[1], runs[0][1][part])


@of_kind
@pytest.mark.parametrize("with_affine", [True, False])
def test_derivatives(kind: Kind, with_affine: bool) -> None:
    for shape in [(2, 4, 3, 2), (1, 4, 5, 4)]:
        x = torch.randn(shape, dtype=torch.float64)
        leaves = tuple(a.requires_grad_() for a in (x, *(affine(kind, x) if with_affine else ())))
        assert torch.autograd.gradcheck(kind.ours, leaves, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(kind.ours, leaves, check_fwd_over_rev=True)
        if shape[0] == 1:
            continue
        for function in (kind.ours, kind.formula):  # and a third time
            first = torch.autograd.grad(function(*leaves).cos().sum(), leaves[0], create_graph=True)[0]
            second = torch.autograd.grad(first.sin().sum(), leaves[0], create_graph=True)[0]
            third = torch.autograd.grad(second.cos().sum(), leaves[0])[0]
            if function is kind.ours:
                found = third
        torch.testing.assert_close(found, third, rtol=1e-8, atol=1e-8)


@of_kind
def test_transforms(kind: Kind) -> None:
    def close(a: Any, b: Any) -> None:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for weights in (affine(kind, x), ()):
        arguments = (x, *weights)
        every = tuple(range(len(arguments)))

        def loss(f: Callable[..., Tensor], every: tuple[int, ...] = every) -> Callable[..., Any]:
            return torch.func.grad(lambda *args: f(*args).cos().sum(), every)

        close(loss(kind.ours)(*arguments), loss(kind.formula)(*arguments))
        tangents = tuple(a.cos() for a in arguments)
        close(*(torch.func.jvp(f, arguments, tangents)[1] for f in (kind.ours, kind.formula)))
        stacked = torch.stack([x, 2 * x + x.cos(), -x], 1)
        for dims in [(1, *[None] * len(weights)), (1, *[0] * len(weights)), (None, *[0] * len(weights))]:
            if all(d is None for d in dims):
                continue
            batched = [
                a if d is None else torch.stack([a, a + 1, 2 * a]) for a, d in zip(weights, dims[1:], strict=True)
            ]
            first = x if dims[0] is None else stacked
            for transform in (lambda f: f, loss):
                mapped = [torch.func.vmap(transform(f), dims)(first, *batched) for f in (kind.ours, kind.formula)]
                close(*mapped)


@of_kind
def test_compiles_with_symbolic_sizes(kind: Kind) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kind.ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(3, 4, 5, 6), (2, 8, 5, 7), (5, 6, 3, 4)]:
        x = torch.randn(shape)
        inputs, grad = (x, *affine(kind, x)), torch.randn(shape)
        for found, expected in zip(gradients(compiled, inputs, grad), gradients(kind.ours, inputs, grad), strict=True):
            torch.testing.assert_close(found, expected)


def test_compile_keeps_running_statistics() -> None:
    torch._dynamo.reset()
    eager = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (2, 3, 5):
        x = torch.randn(size, 4, 5, size + 1)
        torch.testing.assert_close(compiled(x), eager(x))
    for mine, other in zip(module.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None, 0.7])
def test_instance_norm_module_over_several_steps(tracked: bool, momentum: float | None) -> None:
    for rank in (1, 2, 3):
        name = f"InstanceNorm{rank}d"
        ours, other = (
            getattr(library, name)(4, affine=True, track_running_stats=tracked, momentum=momentum)
            for library in (nn, torch.nn)
        )
        for _ in range(3):
            x = torch.randn(3, 4, *(5, 4, 3)[:rank]) * 2 + 1
            torch.testing.assert_close(ours(x), other(x))
            torch.testing.assert_close(ours(x[0]), other(x[0]))  # unbatched
        for mine, theirs_ in zip(ours.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs_)
        torch.testing.assert_close(ours.eval()(x), other.eval()(x))


def test_instance_norm_warns_of_unused_num_features() -> None:
    for library in (nn, torch.nn):
        with pytest.warns(UserWarning, match="does not match num_features"):
            library.InstanceNorm2d(3)(torch.randn(2, 4, 5, 5))
        with pytest.raises(ValueError, match="to match num_features"):
            library.InstanceNorm2d(3, affine=True)(torch.randn(2, 4, 5, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            library.InstanceNorm2d(4)(torch.randn(2, 4, 5, 5))


def test_layer_norm_2d_is_that_of_convnext() -> None:
    module = nn.LayerNorm2d(6)
    torch.nn.init.normal_(module.weight)
    assert repr(module) == "LayerNorm2d((6,), eps=1e-06, elementwise_affine=True, bias=True)"
    other = torch.nn.LayerNorm(6, eps=1e-6)
    other.load_state_dict(module.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 5, 4).to(memory_format=layout)
        y = module(x)
        assert y.stride() == x.stride()
        torch.testing.assert_close(y, other(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert list(nn.LayerNorm2d(6, bias=False).state_dict()) == ["weight"]
    assert not nn.LayerNorm2d(6, elementwise_affine=False).state_dict()
    with pytest.raises(ValueError, match=r"expected 4D input .got 3D"):
        module(torch.randn(6, 5, 4))
    with pytest.raises(RuntimeError, match=r"6 channels, .* but got \[2, 5, 4, 4\]"):
        module(torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_makes_no_float32_copies(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Of whole tensors, that is: one would take twice the memory of the result."""
    x = torch.randn(4, 64, 30, 30).to(dtype).to(memory_format=layout).requires_grad_()
    for module in (nn.LayerNorm(30), nn.GroupNorm(4, 64), nn.InstanceNorm2d(64), nn.LayerNorm2d(64)):
        if isinstance(module, nn.LayerNorm) and layout == torch.channels_last:
            continue  # its rows are copied, in their own type
        module.to(dtype)
        with torch.profiler.profile(profile_memory=True) as forward:
            y = module(x)
        dy = torch.randn_like(y)
        with torch.profiler.profile(profile_memory=True) as backward:
            torch.autograd.grad(y, x, dy)
        for profile in (forward, backward):
            assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) < 1.5 * x.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """These norms keep the dtype of their input under autocast, in torch and here."""
    x = torch.randn(3, 4, 5, 5).to(dtype)
    for kind in KINDS:
        with torch.autocast("cpu", torch.bfloat16):
            mine, other = (f(x, *affine(kind, x, torch.float32)).dtype for f in (kind.ours, kind.theirs))
        assert mine == other == dtype


def test_rms_norm_takes_any_weight_and_the_epsilon_of_what_it_computes_in() -> None:
    x = torch.randn(4, 6, dtype=torch.float64) * 1e-4
    for dtype in ALL_DTYPES:
        for weight in ALL_DTYPES:
            w = torch.randn(6).to(weight)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours, other = (f.rms_norm(x.to(dtype), (6,), w) for f in (F, theirs))
            assert ours.dtype == other.dtype
            assert relative_error(ours, other.double()) <= 4 * torch.finfo(dtype).eps
    z = torch.randn(3, 5, dtype=torch.complex64)
    torch.testing.assert_close(F.rms_norm(z, (5,)), theirs.rms_norm(z, (5,)))


def bad_calls() -> dict[str, Callable[[Any], Any]]:
    x, o = torch.randn(2, 6, 4, 5), torch.ones
    half = torch.bfloat16
    return {
        "must be tuple of ints, not int": lambda f: f.layer_norm(x, 5),
        "at least 1-dimensional": lambda f: f.layer_norm(x, ()),
        r"expected input with shape \[\*, 4\]": lambda f: f.layer_norm(x, (4,)),
        r"shape \[\*, 3, 2, 6, 4, 5\]": lambda f: f.layer_norm(x, (3, 2, 6, 4, 5)),
        "layer_norm: not implemented for torch.int64": lambda f: f.layer_norm(x.long(), (5,)),
        "layer_norm: not implemented for torch.complex64": lambda f: f.layer_norm(x.cfloat(), (5,)),
        "weight to be of same shape": lambda f: f.layer_norm(x, (5,), o(4)),
        "bias to be of same shape": lambda f: f.layer_norm(x, (5,), None, o(6)),
        "mixed dtype.*but got torch.float64": lambda f: f.layer_norm(x, (5,), o(5).double(), o(5).double()),
        "mixed dtype.*but got torch.bfloat16": lambda f: f.layer_norm(x.to(half), (5,), o(5), o(5).to(half)),
        "rms_norm.*not implemented for torch.int64": lambda f: f.rms_norm(x.long(), (5,)),
        "rms_norm.*must be tuple of ints": lambda f: f.rms_norm(x, 5),
        "weight to be of same shape .*normalized_shape = .5,": lambda f: f.rms_norm(x, (5,), o(4)),
        "layer_norm.*must be Tensor, not list": lambda f: f.layer_norm([1.0, 2.0], [2]),
        "rms_norm.*must be Tensor, not float": lambda f: f.rms_norm(1.5, [2]),
        "at least 2 dimensions, but got 1": lambda f: f.rms_norm(o(4), [2, 4]),
        "divisible by num_groups.*num_groups=4": lambda f: f.group_norm(x, 4),
        "by zero": lambda f: f.group_norm(x, 0),
        "greater than 0, got -3": lambda f: f.group_norm(x, -3),
        "at least 2 dimensions .* received 1": lambda f: f.group_norm(x[0, 0, 0], 1),
        "weight to be a vector of size": lambda f: f.group_norm(x, 3, o(5)),
        "weight to be a vector .*6, 1": lambda f: f.group_norm(x, 3, o(6, 1)),
        "number of channels to be greater": lambda f: f.group_norm(x[:, :0], 3),
        "Expected": lambda f: f.group_norm(x[:, :, :0], 3),
        "more than 1 value per channel": lambda f: f.group_norm(o(1, 3), 3),
        "group_norm: not implemented for torch.int64": lambda f: f.group_norm(x.long(), 3),
        "num_groups": lambda f: f.group_norm(x, 2.0),
        "group_norm: mixed dtype": lambda f: f.group_norm(x, 3, o(6).to(half), o(6).to(half)),
        "either both be None": lambda f: f.instance_norm(x, o(6)),
        "when use_input_stats is false": lambda f: f.instance_norm(x, use_input_stats=False),
        "running_mean should contain": lambda f: f.instance_norm(x, o(5), o(5)),
        "weight should contain": lambda f: f.instance_norm(x, weight=o(5)),
        "more than 1 spatial element": lambda f: f.instance_norm(x[:, :, :1, :1]),
        "more than 1 spatial element .*2, 5": lambda f: f.instance_norm(x[:, 0, 0]),
        "instance_norm: not implemented for torch.int64": lambda f: f.instance_norm(x.long()),
        "no samples or no channels": lambda f: f.instance_norm(x[:0], weight=o(6)),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_errors_are_torchs(message: str) -> None:
    call = bad_calls()[message]
    with pytest.raises(Exception, match=message):
        call(F)
    same_error(lambda: call(F), lambda: call(theirs))


def test_meta() -> None:
    for kind in KINDS:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(3, 4, 5, 6, device="meta").to(memory_format=layout)
            y = kind.ours(x)
            assert (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)

"""Transposed convolution against torch, float64 truth and its formula."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from common import (
    ALL_DTYPES,
    COMPLEX_DTYPES,
    HALF_DTYPES,
    assert_rounded_once,
    check_against_torch,
    gradients,
    layouts,
    same_error,
    strides,
)
from test_conv import formats
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

import scratchnn
import scratchnn.functional as F
import scratchnn.nn as nn

RANKS = (1, 2, 3)

# Errors allowed, as a multiple of torch's own. Unlike a gradient, torch's transposed convolution sums tap by tap, of
# short sums each; Winograd's algorithm takes 3x3 of stride 1 in float32.
DIRECT, WINOGRAD = 2.0, 4.0


def functions(rank: int) -> tuple[Any, Any]:
    """Ours and torch's."""
    return getattr(F, f"conv_transpose{rank}d"), getattr(torch.nn.functional, f"conv_transpose{rank}d")


def formula(
    x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, extra: int, groups: int, dilation: int
) -> Tensor:
    """``y[n, k, o S - P + t D] += w[c, k, t] x[n, c, o]``, one number at a time."""
    N, C, L = x.shape
    _, group_out, R = w.shape
    length = (L - 1) * stride - 2 * padding + dilation * (R - 1) + extra + 1
    y = b.double()[None, :, None].repeat(N, 1, length)
    for n, c, o, k, t in itertools.product(range(N), range(C), range(L), range(group_out), range(R)):
        i = o * stride - padding + t * dilation
        if 0 <= i < length:
            y[n, c // (C // groups) * group_out + k, i] += w[c, k, t].double() * x[n, c, o].double()
    return y


@pytest.mark.parametrize("window", [(1, 1, 0, 1, 1), (2, 0, 1, 2, 1), (3, 2, 1, 4, 2), (1, 0, 1, 1, 2)], ids=str)
def test_the_ladder_formula_naive_fast(window: tuple) -> None:
    groups = window[3]
    x, w, b = torch.randn(2, 4, 5), torch.randn(4, 6 // groups if groups < 4 else 2, 3), torch.randn(8)
    b = b[: w.shape[1] * groups]
    with scratchnn.kernels("naive"):
        naive = F.conv_transpose1d(x, w, b, *window)
    torch.testing.assert_close(naive.double(), formula(x, w, b, *window), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(F.conv_transpose1d(x, w, b, *window), naive, rtol=1e-5, atol=1e-5)


GEOMETRIES = [
    # size, in channels, out channels, kernel, options
    (5, 4, 6, 3, {}),
    (5, 4, 6, 3, {"padding": 1}),
    (4, 16, 24, 3, {"padding": 1}),
    (4, 4, 6, 4, {"stride": 2, "padding": 1}),
    (4, 4, 6, 3, {"stride": 2, "output_padding": 1, "groups": 2}),
    (3, 6, 6, 3, {"stride": 2, "groups": 6, "padding": 1, "output_padding": 1}),
    (3, 6, 12, 2, {"stride": 3, "groups": 6}),  # outputs no tap reaches
    (4, 3, 2, 3, {"dilation": 2, "output_padding": 1}),
    (4, 3, 2, 2, {"dilation": 3, "stride": 2, "padding": 2, "output_padding": 2}),
    (3, 3, 2, 1, {"stride": 2}),
    (3, 8, 40, 1, {}),
    (1, 3, 2, 3, {"stride": 5}),
    (1, 3, 2, 3, {"padding": 1}),
    (0, 3, 2, 3, {"padding": 1}),  # an empty batch of size 4
    (5, 12, 12, 3, {"stride": 2, "groups": 3, "padding": 1}),
    (4, 20, 8, 3, {"groups": 4, "dilation": 2}),
]


@pytest.mark.parametrize("dtype", [*ALL_DTYPES, *COMPLEX_DTYPES])
@pytest.mark.parametrize("rank", RANKS)
def test_values_and_gradients(rank: int, dtype: torch.dtype) -> None:
    ours, theirs = functions(rank)
    for (size, channels, out, kernel, options), which in itertools.product(GEOMETRIES, ("fast", "naive")):
        if which == "naive" and channels * out > 100:
            continue
        batch, size = (2, size) if size else (0, 4)
        x = torch.randn(batch, channels, *(size, size + 1, size)[:rank], dtype=dtype)
        w = torch.randn(channels, out // options.get("groups", 1), *(kernel,) * rank, dtype=dtype)
        b = torch.randn(out, dtype=dtype)
        narrow = dtype in (torch.float32, torch.complex64)
        winograd = narrow and rank > 1 and kernel == 3 and options == {"padding": 1}
        for memory_format in formats(rank) if which == "fast" else formats(rank)[-1:]:
            bias = [b] if options else []
            operands = [x.to(memory_format=memory_format), w.to(memory_format=memory_format), *bias]
            with scratchnn.kernels(which):
                assert ours(*operands, **options).is_contiguous(memory_format=memory_format)
                check_against_torch(
                    lambda *operands, options=options: ours(*operands, **options).contiguous(),
                    lambda *operands, options=options: theirs(*operands, **options).contiguous(),
                    operands,
                    WINOGRAD if winograd else DIRECT,
                )
                if which == "fast" and dtype in HALF_DTYPES:
                    assert_rounded_once(lambda *operands, options=options: ours(*operands, **options), operands)


@pytest.mark.parametrize("which", ["fast", "naive"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_types_and_layouts(dtype: torch.dtype, which: str) -> None:
    w = torch.randn(4, 3, 3, 3, dtype=dtype)
    options = {"stride": 2, "padding": 1, "output_padding": 1}
    with scratchnn.kernels(which):
        for _, x in layouts((2, 4, 4, 5), dtype):
            check_against_torch(
                lambda *operands: F.conv_transpose2d(*operands, **options),
                lambda *operands: torch.conv_transpose2d(*operands, **options),
                [x, w],
                DIRECT,
            )


def test_gradients_keep_the_layout_of_what_they_belong_to() -> None:
    for x_format, w_format in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        x = torch.randn(2, 4, 6, 7).to(memory_format=x_format)
        w = torch.randn(4, 6, 3, 3).to(memory_format=w_format)
        dy = torch.randn_like(F.conv_transpose2d(x, w))
        (y, _, dw), (torch_y, *_) = (gradients(f, [x, w], dy) for f in (F.conv_transpose2d, torch.conv_transpose2d))
        assert strides(y) == strides(torch_y)
        assert strides(dw) == strides(w)


def test_unbatched() -> None:
    for rank in RANKS:
        ours, theirs = functions(rank)
        operands = [torch.randn(4, *[5] * rank), torch.randn(4, 2, *[3] * rank), torch.randn(2)]
        check_against_torch(
            lambda *o, ours=ours: ours(*o, stride=2), lambda *o, theirs=theirs: theirs(*o, stride=2), operands
        )


def test_whole_numbers() -> None:
    for rank in RANKS:
        ours, theirs = functions(rank)
        x, w, b = torch.randint(-9, 9, (2, 4, *[4] * rank)), torch.randint(-9, 9, (4, 3, *[3] * rank)), torch.arange(3)
        assert torch.equal(ours(x, w, b, stride=2), theirs(x, w, b, stride=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "groups": 2, "output_padding": 1}], ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_derivatives(rank: int, options: dict, dtype: torch.dtype) -> None:
    groups = options.get("groups", 1)
    shapes = [(1, 2, *(3, 2, 2)[:rank]), (2, 4 // groups, *(2, 3, 1)[:rank]), (4,)]
    operands = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    options = dict(options)
    if rank == 3:
        options["padding"] = (1, 1, 0)

    def function(*operands: Tensor) -> Tensor:
        return functions(rank)[0](*operands, **options)

    assert torch.autograd.gradcheck(function, operands, fast_mode=rank > 1, check_forward_ad=True)
    assert torch.autograd.gradcheck(function, operands, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True, check_fwd_over_rev=True)


def test_forward_derivative_of_each_operand() -> None:
    operands = (torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3), torch.randn(4))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for wanted in itertools.product((False, True), repeat=3):
        results = []
        for function in functions(2):
            with torch.autograd.forward_ad.dual_level():
                duals = [
                    torch.autograd.forward_ad.make_dual(x, tangent) if want else x
                    for x, tangent, want in zip(operands, tangents, wanted, strict=True)
                ]
                y = function(*duals, stride=2)
                results.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
        assert (results[0] is None) == (results[1] is None)
        if results[0] is not None:
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((None, 0, 1), repeat=3) if any(d is not None for d in m)]
)
def test_vmap(mapped: tuple) -> None:
    operands = []
    for shape, dim in zip([(2, 4, 3, 4), (4, 3, 3, 2), (6,)], mapped, strict=True):
        x = torch.randn(shape if dim is None else (3, *shape))
        operands.append(x if dim is None else x.movedim(0, dim).contiguous())
    options = {"stride": 2, "groups": 2, "padding": 1}

    def value(function: Any) -> Any:
        return lambda *operands: function(*operands, **options)

    def gradient(function: Any) -> Any:
        return grad(lambda *operands: function(*operands, **options).square().sum(), argnums=(0, 1, 2))

    for transform in (value, gradient):
        ours, theirs = (vmap(transform(f), in_dims=mapped)(*operands) for f in functions(2))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_jvp_and_jacobian() -> None:
    operands = (torch.randn(1, 2, 3, 3), torch.randn(2, 3, 3, 3), torch.randn(3))
    tangents = tuple(torch.randn_like(x) for x in operands)
    for transform in (
        lambda f: jvp(f, operands, tangents),
        lambda f: jacrev(f, argnums=(0, 1, 2))(*operands),
        lambda f: torch.func.jacfwd(f, argnums=(0, 1, 2))(*operands),
        lambda f: torch.func.hessian(lambda x, w: f(x, w).square().sum())(*operands[:2]),
    ):
        ours, theirs = (transform(f) for f in functions(2))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_compile(rank: int, dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, stride=2, output_padding=1, groups=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (3, 4):
        x = torch.randn(2, 4, *range(size, size + rank), requires_grad=True)
        results = []
        for function in (compiled, layer):
            y = function(x)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", RANKS)
def test_autocast(rank: int, dtype: torch.dtype) -> None:
    for x_dtype in (torch.float32, torch.float64, dtype):
        x, w = torch.randn(2, 3, *[4] * rank).to(x_dtype), torch.randn(3, 2, *[3] * rank)
        if x_dtype == torch.float64:
            w = w.double()
        with torch.autocast("cpu", dtype=dtype):
            ours, theirs = (f(x, w) for f in functions(rank))
        assert ours.dtype == theirs.dtype
        # Held against the truth: without products of its own, a processor leaves torch's bfloat16 far from it.
        used = ours.dtype  # autocast leaves double precision alone
        truth = functions(rank)[1](x.to(used).double(), w.to(used).double())
        torch.testing.assert_close(ours, truth.to(used), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (16, {"padding": 1}),
        (16, {"stride": 2, "padding": 1}),
        (12, {"stride": 2, "groups": 12}),
        (12, {"groups": 3}),
        (40, {"groups": 8}),
    ],
)
def test_the_batch_and_the_threads_change_no_bit(
    channels: int, options: dict, memory_format: torch.memory_format
) -> None:
    x = torch.randn(7, channels, 9, 10).to(memory_format=memory_format)
    w, b = torch.randn(channels, 24 // options.get("groups", 1), 3, 3), torch.randn(24)
    y = F.conv_transpose2d(x, w, b, **options)
    dy = torch.randn_like(y)
    torch.set_num_threads(2)
    whole = gradients(lambda *o: F.conv_transpose2d(*o, **options), [x, w, b], dy)
    for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
        part = gradients(lambda *o: F.conv_transpose2d(*o, **options), [x[rows], w, b], dy[rows])
        assert all(torch.equal(a, b[rows]) for a, b in zip(part[:2], whole[:2], strict=True))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        again = gradients(lambda *o: F.conv_transpose2d(*o, **options), [x, w, b], dy)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


X, W, B = torch.zeros(2, 4, 6, 6), torch.zeros(4, 6, 3, 3), torch.zeros(6)

BAD_CALLS = {
    # call, what our message must say
    "channels": (lambda f: f(X[:, :3], W), r"transposed=1.*\[4, 6, 3, 3\].*\[2, 3, 6, 6\].*4 channels.*got 3"),
    "channels of groups": (lambda f: f(X, W, groups=3), r"divisible by 3.*\[4, 6, 3, 3\]"),
    "no groups": (lambda f: f(X, W, groups=0), "got 0"),
    "more groups than channels": (lambda f: f(X, W, groups=8), "at least 8"),
    "fractional groups": (lambda f: f(X, W, groups=1.0), r"groups.*1\.0"),
    "bias size": (lambda f: f(X, W, B[:5]), r"6 elements.*\[5\]"),
    "bias type": (lambda f: f(X, W, B.double()), "Float.*Double|float.*double"),
    "bias a number": (lambda f: f(X, W, 1.0), "bias.*float"),
    "stride 0": (lambda f: f(X, W, stride=0), "stride.*0"),
    "negative stride": (lambda f: f(X, W, stride=(1, -1)), r"stride.*\[1, -1\]"),
    "fractional stride": (lambda f: f(X, W, stride=1.5), r"stride.*1\.5"),
    "three strides": (lambda f: f(X, W, stride=(1, 2, 3)), r"stride.*2 values.*\[1, 2, 3\]"),
    "negative padding": (lambda f: f(X, W, padding=-1), "negative padding.*-1"),
    "named padding": (lambda f: f(X, W, padding="same"), "padding.*'same'"),
    "three paddings": (lambda f: f(X, W, padding=(1, 2, 3)), r"padding.*2 values.*\[1, 2, 3\]"),
    "negative output padding": (lambda f: f(X, W, output_padding=-1), "negative output_padding.*-1"),
    "too much output padding": (
        lambda f: f(X, W, stride=2, output_padding=2),
        r"output_padding=\[2, 2\].*stride=\[2, 2\]",
    ),
    "output padding of stride 1": (lambda f: f(X, W, output_padding=(0, 1)), r"output_padding=\[0, 1\]"),
    "output padding a name": (lambda f: f(X, W, output_padding="1"), "output_padding.*'1'"),
    "output padding None": (lambda f: f(X, W, output_padding=None), "output_padding.*None"),
    "dilation 0": (lambda f: f(X, W, dilation=0), "dilation.*0"),
    "negative dilation": (lambda f: f(X, W, dilation=-1), "dilation.*-1"),
    "nothing left": (lambda f: f(X.double(), W.double(), padding=4), r"\(6 x 6\).*\(0 x 0\).*too small"),
    "less than nothing left": (lambda f: f(X, W, padding=7), r"\(-6 x -6\).*too small"),
    "input of rank 2": (lambda f: f(X[0, 0], W), r"3D.*4D.*\[6, 6\]"),
    "input of rank 5": (lambda f: f(X[None], W), r"3D.*4D.*\[1, 2, 4, 6, 6\]"),
    "weight of rank 3": (lambda f: f(X, W[0]), r"\[6, 3, 3\]"),
    "weight of rank 5": (lambda f: f(X, W[None]), r"\[1, 4, 6, 3, 3\]"),
    "types differ": (lambda f: f(X.double(), W), "Double.*Float|double.*float"),
    "complex input": (lambda f: f(X.to(torch.complex64), W), "Complex.*Float|complex.*float"),
    "booleans": (lambda f: f(X.bool(), W.bool()), "conv_transpose"),
    "list for input": (lambda f: f(X.tolist(), W), "input.*list"),
    "no weight": (lambda f: f(X, None), "weight.*NoneType"),
    "image without pixels": (lambda f: f(X[:, :, :0], W), r"\[2, 4, 0, 6\]"),
    "unknown argument": (lambda f: f(X, W, strides=1), "strides"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_torchs(name: str) -> None:
    call, pattern = BAD_CALLS[name]
    message = same_error(*(lambda f=f: call(f) for f in functions(2)))
    with pytest.raises(AssertionError, match=pattern):  # the message itself, searched as pytest does
        raise AssertionError(message)


def test_meta_device_refuses_what_the_processor_refuses() -> None:
    with pytest.raises(RuntimeError, match="4 channels"):
        F.conv_transpose2d(X[:, :3].to("meta"), W.to("meta"))
    with pytest.raises(RuntimeError, match="too small"):
        F.conv_transpose2d(X.to("meta"), W.to("meta"), padding=4)


# The module.

LAYERS = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1, "bias": False},
    {"stride": 2, "groups": 2, "dilation": 2, "dtype": torch.float64},
    {"stride": 3, "padding": 1, "dtype": torch.complex64},
]


def pair(rank: int, options: dict) -> list[Any]:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layers.append(getattr(namespace, f"ConvTranspose{rank}d")(4, 6, 3, **options))
    return layers


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_the_layer_is_torchs(rank: int, options: dict) -> None:
    ours, theirs = pair(rank, options)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    names, weights = zip(*((name, weight.detach()) for name, weight in ours.named_parameters()), strict=True)

    def through(layer: torch.nn.Module) -> Any:
        return lambda x, *weights: functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    x = torch.randn(2, 4, *[4] * rank, dtype=options.get("dtype", torch.float32))
    check_against_torch(through(ours), through(theirs), [x, *weights], WINOGRAD)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert torch.equal(copied(x), ours(x))
    on_meta = copy.deepcopy(ours).to("meta")(x.to("meta"))
    assert on_meta.shape == ours(x).shape


@pytest.mark.parametrize("rank", RANKS)
def test_output_size(rank: int) -> None:
    ours, theirs = pair(rank, {"stride": 3})
    x = torch.randn(2, 4, *[4] * rank)
    for size in range(12, 15):
        for output_size in ([size] * rank, (2, 6, *[size] * rank), torch.Size([size] * rank)):
            torch.testing.assert_close(ours(x, output_size), theirs(x, output_size), rtol=1e-4, atol=1e-4)
        unbatched = ours(x[0], output_size=[size] * rank)
        torch.testing.assert_close(unbatched, theirs(x[0], output_size=[size] * rank), rtol=1e-4, atol=1e-4)
    for output_size in ([11] * rank, [15] * rank, [12] * (rank + 1), []):
        same_error(lambda size=output_size: ours(x, size), lambda size=output_size: theirs(x, size))


@pytest.mark.parametrize("rank", RANKS)
def test_lazy_layers_become_ours(rank: int) -> None:
    x = torch.randn(2, 4, *[5] * rank)
    results = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(5)
        layer = getattr(namespace, f"LazyConvTranspose{rank}d")(6, 3, stride=2)
        y = layer(x, output_size=[12] * rank)
        results.append((layer, y))
    (ours, mine), (theirs, other) = results
    assert type(ours) is getattr(nn, f"ConvTranspose{rank}d")
    assert repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_only_zeros_around_the_output() -> None:
    same_error(*(lambda n=n: n.ConvTranspose2d(4, 6, 3, padding_mode="circular") for n in (nn, torch.nn)))
    layers = pair(2, {})
    for layer in layers:
        layer.padding_mode = "reflect"
    same_error(*(lambda layer=layer: layer(X) for layer in layers))


def test_it_inverts_the_sizes_of_a_convolution() -> None:
    """``<dy, conv(x)> = <transpose(dy), x>``, exact for whole numbers, for whatever size the convolution came from."""
    w = torch.randint(-4, 5, (6, 4, 3, 3)).double()
    for size, stride, padding in itertools.product(range(5, 9), (1, 2, 3), (0, 1)):
        x = torch.randint(-4, 5, (2, 4, size, size)).double()
        y = F.conv2d(x, w, stride=stride, padding=padding)
        dy = torch.randint(-4, 5, y.shape).double()
        extra = (size + 2 * padding - 3) % stride
        back = F.conv_transpose2d(dy, w, stride=stride, padding=padding, output_padding=extra)
        assert back.shape == x.shape
        assert (dy * y).sum() == (back * x).sum()

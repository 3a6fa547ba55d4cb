"""Borders that continue the image: the padding modes of the convolution layers, against torch's padded copies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from common import (
    ALL_DTYPES,
    FAST_DTYPES,
    HALF_DTYPES,
    assert_rounded_once,
    check_against_torch,
    gradients,
    layouts,
    same_error,
    strides,
)
from test_conv import DIRECT, WINOGRAD, formats
from torch import Tensor
from torch.func import functional_call, grad, vmap

import scratchnn
import scratchnn.nn as nn

MODES = ("reflect", "replicate", "circular")
RANKS = (1, 2, 3)

LAYERS = [
    # in channels, out channels, kernel, options
    (4, 6, 3, {"padding": 1}),
    (4, 6, 3, {"padding": 2, "stride": 2}),
    (4, 6, 3, {"padding": 3, "dilation": 2, "groups": 2}),
    (4, 4, 3, {"padding": 2, "groups": 4}),
    (4, 4, 2, {"padding": 3, "groups": 4, "stride": 3, "dilation": 2}),
    (12, 6, 3, {"padding": 2, "groups": 3}),
    (20, 20, 3, {"padding": 1, "groups": 5}),
    (3, 2, 4, {"padding": "same"}),
    (3, 2, 2, {"padding": "same", "dilation": 3}),
    (3, 2, 3, {"padding": "valid"}),
    (3, 2, 1, {"padding": 3}),
    (3, 2, 3, {"padding": -1}),  # the image's edge is left out
    (3, 2, 2, {"padding": 1, "stride": 4, "bias": False}),
]


def pair(rank: int, mode: str, c: int, k: int, kernel: int, options: dict, dtype: torch.dtype) -> list[Any]:
    layers = []
    for namespace in (nn, torch.nn):
        torch.manual_seed(3)
        layers.append(getattr(namespace, f"Conv{rank}d")(c, k, kernel, padding_mode=mode, dtype=dtype, **options))
    return layers


def through(layer: torch.nn.Module) -> Any:
    """The layer as a function of input and weights, its output contiguous: circular padding makes torch's so."""
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *weights: functional_call(layer, dict(zip(names, weights, strict=True)), (x,)).contiguous()


def weights_of(layer: torch.nn.Module) -> list[Tensor]:
    return [weight.detach() for weight in layer.parameters()]


@pytest.mark.parametrize("dtype", [*FAST_DTYPES, torch.complex64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", RANKS)
def test_values_and_gradients(rank: int, mode: str, dtype: torch.dtype) -> None:
    for c, k, kernel, options in LAYERS:
        ours, theirs = pair(rank, mode, c, k, kernel, options, dtype)
        assert repr(ours) == repr(theirs)
        winograd = rank > 1 and kernel == 3 and dtype != torch.float64
        for which, memory_format in [("naive", formats(rank)[-1]), *itertools.product(["fast"], formats(rank))]:
            x = torch.randn(2, c, *(5, 6, 5)[:rank], dtype=dtype).to(memory_format=memory_format)
            with scratchnn.kernels(which):
                assert ours(x).is_contiguous(memory_format=memory_format)
                check_against_torch(
                    through(ours), through(theirs), [x, *weights_of(ours)], WINOGRAD if winograd else DIRECT
                )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_sizes_of_winograd(memory_format: torch.memory_format, mode: str) -> None:
    for padding, size in ((1, (9, 7)), (2, (14, 5)), (3, (4, 33))):
        ours, theirs = pair(2, mode, 32, 64, 3, {"padding": padding}, torch.float32)
        x = torch.randn(3, 32, *size).to(memory_format=memory_format)
        check_against_torch(through(ours), through(theirs), [x, *weights_of(ours)], WINOGRAD)


@pytest.mark.parametrize("mode", MODES)
def test_as_much_border_as_there_is_image(mode: str) -> None:
    for size, padding in ((1, 1), (1, 4), (2, 2), (3, 2), (4, 4)):
        if padding > {"reflect": size - 1, "circular": size}.get(mode, padding):
            continue
        for rank in RANKS:
            ours, theirs = pair(rank, mode, 3, 4, 3, {"padding": padding}, torch.float32)
            x = torch.randn(2, 3, *[size] * rank)
            check_against_torch(through(ours), through(theirs), [x, *weights_of(ours)], WINOGRAD)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_types_and_layouts(mode: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(2, mode, 4, 6, (3, 2), {"padding": (2, 1)}, dtype)
    for _, x in layouts((2, 4, 7, 6), dtype):
        check_against_torch(through(ours), through(theirs), [x, *weights_of(ours)], DIRECT)
        assert strides(ours(x)) == strides(torch.conv2d(x, ours.weight, padding=(2, 1)))


@pytest.mark.parametrize("mode", MODES)
def test_unbatched_empty_and_whole_numbers(mode: str) -> None:
    ours, theirs = pair(2, mode, 4, 6, 3, {"padding": 2}, torch.float32)
    x = torch.randn(4, 5, 5)
    check_against_torch(through(ours), through(theirs), [x, *weights_of(ours)], WINOGRAD)
    check_against_torch(through(ours), through(theirs), [x[None][:0], *weights_of(ours)], WINOGRAD)
    weights = {name: torch.randint(-9, 9, weight.shape) for name, weight in ours.named_parameters()}
    x = torch.randint(-9, 9, (2, 4, 5, 5))
    with torch.no_grad():
        results = [functional_call(layer.requires_grad_(False), weights, (x,)) for layer in (ours, theirs)]
    assert torch.equal(*results)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", RANKS)
def test_derivatives(rank: int, mode: str) -> None:
    for options in ({"padding": 2, "groups": 2}, {"padding": 1, "stride": 2}):
        layer = getattr(nn, f"Conv{rank}d")(2, 2, 2, padding_mode=mode, dtype=torch.float64, **options)
        operands = [torch.randn(1, 2, *(3, 4, 3)[:rank]).double().requires_grad_()]
        operands += [weight.requires_grad_() for weight in weights_of(layer)]
        function = through(layer)
        assert torch.autograd.gradcheck(function, operands, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradcheck(function, operands, fast_mode=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, operands, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("mode", MODES)
def test_vmap(mode: str) -> None:
    ours, theirs = pair(2, mode, 2, 4, 3, {"padding": 2, "groups": 2}, torch.float32)
    x, weights = torch.randn(3, 2, 2, 5, 4), [torch.stack([w, -2 * w, w + 1]) for w in weights_of(ours)]
    for in_dims in ((0, None, None), (None, 0, 0), (0, 0, None)):
        operands = [value if dim == 0 else value[0] for value, dim in zip([x, *weights], in_dims, strict=True)]
        for transform in (lambda f: f, lambda f: grad(lambda *o: f(*o).square().sum(), argnums=(0, 1, 2))):
            mine, other = (vmap(transform(through(layer)), in_dims=in_dims)(*operands) for layer in (ours, theirs))
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_compile(mode: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = nn.Conv2d(4, 6, 3, padding="same", padding_mode=mode)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (5, 7):
        x = torch.randn(2, 4, size, size + 1, requires_grad=True)
        results = []
        for function in (compiled, layer):
            y = function(x)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", MODES)
def test_the_batch_and_the_threads_change_no_bit(mode: str, memory_format: torch.memory_format) -> None:
    for groups in (1, 2, 4, 16):
        layer = nn.Conv2d(16, 32, 3, padding=2, groups=groups, padding_mode=mode)
        x = torch.randn(7, 16, 9, 10).to(memory_format=memory_format)
        dy = torch.randn_like(layer(x).detach())
        torch.set_num_threads(2)
        whole = gradients(through(layer), [x, *weights_of(layer)], dy)
        for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
            part = gradients(through(layer), [x[rows], *weights_of(layer)], dy[rows])
            assert all(torch.equal(a, b[rows]) for a, b in zip(part[:2], whole[:2], strict=True))
        for threads in (1, 3):
            torch.set_num_threads(threads)
            again = gradients(through(layer), [x, *weights_of(layer)], dy)
            assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


BAD_CALLS = {
    "reflection of more than the image": ("reflect", 5, (2, 4, 5, 5)),
    "reflection of a single pixel": ("reflect", 1, (2, 4, 1, 5)),
    "more than one turn": ("circular", 6, (2, 4, 5, 5)),
    "image without pixels": ("replicate", 1, (2, 4, 0, 5)),
    "image without pixels, reflected": ("reflect", 1, (2, 4, 0, 5)),
    "channels": ("circular", 1, (2, 3, 5, 5)),
    "three dimensions too few": ("reflect", 1, (5,)),
    "two dimensions": ("replicate", 1, (5, 5)),
    "five dimensions": ("circular", 1, (1, 2, 4, 5, 5)),
    "kernel too large": ("replicate", -2, (2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_torchs(name: str) -> None:
    mode, padding, shape = BAD_CALLS[name]
    layers = pair(2, mode, 4, 6, 3, {"padding": padding}, torch.float32)
    same_error(*(lambda layer=layer: layer(torch.zeros(shape)) for layer in layers))


@pytest.mark.parametrize("mode", MODES)
def test_no_padded_copy_is_made(mode: str) -> None:
    """The largest tensor made on the way is the output itself."""
    layer = nn.Conv2d(8, 1, 3, padding=1, padding_mode=mode)
    x = torch.randn(4, 8, 32, 32)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        layer(x)
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    assert max(allocated) < x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_half_precision(mode: str, dtype: torch.dtype) -> None:
    """Rounded once, also where the input gradient is computed a few images at a time."""
    for options in ({"padding": 2}, {"padding": 1, "stride": 2, "groups": 4}):
        ours, theirs = pair(2, mode, 4, 8, 3, options, dtype)
        for memory_format in formats(2):
            x = torch.randn(5, 4, 9, 8, dtype=dtype).to(memory_format=memory_format)
            check_against_torch(through(ours), through(theirs), [x, *weights_of(ours)], DIRECT)
            assert_rounded_once(through(ours), [x, *weights_of(ours)])
    ours, _ = pair(2, mode, 4, 2, 3, {"padding": 1}, dtype)
    x = torch.randn(3, 4, 320, 480, dtype=dtype)
    dy = torch.randn_like(ours(x))
    whole, part = (gradients(ours, [x[:n]], dy[:n])[1] for n in (3, 1))
    assert torch.equal(whole[:1], part)


def test_meta_device_refuses_what_the_processor_refuses() -> None:
    for mode, padding in (("reflect", 5), ("circular", 6)):
        layer = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=mode, device="meta")
        with pytest.raises(RuntimeError, match="padding"):
            layer(torch.zeros(2, 4, 5, 5, device="meta"))

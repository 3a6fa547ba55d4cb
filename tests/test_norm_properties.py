"""Every normalization over its whole space of arguments: torch's result where it gives one, its refusal where not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from common import ALL_DTYPES, strides
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scratchnn import nn

KINDS = ("batch", "instance", "group", "layer", "rms", "response")
NARROW = (torch.bfloat16, torch.float16)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A layer, how it is made, and its inputs; now and then something that does not fit."""
    kind = draw(st.sampled_from(KINDS))
    rank = draw(st.integers(1, 3))
    size = st.integers(0, 9) if draw(st.integers(0, 4)) == 0 else st.integers(1, 9)
    channels = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 20]))
    dims = draw(st.sampled_from([rank + 2] * 6 + [rank + 1, 2, 1]))
    shape = [draw(size), channels, *[draw(size) for _ in range(3)]][:dims]
    if dims == rank + 1:
        shape = [channels, *shape[2:], draw(size)][:dims]
    case: dict[str, Any] = {
        "kind": kind,
        "rank": rank,
        "shape": shape,
        "dtype": draw(st.sampled_from(ALL_DTYPES)),
        "wide": draw(st.booleans()),  # parameters in float32 beside a narrower input
        "layout": draw(st.sampled_from(["contiguous", "last", "transposed", "sliced"])),
        "training": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
        "offset": draw(st.sampled_from([0.0, 0.0, 5.0])),
        "steps": draw(st.integers(1, 2)),
    }
    eps = {"eps": draw(st.sampled_from([1e-5, 1e-5, 1e-3, 0.5]))}
    affine = {"affine": draw(st.booleans()), "bias": draw(st.booleans())}
    wrong = case["wrong"] = draw(st.integers(0, 9)) == 0
    expected = channels + wrong
    if kind in ("batch", "instance"):
        case["name"] = f"{kind.capitalize()}Norm{rank}d"
        case["make"] = {
            "num_features": expected,
            "momentum": draw(st.sampled_from([None, 0.1, 0.0, 1.0])),
            "track_running_stats": draw(st.booleans()),
            **eps,
            **affine,
        }
    elif kind == "group":
        case["name"] = "GroupNorm"
        groups = draw(st.sampled_from([g for g in range(1, 13) if expected % g == 0 or wrong]))
        case["make"] = {"num_groups": groups, "num_channels": expected, **eps, **affine}
    elif kind in ("layer", "rms"):
        case["name"] = "LayerNorm" if kind == "layer" else "RMSNorm"
        count = draw(st.integers(0 if wrong else min(1, len(shape)), len(shape)))
        sizes = shape[len(shape) - count :]
        if wrong and sizes:
            sizes = [*sizes[:-1], sizes[-1] + 1]
        case["make"] = {"normalized_shape": sizes, "elementwise_affine": affine["affine"], **eps}
        if kind == "layer":
            case["make"]["bias"] = affine["bias"]
        elif draw(st.booleans()):
            case["make"]["eps"] = None
    else:
        case["name"] = "LocalResponseNorm"
        case["make"] = {
            "size": draw(st.sampled_from([1, 2, 3, 4, 5, 9, 30, 0, -1])),
            "alpha": draw(st.sampled_from([1e-4, 0.5])),
            "beta": draw(st.sampled_from([0.75, 0.5, 1.0, 0.6])),
            "k": draw(st.sampled_from([1.0, 2.0])),
        }
    return case


def draw_input(case: dict[str, Any], generator: torch.Generator) -> Tensor:
    shape, layout = case["shape"], case["layout"]
    if layout == "sliced" and shape:
        x = torch.randn([*shape[:-1], 2 * shape[-1]], generator=generator, dtype=torch.float64)[..., ::2]
    elif layout == "transposed" and len(shape) > 1:
        x = torch.randn([*shape[:-2], shape[-1], shape[-2]], generator=generator, dtype=torch.float64).transpose(-1, -2)
    else:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (x + case["offset"]).to(case["dtype"])
    if layout == "last" and len(shape) in (4, 5):
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return x


def outcome(library: Any, case: dict[str, Any], exact: bool = False) -> list[Tensor | None] | Exception:
    """The output, its gradients, and what the layer has learnt; or what it raised."""
    dtype = case["dtype"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = getattr(library, case["name"])(**case["make"]).train(case["training"])
            parameters = torch.float32 if case["wide"] and dtype in NARROW else dtype
            generator = torch.Generator().manual_seed(case["seed"])
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, 0.5, generator=generator)
            module = module.to(parameters)
            if exact:
                module = module.double()
            for _ in range(case["steps"]):
                x = draw_input(case, generator)
                grad = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
                if exact:
                    x, grad = x.double(), grad.double()
                x = x.detach().requires_grad_()
                y = module(x)
            leaves = [x, *module.parameters()]
            gradients = torch.autograd.grad(y, leaves, grad.to(y.dtype).contiguous(), allow_unused=True)
            return [y.detach(), *gradients, *module.buffers()]
    except Exception as error:
        return error


def kept_layout(x: Tensor) -> tuple[int, ...]:
    return strides(torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x)))


def body(case: dict[str, Any]) -> None:
    ours, theirs = outcome(nn, case), outcome(torch.nn, case)
    refused = isinstance(theirs, NotImplementedError) or "view size is not compatible" in str(theirs)
    if refused and case["kind"] == "response" and not isinstance(ours, Exception):
        return  # torch pools some half precision inputs not at all, and others only without gaps
    empty = 0 in case["shape"]
    if empty and case["wrong"] and case["kind"] != "batch" and isinstance(ours, RuntimeError):
        return  # torch does not look at parameters where there are no numbers
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        assert type(ours) is type(theirs), f"{ours!r}, torch {theirs!r}"
        return
    exact = outcome(torch.nn, case, exact=True)
    assert not isinstance(exact, Exception)
    x = draw_input(case, torch.Generator().manual_seed(0))
    if case["kind"] != "instance" or x.dim() == case["rank"] + 2:  # batched
        assert strides(ours[0]) == kept_layout(x)  # of torch's layers some answer channels_last with contiguous
    for position, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        if mine is None or other is None:
            assert mine is other
            continue
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype), f"result {position}"
        if not mine.is_floating_point():
            assert torch.equal(mine, other)
            continue
        if empty or not mine.numel():  # torch's instance norm learns NaN from an empty batch, we nothing
            assert mine.isfinite().all()
            continue
        finite = truth.isfinite() & other.isfinite()
        if case["dtype"] != torch.float16 or truth.abs().max() < 1e4:
            assert torch.equal(mine.isfinite(), other.isfinite()), f"result {position}: not finite elsewhere"
        finite &= mine.isfinite()
        error, allowed = ((value.double() - truth)[finite].norm().item() for value in (mine, other))
        amplified = max(1.0, case["offset"]) * (10.0 if position else 1.0)  # of a mean that cancels
        # where a set holds one number or a few, or all alike, x_hat is 1 / sqrt(eps) times a rounding error
        noise = (case["make"].get("eps") or 1e-5) ** -0.5 if case["name"] != "LocalResponseNorm" else 1.0
        step = torch.finfo(mine.dtype).eps * amplified * (4 if mine.dtype != torch.float64 else 32)
        scale = truth[finite].norm().item() + max(1, int(finite.sum())) ** 0.5
        limit = 3 * allowed + step * scale
        assert error <= limit or error <= limit * noise <= 1e-2, f"result {position}: error {error}, allowed {allowed}"


@settings(max_examples=100, derandomize=True, deadline=None)
@given(cases())
def test_as_torch(case: dict[str, Any]) -> None:
    body(case)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(cases())
def test_as_torch_at_length(case: dict[str, Any]) -> None:
    body(case)

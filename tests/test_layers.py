"""What every layer promises, tested for every layer: the contract, walked over ``scratchnn.accuracy.layers``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.accuracy.measure import allowed_factor, measure, run
from scratchnn.testing import assert_equivalent

IN_TORCH = [layer for layer in LAYERS if layer.reference is None]


def of(layers: list[Layer]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layer", layers, ids=lambda layer: str(layer).replace(" ", "_"))


def made(layer: Layer, *inputs: Tensor, ours: bool = True) -> Module:
    """The layer, the same weights on both sides; lazy ones take their shape from the inputs."""
    torch.manual_seed(0)
    module = layer.build(scratchnn.nn) if ours else layer.theirs()
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        module(*(inputs or layer.draw(torch.float32)))
    return module


def quiet(test: Callable[..., None]) -> Callable[..., None]:
    """Layers may warn, of an implicit dimension or a size that is not what they expect: so does torch."""

    @functools.wraps(test)
    def wrapped(*args: object, **kwargs: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test(*args, **kwargs)

    return wrapped


def test_every_layer_has_an_example() -> None:
    assert {layer.name for layer in LAYERS} == set(scratchnn.nn.implemented())


@of(LAYERS)
@quiet
def test_accuracy(layer: Layer) -> None:
    """Errors against float64 truth no larger than torch's, within the factor the table allows."""
    for dtype in layer.dtypes:
        result = measure(layer, dtype, seeds=3)
        for name, errors in result.errors.items():
            allowed = 1.25 * result.allowed  # of a few draws: they scatter
            assert errors.ratio <= allowed, f"{dtype} {name}: {errors}, {errors.ratio:.2f} times torch's"


# What the toolkit finds and is meant to be so, by layer.
OF_PARTS = "the reference is made of torch's parts"
KNOWN: dict[str, dict[str, str]] = {
    "Conv2d 3, 64 channels": {"non_finite/*": "Winograd's algorithm spoils the tile that reads the number"},
    "GlobalAvgPool": {
        "batching/*unbatched/*": "takes the channels for a batch",
        "errors/*": OF_PARTS,
    },
    "SyncBatchNorm": {
        "batching/*unbatched/*": "takes any rank, as torch's",
        "errors/*two dimensions more/*": "takes any rank, as torch's",
    },
    "LayerNorm2d": {
        "*/layout of output": f"{OF_PARTS} and always channels_last",
        "batching/*unbatched/*": OF_PARTS,
        "errors/*": OF_PARTS,
    },
    "Hardsigmoid": {"gradients/float64/gradient of input": "torch's has a constant in float32"},
    "Maxout": {"state_dict/*": OF_PARTS},
}


@of(LAYERS)
def test_equivalent_to_torchs(layer: Layer) -> None:
    """Every check of the toolkit in every type."""
    layer = smaller(layer)
    assert_equivalent(
        lambda: layer.build(scratchnn.nn),
        layer.theirs,
        layer.draw,
        factor=allowed_factor(layer),
        representation=layer.reference is None,
        known=KNOWN.get(str(layer)),
    )


def smaller(layer: Layer) -> Layer:
    """The example on smaller inputs, where its weights allow that: nothing here depends on their size."""
    if layer.family not in ("conv", "pool", "activation") or len(layer.shapes[0]) < 3:
        return layer
    ((samples, channels, *sizes),) = layer.shapes
    most = {1: 20, 2: 8, 3: 6}[len(sizes)]
    return dataclasses.replace(layer, shapes=((min(samples, 3), channels, *(min(size, most) for size in sizes)),))


@of(LAYERS)
def test_reproducible(layer: Layer) -> None:
    """Bit by bit the same sample in any batch, and the same results, weight gradients among them, on any threads."""
    checks = ["batch_split", "threads"] if layer.batch else ["threads"]
    assert_equivalent(lambda: layer.build(scratchnn.nn), layer.theirs, layer.draw, checks=checks)


@of(LAYERS)
@quiet
def test_saves_no_more_than_torch(layer: Layer) -> None:
    """Bytes kept for the backward pass, the inputs and parameters aside: those are there anyway."""
    inputs = layer.draw(torch.float32)
    mine, other = (saved_bytes(made(layer, *inputs, ours=ours), inputs) for ours in (True, False))
    assert mine <= other + 2048, f"{mine} bytes, torch {other}"


def saved_bytes(module: Module, inputs: tuple[Tensor, ...]) -> int:
    leaves = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    known = {x.untyped_storage().data_ptr() for x in (*leaves, *module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*leaves)
    sizes.pop(output.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


@of(LAYERS)
@quiet
def test_meta_tensors_have_the_results_shape(layer: Layer) -> None:
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    expected = module(*inputs)
    output = copy.deepcopy(module).to("meta")(*(x.to("meta") for x in inputs))
    assert (output.shape, output.dtype, output.device.type) == (expected.shape, expected.dtype, "meta")


@of(IN_TORCH)
@quiet
def test_converts(layer: Layer) -> None:
    inputs = layer.draw(torch.float32)
    theirs = made(layer, *inputs, ours=False)
    converted = copy.deepcopy(theirs)
    assert list(scratchnn.convert(converted).converted) == [""]
    assert type(converted) is type(made(layer, *inputs))
    assert repr(converted) == repr(theirs)
    torch.manual_seed(1)
    expected = theirs(*inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(converted(*inputs), expected, rtol=1e-4, atol=1e-5)


@of(LAYERS)
@quiet
def test_compiles_without_a_break(layer: Layer) -> None:
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    expected, found = run(module, inputs), run(compiled, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)

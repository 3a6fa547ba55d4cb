"""What every layer promises, tested for every layer: the contract, walked over ``scratchnn.accuracy.layers``."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from common import strides
from torch import Tensor
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.accuracy.measure import measure, run

IN_TORCH = [layer for layer in LAYERS if layer.reference is None]
BATCHED = [layer for layer in LAYERS if layer.batch]
IMAGES = [layer for layer in LAYERS if len(layer.shapes[0]) in (4, 5)]


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


@of(IN_TORCH)
@quiet
def test_looks_like_torchs(layer: Layer) -> None:
    """The same representation, state and, for the same seed, initial weights; states fit both ways."""
    ours, theirs = made(layer), made(layer, ours=False)
    assert repr(ours) == repr(theirs)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name, value in other.items():
        lazy = name.startswith("running")  # has seen an input
        torch.testing.assert_close(mine[name], value, rtol=1e-5 if lazy else 0, atol=1e-6 if lazy else 0, msg=name)
    theirs.load_state_dict(mine)
    ours.load_state_dict(other)


@of(LAYERS)
@quiet
def test_copies_and_pickles(layer: Layer) -> None:
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    torch.manual_seed(1)
    expected = copy.deepcopy(module)(*inputs)
    torch.manual_seed(1)
    assert torch.equal(pickle.loads(pickle.dumps(module))(*inputs), expected)


@of(BATCHED)
@quiet
def test_a_sample_does_not_know_of_the_others(layer: Layer) -> None:
    """Bit by bit the same output and input gradient, in a batch of any size."""
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    grad = torch.randn_like(module(*inputs))
    whole = outcome(module, inputs, grad)
    for part in (slice(0, 1), slice(1, 3)):
        results = outcome(module, tuple(x[part] for x in inputs), grad[part])
        for position, (alone, together) in enumerate(zip(results, whole, strict=True)):
            assert torch.equal(alone, together[part]), f"result {position}, samples {part}"


def outcome(module: Module, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    output = module(*leaves)
    return [output.detach(), *torch.autograd.grad(output, [x for x in leaves if x.requires_grad], grad)]


@of(LAYERS)
@quiet
def test_the_number_of_threads_changes_nothing(layer: Layer) -> None:
    """Bit by bit the same results, weight gradients among them."""
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(copy.deepcopy(module), inputs))
    for name, value in results[0].items():
        for other in results[1:]:
            assert torch.equal(other[name], value), name


@of(IMAGES)
@quiet
def test_channels_last_stays(layer: Layer) -> None:
    """Out as in; the same numbers in both layouts."""
    inputs = layer.draw(torch.float32)
    module = made(layer, *inputs)
    format = torch.channels_last if inputs[0].dim() == 4 else torch.channels_last_3d
    last = tuple(x.to(memory_format=format) for x in inputs)
    contiguous, output = copy.deepcopy(module), copy.deepcopy(module)
    torch.manual_seed(1)
    expected = contiguous(*inputs)
    torch.manual_seed(1)
    output = output(*last)
    if layer.name != "RReLU":  # draws in the order of memory
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    if output.dim() == inputs[0].dim():
        assert strides(output) == strides(output.to(memory_format=format))
        assert strides(expected) == strides(expected.contiguous())


@of(LAYERS)
@quiet
def test_autocast_gives_torchs_types(layer: Layer) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for input_dtype in (torch.float32, dtype):
            inputs = tuple(x.to(input_dtype) if x.is_floating_point() else x for x in layer.draw(torch.float32))
            outcomes = []
            for ours in (True, False):
                module = made(layer, ours=ours)
                try:
                    with torch.autocast("cpu", dtype):
                        outcomes.append(module(*inputs).dtype)
                except Exception as error:
                    outcomes.append(type(error))
            if outcomes[1] is not NotImplementedError:  # torch lacks RReLU in float16
                assert outcomes[0] == outcomes[1], f"{input_dtype} under {dtype}"


@of(LAYERS)
@quiet
def test_unbatched_and_empty(layer: Layer) -> None:
    """What torch takes without a batch, or with none in it, so do we; what it refuses is refused the same way."""
    inputs = layer.draw(torch.float32)
    for name, part in (("unbatched", 0), ("empty", slice(0, 0))):
        outcomes: list[object] = []
        for ours in (True, False):
            module = made(layer, *inputs, ours=ours)
            try:
                torch.manual_seed(1)
                outcomes.append(module(*(x[part] for x in inputs)))
            except Exception as error:
                outcomes.append(type(error))
        mine, other = outcomes
        if layer.name == "GlobalAvgPool" and name == "unbatched":
            continue  # takes the channels for a batch
        if isinstance(other, Tensor):
            assert isinstance(mine, Tensor), f"{name}: {mine}"
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        elif layer.reference is None:
            assert mine is other, f"{name}: {mine}, torch {other}"


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

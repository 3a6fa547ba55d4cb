"""Whole models: nothing of our families is left in any of torchvision's; wrappers for training stay what they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchvision
from common import Recording
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import get_model, get_model_builder, list_models

import scratchnn
from scratchnn.convert import Conversion

OURS = scratchnn.nn.implemented()
THEIRS = tuple(getattr(torch.nn, name) for name in OURS if hasattr(torch.nn, name))

EVERY = list_models()
# One of each file of torchvision.models: the first in the alphabet, most of which are small.
FAMILIES = {get_model_builder(name).__module__.removeprefix("torchvision.models."): name for name in reversed(EVERY)}


@contextmanager
def regnets_on_meta() -> Iterator[None]:
    """RegNet computes the widths of its layers with tensors, which are to be real ones."""
    params = torchvision.models.regnet.BlockParams
    original = inspect.getattr_static(params, "from_init_params")

    def from_init_params(cls: type, *args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return original.__func__(cls, *args, **kwargs)

    params.from_init_params = classmethod(from_init_params)
    try:
        yield
    finally:
        params.from_init_params = original


@pytest.fixture
def build() -> Iterator[Callable[[str], Module]]:
    """Makes a model without numbers, which takes no time."""

    def build(name: str) -> Module:
        options: dict[str, Any] = {"weights": None}
        parameters = inspect.signature(get_model_builder(name)).parameters
        if "weights_backbone" in parameters:
            options["weights_backbone"] = None
        if "init_weights" in parameters:
            options["init_weights"] = False
        with torch.device("meta"):
            return get_model(name, **options).eval()

    with regnets_on_meta():
        yield build


def check_conversion(model: Module) -> tuple[Conversion, dict[str, type]]:
    """Every layer of our families is ours afterwards. Returns what was done, and the classes there were before."""
    types = {name: type(module) for name, module in model.named_modules()}
    conversion = scratchnn.convert(model)
    assert not conversion.missed, conversion
    for name, module in model.named_modules():
        if isinstance(module, THEIRS):
            assert isinstance(module, tuple(OURS.values())), f"{name}: {type(module)}"
            assert name in conversion.converted
    for left in conversion.left.values():
        assert left.type not in OURS
        assert left.reason in ("scratchnn has no such layer", "quantised")
    return conversion, types


@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_is_left(family: str, build: Callable[[str], Module]) -> None:
    model = build(FAMILIES[family])
    conversion, types = check_conversion(model)
    assert len(conversion.converted) > 10
    assert scratchnn.restore(model).restored == conversion.converted
    assert types == {name: type(module) for name, module in model.named_modules()}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_no_layer_is_left_in_any_model(name: str, build: Callable[[str], Module]) -> None:
    check_conversion(build(name))


# torch's operators of our families.
OPERATORS = {
    *("convolution", "native_batch_norm", "native_layer_norm", "native_group_norm", "addmm"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_softmax", "_log_softmax", "sigmoid", "silu", "gelu"),
    *("relu", "relu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "silu_"),
}

# What the code of a model calls as functions, which no conversion of layers reaches.
CALLED = {
    "densenet": {"relu_"},
    "googlenet": {"relu_"},
    "inception": {"relu_", "avg_pool2d", "max_pool2d_with_indices"},
    "maxvit": {"_softmax"},
    "optical_flow.raft": {"relu", "sigmoid", "_softmax", "avg_pool2d"},
    "swin_transformer": {"_softmax", "addmm"},
    "video.mvit": {"_softmax"},
    "video.swin_transformer": {"_softmax", "addmm"},
    "vision_transformer": {"addmm"},
}


def torchs_operators(call: Callable[[], Any]) -> set[str]:
    with Recording() as recording:
        call()
    assert any(name.startswith("scratchnn::") for name in recording.names)
    return {name.removeprefix("aten::") for name in recording.names} & OPERATORS


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name.split(".")[0] not in ("detection", "quantization")]
)
def test_no_operator_is_left(family: str, build: Callable[[str], Module]) -> None:
    """Neither in layers nor in functions that a model's code calls: run on shapes alone."""
    model = build(FAMILIES[family])
    shape = (1, 3, 16, 224, 224) if family.startswith("video") else (1, 3, 224, 224)
    images = [torch.empty(shape, device="meta")] * (2 if family.startswith("optical_flow") else 1)
    with scratchnn.override():
        assert torchs_operators(lambda: model(*images)) == set()
    scratchnn.convert(model)
    assert torchs_operators(lambda: model(*images)) == CALLED.get(family, set())
    with scratchnn.override():
        assert torchs_operators(lambda: model(*images)) == set()


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_no_operator_is_left_in_detection(name: str) -> None:
    """On an image: how many boxes there are depends on its numbers."""
    model = get_model(name, weights=None, weights_backbone=None).eval()
    images = [torch.rand(3, 64, 96)]
    with torch.no_grad():
        expected = model(images)[0]
        with scratchnn.override():
            assert torchs_operators(lambda: model(images)) == set()
            found = model(images)[0]
    assert found.keys() == expected.keys()
    assert len(found["boxes"]) == pytest.approx(len(expected["boxes"]), abs=2)


# Wrappers for training.


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )


LAYERS = {"0", "1", "2", "3", "5"}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def step(model: Module, expected: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The output and the gradients; close to what is expected."""
    model.zero_grad()
    output = model(X)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    results = [output, *(grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients)]
    if expected is not None:
        torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-4)
    return results


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel() -> None:
    expected = step(network())
    for converted_first in (True, False):
        model = network()
        if converted_first:
            scratchnn.convert(model)
        wrapped = DistributedDataParallel(model)
        conversion = scratchnn.convert(wrapped)
        assert set(conversion.converted) == (set() if converted_first else {f"module.{name}" for name in LAYERS})
        assert isinstance(model[0], OURS["Conv2d"])
        step(wrapped, expected)
        assert set(scratchnn.restore(wrapped).restored) == {f"module.{name}" for name in LAYERS}
        assert type(model[0]) is torch.nn.Conv2d
        step(wrapped, expected)


@pytest.mark.usefixtures("alone")
def test_fully_sharded() -> None:
    expected = step(network())
    mesh = dist.init_device_mesh("cpu", (1,))

    def shard(model: torch.nn.Sequential) -> torch.nn.Sequential:
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    sharded, converted = shard(network()), shard(scratchnn.convert(network()).model)
    types = [type(module) for module in sharded.modules()]
    assert set(scratchnn.convert(sharded).converted) == LAYERS
    assert all(isinstance(module, FSDPModule) for module in (sharded, sharded[0]))
    for model in (sharded, converted):
        assert isinstance(model[0], OURS["Conv2d"])
        with Recording() as recording:
            step(model, expected)
        assert {"scratchnn::conv", "scratchnn::linear"} <= set(recording.names)
        assert set(scratchnn.restore(model).restored) == LAYERS
        assert [type(module) for module in model.modules()] == types
        step(model, expected)


@pytest.mark.usefixtures("alone")
def test_tensor_parallel_layers_are_left() -> None:
    """Their inputs are spread as well, and only torch's operators know how to compute with such tensors."""
    mesh = dist.init_device_mesh("cpu", (1,))
    model = parallelize_module(torch.nn.Linear(4, 4), mesh, ColwiseParallel())
    assert scratchnn.convert(model).left[""].reason == "its parameters are of type DTensor"

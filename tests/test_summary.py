"""``scratchnn.summary``: counts held against torch's own, receptive fields against what an input pixel reaches."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

import scratchnn
from scratchnn.__main__ import main
from scratchnn.summary import Extent, Layer, Summary
from scratchnn.summary.reach import Reach

MODELS = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not torchvision.models.get_model_builder(name).__module__.startswith("torchvision.models.quantization")
]
QUICK = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "vit_b_32", "swin_t"]


# Parameters and multiply-adds.


def on_meta(name: str, size: int = 224) -> tuple[Module, tuple[int, ...]]:
    """A classifier without numbers, and the shape of two images for it."""
    builder = torchvision.models.get_model_builder(name)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options["image_size"] = size
    parameters = torchvision.models.regnet.BlockParams.from_init_params

    def with_numbers(*args: Any, **kwargs: Any) -> Any:  # the widths of a RegNet are computed by tensors
        with torch.device("cpu"):
            return parameters(*args, **kwargs)

    patch = mock.patch.object(torchvision.models.regnet.BlockParams, "from_init_params", with_numbers)
    with torch.device("meta"), patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = builder(**options)
    return model, (2, 3, *[299 if name == "inception_v3" else size] * 2)


def counted(model: Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """torch's count of operations, forward and backward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        output = model(torch.empty(shape))
        forward = counter.get_total_flops()
        outputs = output if isinstance(output, tuple) else (output,)
        sum(tensor.sum() for tensor in outputs).backward()
    return forward, counter.get_total_flops() - forward


def check_counts(name: str) -> None:
    model, shape = on_meta(name)
    found = scratchnn.summary(model, shape)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (2 * found.forward, 2 * found.backward) == counted(model, shape)
    assert found.forward > 0
    assert found.saved > 0
    for layer in found.model.walk():  # each layer's numbers are its own and those of its parts
        assert layer.forward == layer.own_forward + sum(part.forward for part in layer.parts)
    scratchnn.convert(model)
    ours = scratchnn.summary(model, shape)
    assert (ours.parameters, ours.forward, ours.backward) == (found.parameters, found.forward, found.backward)
    fields = [(layer.name, layer.shapes, layer.receptive_field) for layer in found.model.walk()]
    assert [(layer.name, layer.shapes, layer.receptive_field) for layer in ours.model.walk()] == fields
    assert [layer.algorithm for layer in ours.model.walk()] == [layer.algorithm for layer in found.model.walk()]
    assert ours.saved <= 1.01 * found.saved  # batch norm keeps its few statistics in double


@pytest.mark.parametrize("name", QUICK)
def test_a_model_counts_as_torch_counts(name: str) -> None:
    check_counts(name)


def check_published(name: str) -> None:
    """What torchvision tells of its weights: billions of multiply-adds for one image."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    (size,) = weights.transforms().crop_size
    model, _ = on_meta(name, size)
    assert round(scratchnn.summary(model.eval(), (1, 3, size, size)).forward / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("name", QUICK)
def test_multiply_adds_are_those_published(name: str) -> None:
    check_published(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in QUICK])
def test_every_classifiers_multiply_adds_are_those_published(name: str) -> None:
    if len(torchvision.models.get_model_weights(name)) == 0:
        pytest.skip("no weights are published")
    check_published(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in QUICK])
def test_every_classifier_counts_as_torch_counts(name: str) -> None:
    check_counts(name)


def test_counts_of_a_layer_are_those_of_its_formula() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(400, 5))
    found = scratchnn.summary(model, (7, 3, 10, 10))
    first, second, linear = (7 * 100 * 8 * 27, 7 * 100 * 4 * 4, 7 * 400 * 5)
    assert [layer.forward for layer in found.model.parts] == [first, second, 0, linear]
    # The image needs no gradient; torch counts a grouped weight gradient as if it were not grouped.
    assert [layer.backward for layer in found.model.parts] == [first, second + 2 * second, 0, 2 * linear]
    assert [layer.parameters for layer in found.model.parts] == [8 * 28, 4 * 5, 0, 401 * 5]
    assert [layer.shapes for layer in found.model.parts] == [
        [(7, 8, 10, 10)],
        [(7, 4, 10, 10)],
        [(7, 400)],
        [(7, 5)],
    ]


class Branches(Module):
    """Branches that begin at the image, where no gradient goes back to tell them apart, and one shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.unused = nn.Linear(2, 3)
        self.head = nn.Linear(4, 2)
        self.head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.a(x)) + self.shared(self.b(x)) * self.scale
        y = torch.einsum("nchw,kc->nkhw", y, y.mean((0, 2, 3)).expand(4, 4))
        return self.head(y.mean((2, 3)))


def test_branches_shared_layers_and_parameters_of_blocks() -> None:
    model = Branches()
    found = scratchnn.summary(model, (2, 3, 6, 6))
    names = [(layer.name, layer.call) for layer in found.model.parts]
    assert names == [("a", 0), ("shared", 0), ("b", 0), ("shared", 1), ("head", 0), ("unused", 0)]
    a, shared, b, again, head, unused = found.model.parts
    per_pixel = 2 * 36
    assert (a.forward, a.backward) == (per_pixel * 12, per_pixel * 12)
    assert (b.forward, b.backward) == (per_pixel * 108, per_pixel * 108)
    assert (shared.forward, shared.backward) == (again.forward, again.backward) == (per_pixel * 144, per_pixel * 288)
    assert (shared.parameters, again.parameters) == (4 * 4 * 9 + 4, 0)
    assert (head.parameters, head.trainable, head.backward) == (10, 2, 2 * 4 * 2)
    assert (unused.shapes, unused.parameters) == (None, 9)
    assert found.model.own_parameters == 4
    assert found.model.own_forward == per_pixel * 16  # the product between the layers
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.trainable == found.parameters - 8
    assert "not called" in str(found)
    assert "8 of them fixed" in str(found)
    with pytest.raises(KeyError, match="calls no layer 'unused'"):
        found["unused"]


def test_tied_and_parametrized_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    nn.utils.parametrizations.weight_norm(model[0], "bias", dim=None)
    found = scratchnn.summary(model, (2, 4))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [part.name for part in found.model.parts] == ["0", "1"]
    assert found["0"].parameters == 16 + 4 + 1


# Memory.


def saved_bytes(model: Module, x: Tensor) -> int:
    """What autograd keeps when numbers are computed, each storage once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        output = model(x)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept.values()}
    for tensor in (*model.parameters(), *model.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("namespace", [torch.nn, scratchnn.nn], ids=["torch", "ours"])
def test_saved_bytes_are_those_of_a_real_step(namespace) -> None:
    model = namespace.Sequential(
        namespace.Conv2d(3, 8, 3, padding=1),
        namespace.BatchNorm2d(8),
        namespace.ReLU(inplace=True),
        namespace.MaxPool2d(2),
        namespace.Conv2d(8, 8, 3),
        namespace.GELU(),
        namespace.AdaptiveAvgPool2d(1),
        namespace.Flatten(),
        namespace.Linear(8, 4),
        namespace.Softmax(-1),
    )
    found = scratchnn.summary(model, (4, 3, 16, 16))
    assert found.saved == saved_bytes(model, torch.randn(4, 3, 16, 16))
    assert found["0"].saved == 4 * 3 * 16 * 16 * 4  # its input
    assert found["4"].own_saved == (4 * 8 * 8 * 8 * 4 if namespace is scratchnn.nn else found["4"].own_saved)


def test_numbers_give_the_same_as_shapes() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    scratchnn.convert(model)
    shapes, numbers = (scratchnn.summary(model, (2, 3, 64, 64), compute=compute) for compute in (False, True))
    assert numbers.dict() == shapes.dict()


# Receptive fields.


def reached(model: Module, shape: tuple[int, ...], dim: int) -> list[tuple[int, int] | None]:
    """For each position of the output along ``dim``, the first and last position of the input with a gradient.

    Weights are positive and so is the input, so nothing cancels and no ReLU stops anything.
    """
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.01)
    x = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    y = model.double()(x)
    found = []
    for position in range(y.shape[dim]):
        (gradient,) = torch.autograd.grad(y.select(dim, position).sum(), x, retain_graph=True)
        seen = gradient.movedim(dim, 0).flatten(1).abs().sum(1).nonzero().flatten().tolist()
        found.append((seen[0], seen[-1]) if seen else None)
    return found


def check_field(model: Module, shape: tuple[int, ...], *, alike: bool = True) -> list[Extent]:
    """The field of a model's output against the gradient, wherever it is clear of the border.

    Where outputs are not ``alike``, because some lie in padding or the layer enlarges the image, they see as much as
    the field says or less, and one of them all of it.
    """
    extents = scratchnn.summary(model, shape).model.receptive_field[0]
    assert len(extents) == len(shape) - 2
    for dim, extent in enumerate(extents, start=2):
        seen = reached(copy.deepcopy(model), shape, dim)
        if extent.whole:
            assert set(seen) == {(0, shape[dim] - 1)}
            continue
        sizes = []
        for position, pixels in enumerate(seen):
            low = extent.offset + position * extent.stride
            high = low + extent.size - 1
            if pixels is not None and low >= 0 and high <= shape[dim] - 1:
                assert not alike or pixels == (low, high), f"position {position} of {extent}"
                sizes.append(pixels[1] - pixels[0] + 1)
        assert max(sizes) == extent.size
    return list(extents)


class Residual(Module):
    def __init__(self, body: Module, skip: Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = body, skip or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.skip(x)
        return y


class Concatenated(Module):
    def __init__(self, *branches: Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Shuffled(Module):
    """Channels shuffled, rows and columns exchanged twice, channels last and back, halves of the channels."""

    def __init__(self, namespace) -> None:
        super().__init__()
        self.linear = namespace.Linear(4, 4)
        self.norm = namespace.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2).mT.mT
        x = torch.relu(self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        a, b = x.chunk(2, dim=1)
        return torch.cat([a * 2, torch.stack([b, b]).sum(0)], 1)


class Cropped(Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, 3:-1:2, 1:], (2, 1, 1, 0))


def stem(namespace) -> Module:
    conv = namespace.Conv2d(2, 4, 5, stride=2, padding=2)
    return namespace.Sequential(conv, namespace.BatchNorm2d(4), namespace.ReLU(inplace=True))


NETS: dict[str, Callable] = {
    "plain": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, (3, 5), padding=(1, 2))),
    "strided": lambda nn: nn.Sequential(stem(nn), nn.Conv2d(4, 4, 3, stride=2), nn.AvgPool2d(2)),
    "dilated": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3, dilation=3), nn.Conv2d(4, 4, 2, dilation=(1, 2))),
    "depthwise": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)),
    "residual": lambda nn: nn.Sequential(
        stem(nn),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))),
        Residual(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=2)),
    ),
    "concatenated": lambda nn: nn.Sequential(
        Concatenated(
            nn.Conv2d(2, 2, 1),
            nn.Conv2d(2, 2, 5, padding=2),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 2, (1, 7), padding=(0, 3))),
        ),
        nn.Conv2d(6, 2, 2, stride=2),
    ),
    "uneven branches": lambda nn: Concatenated(
        nn.Conv2d(2, 2, 2, padding=(1, 0)), nn.Conv2d(2, 2, (4, 2), padding=(2, 0))
    ),
    "shuffled": lambda nn: nn.Sequential(stem(nn), Shuffled(nn), nn.Conv2d(4, 2, 3)),
    "mirrored border": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(3)),
    "per pixel": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softmax(1), nn.PReLU(4), nn.LocalResponseNorm(2)),
}


@pytest.mark.parametrize("namespace", [torch.nn, scratchnn.nn], ids=["torch", "ours"])
@pytest.mark.parametrize("net", NETS)
def test_fields_are_what_gradients_reach(net: str, namespace) -> None:
    check_field(NETS[net](namespace).eval(), (1, 2, 33, 40))


@pytest.mark.parametrize("namespace", [torch.nn, scratchnn.nn], ids=["torch", "ours"])
def test_fields_in_one_and_three_dimensions(namespace) -> None:
    nn = namespace
    lines = nn.Sequential(nn.Conv1d(2, 2, 5, stride=2), nn.AvgPool1d(3), nn.Conv1d(2, 2, 3, padding=1))
    assert check_field(lines, (1, 2, 90)) == [Extent(21, Fraction(6), -6, False)]
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.AvgPool3d(2), nn.Conv3d(2, 1, (1, 3, 1)))
    assert [extent.size for extent in check_field(volumes, (1, 1, 10, 14, 10))] == [4, 8, 4]


UNEVEN: dict[str, Callable] = {
    "cropped": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), Cropped(), nn.Conv2d(4, 2, 3)),
    "transposed": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)),
    "sparse kernels": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 2, stride=2)),
    "dilated": lambda nn: nn.ConvTranspose2d(2, 2, 3, stride=2, dilation=2, output_padding=1),
    "nearest": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Upsample(scale_factor=3), nn.Conv2d(4, 2, 3)),
    "bilinear": lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.UpsamplingBilinear2d(scale_factor=2)),
    "half pixels": lambda nn: nn.Upsample(scale_factor=2, mode="bilinear"),
    "down and up": lambda nn: Residual(
        nn.Sequential(
            nn.Conv2d(2, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2)
        )
    ),
    "pixels of channels": lambda nn: nn.Sequential(nn.Conv2d(2, 8, 3), nn.PixelShuffle(2), nn.PixelUnshuffle(4)),
    "adaptive": lambda nn: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.AdaptiveAvgPool2d((7, 8))),
}


@pytest.mark.parametrize("namespace", [torch.nn, scratchnn.nn], ids=["torch", "ours"])
@pytest.mark.parametrize("net", UNEVEN)
def test_fields_where_neighbours_differ(net: str, namespace) -> None:
    check_field(UNEVEN[net](namespace), (1, 2, 24, 20), alike=False)


def test_max_pooling_lets_everything_through() -> None:
    """A gradient goes to the maximum alone, but NaN goes to all who see it."""
    for namespace in (torch.nn, scratchnn.nn):
        model = namespace.Sequential(namespace.MaxPool2d(3, 2, 1), namespace.MaxPool2d(2, 1, dilation=3))
        (extent, _) = scratchnn.summary(model, (1, 1, 30, 30)).model.receptive_field[0]
        assert extent == Extent(9, Fraction(2), -1, False)
        for row in range(30):
            x = torch.zeros(1, 1, 30, 30)
            x[:, :, row] = math.nan
            for position in model(x)[0, 0, :, 0].isnan().nonzero().flatten().tolist():
                assert extent.offset + 2 * position <= row <= extent.offset + 2 * position + extent.size - 1


GLOBAL: dict[str, Callable] = {
    "pooled": lambda nn: nn.AdaptiveAvgPool2d(1),
    "grouped": lambda nn: nn.GroupNorm(2, 4),
    "instances": lambda nn: nn.InstanceNorm2d(4),
    "layers": lambda nn: nn.LayerNorm([4, 12, 12]),
    "classified": lambda nn: nn.Sequential(nn.Flatten(), nn.Linear(576, 3)),
    "without statistics": lambda nn: nn.BatchNorm2d(4, track_running_stats=False),
    "squeezed": lambda nn: torchvision.ops.SqueezeExcitation(4, 2),
    "attention": lambda nn: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(144, 2, 8, 0.0)),
}


@pytest.mark.parametrize("namespace", [torch.nn, scratchnn.nn], ids=["torch", "ours"])
@pytest.mark.parametrize("net", GLOBAL)
def test_what_sees_all(net: str, namespace) -> None:
    model = namespace.Sequential(namespace.Conv2d(3, 4, 3), GLOBAL[net](namespace))
    found = scratchnn.summary(model, (2, 3, 14, 14))
    assert [extent.whole for extent in found.model.receptive_field[0]] == [True, True]
    assert [(extent.offset, extent.size) for extent in found.model.receptive_field[0]] == [(0, 14), (0, 14)]
    assert [extent.whole for extent in found["0"].receptive_field[0]] == [False, False]


def test_fields_known_from_the_literature() -> None:
    """Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, 2019."""
    known = {
        "alexnet": ("features", 195, 32),
        "vgg16": ("features", 212, 32),
        "resnet50": ("layer4", 483, 32),
        "resnet101": ("layer4", 1027, 32),
    }
    for name, (layer, size, stride) in known.items():
        model, shape = on_meta(name)
        for block in model.modules():
            # torchvision strides in the 3x3 convolution of a block; as published, in the 1x1 before it.
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        found = scratchnn.summary(model, shape)
        (extents,) = found[layer].receptive_field.values()
        assert {(extent.size, extent.stride) for extent in extents} == {(size, stride)}, name
        assert all(extent.whole for extent in found.model.receptive_field[0])
    model, shape = on_meta("resnet50")
    assert scratchnn.summary(model, shape)["layer4"].receptive_field[0][0].size == 427  # by hand


def test_fields_of_each_input() -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 5, padding=2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    found = scratchnn.summary(Two(), [(1, 1, 8, 8), (1, 1, 8, 8)])
    sizes = {number: extents[0].size for number, extents in found.model.receptive_field.items()}
    assert sizes == {0: 3, 1: 5}
    assert list(found["b"].receptive_field) == [1]
    assert found.inputs == [(1, 1, 8, 8)] * 2


def test_an_unknown_operator_counts_as_seeing_all() -> None:
    class Unfolded(Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.fold(nn.functional.unfold(x, 1), x.shape[2:], 1)

    class Written(Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y[:, :, 2:] = nn.functional.avg_pool2d(x, 3, 1, 1)[:, :, :-2]
            return y

    for model in (Unfolded(), Written()):
        extents = scratchnn.summary(model, (1, 2, 9, 9)).model.receptive_field[0]
        assert all(extent.whole for extent in extents)


def test_reaches_compose() -> None:
    reach = Reach()
    assert (reach.size, reach.stride, reach.low(5), reach.high(5)) == (1, 1, 5, 5)
    twice = reach.through(lambda o: o // 2, lambda o: o // 2, period=2)
    assert (twice.stride, [twice.low(p) for p in range(4)]) == (Fraction(1, 2), [0, 0, 1, 1])
    assert twice.through(lambda o: 2 * o, lambda o: 2 * o + 1, step=2) == reach
    assert reach.joined(twice) is None
    assert twice.over(6) == Reach(0, (0,), (2,))


# The model stays as it is.


class Remembering(Module):
    """Keeps what it computes, draws random numbers and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()
        self.last = None
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.drop(self.norm(self.conv(x)))
        self.average = 0.9 * self.average + 0.1 * self.last.mean().detach()
        return self.last


@pytest.mark.parametrize("compute", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_the_model_stays_as_it_is(compute: bool, converted: bool) -> None:
    model = Remembering()
    if converted:
        scratchnn.convert(model)
    model.norm.eval()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.conv.register_forward_hook(lambda *_: None)
    state = copy.deepcopy(model.state_dict())
    tensors = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    found = scratchnn.summary(model, (2, 3, 6, 6), compute=compute)
    assert found.training
    assert model.last is None
    assert [module.training for module in model.modules()] == modes
    assert {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())} == tensors
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert model.norm.weight.grad is None
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_model_stays_as_it_is_when_it_raises() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(4, 4, 3))
    with pytest.raises(RuntimeError, match="channel"):
        scratchnn.summary(model, (2, 3, 6, 6))
    assert model[0].num_batches_tracked == 0
    assert not model[0]._forward_hooks
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_gradients_may_be_off() -> None:
    model = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        assert scratchnn.summary(model, (1, 3, 8, 8)).backward > 0
    with torch.inference_mode():
        assert scratchnn.summary(model, (1, 3, 8, 8)).backward > 0
    assert scratchnn.summary(model.requires_grad_(False), (1, 3, 8, 8)).backward == 0
    assert scratchnn.summary(model, (1, 3, 8, 8)).saved == 0


def test_checkpointed_layers() -> None:
    class Checkpointed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(lambda x: self.b(self.a(x).relu()), x, use_reentrant=False)

    found = scratchnn.summary(Checkpointed(), (1, 3, 8, 8))
    assert [part.name for part in found.model.parts] == ["a", "b"]
    product = 64 * 81
    assert (found.forward, found.backward) == (2 * product, 4 * product)  # one of them to compute b's input again


# What it is called with.


def test_other_inputs() -> None:
    class Named(Module):
        def forward(self, x: Tensor, *, indices: Tensor) -> dict[str, Tensor]:
            return {"out": x[indices]}

    found = scratchnn.summary(Named(), inputs={"x": torch.ones(5, 2), "indices": torch.tensor([0, 1, 1])})
    assert found.model.shapes == [(3, 2)]
    embedding = scratchnn.summary(nn.Embedding(10, 4), inputs=torch.tensor([[1, 2, 3]]))
    assert (embedding.model.shapes, embedding.parameters) == ([(1, 3, 4)], 40)


def test_layers_that_take_indices_are_explained() -> None:
    class Unpooled(Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.unpool(*self.pool(x), output_size=x.shape)

    found = scratchnn.summary(Unpooled(), (1, 2, 8, 8))
    assert [part.shapes for part in found.model.parts] == [[(1, 2, 4, 4)] * 2, [(1, 2, 8, 8)]]
    assert found["unpool"].algorithm == "scattering"


def test_models_that_look_at_numbers() -> None:
    class Chooses(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x[:, 0] > 0]

    with pytest.raises(RuntimeError, match=r"Chooses looks at the numbers it computes with.*compute=True"):
        scratchnn.summary(Chooses(), (4, 2))
    assert scratchnn.summary(Chooses(), inputs=torch.tensor([[1.0], [-1.0], [2.0]]), compute=True).model.shapes == [
        (2, 1)
    ]


def test_errors() -> None:
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(TypeError, match=r"argument 'model' must be a torch\.nn\.Module, not str"):
        scratchnn.summary("resnet", (1, 3, 8, 8))
    with pytest.raises(TypeError, match="compiled by TorchScript"):
        scratchnn.summary(nn.Sequential(torch.jit.script(model)), (1, 3, 8, 8))
    for options in ({}, {"input_size": (1, 3, 8, 8), "inputs": torch.ones(1, 3, 8, 8)}):
        with pytest.raises(ValueError, match="give either 'input_size' or 'inputs'"):
            scratchnn.summary(model, **options)
    with pytest.raises(TypeError, match="must be whole numbers"):
        scratchnn.summary(model, (1, 3, 8.0, 8))
    with pytest.raises(ValueError, match="must not be negative"):
        scratchnn.summary(model, (1, 3, -8, 8))
    with pytest.raises(ValueError, match=r"the lazy layer of '0\.weight' has no shape yet"):
        scratchnn.summary(nn.Sequential(nn.LazyConv2d(3, 3)), (1, 3, 8, 8))


# What comes out.


def small() -> Summary:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.Dropout())
    return scratchnn.summary(model, (2, 3, 16, 16))


def test_text() -> None:
    lines = str(small()).splitlines()
    assert lines[0] == "Sequential for 2x3x16x16, float32, in training"
    table = lines[2:-4]
    cells = [re.split("  +", line.strip()) for line in table]
    assert " ".join(cells[0]) == "layer class output parameters mult-adds backward saved field stride offset algorithm"
    assert " | ".join(cells[2]) == (
        "0 | Conv2d | 2x32x16x16 | 896 | 442.37 k | 442.37 k | 6.14 kB | 3 | 1 | -1 | implicit GEMM"
    )
    assert cells[4][-4:] == ["5", "2", "-1", "implicit GEMM"]
    assert lines[-3:] == [
        "parameters: 10,144",
        "multiply-adds: 1,345,536 forward, 2,248,704 backward",
        "saved for backward: 84.22 kB, parameters aside",  # the image, the ReLU's output, the mask
    ]


def test_markdown() -> None:
    page = small().markdown()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[0].startswith("| layer | class | output |")
    assert rows[2].startswith("| (model) | Sequential | 2x32x7x7 | 10,144 |")
    assert rows[3].startswith("| &emsp;0 | Conv2d |")


def test_dict() -> None:
    found = small()
    stored = json.loads(json.dumps(found.dict()))
    assert stored["parameters"] == found.parameters == 10144
    assert stored["model"]["parts"][2]["receptive_field"]["0"][0] == {
        "size": 5,
        "stride": 2.0,
        "offset": -1,
        "whole": False,
    }
    assert stored["model"]["parts"][0]["algorithm"] == "implicit GEMM"
    assert stored["model"]["parts"][3]["algorithm"] == "torch"
    assert isinstance(found.model, Layer)


# The command.


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "torchvision:squeezenet1_1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SqueezeNet for 1x3x224x224, float32, in evaluation\n")
    assert "parameters: 1,235,496" in said
    assert main(["summary", "torchvision:squeezenet1_1", "--input-size", "64", "--batch", "3", "--train"]) == 0
    assert capsys.readouterr().out.startswith("SqueezeNet for 3x3x64x64, float32, in training\n")
    assert main(["summary", "torchvision:squeezenet1_1", "--format", "json", "--convert", "--dtype", "bfloat16"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert (stored["parameters"], stored["dtype"]) == (1235496, "bfloat16")
    assert main(["summary", "torchvision:squeezenet1_1", "--format", "markdown"]) == 0
    assert "| (model) | SqueezeNet | 1x1000 | 1,235,496 |" in capsys.readouterr().out


def test_command_on_a_factory(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "def factory():\n    return torch.nn.Conv2d(3, 4, 3)\n"
        "def chooses():\n    return torch.nn.Conv1d(1, 1, 1), lambda seed: torch.ones(1, 1, 5)\n"
        "class Chooses(torch.nn.Module):\n    def forward(self, x):\n        return x[x > 0]\n"
        "def numbers():\n    return Chooses(), torch.ones(2)\n"
    )
    assert main(["summary", f"{path}:factory", "--input-size", "3,9,9", "--batch", "2"]) == 0
    assert capsys.readouterr().out.startswith("Conv2d for 2x3x9x9, float32, in evaluation\n")
    assert main(["summary", f"{path}:chooses"]) == 0
    assert "1x1x5" in capsys.readouterr().out
    assert main(["summary", f"{path}:numbers"]) == 2
    assert "give --compute to run it with numbers" in capsys.readouterr().err
    assert main(["summary", f"{path}:numbers", "--compute"]) == 0
    assert main(["summary", f"{path}:factory", "--input-size", "4,9,9"]) == 2
    assert "cannot be summarized: RuntimeError" in capsys.readouterr().err
    assert main(["summary", "torchvision:resnet18", "--batch", "0"]) == 2
    assert main(["summary", "resnet18"]) == 2
    assert "names no model" in capsys.readouterr().err

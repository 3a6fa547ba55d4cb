"""Fused blocks: the numbers of the layers one by one, in less memory, whatever is done to the model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from common import relative_error
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.nn import Module
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import scratchnn
from scratchnn.fuse import Fusion
from scratchnn.models import resnet20
from scratchnn.ops import fused as operation

FEWEST_PRODUCTS = operation._FEWEST_PRODUCTS


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _small_convolutions_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few channels of these tests would be too few for it."""
    monkeypatch.setattr(operation, "_FEWEST_PRODUCTS", 0)


# Blocks as people write them.


class Basic(Module):
    """As torchvision's: adds and activates in place."""

    def __init__(self, channels: int, out: int, stride: int = 1, activation: Callable[[], Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.act = activation()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.act(out)


class Functions(Module):
    """Calls functions, adds the other way round, and has its layers in a list."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.drop(self.norms[0](self.convs[0](x))), inplace=True)
        y = torch.add(x, self.norms[1](self.convs[1](y)))
        return x + self.norms[2](self.convs[2](y)).relu_()


def chain() -> Module:
    """Layers of every setting in a row."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, padding="valid", dilation=2),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.Conv2d(8, 6, 1),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.SiLU(),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
        nn.Hardswish(inplace=True),
    )


def residual() -> Module:
    """Sums of sums, more than are computed again in a row, and activations that need their inputs."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        *(Basic(4, 4) for _ in range(5)),
        Basic(4, 6, 2, nn.SiLU),
        Basic(6, 6, 1, nn.SiLU),
        Basic(6, 6, 1, nn.Hardtanh),
        Basic(6, 6, 1, lambda: nn.LeakyReLU(0.1, inplace=True)),
        Functions(6),
    )


MODELS: dict[str, Callable[[], Module]] = {"chain": chain, "residual": residual}
IMAGES = (4, 3, 9, 9)

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def settled(model: Module) -> Module:
    """No parameter and no statistic is what it was initialized to."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def pair(build: Callable[[], Module], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Module, Module]:
    """A model of scratchnn's layers, and a fused copy of it."""
    torch.manual_seed(1)
    model = settled(build()).to(dtype)
    scratchnn.convert(model)
    fused = copy.deepcopy(model)
    assert scratchnn.fuse(fused, **options).fused
    return model, fused


def step(model: Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of the input and of all parameters, and all buffers afterwards."""
    return step_of(model, model, x)


def step_of(call: Callable[[Tensor], Tensor], model: Module, x: Tensor) -> list[Tensor]:
    """The same where the model is called in some other way."""
    leaves = [x.detach().requires_grad_(), *model.parameters()]
    for leaf in leaves:
        leaf.grad = None
    y = call(leaves[0])
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    return [y.detach(), *(leaf.grad for leaf in leaves), *(buffer.clone() for buffer in model.buffers())]


def same(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    """Alike up to ``bound``; some gradients are zero but for rounding, and are held to the size of the others."""
    # A block keeps statistics in double, a layer in float32: what is left of such a zero differs on each side.
    least = 5e-2 * max(other.double().norm().item() for other in expected)
    for position, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert mine.stride() == other.stride(), position
        error = (mine.double() - other.double()).norm().item()
        assert error <= bound * max(other.double().norm().item(), least), position


# Numbers.


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_training(name: str, dtype: torch.dtype, memory_format: str, recompute: bool) -> None:
    """Three steps, all that they give and leave behind."""
    model, fused = pair(MODELS[name], dtype, recompute=recompute)
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    for _ in range(3):
        x = torch.randn(IMAGES, dtype=dtype).to(memory_format=FORMATS[memory_format])
        same(step(fused, x), step(model, x), bound)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_as_accurate_as_torch(name: str, memory_format: str) -> None:
    """In training and evaluation: float32 errs against torch.nn in float64 as torch.nn in float32 does."""
    torch.manual_seed(1)
    theirs = settled(MODELS[name]())
    truth, ours = copy.deepcopy(theirs).double(), copy.deepcopy(theirs)
    scratchnn.convert(ours)
    scratchnn.fuse(ours)
    x = torch.randn(IMAGES).to(memory_format=FORMATS[memory_format])
    for training in (True, False):
        mine, other, true = (
            step(model.train(training), x.to(next(model.parameters()).dtype)) for model in (ours, theirs, truth)
        )
        scale = max(tensor.double().norm().item() for tensor in true)  # some gradients are zero but for rounding
        for a, b, c in zip(mine, other, true, strict=True):
            allowed = 3 * (b.double() - c).norm().item() + 1e-6 * max(c.double().norm().item(), 1e-3 * scale)
            assert (a.double() - c).norm().item() <= allowed


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_evaluation(name: str, memory_format: str) -> None:
    """Outputs, with and without gradients, and the gradients."""
    model, fused = (module.eval() for module in pair(MODELS[name]))
    x = torch.randn(IMAGES, dtype=torch.float64).to(memory_format=FORMATS[memory_format])
    same(step(fused, x), step(model, x), 1e-11)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(fused(x), expected) < 1e-13
    with torch.inference_mode():
        assert relative_error(fused(x.clone()), expected) < 1e-13


@pytest.mark.parametrize("winograd", [True, False])
def test_error_of_folding_is_within_its_bound(winograd: bool) -> None:
    """That of the convolution, and half a unit in the last place of each weight and bias."""
    conv, norm = nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32).eval()
    model = settled(nn.Sequential(conv, norm)).eval()
    x = torch.randn(2, 64, 12, 12)
    truth = copy.deepcopy(model).double()
    scratchnn.fuse(model)
    before = scratchnn.backends.conv.allow_winograd
    scratchnn.backends.conv.allow_winograd = winograd
    try:
        with torch.no_grad():
            found, plain_convolution = model(x), scratchnn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    finally:
        scratchnn.backends.conv.allow_winograd = before
    with torch.no_grad():
        scale = truth[1].weight * (truth[1].running_var + norm.eps).rsqrt()
        weight = (truth[0].weight * scale.reshape(-1, 1, 1, 1)).abs()
        magnitude = F.conv2d(x.double().abs(), weight, padding=1)  # the sum of |w'| |x|
        of_convolution = relative_error(plain_convolution, truth[0](x.double()))
        exact = truth(x.double())
    assert ((found.double() - exact).abs().mean() / magnitude.mean()) <= torch.finfo(torch.float32).eps
    assert relative_error(found, exact) <= 2 * of_convolution + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool) -> None:
    """Errors beside float64 are those of the layers one by one."""
    model, fused = (module.train(training) for module in pair(residual, torch.float32))
    truth = copy.deepcopy(model).double()
    x = torch.randn(IMAGES)

    def results(module: Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=module is not truth):
            y = module(x.to(next(module.parameters()).dtype))
        return [y, *torch.autograd.grad(y.to(torch.float64).square().sum(), [module[0].weight, module[9].bn2.weight])]

    for found, other, exact in zip(*map(results, (fused, model, truth)), strict=True):
        assert found.dtype == other.dtype
        assert relative_error(found, exact) <= 1.5 * relative_error(other, exact) + 1e-2


def test_readable_kernels() -> None:
    model, fused = pair(residual)
    x = torch.randn(IMAGES, dtype=torch.float64)
    with scratchnn.kernels("naive"):
        found = step(fused, x)
        evaluated = fused.eval()(x)
    same(found, step(model, x), 1e-11)
    assert relative_error(evaluated, model.eval()(x)) < 1e-11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype) -> None:
    model, fused = pair(chain, dtype)
    x = torch.randn(IMAGES, dtype=dtype)
    same(step(fused, x), step(model, x), 1e-2)
    model.eval(), fused.eval()
    assert relative_error(fused(x), model(x)) < 3e-2


def test_signals_and_volumes() -> None:
    for d, shape in ((1, (3, 2, 9)), (3, (2, 2, 5, 5, 5))):
        conv, norm = getattr(nn, f"Conv{d}d"), getattr(nn, f"BatchNorm{d}d")
        model, fused = pair(lambda conv=conv, norm=norm: nn.Sequential(conv(2, 4, 3), norm(4), nn.ELU()))
        x = torch.randn(shape, dtype=torch.float64)
        same(step(fused, x), step(model, x), 1e-13)


ACTIVATIONS = [
    nn.ReLU(),
    nn.Hardtanh(-0.5, 0.7),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-0.2),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.SiLU(),
    nn.Mish(),
    nn.ELU(0.8),
    nn.CELU(0.8),
    nn.SELU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(2.0, 1.0),
]


class Added(Module):
    """``f(bn(conv(x)) + r)``, r made by somebody else."""

    def __init__(self, activation: Module) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + torch.sin(x))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: Module) -> None:
    """In a row, after a sum of which the residual is kept, and after one of which it is not."""

    def build() -> Module:
        return nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            copy.deepcopy(activation),
            Basic(3, 3, 1, lambda: copy.deepcopy(activation)),
            Added(copy.deepcopy(activation)),
        )

    model, fused = pair(build)
    assert all(type(activation).__name__ in label for label in scratchnn.fuse(copy.deepcopy(model)).fused.values())
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    same(step(fused, x), step(model, x), 1e-13)
    same(step(fused.eval(), x), step(model.eval(), x), 1e-12)


@pytest.mark.parametrize(
    ("name", "fewest"),
    [("resnet18", 0), ("mobilenet_v2", 0), ("mobilenet_v2", FEWEST_PRODUCTS), ("vgg11_bn", 0), ("resnet20", 0)],
)
def test_networks(name: str, fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks beside the same layers one by one: the same bits in training."""
    monkeypatch.setattr(operation, "_FEWEST_PRODUCTS", fewest)

    def build() -> Module:
        if name == "resnet20":
            return resnet20(nn=scratchnn.nn)
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
        return model.features if name == "vgg11_bn" else model

    model, fused = pair(build, torch.float32)
    for module in (*model.modules(), *fused.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    convolutions = [n for n, m in fused.named_modules() if isinstance(m, nn.Conv2d)]
    again = copy.deepcopy(model)
    assert set(scratchnn.fuse(again).fused) == set(convolutions)
    x = torch.randn(2, 3, 32, 32)
    same(step(fused, x), step(model, x), 1e-5)
    with torch.no_grad():
        assert relative_error(fused.eval()(x), model.eval()(x)) < 1e-4


# Memory.


def peak_of_a_step(model: Module, x: Tensor) -> int:
    """The most bytes that are in use at once in a training step, beyond those before it."""

    def once() -> None:
        F.cross_entropy(model(x), torch.arange(len(x))).backward()

    once()  # gradients are there from now on
    with torch.profiler.profile(profile_memory=True) as profile:
        once()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def cifar_resnet18() -> Module:
    model = torchvision.models.resnet18(weights=None, num_classes=8)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize("memory_format", FORMATS)
def test_peak_memory_of_a_training_step(memory_format: str) -> None:
    """A fused ResNet-18 needs at most 0.6 of what it needs with torch.nn."""
    theirs = cifar_resnet18().to(memory_format=FORMATS[memory_format])
    ours = scratchnn.convert(copy.deepcopy(theirs)).model
    scratchnn.fuse(ours)
    x = torch.randn(8, 3, 32, 32).to(memory_format=FORMATS[memory_format])
    assert peak_of_a_step(ours, x) <= 0.6 * peak_of_a_step(theirs, x)


@pytest.mark.parametrize(
    ("conv", "products"),
    [
        (nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), 9),
        (nn.Conv2d(32, 32, 3, padding=1, stride=2, groups=32, bias=False), 9 / 4),
        (nn.Conv2d(32, 32, 7, padding=3, groups=32, bias=False), 49),
        (nn.Conv2d(32, 24, 1, bias=False), 24),
        (nn.Conv2d(32, 48, 1, bias=False), 48),
        (nn.Conv2d(32, 48, 1, stride=2, bias=False), 12),
    ],
    ids=str,
)
def test_inputs_of_few_products_are_kept(conv: Module, products: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where each number of its input meets enough weights does a convolution compute it again."""
    monkeypatch.setattr(operation, "_FEWEST_PRODUCTS", FEWEST_PRODUCTS)

    def build() -> Module:
        first = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        return nn.Sequential(first, nn.Sequential(copy.deepcopy(conv), nn.BatchNorm2d(conv.out_channels)))

    model, fused = pair(build)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    same(step(fused, x), step(model, x), 1e-12)
    y = fused(x).sum()
    with torch.profiler.profile() as profile:
        y.backward()
    names = [event.name for event in profile.events()]
    assert names.count("scratchnn::batch_norm_add_clamp") == (products >= FEWEST_PRODUCTS)


def test_nothing_is_kept_by_an_output_that_is_kept() -> None:
    """After the backward pass the convolutions' outputs are gone, though the blocks' outputs are not."""
    _, fused = pair(residual, torch.float32)
    y = fused[:4](torch.randn(8, 3, 16, 16))
    y.sum().backward()
    with torch.profiler.profile(profile_memory=True) as profile:
        del y
    freed = -sum(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    assert freed <= 8 * 4 * 16 * 16 * 4  # y itself


# Derivatives of every kind.


def small(activation: Callable[[], Module] = nn.SiLU) -> Module:
    """A residual block after another, small enough for numerical derivatives."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=True), nn.BatchNorm2d(2), activation(), Basic(2, 2, 1, activation), Basic(2, 3, 2)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_gradients_of_gradients(activation: Callable[[], Module], training: bool) -> None:
    model, fused = (module.train(training) for module in pair(lambda: small(activation)))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found, expected = [], []
    for module, results in ((fused, found), (model, expected)):
        leaf = x.clone().requires_grad_()
        leaves = [leaf, *module.parameters()]
        first = torch.autograd.grad(module(leaf).square().sum(), leaves, create_graph=True)
        results += [tensor.detach() for tensor in first]
        norm = sum(gradient.square().sum() for gradient in first)
        results += torch.autograd.grad(norm, leaves, allow_unused=True, materialize_grads=True)
    same(found, expected, 1e-10)


def test_gradcheck() -> None:
    _, fused = pair(lambda: small(nn.SiLU))
    for buffer_owner in fused.modules():
        if isinstance(buffer_owner, nn.BatchNorm2d):
            buffer_owner.momentum = 0.0
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in fused[:4].named_parameters()}

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(fused[:4], dict(zip(parameters, values, strict=True)), (x,))

    inputs = (x, *parameters.values())
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, inputs, atol=1e-4)


def test_gradients_of_some_and_again() -> None:
    """Of the weights alone, of the input alone, of a value in between, and of the same graph twice."""
    model, fused = pair(residual)
    x = torch.randn(IMAGES, dtype=torch.float64)
    for module in (fused, model):
        for p in module[3].bn1.parameters():
            p.requires_grad_(False)
        module[4].conv1.weight.requires_grad_(False)
    found, expected = [], []
    for module, results in ((fused, found), (model, expected)):
        leaf = x.clone().requires_grad_()
        inner = module[:5](leaf)
        y = module[5:](inner)
        weights = [p for p in module.parameters() if p.requires_grad]
        for wanted in (weights, [leaf], [inner], weights):
            results += torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
    same(found, expected, 1e-12)


def test_transforms() -> None:
    """vmap over models and samples, forward mode, per-sample gradients."""
    model, fused = pair(lambda: small(nn.ReLU))
    for module in (model, fused):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.track_running_stats, part.running_mean, part.running_var = False, None, None
    x = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    tangent = torch.randn_like(x[0])

    def results(module: Module) -> list[Tensor]:
        parameters = dict(module.named_parameters())
        several, _ = stack_module_state([module, copy.deepcopy(module)])

        def call(values: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(module, values, (x,))

        def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
            return call(values, x).square().sum()

        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x[0], tangent))).tangent
        return [
            vmap(module)(x),
            vmap(call, (0, None))({k: v.detach() for k, v in several.items()}, x[0]),
            jvp(module, (x[0],), (tangent,))[1],
            dual,
            *vmap(torch.func.grad(loss), (None, 0))(parameters, x).values(),
        ]

    for mine, other in zip(results(fused), results(model), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    model, fused = pair(residual)
    x = torch.randn(IMAGES, dtype=torch.float64)

    def in_parts(module: Module) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            y = module[:4](x)
            y = checkpoint(module[4:6], y, use_reentrant=reentrant)
            return module[6:](y)

        return call

    same(step_of(in_parts(fused), fused, x), step_of(in_parts(model), model, x), 1e-13)


def test_saved_tensors_hooks() -> None:
    model, fused = pair(residual)
    x = torch.randn(IMAGES, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        found = step(fused, x)
    same(found, step(model, x), 1e-13)


# What is changed meanwhile.


def test_weights_changed_between_two_blocks() -> None:
    """What the second block is given is then not what the first one would compute now."""
    model, fused = pair(lambda: nn.Sequential(chain()[:3], nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))))
    found, expected = [], []
    for module, results in ((fused, found), (model, expected)):
        torch.manual_seed(4)
        y = module[0](torch.randn(IMAGES, dtype=torch.float64))
        with torch.no_grad():
            module[0][1].bias.add_(1)
        results += torch.autograd.grad(module[1](y).square().sum(), module[1].parameters())
    same(found, expected, 1e-12)


def test_outputs_that_are_overwritten() -> None:
    """What the next block is given is what it computes with."""

    class Overwriting(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.second = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y *= 2
            return self.second(y)

    model, fused = pair(Overwriting)
    x = torch.randn(IMAGES, dtype=torch.float64)
    same(step(fused, x), step(model, x), 1e-13)


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    _, fused = pair(chain)
    y = fused(torch.randn(IMAGES, dtype=torch.float64)).sum()
    with torch.no_grad():
        fused[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_backward_twice_is_refused() -> None:
    _, fused = pair(chain)
    y = fused(torch.randn(IMAGES, dtype=torch.float64)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def test_errors_are_those_of_the_layers() -> None:
    model, fused = pair(chain)
    cases = [
        torch.randn(3, 9, 9, dtype=torch.float64),  # unbatched
        torch.randn(2, 4, 9, 9, dtype=torch.float64),  # another number of channels
        torch.randn(1, 3, 2, 2, dtype=torch.float64),  # too small
    ]
    for x in cases:
        with pytest.raises((ValueError, RuntimeError)) as expected:
            model(x)
        with pytest.raises(type(expected.value)):
            fused(x)
    for module in (scratchnn.fuse(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))).model,):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(torch.randn(1, 3, 3, 3))


# What a fused model is.


def test_report() -> None:
    model = nn.Sequential(Basic(3, 4, 2), chain()[:5], nn.Conv2d(4, 4, 1))
    fusion = scratchnn.fuse(model)
    assert isinstance(fusion, Fusion)
    assert fusion.model is model
    assert fusion.fused == {
        "0.conv1": "Conv2d + BatchNorm2d + ReLU",
        "0.conv2": "Conv2d + BatchNorm2d + add + ReLU",
        "0.downsample.0": "Conv2d + BatchNorm2d",
        "1.0": "Conv2d + BatchNorm2d + ReLU",
        "1.3": "Conv2d + BatchNorm2d",
    }
    assert not fusion.left
    assert str(fusion).startswith("5 of 5 layers fused\n  2 Conv2d + BatchNorm2d + ReLU\n")
    again = scratchnn.fuse(model)
    assert not again.fused
    assert {left.reason for left in again.left.values()} == {"already fused"}


def test_there_and_back() -> None:
    """Nothing but the classes of blocks is changed, and those come back."""
    model = residual()
    before = {name: (type(m), id(m), repr(m), dict(vars(m))) for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(IMAGES)
    expected = step(copy.deepcopy(model), x)
    scratchnn.fuse(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        cls, identity, shown, _ = before[name]
        assert isinstance(module, cls)
        assert id(module) == identity
        assert repr(module) == shown
        assert type(module).__name__ == cls.__name__
    residual().load_state_dict(model.state_dict())
    model.load_state_dict(residual().state_dict())
    model.load_state_dict(state)
    unfusion = scratchnn.unfuse(model)
    assert unfusion.model is model
    assert len(unfusion.unfused) == 12
    assert {name: (type(m), id(m), repr(m), dict(vars(m))) for name, m in model.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), expected, strict=True))
    assert not scratchnn.unfuse(model).unfused


def test_torchs_layers_are_joined_and_stay_torchs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    scratchnn.fuse(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    with torch.profiler.profile() as profile:
        model(torch.randn(2, 3, 6, 6))
    names = {event.name for event in profile.events()}
    assert "scratchnn::conv" in names
    assert not any("convolution" in name for name in names)


def test_convert_and_restore_meanwhile() -> None:
    model = residual().double()
    x = torch.randn(IMAGES, dtype=torch.float64)
    expected = step(copy.deepcopy(model), x)
    scratchnn.fuse(model)
    for change in (scratchnn.convert, scratchnn.restore, scratchnn.unfuse):
        change(model)
        same(step(copy.deepcopy(model), x), expected, 1e-10)
    assert type(model[3]) is Basic
    assert type(model[3].conv1) is nn.Conv2d


def pickled(model: Module) -> Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: Module) -> Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copies_are_fused(duplicate: Callable[[Module], Module]) -> None:
    _, fused = pair(residual)
    scratchnn.unfuse(fused)
    scratchnn.fuse(fused, exclude="3.conv1", recompute=False)
    other = duplicate(fused)
    x = torch.randn(IMAGES, dtype=torch.float64)
    same(step(other, x), step(fused, x), 0.0)
    assert [type(m) for m in other.modules()] == [type(m) for m in fused.modules()]
    for mine, theirs in zip(other.modules(), fused.modules(), strict=True):
        if hasattr(theirs, "_fusion"):
            assert [v.joins for v in mine._fusion.versions] == [v.joins for v in theirs._fusion.versions]
    assert "conv1" not in other[3]._fusion.versions[0].joins
    scratchnn.unfuse(other)
    assert type(other[3]) is Basic


def test_choice() -> None:
    fusion = scratchnn.fuse(residual(), include=["3", "4.*"], exclude="*.conv1")
    assert list(fusion.fused) == ["3.conv2", "4.conv2"]
    assert fusion.left["3.conv1"].reason == "excluded"
    assert fusion.left["5.conv1"].reason == "not included"
    model = residual()
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        scratchnn.fuse(model, include="nowhere")
    assert not scratchnn.unfuse(model).unfused
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        scratchnn.fuse(3)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        scratchnn.unfuse("model")


# What is left alone.


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.25


def hooked(layer: Module) -> Module:
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


def parametrized(layer: Module) -> Module:
    class Doubled(Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def replaced(layer: Module) -> Module:
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) + 1
    return layer


def pruned(layer: Module) -> Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


class SyncedNorm(scratchnn.nn.SyncBatchNorm):
    pass


LEFT: dict[str, tuple[Callable[[], Module], str]] = {
    "a hook of the convolution": (lambda: plain(conv=hooked), "0 has hooks"),
    "a hook of the norm": (lambda: plain(norm=hooked), "1 has hooks"),
    "a pruned convolution": (lambda: plain(conv=pruned), "0 has hooks"),
    "a parametrized convolution": (lambda: plain(conv=parametrized), "its class computes by itself"),
    "a forward of the layer's own": (lambda: plain(conv=replaced), "0 has a forward of its own"),
    "a derived convolution": (lambda: plain(OwnConv(3, 4, 3)), "its class computes by itself"),
    "a derived norm": (lambda: plain(None, OwnNorm(4)), "OwnNorm follows, whose class computes by itself"),
    "a synchronized norm": (lambda: plain(None, SyncedNorm(4)), "SyncedNorm follows, whose class computes by itself"),
    "another norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        "no batch norm follows",
    ),
    "an output used twice": (lambda: Twice(), "its output is used more than once"),
}


def plain(
    layer: Module | None = None,
    normalization: Module | None = None,
    conv: Callable[[Module], Module] = lambda m: m,
    norm: Callable[[Module], Module] = lambda m: m,
) -> Module:
    return nn.Sequential(conv(layer or nn.Conv2d(3, 4, 3)), norm(normalization or nn.BatchNorm2d(4)), nn.ReLU())


class Twice(Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


@pytest.mark.parametrize("case", LEFT)
def test_layers_that_are_left(case: str) -> None:
    build, reason = LEFT[case]
    torch.manual_seed(1)
    model = build()
    x = torch.randn(IMAGES)
    expected = model(x)
    fusion = scratchnn.fuse(model)
    assert reason in {left.reason for left in fusion.left.values()}
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_derived_activation_is_called() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), OwnReLU())
    assert scratchnn.fuse(model).fused == {"0": "Conv2d + BatchNorm2d"}
    assert model(torch.randn(IMAGES)).min() == 0.25


class Branching(Module):
    """Looks at numbers: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x if x.sum() > 0 else -x))


class Counting(Branching):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.bn(self.conv(x))


class Drawing(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * 2 if torch.rand(()) > 0.5 else y


class TwoInputs(Branching):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bn(self.conv(x + y))


class OnParts(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * 2 if self.bn.training else y


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Branching, "its forward cannot be traced"),
        (Counting, "its forward changes attributes of the block"),
        (Drawing, "its forward draws random numbers"),
        (TwoInputs, "its forward cannot be traced"),
        (OnParts, "its forward depends on the mode of its parts"),
    ],
)
def test_blocks_that_are_left(cls: type[Module], reason: str) -> None:
    block = cls()
    before, state = dict(vars(block)), torch.get_rng_state()
    fusion = scratchnn.fuse(block)
    assert not fusion.fused
    assert fusion.left[""].type == cls.__name__
    assert reason in fusion.left[""].reason
    assert type(block) is cls
    assert vars(block) == before
    assert torch.equal(torch.get_rng_state(), state)


def check_same(fused: Module, model: Module, x: Tensor) -> None:
    torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)


class Modes(Branching):
    """Computes otherwise in training, by a number of its own, and takes more arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        self.calls.add_(1)
        y = self.bn(self.conv(x))
        if self.training:
            y = y * self.factor
        return y if scale is None else y * scale


def test_blocks_that_change() -> None:
    """A rewritten forward is used only while the block is as it was."""
    model, fused = Modes().double(), Modes().double()
    fused.load_state_dict(model.state_dict())
    assert scratchnn.fuse(fused).fused == {"conv": "Conv2d + BatchNorm2d"}
    x = torch.randn(IMAGES, dtype=torch.float64)

    def check() -> None:
        torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fused(x, 3.0), model(x, 3.0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fused(x, scale=3.0), model(x=x, scale=3.0), rtol=1e-9, atol=1e-9)

    check()
    model.eval(), fused.eval()
    check()
    model.train(), fused.train()
    model.factor = fused.factor = 5.0
    check()
    for module in (model, fused):
        module.conv = OwnConv(3, 4, 3).double()
    fused.conv.load_state_dict(model.conv.state_dict())
    check()
    assert fused.calls == model.calls == 12

    model, fused = pair(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Basic(4, 4)))
    shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double()
    for module in (model, fused):
        module[2].downsample = copy.deepcopy(shortcut)
    check_same(fused, model, x)
    scratchnn.unfuse(fused)
    scratchnn.fuse(fused)
    for module in (model, fused):
        module[2].downsample = None
    check_same(fused, model, x)

    sequence = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    scratchnn.fuse(sequence)
    sequence.append(OwnReLU())
    assert sequence(torch.randn(IMAGES)).min() == 0.25


def test_hooks_that_come_later_are_called() -> None:
    model, fused = pair(residual)
    calls: list[str] = []
    for module in (model, fused):
        hooked(module[3].conv2)
        hooked(module[1])
        module[4].act.register_forward_pre_hook(lambda m, args: calls.append("act"))
        module[5].bn1.register_full_backward_hook(lambda m, grad_input, grad_output: calls.append("bn1"))
    x = torch.randn(IMAGES, dtype=torch.float64)
    expected = step(model, x)
    heard, calls[:] = list(calls), []
    same(step(fused, x), expected, 1e-12)
    assert calls == heard
    everything: list[str] = []
    with torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: everything.append(type(m).__name__)):
        fused(x)
    assert everything.count("Conv2d") == sum(isinstance(m, nn.Conv2d) for m in fused.modules())


def test_inputs_that_are_overwritten_on_the_way() -> None:
    """A convolution is not moved past what may change its input."""

    class InPlaceShortcut(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.shortcut = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.shortcut(x)

    model, fused = pair(InPlaceShortcut)
    assert scratchnn.fuse(copy.deepcopy(model)).fused == {"conv": "Conv2d + BatchNorm2d"}
    x = torch.randn(IMAGES, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x.clone()), model(x.clone()))


def test_residuals_of_other_shapes_and_types() -> None:
    class Wider(Module):
        def __init__(self, dtype: torch.dtype | None) -> None:
            super().__init__()
            self.conv, self.bn, self.dtype = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), dtype

        def forward(self, x: Tensor) -> Tensor:
            r = x.mean((2, 3), keepdim=True) if self.dtype is None else x.to(self.dtype)
            return F.relu(self.bn(self.conv(x)) + r)

    for dtype in (None, torch.float64, torch.bfloat16):
        model, fused = pair(lambda dtype=dtype: Wider(dtype), torch.float32)
        x = torch.randn(IMAGES)
        for training in (True, False):
            same(step(fused.train(training), x), step(model.train(training), x), 1e-5)


# Tools around.


def test_compile() -> None:
    model, fused = pair(small)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for training in (True, False):
        torch._dynamo.reset()
        compiled = torch.compile(fused.train(training), fullgraph=True, backend="aot_eager")
        for _ in range(2):
            same(step_of(compiled, fused, x), step(model.train(training), x), 1e-12)


def test_export_and_symbolic_trace() -> None:
    model, fused = (module.eval() for module in pair(small))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), expected)


def test_many_blocks_are_freed() -> None:
    """The graph of a deep network goes without a deep recursion."""
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())] * 3000)
    scratchnn.fuse(model)
    y = model(torch.randn(2, 1, 2, 2))
    del y
    model(torch.randn(2, 1, 2, 2)).sum().backward()

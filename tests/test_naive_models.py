"""Whole models on the naive kernels: a net of every kind of layer, and torchvision's, forward and backward."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from common import relative_error
from torch import Tensor
from torch.nn import Module
from torchvision.models import get_model

import scratchnn
from scratchnn.models import resnet8
from scratchnn.testing import compare_models


class Residual(torch.nn.Module):
    """A depthwise convolution, a pointwise one, and a way around them."""

    def __init__(self, channels: int, nn: ModuleType) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.act(self.norm(self.depthwise(x))))


def net_of_every_family(nn: ModuleType) -> Module:
    """``[N, 3, 20, 20]`` to ``[N, 10]``: convolutions of all kinds, norms, pools, activations, linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(3),
        nn.MaxPool2d(3, stride=2, padding=1),
        Residual(16, nn),
        nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2),
        nn.InstanceNorm2d(12, affine=True),
        nn.PReLU(12),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 24, 3, stride=2, dilation=2, padding=2, groups=3),
        nn.SiLU(),
        nn.FractionalMaxPool2d(2, output_size=4),
        nn.LPPool2d(2, 2, stride=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(96),
        nn.Linear(96, 32),
        nn.Tanh(),
        nn.RMSNorm(32),
        nn.Linear(32, 10),
        nn.LogSoftmax(dim=1),
    )


def step(model: Module, images: Tensor) -> dict[str, Tensor]:
    """The output, all gradients and all statistics of a step of training."""
    model.train().zero_grad()
    images = images.clone().requires_grad_()
    torch.manual_seed(7)  # fractional pooling draws
    output = model(images)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    (output * weight.to(output.dtype)).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    statistics = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return {"output": output.detach(), "gradient of the images": images.grad, **gradients, **statistics}


def on(kernels: str, model: Module, images: Tensor) -> dict[str, Tensor]:
    with scratchnn.kernels(kernels):
        return step(copy.deepcopy(model), images)


def assert_close(results: dict[str, Tensor], truth: dict[str, Tensor], allowed: float) -> None:
    """Relative to the largest tensor of its kind: the gradient of a bias before a norm is nothing but rounding."""
    largest = max(value.double().norm() for name, value in truth.items() if name.startswith("gradient"))
    assert set(results) == set(truth)
    for name, value in results.items():
        error = (value.double() - truth[name].double()).norm()
        assert error <= allowed * (truth[name].double().norm() + 1e-2 * largest), f"{name}: {error:.1e}"


def test_a_step_of_training_on_both_kernels_against_float64() -> None:
    torch.manual_seed(0)
    theirs = net_of_every_family(torch.nn)
    ours = net_of_every_family(scratchnn.nn)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 20, 20)
    truth = step(copy.deepcopy(theirs).double(), images.double())
    for kernels in ("naive", "fast"):
        assert_close(on(kernels, ours, images), truth, 2e-5)
        assert_close(on(kernels, copy.deepcopy(ours).double(), images.double()), truth, 1e-12)


def test_the_naive_kernels_are_what_runs() -> None:
    """Their sums are in double precision: in float32 they come nearer to the truth, and differ in bits."""
    torch.manual_seed(0)
    model = net_of_every_family(scratchnn.nn)
    images = torch.randn(4, 3, 20, 20)
    naive, fast = (on(kernels, model, images) for kernels in ("naive", "fast"))
    differing = [name for name in naive if not torch.equal(naive[name], fast[name])]
    assert {"output", "gradient of the images", "gradient of 0.weight", "gradient of 20.weight"} <= set(differing)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_evaluation_without_gradients(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = net_of_every_family(scratchnn.nn).eval().to(memory_format=memory_format)
    images = torch.randn(4, 3, 20, 20).to(memory_format=memory_format)
    with torch.inference_mode():
        torch.manual_seed(7)
        fast = model(images)
        with scratchnn.kernels("naive"):
            torch.manual_seed(7)
            naive = model(images)
    assert naive.is_inference()
    assert relative_error(naive, fast.double()) < 1e-5


def test_training_goes_on() -> None:
    """Each step of gradient descent leads to a smaller loss, on the naive kernels alone."""
    torch.manual_seed(0)
    model = resnet8(num_classes=4)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with scratchnn.kernels("naive"):
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_models_of_torchvision(name: str) -> None:
    """Evaluation and a step of training, layer by layer and as a whole, as exact as torch's."""
    torch.manual_seed(0)
    reference = get_model(name, weights=None)
    ours = copy.deepcopy(reference)
    assert not scratchnn.convert(ours).missed
    images = torch.randn(2, 3, 32, 32)
    report = compare_models(ours, reference, images, context=lambda: scratchnn.kernels("naive"))
    assert report.passed, report


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "resnet18"])
def test_larger_models_of_torchvision_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval()
    assert not scratchnn.convert(model).missed
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        fast = model(images)
        with scratchnn.kernels("naive"):
            naive = model(images)
    assert not torch.equal(naive, fast)
    assert relative_error(naive, fast.double()) < 1e-5

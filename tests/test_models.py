"""The networks against the paper, and in both namespaces against each other."""

from __future__ import annotations

import math

import pytest
import torch

import scratchnn.nn
from scratchnn import models
from scratchnn.models import PadShortcut, cifar_resnet

NAMESPACES = pytest.mark.parametrize("nn", [scratchnn.nn, torch.nn], ids=["scratchnn", "torch"])

# From the layers: 9 c^2 a convolution, 2 c a norm, 64 * 10 + 10 the linear layer.
PARAMETERS = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "vgg8": 1_997_386,
}
PAPER_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_registered_model_has_an_expected_size() -> None:
    assert models.names() == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
@NAMESPACES
def test_number_of_parameters(name: str, nn) -> None:
    parameters = count(models.build(name, nn=nn))
    assert parameters == PARAMETERS[name]
    if name in PAPER_MILLIONS:
        digits = 1 if name == "resnet110" else 2
        assert round(parameters / 1e6, digits) == PAPER_MILLIONS[name]


@pytest.mark.parametrize("depth", [8, 14, 20, 56])
def test_depth_counts_the_layers_with_weights(depth: int) -> None:
    model = cifar_resnet(depth, nn=torch.nn)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [2, 9, 18, 0, -4])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=f"6 n \\+ 2.*got {depth}"):
        cifar_resnet(depth, nn=torch.nn)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet9', choose from resnet8, resnet20"):
        models.build("resnet9")


def test_default_namespace_is_ours() -> None:
    model = models.resnet8()
    assert type(model.stem[2]) is scratchnn.nn.ReLU
    assert type(model.stem[0]) is scratchnn.nn.Conv2d


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18"])
def test_same_seed_same_weights_in_both_namespaces(name: str) -> None:
    torch.manual_seed(3)
    ours = models.build(name, num_classes=7, nn=scratchnn.nn).state_dict()
    torch.manual_seed(3)
    theirs = models.build(name, num_classes=7, nn=torch.nn).state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_same_scores_and_gradients_in_both_namespaces(name: str) -> None:
    ours = models.build(name, nn=scratchnn.nn).double()
    theirs = models.build(name, nn=torch.nn).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    scores = [model(images) for model in (ours, theirs)]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)
    for score in scores:
        score.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Relative to the whole gradient: single entries cancel to almost nothing.
        assert (a.grad - b.grad).norm() <= 1e-9 * b.grad.norm()


@NAMESPACES
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (19, 33)])
def test_any_image_size_and_channels(nn, size: tuple[int, int]) -> None:
    assert models.resnet8(num_classes=4, in_channels=1, nn=nn)(torch.randn(2, 1, *size)).shape == (2, 4)
    assert models.resnet18(num_classes=4, in_channels=2, nn=nn)(torch.randn(2, 2, *size)).shape == (2, 4)


def test_resolution_halves_between_stages() -> None:
    model = models.resnet8(nn=torch.nn)
    x = model.stem(torch.randn(1, 3, 32, 32))
    shapes = [tuple((x := stage(x)).shape) for stage in model.stages]
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]


def test_padded_shortcut_keeps_pixels_and_adds_zeros() -> None:
    x = torch.randn(2, 3, 5, 4)
    y = PadShortcut(3, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 2)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert y[:, :2].count_nonzero() == y[:, 5:].count_nonzero() == 0


def test_only_projections_have_shortcut_parameters() -> None:
    def shortcut_parameters(model: torch.nn.Module) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if "shortcut" in name)

    assert shortcut_parameters(models.resnet20(nn=torch.nn)) == 0
    assert shortcut_parameters(models.resnet18(nn=torch.nn)) == sum(c * 2 * c + 2 * (2 * c) for c in (64, 128, 256))


def test_initial_weights_have_the_deviation_of_the_paper() -> None:
    model = models.resnet18(nn=torch.nn)
    weight = model.stages[3][1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert model.head[2].bias.count_nonzero() == 0

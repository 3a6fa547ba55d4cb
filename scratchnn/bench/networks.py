"""The whole models that are timed: one step of training, and inference.

Those of :mod:`scratchnn.models` are built from either namespace; torchvision's are built from torch's layers and, for
our side, converted. Batches are small enough for a step to take about a second on two cores.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torchvision
from torch.nn import Module

import scratchnn
from scratchnn import models
from scratchnn.bench.cases import MODEL, Case

__all__ = ["NETWORKS"]


def _own(name: str, net: str, batch: int) -> Case:
    """A model of ours for images of CIFAR-10's size."""
    return Case(
        label=name,
        family=MODEL,
        build=lambda nn: models.build(name, nn=nn),
        shape=(batch, 3, 32, 32),
        net=net,
        input_gradient=False,
    )


def _torchvision(name: str, net: str, batch: int, size: int = 224) -> Case:
    """A model of torchvision's, with new weights."""

    def build(nn: ModuleType) -> Module:
        model = torchvision.models.get_model(name, weights=None)
        if nn is not torch.nn:
            scratchnn.convert(model)
        return model

    return Case(
        label=name,
        family=MODEL,
        build=build,
        shape=(batch, 3, size, size),
        net=net,
        input_gradient=False,
    )


NETWORKS: list[Case] = [
    _own("resnet20", "ResNet-20", 128),
    _own("resnet18", "CIFAR ResNet-18", 32),
    _own("vgg8", "speed-run VGG", 64),
    _torchvision("mobilenet_v2", "MobileNetV2", 16),
    _torchvision("resnet50", "ResNet-50", 8),
    _torchvision("convnext_tiny", "ConvNeXt-Tiny", 4),
]

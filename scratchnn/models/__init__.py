"""Complete networks, each written once for ``scratchnn.nn`` and ``torch.nn`` alike."""

from scratchnn.models.cifar import (
    cifar_resnet,
    default_namespace,
    resnet8,
    resnet18,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from scratchnn.models.registry import build, names
from scratchnn.models.resnet import BasicBlock, PadShortcut, ResNet
from scratchnn.models.vgg import VGG, vgg8

__all__ = [
    "VGG",
    "BasicBlock",
    "PadShortcut",
    "ResNet",
    "build",
    "cifar_resnet",
    "default_namespace",
    "names",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg8",
]

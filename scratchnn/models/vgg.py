"""A plain network for small images, of the kind that speed records on CIFAR-10 are set with.

Simonyan, Zisserman: *Very Deep Convolutional Networks for Large-Scale Image Recognition*, 2014,
https://arxiv.org/abs/1409.1556, with batch norm: nothing but 3x3 convolutions of 64 to 256 channels, one after the
other, and pooling between them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from scratchnn.models.cifar import default_namespace
from scratchnn.models.resnet import initialise

WIDTHS = (64, 256, 256)


class VGG(torch.nn.Module):
    """A 3x3 stem, three stages that halve the resolution, global maximum pooling and one linear layer.

    ``[N, in_channels, H, W] -> [N, num_classes]`` for ``H`` and ``W`` of 8 and more. A stage is a convolution, maximum
    pooling, and another convolution, each followed by batch norm and ReLU.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from.

    Source: Simonyan & Zisserman 2014, "Very Deep Convolutional Networks".
    """

    def __init__(self, num_classes: int, in_channels: int, nn: ModuleType) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, *between: torch.nn.Module) -> list[torch.nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [conv, *between, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        layers = block(in_channels, WIDTHS[0])
        channels = WIDTHS[0]
        for width in WIDTHS:
            # Pooled before the norm: three quarters of its work and of the activation's fall away.
            layers += [*block(channels, width, nn.MaxPool2d(2)), *block(width, width)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        initialise(self, nn)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, num_classes]``."""
        return self.head(self.features(x))


def vgg8(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> VGG:
    """:class:`VGG` with its seven convolutions and one linear layer: 2.0 million parameters.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: Simonyan & Zisserman 2014, "Very Deep Convolutional Networks".
    """
    return VGG(num_classes, in_channels, nn or default_namespace())

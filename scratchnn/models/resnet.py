"""Residual networks for small images, written once for any namespace with ``torch.nn``'s names.

He, Zhang, Ren, Sun: *Deep Residual Learning for Image Recognition*, 2015, https://arxiv.org/abs/1512.03385.

Every layer is taken from the argument ``nn``: ``scratchnn.nn`` or ``torch.nn``. The same seed gives the same
weights from either, and a ``state_dict`` of one loads into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

Shortcut = Callable[[int, int, int, ModuleType], torch.nn.Module]


class PadShortcut(torch.nn.Module):
    """Option A of the paper: a shortcut without parameters.

    Takes every ``stride``-th pixel and appends channels of zeros:
    ``[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]``.

    Args:
        in_channels: C_in.
        out_channels: C_out, at least as many.
        stride: in pixels.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, ceil(H / stride), ceil(W / stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        before = self.extra_channels // 2
        return torch.nn.functional.pad(x, (0, 0, 0, 0, before, self.extra_channels - before))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra_channels={self.extra_channels}"


def pad_shortcut(in_channels: int, out_channels: int, stride: int, nn: ModuleType) -> torch.nn.Module:
    """Option A: identity where the shapes agree, :class:`PadShortcut` where they do not."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PadShortcut(in_channels, out_channels, stride)


def projection_shortcut(in_channels: int, out_channels: int, stride: int, nn: ModuleType) -> torch.nn.Module:
    """Option B: identity where the shapes agree, a 1x1 convolution and a norm where they do not."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(torch.nn.Module):
    """Two 3x3 convolutions and a way around them (figure 2 of the paper).

    ``y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``,
    ``[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]``.

    The convolutions have no bias: the norm after each would subtract it again.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: of the first convolution, in pixels.
        shortcut: :func:`pad_shortcut` or :func:`projection_shortcut`.
        nn: the namespace that the layers come from.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut, nn: ModuleType) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride, nn)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, ceil(H / stride), ceil(W / stride)]``."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.shortcut(x))


class ResNet(torch.nn.Module):
    """A 3x3 stem, stages of :class:`BasicBlock`, global average pooling and one linear layer.

    Every stage after the first halves the resolution with the stride of its first block.
    ``[N, in_channels, H, W] -> [N, num_classes]`` for any ``H`` and ``W``.

    Args:
        blocks: number of blocks of each stage.
        widths: channels of each stage; the stem has those of the first.
        shortcut: :func:`pad_shortcut` or :func:`projection_shortcut`.
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        shortcut: Shortcut,
        num_classes: int,
        in_channels: int,
        nn: ModuleType,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = []
        channels = widths[0]
        for index, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(channels, width, stride, shortcut, nn))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        initialise(self, nn)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, num_classes]``."""
        return self.head(self.stages(self.stem(x)))


def initialise(model: torch.nn.Module, nn: ModuleType) -> None:
    """Draw the weights as the paper does (https://arxiv.org/abs/1502.01852): ``N(0, gain^2 / fan)``.

    The gain of sqrt(2) of a convolution makes up for the half that ReLU drops; no ReLU follows the linear
    layer, so its gain is 1. Norms start as the identity, which is how they are made.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)

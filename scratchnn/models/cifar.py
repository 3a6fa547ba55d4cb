"""The residual networks that CIFAR-10 is trained with.

========== ======= ============== ====================================
name       layers  parameters     from
========== ======= ============== ====================================
resnet8    8       0.08 million   section 4.2 of the paper, n = 1
resnet20   20      0.27 million   section 4.2, n = 3
resnet32   32      0.46 million   section 4.2, n = 5
resnet44   44      0.66 million   section 4.2, n = 7
resnet56   56      0.85 million   section 4.2, n = 9
resnet110  110     1.7 million    section 4.2, n = 18
resnet18   18      11.2 million   the ImageNet network with a 3x3 stem
========== ======= ============== ====================================

Parameters are counted for three input channels and ten classes.
"""

from __future__ import annotations

from types import ModuleType

from scratchnn.models.resnet import ResNet, pad_shortcut, projection_shortcut


def cifar_resnet(
    depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16, nn: ModuleType | None = None
) -> ResNet:
    """The family of section 4.2: ``depth = 6 n + 2`` layers in three stages of ``n`` blocks.

    The stages have ``width``, ``2 * width`` and ``4 * width`` channels; their shortcuts have no parameters.

    Args:
        depth: 8, 14, 20, 26, 32, ...
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        width: channels of the first stage, 16 in the paper.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Raises:
        ValueError: when ``depth`` is not ``6 n + 2`` for a positive ``n``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    n, remainder = divmod(depth - 2, 6)
    if n < 1 or remainder:
        raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    return ResNet(
        blocks=(n, n, n),
        widths=(width, 2 * width, 4 * width),
        shortcut=pad_shortcut,
        num_classes=num_classes,
        in_channels=in_channels,
        nn=nn or default_namespace(),
    )


def resnet8(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """The smallest of the family, for a first look: :func:`cifar_resnet` with 8 layers.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return cifar_resnet(8, num_classes, in_channels, nn=nn)


def resnet20(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """:func:`cifar_resnet` with 20 layers, 91.25% on CIFAR-10 in the paper.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.

    Example:
        >>> from scratchnn.models import resnet20
        >>> resnet20()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return cifar_resnet(20, num_classes, in_channels, nn=nn)


def resnet32(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """:func:`cifar_resnet` with 32 layers, 92.49% on CIFAR-10 in the paper.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return cifar_resnet(32, num_classes, in_channels, nn=nn)


def resnet44(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """:func:`cifar_resnet` with 44 layers, 92.83% on CIFAR-10 in the paper.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return cifar_resnet(44, num_classes, in_channels, nn=nn)


def resnet56(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """:func:`cifar_resnet` with 56 layers, 93.03% on CIFAR-10 in the paper.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return cifar_resnet(56, num_classes, in_channels, nn=nn)


def resnet110(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """:func:`cifar_resnet` with 110 layers, 93.57% on CIFAR-10 in the paper.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return cifar_resnet(110, num_classes, in_channels, nn=nn)


def resnet18(num_classes: int = 10, in_channels: int = 3, nn: ModuleType | None = None) -> ResNet:
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of 64 to 512 channels.

    The shortcuts between stages are 1x1 convolutions (option B). With the ImageNet network's 7x7 stride 2
    stem and max pooling, a 32x32 image would be 8x8 before the first block.

    Args:
        num_classes: number of scores that come out.
        in_channels: channels of the images.
        nn: the namespace that the layers come from, ``scratchnn.nn`` unless given.

    Returns:
        the model with fresh weights: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Source: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition".
    """
    return ResNet(
        blocks=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        shortcut=projection_shortcut,
        num_classes=num_classes,
        in_channels=in_channels,
        nn=nn or default_namespace(),
    )


def default_namespace() -> ModuleType:
    """The namespace of a model for which none is given.

    Imported only when it is used: a model of ``torch.nn`` does not need the kernels.

    Returns:
        ``scratchnn.nn``.
    """
    import scratchnn.nn

    return scratchnn.nn

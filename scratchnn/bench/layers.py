"""The layers that are timed: one line a case, with the network that has such a layer.

Batches are chosen so that a pass takes some milliseconds to about 100 on two cores: longer than a call costs by itself
(``scratchnn bench --overhead`` is about that), short enough for all of them to be timed in minutes. To add a case, add
a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scratchnn.bench.cases import CHANNELS_LAST, CONTIGUOUS, Case

__all__ = ["LAYERS"]

BOTH = (CHANNELS_LAST, CONTIGUOUS)

Shape = tuple[int, ...]
Sizes = int | tuple[int, ...]


def _conv(
    net: str,
    shape: Shape,
    out: int,
    kernel: Sizes,
    *,
    transposed: bool = False,
    first: bool = False,
    layout: str = CHANNELS_LAST,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Case:
    """A convolution; without bias, as before a norm, and padded so that stride 1 keeps the size, unless told otherwise.

    Args:
        net: where it is found.
        shape: of its input.
        out: channels that come out.
        kernel: its size.
        transposed: whether it is the transposed one.
        first: the first layer of a network, whose input needs no gradient.
        layout, dtype: of the case.
        options: of the layer.
    """
    rank, c = len(shape) - 2, shape[1]
    name = f"Conv{'Transpose' if transposed else ''}{rank}d"
    kernels = (kernel,) * rank if isinstance(kernel, int) else kernel
    dilation = options.get("dilation", 1)
    if not transposed:
        options.setdefault("padding", tuple(dilation * (size // 2) for size in kernels))
    options = {"bias": False, **options}
    words = ["x".join(map(str, kernels)) if rank > 1 else f"1d {kernels[0]}"]
    if options.get("stride", 1) != 1:
        stride = options["stride"]
        words.append(f"s{stride if isinstance(stride, int) else 'x'.join(map(str, stride))}")
    if dilation != 1:
        words.append(f"dilated {dilation}")
    groups = options.get("groups", 1)
    if groups > 1:
        words.append("depthwise" if groups == c else f"{groups} groups")
    words += [*(["transposed"] if transposed else []), *(["first"] if first else [])]
    words.append(f"{c}" if c == out else f"{c}->{out}")
    return Case(
        label=" ".join(words),
        family="conv",
        build=lambda nn: getattr(nn, name)(c, out, kernel, **options),
        shape=shape,
        net=net,
        memory_format=layout,
        dtype=dtype,
        input_gradient=not first,
    )


def _convolutions_3x3() -> list[Case]:
    """Of stride 1 and dense: most of the work of most networks."""
    return [
        _conv("ResNet-20", (128, 16, 32, 32), 16, 3),
        _conv("ResNet-20", (128, 16, 32, 32), 16, 3, layout=CONTIGUOUS),
        _conv("U-Net, 16 channels", (8, 16, 128, 128), 16, 3),
        _conv("ResNet-20", (128, 32, 16, 16), 32, 3),
        _conv("ResNet-20", (128, 64, 8, 8), 64, 3),
        _conv("CIFAR ResNet-18", (64, 64, 32, 32), 64, 3),
        _conv("CIFAR ResNet-18", (64, 128, 16, 16), 128, 3),
        _conv("CIFAR ResNet-18", (64, 256, 8, 8), 256, 3),
        _conv("CIFAR ResNet-18", (64, 512, 4, 4), 512, 3),
        _conv("ResNet-18", (1, 64, 56, 56), 64, 3),
        _conv("ResNet-18", (16, 64, 56, 56), 64, 3),
        _conv("ResNet-18", (16, 64, 56, 56), 64, 3, layout=CONTIGUOUS),
        _conv("ResNet-18", (16, 128, 28, 28), 128, 3),
        _conv("ResNet-18", (32, 256, 14, 14), 256, 3),
        _conv("ResNet-18", (32, 256, 14, 14), 256, 3, layout=CONTIGUOUS),
        _conv("ResNet-18", (32, 512, 7, 7), 512, 3),
        _conv("VGG-16", (2, 64, 224, 224), 64, 3, bias=True),
        _conv("VGG-16", (2, 128, 112, 112), 128, 3, bias=True),
        _conv("VGG-16", (2, 128, 112, 112), 128, 3, bias=True, layout=CONTIGUOUS),
        _conv("VGG-16", (8, 512, 14, 14), 512, 3, bias=True),
        _conv("speed-run VGG", (32, 64, 16, 16), 256, 3),
        _conv("U-Net", (1, 64, 256, 256), 64, 3),
        _conv("U-Net", (1, 256, 128, 128), 128, 3),
    ]


def _convolutions_dense() -> list[Case]:
    """All other dense ones: first layers, strides, 1x1, large kernels, dilated."""
    return [
        _conv("ResNet-20", (128, 3, 32, 32), 16, 3, first=True),
        _conv("VGG-16", (4, 3, 224, 224), 64, 3, first=True, bias=True),
        _conv("MobileNetV2", (16, 3, 224, 224), 32, 3, stride=2, first=True),
        _conv("ResNet-50", (16, 3, 224, 224), 64, 7, stride=2, first=True),
        _conv("ResNet-50", (16, 3, 224, 224), 64, 7, stride=2, first=True, layout=CONTIGUOUS),
        _conv("ConvNeXt-Tiny", (16, 3, 224, 224), 96, 4, stride=4, padding=0, bias=True, first=True),
        _conv("AlexNet", (16, 3, 224, 224), 64, 11, stride=4, padding=2, bias=True, first=True),
        _conv("ResNet-20", (128, 16, 32, 32), 32, 3, stride=2),
        _conv("ResNet-20", (128, 32, 16, 16), 64, 3, stride=2),
        _conv("ResNet-18", (16, 64, 56, 56), 128, 3, stride=2),
        _conv("ResNet-50", (16, 256, 28, 28), 256, 3, stride=2),
        _conv("ConvNeXt-Tiny", (16, 96, 56, 56), 192, 2, stride=2, padding=0, bias=True),
        _conv("ResNet-50", (16, 64, 56, 56), 256, 1),
        _conv("ResNet-50", (16, 256, 56, 56), 64, 1),
        _conv("ResNet-50", (16, 512, 28, 28), 128, 1),
        _conv("ResNet-50", (16, 512, 28, 28), 128, 1, layout=CONTIGUOUS),
        _conv("ResNet-50", (16, 1024, 14, 14), 256, 1),
        _conv("ResNet-50", (16, 512, 7, 7), 2048, 1),
        _conv("ResNet-18", (32, 64, 56, 56), 128, 1, stride=2),
        _conv("ResNet-50", (16, 256, 56, 56), 512, 1, stride=2),
        _conv("MobileNetV2", (16, 16, 112, 112), 96, 1),
        _conv("MobileNetV2", (32, 144, 56, 56), 24, 1),
        _conv("MobileNetV2", (64, 320, 7, 7), 1280, 1),
        _conv("GoogLeNet", (64, 32, 28, 28), 64, 5),
        _conv("AlexNet", (16, 64, 27, 27), 192, 5, bias=True),
        _conv("Inception v3", (16, 128, 17, 17), 128, (1, 7)),
        _conv("DeepLabV3", (4, 256, 28, 28), 256, 3, dilation=2),
    ]


def _convolutions_grouped() -> list[Case]:
    return [
        _conv("MobileNetV2", (16, 96, 112, 112), 96, 3, stride=2, groups=96),
        _conv("MobileNetV2", (32, 144, 56, 56), 144, 3, groups=144),
        _conv("MobileNetV2", (32, 144, 56, 56), 144, 3, groups=144, layout=CONTIGUOUS),
        _conv("MobileNetV2", (64, 384, 14, 14), 384, 3, groups=384),
        _conv("EfficientNet-B0", (32, 240, 28, 28), 240, 5, groups=240),
        _conv("ConvNeXt-Tiny", (16, 96, 56, 56), 96, 7, groups=96, bias=True),
        _conv("ConvNeXt-Tiny", (16, 96, 56, 56), 96, 7, groups=96, bias=True, layout=CONTIGUOUS),
        _conv("ConvNeXt-Tiny", (16, 384, 14, 14), 384, 7, groups=384, bias=True),
        _conv("ResNeXt-50", (16, 128, 56, 56), 128, 3, groups=32),
        _conv("ResNeXt-50", (16, 256, 28, 28), 256, 3, groups=32),
        _conv("ResNeXt-50", (16, 256, 28, 28), 256, 3, groups=32, layout=CONTIGUOUS),
        _conv("ResNeXt-50", (32, 512, 14, 14), 512, 3, groups=32),
        _conv("ShuffleNet", (64, 240, 28, 28), 240, 1, groups=3),
    ]


def _convolutions_transposed() -> list[Case]:
    return [
        _conv("U-Net", (1, 128, 128, 128), 64, 2, stride=2, transposed=True, bias=True),
        _conv("U-Net", (1, 128, 128, 128), 64, 2, stride=2, transposed=True, bias=True, layout=CONTIGUOUS),
        _conv("DCGAN", (32, 256, 16, 16), 128, 4, stride=2, padding=1, transposed=True),
        _conv("HiFi-GAN", (4, 256, 256), 128, 16, stride=8, padding=4, transposed=True, bias=True),
        _conv("3-D U-Net", (1, 64, 16, 32, 32), 32, 2, stride=2, transposed=True, bias=True),
    ]


def _convolutions_1d_3d() -> list[Case]:
    return [
        _conv("WaveNet", (8, 64, 4096), 64, 3),
        _conv("TCN", (8, 64, 4096), 64, 9, dilation=4),
        _conv("M5", (8, 1, 16000), 128, 80, stride=4, padding=0, bias=True, first=True),
        _conv("Conformer", (8, 256, 1024), 256, 31, groups=256),
        _conv("Conformer", (8, 256, 1024), 512, 1),
        _conv("R3D-18", (1, 3, 8, 112, 112), 64, (3, 7, 7), stride=(1, 2, 2), first=True),
        _conv("R3D-18", (1, 64, 8, 56, 56), 64, 3),
        _conv("R3D-18", (1, 64, 8, 56, 56), 64, 3, layout=CONTIGUOUS),
        _conv("R3D-18", (2, 64, 8, 56, 56), 128, 3, stride=2),
        _conv("R(2+1)D-18", (1, 64, 8, 56, 56), 144, (1, 3, 3)),
        _conv("R(2+1)D-18", (1, 144, 8, 56, 56), 64, (3, 1, 1)),
        _conv("X3D", (2, 108, 8, 28, 28), 108, 3, groups=108),
        _conv("3-D U-Net", (1, 32, 32, 32, 32), 32, 3),
    ]


def _convolutions_other_types() -> list[Case]:
    half, double = torch.bfloat16, torch.float64
    return [
        _conv("ResNet-18", (4, 64, 28, 28), 64, 3, dtype=half),
        _conv("ResNet-18", (4, 256, 14, 14), 256, 3, dtype=half),
        _conv("ResNet-18", (4, 64, 56, 56), 128, 3, dtype=half, stride=2),
        _conv("ResNet-50", (4, 256, 28, 28), 64, 1, dtype=half),
        _conv("ResNet-50", (2, 3, 112, 112), 64, 7, dtype=half, stride=2, first=True),
        _conv("ResNet-18", (4, 64, 28, 28), 64, 3, dtype=half, layout=CONTIGUOUS),
        _conv("MobileNetV2", (8, 144, 28, 28), 144, 3, dtype=half, groups=144),
        _conv("ResNet-18", (4, 64, 28, 28), 64, 3, dtype=torch.float16),
        _conv("ResNet-18", (16, 64, 28, 28), 64, 3, dtype=double),
        _conv("ResNet-18", (8, 256, 14, 14), 256, 3, dtype=double),
        _conv("ResNet-18", (8, 64, 56, 56), 128, 3, dtype=double, stride=2),
        _conv("ResNet-50", (16, 256, 28, 28), 64, 1, dtype=double),
        _conv("ResNet-50", (4, 3, 224, 224), 64, 7, dtype=double, stride=2, first=True),
        _conv("ResNet-18", (16, 64, 28, 28), 64, 3, dtype=double, layout=CONTIGUOUS),
    ]


def _linears() -> list[Case]:
    def linear(net: str, n: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Case:
        return Case(
            label=f"linear {inputs}" if inputs == outputs else f"linear {inputs}->{outputs}",
            family="linear",
            build=lambda nn: nn.Linear(inputs, outputs),
            shape=(n, inputs),
            net=net,
            dtype=dtype,
        )

    return [
        linear("ResNet-50", 128, 2048, 1000),
        linear("VGG-16", 32, 4096, 4096),
        linear("VGG-16", 1, 4096, 1000),
        linear("ConvNeXt-Tiny", 25088, 96, 384),
        linear("ConvNeXt-Tiny", 25088, 384, 96),
        linear("mixer", 1024, 512, 512),
        linear("mixer", 512, 512, 512, torch.float64),
        linear("mixer", 128, 512, 512, torch.bfloat16),
    ]


def _layer(net: str, label: str, family: str, shape: Shape, name: str, *args: Any, **options: Any) -> Case:
    """A layer by the name of its class; ``layout``, ``dtype``, ``training`` and ``format_matters`` are the case's."""
    of_case = {key: options.pop(key) for key in ("dtype", "training", "format_matters") if key in options}
    layout = options.pop("layout", CHANNELS_LAST)
    return Case(
        label=label,
        family=family,
        build=lambda nn: getattr(nn, name)(*args, **options),
        shape=shape,
        net=net,
        memory_format=layout,
        **of_case,
    )


def _in(layouts: tuple[str, ...], case: Callable[..., Case], *args: Any, **options: Any) -> list[Case]:
    """The same case in several memory formats."""
    return [case(*args, **options, layout=layout) for layout in layouts]


def _pools() -> list[Case]:
    def pool(net: str, kind: str, shape: Shape, name: str, *args: Any, **options: Any) -> Case:
        return _layer(net, f"{kind} {shape[1]}", "pool", shape, name, *args, **options)

    images: list[tuple[Any, ...]] = [
        ("ResNet-50", "max 3x3 s2", (16, 64, 112, 112), "MaxPool2d", 3, 2, 1),
        ("VGG-16", "max 2x2 s2", (64, 64, 56, 56), "MaxPool2d", 2),
        ("GoogLeNet", "max 3x3 s1", (32, 192, 28, 28), "MaxPool2d", 3, 1, 1),
        ("DenseNet-121", "avg 2x2 s2", (32, 128, 56, 56), "AvgPool2d", 2),
        ("Inception v3", "avg 3x3 s1", (32, 192, 35, 35), "AvgPool2d", 3, 1, 1),
        ("ResNet-50", "global avg", (64, 2048, 7, 7), "AdaptiveAvgPool2d", 1),
        ("VGG-16", "adaptive avg 7x7", (32, 512, 14, 14), "AdaptiveAvgPool2d", 7),
        ("speed-run VGG", "global max", (256, 256, 8, 8), "AdaptiveMaxPool2d", 1),
    ]
    volumes: list[tuple[Any, ...]] = [
        ("C3D", "max 2x2x2 s2", (2, 64, 8, 56, 56), "MaxPool3d", 2),
        ("I3D", "max 3x3x3 s2", (2, 64, 8, 56, 56), "MaxPool3d", 3, 2, 1),
        ("3-D DenseNet", "avg 2x2x2 s2", (2, 64, 16, 32, 32), "AvgPool3d", 2),
        ("R3D-18", "global avg", (32, 512, 4, 7, 7), "AdaptiveAvgPool3d", 1),
    ]
    return [
        *(case for row in (*images, *volumes) for case in _in(BOTH, pool, *row)),
        pool("LeNet", "Lp 2x2 s2", (16, 64, 56, 56), "LPPool2d", 2, 2),
        pool("ResNet-50", "max 3x3 s2", (16, 64, 112, 112), "MaxPool2d", 3, 2, 1, dtype=torch.bfloat16),
        pool("ResNet-50", "max 3x3 s2", (8, 64, 112, 112), "MaxPool2d", 3, 2, 1, dtype=torch.float64),
        pool("M5", "1d max 4", (32, 128, 4096), "MaxPool1d", 4),
        pool("TCN", "1d avg 2", (32, 128, 4096), "AvgPool1d", 2),
    ]


def _norms() -> list[Case]:
    def norm(net: str, kind: str, shape: Shape, name: str, *args: Any, **options: Any) -> Case:
        return _layer(net, f"{kind} {shape[1]}", "norm", shape, name, *args, **options)

    batch: list[tuple[Any, ...]] = [
        ("ResNet-20", (128, 16, 32, 32)),
        ("ResNet-50", (32, 64, 56, 56)),
        ("ResNet-50", (16, 256, 56, 56)),
        ("ResNet-50", (32, 256, 14, 14)),
    ]
    others: list[tuple[Any, ...]] = [
        ("style transfer", "instance norm", (8, 64, 128, 128), "InstanceNorm2d", 64, 1e-5, 0.1, True),
        ("nnU-Net", "instance norm", (1, 32, 32, 64, 64), "InstanceNorm3d", 32, 1e-5, 0.1, True),
        ("diffusion U-Net", "group norm", (16, 128, 32, 32), "GroupNorm", 32, 128),
        ("R3D-18", "batch norm train", (2, 64, 8, 56, 56), "BatchNorm3d", 64),
        ("AlexNet", "local response", (16, 64, 55, 55), "LocalResponseNorm", 5),
        ("GoogLeNet", "local response", (16, 192, 28, 28), "LocalResponseNorm", 5),
    ]
    return [
        *(
            case
            for net, shape in batch
            for case in _in(BOTH, norm, net, "batch norm train", shape, "BatchNorm2d", shape[1])
        ),
        *(
            case
            for net, shape in batch[1:]
            for case in _in(BOTH, norm, net, "batch norm eval", shape, "BatchNorm2d", shape[1], training=False)
        ),
        *(case for row in others for case in _in(BOTH, norm, *row)),
        norm("speech", "1d instance norm", (16, 256, 2048), "InstanceNorm1d", 256),
        norm("WaveNet", "1d batch norm train", (16, 128, 4096), "BatchNorm1d", 128),
        norm("ConvNeXt-Tiny", "layer norm", (50176, 96), "LayerNorm", 96),
        norm("ConvNeXt-Tiny", "layer norm", (12544, 768), "LayerNorm", 768),
        norm("transformer", "RMS norm", (8192, 768), "RMSNorm", 768),
        norm("ResNet-50", "batch norm train", (32, 64, 56, 56), "BatchNorm2d", 64, dtype=torch.bfloat16),
    ]


def _activations() -> list[Case]:
    def activation(net: str, shape: Shape, name: str, *args: Any, label: str = "", **options: Any) -> Case:
        text = f"{label or name} {shape[1]}"
        return _layer(net, text, "activation", shape, name, *args, **options, format_matters=False)

    image, wide = (32, 64, 56, 56), (16, 96, 56, 56)
    return [
        activation("ResNet-50", image, "ReLU"),
        activation("ResNet-50", (16, 256, 56, 56), "ReLU"),
        activation("MobileNetV2", wide, "ReLU6"),
        activation("YOLO", image, "LeakyReLU", 0.1),
        activation("face recognition", image, "PReLU", 64),
        activation("EfficientNet-B0", wide, "SiLU"),
        activation("MobileNetV3", wide, "Hardswish"),
        activation("ConvNeXt-Tiny", wide, "GELU"),
        activation("ConvNeXt-Tiny", wide, "GELU", dtype=torch.bfloat16),
        activation("YOLOv4", wide, "Mish"),
        activation("autoencoder", wide, "ELU"),
        activation("squeeze and excitation", wide, "Sigmoid"),
        activation("autoencoder", wide, "Tanh"),
        activation("segmentation", (8, 21, 128, 128), "Softmax", 1, label="Softmax of channels"),
        activation("transformer", (8192, 512), "Softmax", -1, label="Softmax of rows"),
        activation("ResNet-50", (2048, 1000), "LogSoftmax", -1, label="LogSoftmax of rows"),
    ]


LAYERS: list[Case] = [
    *_convolutions_3x3(),
    *_convolutions_dense(),
    *_convolutions_grouped(),
    *_convolutions_transposed(),
    *_convolutions_1d_3d(),
    *_convolutions_other_types(),
    *_linears(),
    *_pools(),
    *_norms(),
    *_activations(),
]

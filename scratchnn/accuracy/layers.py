"""An example of every layer, as data: one line each, for any namespace with ``torch.nn``'s names.

They are large enough for rounding errors to show and small enough for all of them to run in seconds. To add a layer,
add a line; ``tests/test_layers.py`` notices when one is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
FLOATING_AND_COMPLEX = (*FLOATING, torch.complex64)


@dataclass(frozen=True)
class Layer:
    """A layer, and what to call it with.

    Attributes:
        name: of the class; ``variant`` tells two examples of one class apart.
        family: the family it belongs to.
        build: makes the layer from the namespace it is given.
        shapes: of the inputs.
        dtypes: those narrower than float64 that the layer serves.
        reference: makes the same layer of torch's parts, where torch has none of that name.
        batch: whether dimension 0 of the first input counts samples that do not know of each other.
        inputs: makes further inputs from the first one, where random numbers will not do.
    """

    name: str
    family: str
    build: Callable[[ModuleType], Module]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...] = FLOATING
    variant: str = ""
    reference: Callable[[], Module] | None = None
    batch: bool = True
    inputs: Callable[[Tensor], tuple[Tensor, ...]] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".strip()

    def theirs(self) -> Module:
        """torch's layer."""
        return self.reference() if self.reference is not None else self.build(torch.nn)

    def draw(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs, the same numbers in every dtype but for their rounding."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        inputs = tuple(torch.randn(shape, dtype=wide, generator=generator).to(dtype) for shape in self.shapes)
        return inputs if self.inputs is None else self.inputs(*inputs)


class MaxoutReference(torch.nn.Module):
    """The maximum of several linear maps, of torch's parts."""

    def __init__(self, in_features: int, out_features: int, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = torch.nn.Linear(in_features, out_features * pieces)

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(input).unflatten(-1, (-1, self.pieces)).amax(-1)


class LayerNorm2dReference(torch.nn.LayerNorm):
    """Layer normalization over the channels of each pixel, of torch's parts."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _with_indices(rank: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The maxima of windows of 2 and where they were: what max unpooling takes."""

    def inputs(x: Tensor) -> tuple[Tensor, Tensor]:
        pool = getattr(torch.nn.functional, f"max_pool{rank}d")
        return pool(x, 2, return_indices=True)

    return inputs


def _image(n: int, c: int, size: int, rank: int) -> tuple[tuple[int, ...], ...]:
    return ((n, c, *[size] * rank),)


SIZES = {1: 48, 2: 15, 3: 9}


def _convolutions() -> list[Layer]:
    def conv(name: str, rank: int, variant: str, build: Callable[[ModuleType], Module], c: int = 16) -> Layer:
        return Layer(name, "conv", build, _image(4, c, SIZES[rank], rank), FLOATING_AND_COMPLEX, variant)

    layers = []
    for rank in (1, 2, 3):
        name = f"Conv{rank}d"

        def build(*args: int, name: str = name, **options: object) -> Callable[[ModuleType], Module]:
            return lambda nn: getattr(nn, name)(*args, **options)

        layers += [
            conv(name, rank, "3", build(16, 24, 3, padding=1)),
            conv(name, rank, "5, stride 2", build(16, 24, 5, stride=2, padding=2)),
            conv(name, rank, "3, 4 groups, dilated", build(16, 24, 3, groups=4, dilation=2, padding=2)),
            conv(name, rank, "3, depthwise", build(16, 16, 3, groups=16, padding=1)),
            conv(name, rank, "3, reflect", build(16, 24, 3, padding=1, padding_mode="reflect")),
            conv(name, rank, "4, same", build(16, 24, 4, padding="same")),
        ]
        name = f"ConvTranspose{rank}d"

        def transposed(*args: int, name: str = name, **options: object) -> Callable[[ModuleType], Module]:
            return lambda nn: getattr(nn, name)(*args, **options)

        layers += [
            conv(name, rank, "3", transposed(16, 24, 3, padding=1)),
            conv(name, rank, "4, stride 2", transposed(16, 24, 4, stride=2, padding=1)),
            conv(name, rank, "3, 4 groups", transposed(16, 24, 3, stride=2, groups=4, output_padding=1)),
        ]
        for kind in ("LazyConv", "LazyConvTranspose"):
            lazy = f"{kind}{rank}d"
            layers.append(conv(lazy, rank, "", lambda nn, lazy=lazy: getattr(nn, lazy)(24, 3)))
    layers += [
        Layer(
            "Conv2d",
            "conv",
            lambda nn: nn.Conv2d(64, 64, 3, padding=1),
            _image(4, 64, 28, 2),
            FLOATING,
            "3, 64 channels",
        ),
        Layer("Conv2d", "conv", lambda nn: nn.Conv2d(256, 64, 1), _image(4, 256, 14, 2), FLOATING, "1, 256 channels"),
    ]
    return layers


def _pools() -> list[Layer]:
    layers = []
    for rank in (1, 2, 3):

        def pool(kind: str, *args: int, rank: int = rank, variant: str = "", **options: object) -> Layer:
            name = f"{kind}{rank}d"
            shapes = _image(3, 5, SIZES[rank], rank)
            dtypes = (torch.float32,) if name in ("AvgPool3d", "LPPool3d") else FLOATING  # torch takes no other there
            return Layer(name, "pool", lambda nn: getattr(nn, name)(*args, **options), shapes, dtypes, variant)

        layers += [
            pool("MaxPool", 3, stride=2, padding=1),
            pool("MaxPool", 2, dilation=2, ceil_mode=True, variant="dilated"),
            pool("AvgPool", 2),
            pool("AvgPool", 3, stride=1, padding=1, variant="overlapping"),
            pool("AdaptiveMaxPool", 4),
            pool("AdaptiveAvgPool", 4),
            pool("LPPool", 2, 3, stride=2),
            Layer(
                f"MaxUnpool{rank}d",
                "pool",
                lambda nn, rank=rank: getattr(nn, f"MaxUnpool{rank}d")(2),
                _image(3, 5, 2 * (SIZES[rank] // 2), rank),
                inputs=_with_indices(rank),
            ),
        ]
        if rank > 1:
            layers.append(
                Layer(
                    f"FractionalMaxPool{rank}d",
                    "pool",
                    lambda nn, rank=rank: getattr(nn, f"FractionalMaxPool{rank}d")(2, output_ratio=0.6),
                    _image(3, 5, SIZES[rank], rank),
                    batch=False,  # draws a random window for each sample
                )
            )
    layers.append(
        Layer(
            "GlobalAvgPool",
            "pool",
            lambda nn: nn.GlobalAvgPool(),
            _image(3, 5, 15, 2),
            reference=lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        )
    )
    return layers


def _norms() -> list[Layer]:
    layers = []
    for rank in (1, 2, 3):
        shapes = _image(8, 12, SIZES[rank], rank)
        for kind in ("BatchNorm", "InstanceNorm"):
            across = kind == "BatchNorm"
            name, lazy = f"{kind}{rank}d", f"Lazy{kind}{rank}d"
            layers += [
                Layer(
                    name,
                    "norm",
                    lambda nn, name=name: getattr(nn, name)(12, affine=True),
                    shapes,
                    batch=not across,
                ),
                Layer(
                    name,
                    "norm",
                    lambda nn, name=name: getattr(nn, name)(12, affine=True, track_running_stats=True).eval(),
                    shapes,
                    variant="eval",
                ),
                Layer(lazy, "norm", lambda nn, lazy=lazy: getattr(nn, lazy)(), shapes, batch=not across),
            ]
    images = _image(8, 12, 15, 2)
    layers += [
        Layer(
            "SyncBatchNorm",
            "norm",
            lambda nn: nn.SyncBatchNorm(12),
            images,
            reference=lambda: torch.nn.BatchNorm2d(12),
            batch=False,
        ),
        Layer("LayerNorm", "norm", lambda nn: nn.LayerNorm(96), ((16, 7, 96),), variant="rows"),
        Layer("LayerNorm", "norm", lambda nn: nn.LayerNorm((12, 15, 15)), images, variant="images"),
        Layer(
            "LayerNorm2d",
            "norm",
            lambda nn: nn.LayerNorm2d(12),
            images,
            reference=lambda: LayerNorm2dReference(12, eps=1e-6),
        ),
        Layer("GroupNorm", "norm", lambda nn: nn.GroupNorm(4, 12), images),
        Layer("RMSNorm", "norm", lambda nn: nn.RMSNorm(96), ((16, 7, 96),)),
        Layer(
            "LocalResponseNorm",
            "norm",
            lambda nn: nn.LocalResponseNorm(5, alpha=0.1),
            images,
            (torch.float32,),  # torch takes no other with images
        ),
    ]
    return layers


def _linears() -> list[Layer]:
    return [
        Layer("Linear", "linear", lambda nn: nn.Linear(100, 70), ((32, 100),), FLOATING_AND_COMPLEX),
        Layer("Linear", "linear", lambda nn: nn.Linear(1024, 70), ((16, 1024),), FLOATING_AND_COMPLEX, "1024 features"),
        Layer("LazyLinear", "linear", lambda nn: nn.LazyLinear(70), ((32, 100),), FLOATING_AND_COMPLEX),
        Layer("Bilinear", "linear", lambda nn: nn.Bilinear(20, 30, 10), ((32, 20), (32, 30))),
        Layer("Identity", "linear", lambda nn: nn.Identity(), ((32, 100),), FLOATING_AND_COMPLEX),
    ]


def _activations() -> list[Layer]:
    def activation(name: str, *args: object, variant: str = "", **options: object) -> Layer:
        return Layer(
            name, "activation", lambda nn: getattr(nn, name)(*args, **options), ((6, 12, 15, 15),), variant=variant
        )

    plain = (
        "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 SELU SiLU "
        "Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Softmax2d"
    )
    return [
        *(activation(name) for name in plain.split()),
        activation("GELU", approximate="tanh", variant="tanh"),
        activation("PReLU", 12, variant="by channel"),
        Layer(
            "RReLU",
            "activation",
            lambda nn: nn.RReLU(),
            ((6, 12, 15, 15),),
            (torch.float32, torch.bfloat16),  # torch has no other
            batch=False,  # draws a random slope for each number
        ),
        activation("Threshold", 0.1, 20.0),
        activation("GLU", 1),
        activation("Softmax", 1),
        activation("Softmax", -1, variant="rows"),
        activation("Softmin", 1),
        activation("LogSoftmax", 1),
        activation("LogSoftmax", -1, variant="rows"),
        Layer(
            "Maxout",
            "activation",
            lambda nn: nn.Maxout(100, 20, 4),
            ((32, 100),),
            reference=lambda: MaxoutReference(100, 20, 4),
        ),
    ]


LAYERS: list[Layer] = [*_convolutions(), *_pools(), *_norms(), *_linears(), *_activations()]

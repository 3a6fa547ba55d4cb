"""torch's counter of operations: the same numbers of a converted model as of torch's own, module by module."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torchvision
from test_layers import made, of, quiet
from torch import Tensor
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

import scratchnn
from scratchnn.accuracy.layers import LAYERS, Layer


def counted(module: Module, *inputs: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """The operations of the forward and of the backward pass, by module."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    counts = []
    with FlopCounterMode(display=False) as counter:
        output = module(*leaves)
        counts.append({name: sum(by.values()) for name, by in counter.get_flop_counts().items()})
        output.square().mean().backward()
        after = Counter({name: sum(by.values()) for name, by in counter.get_flop_counts().items()})
    after.subtract(counts[0])
    return counts[0], dict(after)


class Mixture(Module):
    """One, two and three dimensions, transposed and grouped, strided and dilated, other borders, rows of rows."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.signals = nn.Sequential(
            nn.Conv1d(4, 8, 3, padding=1, padding_mode="reflect", groups=2),
            nn.ConvTranspose1d(8, 6, 4, stride=2, groups=2),
        )
        self.volumes = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=(1, 0, 1), bias=False),
            nn.ConvTranspose3d(4, 4, 2, stride=2, groups=4, output_padding=1),
        )
        self.images = nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding="valid", dilation=(2, 1)), nn.Conv2d(6, 6, 3, groups=6)
        )
        self.rows = nn.Sequential(nn.LazyLinear(7), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        signals = self.signals(x)
        volumes = self.volumes(signals.reshape(x.shape[0], 1, 6, 4, -1))
        return self.rows(self.images(volumes.flatten(3)))


MODELS: dict[str, tuple[Callable[[], Module], tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(), (2, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), (2, 3, 64, 64)),
    "vgg11": (lambda: torchvision.models.vgg11(num_classes=10), (1, 3, 32, 32)),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), (2, 3, 64, 64)),
    "mixture": (Mixture, (2, 4, 15)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_counts_as_before(name: str) -> None:
    build, shape = MODELS[name]
    with torch.device("meta"):  # shapes are all it takes
        theirs, x = build(), torch.randn(shape)
    if name == "mixture":
        theirs(x)  # makes the lazy layer
    ours = copy.deepcopy(theirs)
    scratchnn.convert(ours)
    expected, found = counted(theirs, x), counted(ours, x)
    assert found == expected
    assert expected[0]["Global"] > 0
    assert expected[1]["Global"] > expected[0]["Global"]


@of([layer for layer in LAYERS if layer.name != "Bilinear"])
@quiet
def test_every_layer_counts_as_torchs(layer: Layer) -> None:
    """Those of neither products nor convolutions: as nothing."""
    inputs = layer.draw(torch.float32)
    ours, theirs = (counted(made(layer, *inputs, ours=ours), *inputs) for ours in (True, False))
    assert [passes["Global"] if passes else 0 for passes in ours] == [
        passes["Global"] if passes else 0 for passes in theirs
    ]


def test_bilinear_layers_count_their_product_with_the_weight() -> None:
    """torch counts none. The gradients, of both inputs and of the weight, are as large each."""
    forward, backward = counted(scratchnn.nn.Bilinear(5, 4, 3), torch.randn(7, 5), torch.randn(7, 4))
    product = 2 * 7 * 3 * 5 * 4
    assert (forward["Global"], backward["Global"]) == (product, 3 * product)


def test_the_counter_may_be_imported_later() -> None:
    """Importing scratchnn does not import it: that would take longer than all the rest."""
    program = """
import sys, torch, scratchnn
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    scratchnn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
assert counter.get_total_flops() == 2 * 2 * 3 * 4
"""
    subprocess.run([sys.executable, "-c", program], check=True)

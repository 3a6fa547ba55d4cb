"""``scratchnn.explain``: the algorithm it names is the one that runs."""

from __future__ import annotations

import copy

import pytest
import torch
from test_layers import made, of, quiet
from test_operators import registered
from torch import Tensor
from torch.nn import Module

import scratchnn
from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.explain import _algorithm_of, explain_call

WINOGRAD, GEMM, DEPTHWISE, GROUPED = "Winograd F(4x4, 3x3)", "implicit GEMM", "depthwise", "grouped"
# Enough channels for every instruction set.
CASES = [
    (WINOGRAD, "a quarter of the multiplications", torch.nn.Conv2d(32, 64, 3, padding=1), (2, 32, 12, 12)),
    (WINOGRAD, "a quarter of the multiplications", torch.nn.Conv2d(32, 32, 3, padding_mode="reflect"), (2, 32, 12, 12)),
    (WINOGRAD, "a quarter of the multiplications", torch.nn.ConvTranspose2d(32, 32, 3), (2, 32, 12, 12)),
    (WINOGRAD, "a quarter of the multiplications", torch.nn.Conv3d(32, 64, 3, padding=1), (2, 32, 5, 12, 12)),
    (WINOGRAD, "a quarter of the multiplications", torch.nn.Conv3d(48, 48, (1, 3, 3)), (2, 48, 5, 12, 12)),
    (WINOGRAD, "a quarter of the multiplications", torch.nn.ConvTranspose3d(32, 32, (2, 3, 3)), (1, 32, 5, 12, 12)),
    (GEMM, "serves every kernel", torch.nn.Conv2d(32, 32, 5), (2, 32, 12, 12)),
    (GEMM, "serves every kernel", torch.nn.Conv3d(32, 32, (3, 1, 1)), (2, 32, 5, 12, 12)),
    (GEMM, "serves every stride", torch.nn.Conv3d(32, 32, 3, stride=(2, 1, 1)), (2, 32, 5, 12, 12)),
    (GEMM, "serves every kernel", torch.nn.Conv1d(32, 32, 3), (2, 32, 12)),
    (GEMM, "serves every stride", torch.nn.Conv2d(32, 32, 3, stride=2), (2, 32, 12, 12)),
    (GEMM, "serves every stride", torch.nn.Conv2d(32, 32, 3, dilation=2), (2, 32, 12, 12)),
    (WINOGRAD, "quarter of the multiplications", torch.nn.Conv2d(64, 64, 3, groups=2), (2, 64, 12, 12)),
    (WINOGRAD, "quarter of the multiplications", torch.nn.Conv2d(64, 64, 3, groups=8), (2, 64, 12, 12)),
    (WINOGRAD, "quarter of the multiplications", torch.nn.Conv3d(64, 64, (1, 3, 3), groups=2), (1, 64, 3, 12, 12)),
    (GEMM, "every kind of groups", torch.nn.Conv2d(96, 96, 3, groups=2), (2, 96, 12, 12)),
    (GEMM, "every kind of groups", torch.nn.Conv2d(64, 128, 3, groups=2), (2, 64, 12, 12)),
    (GEMM, "every kind of groups", torch.nn.Conv3d(64, 64, 3, groups=2), (1, 64, 5, 12, 12)),
    (GEMM, "takes multiples of", torch.nn.Conv2d(3, 32, 3), (2, 3, 12, 12)),
    (GEMM, "too small", torch.nn.Conv2d(32, 32, 3), (2, 32, 4, 4)),
    (WINOGRAD, "quarter of the multiplications", torch.nn.Conv2d(32, 32, 3).double(), (2, 32, 12, 12)),
    (DEPTHWISE, "filter of its own", torch.nn.Conv2d(32, 32, 3, groups=32), (2, 32, 12, 12)),
    (DEPTHWISE, "filter of its own", torch.nn.Conv3d(4, 4, 3, groups=4), (2, 4, 6, 6, 6)),
    (GROUPED, "too few channels", torch.nn.Conv2d(64, 64, 3, groups=16), (2, 64, 12, 12)),
    (WINOGRAD, "quarter of the multiplications", torch.nn.Conv2d(64, 64, 3, groups=2).double(), (2, 64, 12, 12)),
    (GEMM, "every kind of groups", torch.nn.Conv2d(128, 128, 3, groups=2).double(), (2, 128, 12, 12)),
    (GROUPED, "too few channels", torch.nn.Conv2d(8, 16, 3, groups=8), (2, 8, 12, 12)),
    (GROUPED, "too few channels", torch.nn.ConvTranspose1d(64, 32, 3, groups=8), (2, 64, 12)),
]


@pytest.fixture
def winograd() -> None:
    """Each test finds the setting as it is by default."""
    yield
    scratchnn.backends.conv.allow_winograd = True


def results(layer: Module, shape: tuple[int, ...]) -> list[Tensor]:
    """Output and gradients."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=layer.weight.dtype, requires_grad=True)
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.weight], torch.randn_like(y))]


@pytest.mark.parametrize(("algorithm", "reason", "layer", "shape"), CASES, ids=lambda case: str(case)[:40])
def test_the_algorithm_is_the_one_that_runs(winograd, algorithm, reason, layer, shape) -> None:
    """Winograd rounds in its own way: where it runs, and nowhere else, switching it off changes results."""
    explanation = scratchnn.explain(layer, shape)
    assert explanation.algorithm == algorithm
    assert [step.what for step in explanation.steps] == ["forward", "weight gradient", "bias gradient"] or [
        step.what for step in explanation.steps
    ] == ["forward", "input gradient", "weight gradient", "bias gradient"]
    of_convolutions = [step for step in explanation.steps if step.what != "bias gradient"]
    assert {step.algorithm for step in of_convolutions} == {algorithm}
    assert all(reason in step.reason for step in of_convolutions)

    ours = copy.deepcopy(layer)
    scratchnn.convert(ours)
    assert scratchnn.explain(ours, shape).steps == explanation.steps
    with_it = results(ours, shape)
    scratchnn.backends.conv.allow_winograd = False
    without = results(ours, shape)
    same = [torch.equal(a, b) for a, b in zip(with_it, without, strict=True)]
    assert same == [algorithm != WINOGRAD] * 3
    again = scratchnn.explain(layer, shape)
    summed = GROUPED if layer.groups > 1 and layer.in_channels // layer.groups == 8 else GEMM
    assert again.algorithm == (summed if algorithm == WINOGRAD else algorithm)
    if algorithm == WINOGRAD and summed == GEMM:
        assert "allow_winograd is off" in str(again)


@of(LAYERS)
@quiet
def test_every_layer_is_explained(layer: Layer) -> None:
    """On both sides in the same words, and not as torch's."""
    inputs = layer.draw(torch.float32)
    explanation = explain_call(made(layer, *inputs, ours=True), inputs)
    if layer.name == "Identity":
        assert explanation.algorithm == "torch"
        return
    assert explanation.steps, explanation
    assert explanation.steps[0].what == "forward"
    # RReLU's derivative is a product with the slopes that were drawn.
    assert {step.what for step in explanation.steps} != {"forward"} or layer.name == "RReLU", explanation
    if layer.reference is None:
        assert explain_call(made(layer, *inputs, ours=False), inputs).steps == explanation.steps
    if layer.inputs is None:  # shapes alone will do
        assert scratchnn.explain(made(layer, *inputs, ours=True), *(x.shape for x in inputs)) == explanation


def test_sentences() -> None:
    said = str(scratchnn.explain(torch.nn.Conv2d(8, 8, 3, groups=8), (1, 8, 10, 10))).splitlines()
    assert said[0] == "Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), groups=8) for 1x8x10x10 in float32"
    assert (
        said[1] == "  forward: depthwise, because each channel has a filter of its own: there is no matrix to multiply"
    )
    assert [line.partition(":")[0].strip() for line in said[1:]] == [
        "forward",
        "input gradient",
        "weight gradient",
        "bias gradient",
    ]


def test_types() -> None:
    assert scratchnn.explain(torch.nn.Linear(3, 4, dtype=torch.complex64), (2, 3)).algorithm == (
        "dot products on real and imaginary parts"
    )
    assert scratchnn.explain(torch.nn.Conv2d(3, 4, 3, dtype=torch.complex64), (2, 3, 5, 5)).algorithm == (
        "implicit GEMM on real and imaginary parts"
    )
    linear = scratchnn.explain(torch.nn.Linear(3, 4, dtype=torch.bfloat16), (2, 3))
    pointwise = scratchnn.explain(torch.nn.Conv2d(3, 4, 1, dtype=torch.bfloat16), (2, 3, 1, 1))
    assert linear.algorithm in ("dot products", "matrix unit")  # where the processor has one
    assert (linear.algorithm == "matrix unit") == (pointwise.algorithm == "matrix unit")
    assert scratchnn.explain(torch.nn.ReLU(), (4,), dtype=torch.bfloat16).algorithm == "one pass"
    assert scratchnn.explain(torch.nn.LayerNorm(4), (2, 4), dtype=torch.float16).algorithm == "statistics, then outputs"
    assert scratchnn.explain(torch.nn.ReLU(), (4,), dtype=torch.int64).algorithm == "naive loops"
    assert scratchnn.explain(torch.nn.MaxPool2d(2), (1, 1, 4, 4), dtype=torch.bfloat16).dtype == "bfloat16"


def test_every_operator_is_explained() -> None:
    """But for those of bookkeeping and of second derivatives."""
    unexplained = {name for name in registered() if not name.startswith("conv") and _algorithm_of(name) is None}
    assert unexplained == {
        "adaptive_max_pool_gather",
        "adaptive_max_pool_indices",
        "batch_norm_statistics",
        "batch_norm_update_",
        "fractional_max_pool_gather",
        "fractional_max_pool_indices",
        "max_pool_gather",
        "max_pool_indices",
        "maxout_gather",
    }


def test_the_readable_kernels() -> None:
    layer = torch.nn.Conv2d(32, 32, 3)
    with scratchnn.kernels("naive"):
        steps = scratchnn.explain(layer, (1, 32, 9, 9)).steps
        assert {step.algorithm for step in steps} == {"naive loops"}
        assert {step.reason for step in steps} == {'scratchnn.kernels("naive") asks for them'}
    assert scratchnn.explain(layer, (1, 32, 9, 9)).algorithm == WINOGRAD


def test_the_batch_does_not_matter() -> None:
    layer = torch.nn.Conv2d(32, 32, 3)
    assert scratchnn.explain(layer, (1, 32, 9, 9)).steps == scratchnn.explain(layer, (512, 32, 9, 9)).steps


def test_what_torch_computes() -> None:
    explanation = scratchnn.explain(torch.nn.Dropout(), (2, 3))
    assert explanation.algorithm == "torch"
    assert str(explanation).splitlines()[1] == "  torch computes it: scratchnn has no such layer"
    assert scratchnn.explain(torch.nn.Flatten(), (2, 3)).dict()["torch"]


def test_blocks_are_explained_part_by_part() -> None:
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2))
    forward = [step.operator for step in scratchnn.explain(block, (1, 3, 8, 8)).steps if step.what == "forward"]
    assert forward == ["conv", "relu_", "max_pool_with_offsets"]


def test_the_layer_stays_as_it_is() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 4, 3))
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    before = copy.deepcopy(layer.state_dict())
    kind, hooks, generator = type(layer), len(layer._forward_hooks), torch.get_rng_state()
    assert scratchnn.explain(layer, (2, 3, 5, 5)).algorithm == GEMM
    assert type(layer) is kind
    assert len(layer._forward_hooks) == hooks
    assert not called
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    norm = scratchnn.nn.BatchNorm2d(3)
    scratchnn.explain(norm, (2, 3, 5, 5))
    assert norm.num_batches_tracked == 0


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"argument 'layer' must be a torch\.nn\.Module, not str"):
        scratchnn.explain("relu", (1, 2))
    with pytest.raises(TypeError, match="compiled by TorchScript"):
        scratchnn.explain(torch.jit.script(torch.nn.ReLU()), (1, 2))
    with pytest.raises(ValueError, match="give the shape of the layer's input"):
        scratchnn.explain(torch.nn.ReLU())
    with pytest.raises(ValueError, match="lazy"):
        scratchnn.explain(torch.nn.LazyConv2d(3, 3), (1, 2, 5, 5))
    with pytest.raises(RuntimeError, match="channels"):
        scratchnn.explain(torch.nn.Conv2d(3, 4, 3), (1, 2, 5, 5))

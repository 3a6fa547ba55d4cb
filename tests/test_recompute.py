"""Inputs that convolutions compute again in the backward pass, and memory that backward passes use again."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module, Sequential
from torch.utils.checkpoint import checkpoint

import scratchnn
import scratchnn.functional as F
from scratchnn import nn
from scratchnn.bench.memory import allocations

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = (4, 16, 64, 64)  # 1 MiB in float32


@pytest.fixture(autouse=True)
def _setting() -> Iterator[None]:
    before = scratchnn.backends.conv.recompute_input
    yield
    scratchnn.backends.conv.recompute_input = before


def stack(activation: Callable[[], Module], namespace: Any = nn) -> Sequential:
    """Normalized inputs of a 3x3 convolution of many weights, and of one that has few."""
    torch.manual_seed(0)
    return Sequential(
        namespace.Conv2d(16, 32, 3, padding=1, bias=False),
        namespace.BatchNorm2d(32),
        activation(),
        namespace.Conv2d(32, 32, 3, padding=1),
        namespace.BatchNorm2d(32),
        activation(),
        namespace.Conv2d(32, 16, 1),
    )


def gradients(model: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, **options: Any) -> list[Tensor]:
    y = model(x)
    return [*torch.autograd.grad(y.square().sum(), [x, *parameters], **options), y]


def assert_the_same_bits(model: Module, x: Tensor) -> None:
    """Whether inputs are kept or computed again."""
    found = []
    for again in (False, True):
        scratchnn.backends.conv.recompute_input = again
        found.append(gradients(model, list(model.parameters()), x))
    for kept, computed in zip(*found, strict=True):
        assert torch.equal(kept, computed)


def kept_bytes(model: Module, x: Tensor) -> int:
    """What is allocated and stays while the output does."""
    outputs: list[Tensor] = []
    return sum(change.bytes for change in allocations(lambda: outputs.append(model(x))))


ACTIVATIONS: dict[str, Callable[[], Module]] = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6,
    "ReLU6 in place": lambda: nn.ReLU6(inplace=True),
    "Hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "none": nn.Identity,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_bits(activation: str, memory_format: str, dtype: torch.dtype) -> None:
    model = stack(ACTIVATIONS[activation]).to(dtype)
    x = torch.randn(8, 16, 64, 64).to(dtype, memory_format=FORMATS[memory_format]).requires_grad_()
    assert_the_same_bits(model, x)


@pytest.mark.parametrize("activation", ["ReLU", "ReLU in place", "none"])
def test_second_derivatives(activation: str) -> None:
    ours = stack(ACTIVATIONS[activation]).double()
    theirs = scratchnn.restore(copy.deepcopy(ours)).model
    x = torch.randn(2, 16, 32, 64, dtype=torch.float64, requires_grad=True)
    results = []
    for model in (ours, theirs):
        parameters = list(model.parameters())
        first = gradients(model, parameters, x, create_graph=True)
        total = sum(gradient.square().sum() for gradient in first[:-1])
        results.append(torch.autograd.grad(total, [x, *parameters]))
    largest = max(second.abs().max() for second in results[1])
    for mine, other in zip(*results, strict=True):
        assert (mine - other).abs().max() <= 1e-9 * max(other.abs().max(), 1e-3 * largest)


def test_memory() -> None:
    """The activation of a convolution of many weights is not kept; that of one of few is, once."""
    x = torch.randn(IMAGES)
    image = 2 * x.nbytes  # of 32 channels
    model = stack(nn.ReLU)
    scratchnn.backends.conv.recompute_input = False
    assert kept_bytes(model, x) == pytest.approx(4 * image + x.nbytes, abs=1e4)
    scratchnn.backends.conv.recompute_input = True
    assert kept_bytes(model, x) == pytest.approx(3 * image + x.nbytes, abs=1e4)
    # Out of place, torch keeps the input of its ReLU6 as well.
    assert kept_bytes(stack(nn.ReLU6), x) == pytest.approx(3 * image + x.nbytes, abs=1e4)


def test_small_tensors_and_evaluation_are_kept() -> None:
    def names(y: Tensor) -> list[str]:
        """The nodes of the graph that lead straight back from the output."""
        node, found = y.grad_fn, []
        while node is not None:
            found.append(node.name())
            node = node.next_functions[0][0] if node.next_functions else None
        return found

    model, x = stack(nn.ReLU), torch.randn(IMAGES, requires_grad=True)
    plain = ["ConvBackward", *["reluBackward", "BatchNormTrainBackward", "ConvBackward"] * 2]
    assert names(model(x))[:-1] == plain  # the way to an input is no part of the graph
    small, whole = x[:1, :, :8, :8].detach(), x.detach()
    kept = [kept_bytes(model, small), kept_bytes(model.eval(), whole)]
    scratchnn.backends.conv.recompute_input = False
    assert [kept_bytes(model.train(), small), kept_bytes(model.eval(), whole)] == kept


def test_an_activation_of_several_uses() -> None:
    class Fork(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.first, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            n = self.bn(self.conv(x))
            y = F.relu(n)
            return self.first(y) + self.second(y) + self.first(n) + y.repeat(1, 2, 1, 1) * n.repeat(1, 2, 1, 1)

    torch.manual_seed(0)
    assert_the_same_bits(Fork(), torch.randn(IMAGES, requires_grad=True))


def test_what_is_changed_in_between() -> None:
    model, x = stack(nn.ReLU), torch.randn(IMAGES, requires_grad=True)
    expected = gradients(model, list(model.parameters()), x)

    class Overwrites(Module):
        def forward(self, y: Tensor) -> Tensor:
            with torch.no_grad():
                y.mul_(2)
            return y

    # Before the convolution sees it: what it saw is what counts, and is kept.
    doubled = Sequential(*model[:3], Overwrites(), *model[3:])
    found = torch.autograd.grad(doubled(x).square().sum(), [model[3].weight])
    wanted = torch.autograd.grad(model[3:](2 * model[:3](x)).square().sum(), [model[3].weight])
    assert torch.equal(found[0], wanted[0])

    # After it: the gradients are those of what it saw.
    y = model[:3](x)
    z = model[3:](y)
    with torch.no_grad():
        y.zero_()
    found = torch.autograd.grad(z.square().sum(), [x, *model.parameters()])
    for mine, other in zip(found, expected, strict=False):
        assert torch.equal(mine, other)

    # What batch norm keeps itself: an error, as ever.
    z = model(x)
    with torch.no_grad():
        model[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_the_parameters_may_be_elsewhere_by_then() -> None:
    """Batch norm's own backward pass brings its parameters back; the convolution after it comes earlier."""
    model, x = stack(nn.ReLU)[1:4], torch.randn(4, 32, 64, 64, requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), [x, model[2].weight])
    y = model(x)
    weights = model[0].weight.detach().clone()
    storage = model[0].weight.untyped_storage()
    size = storage.nbytes()

    def bring_back(*_: Any) -> None:
        storage.resize_(size)
        with torch.no_grad():
            model[0].weight.data.copy_(weights)

    y.grad_fn.next_functions[0][0].register_hook(bring_back)  # after relu's backward pass
    storage.resize_(0)
    found = torch.autograd.grad(y.square().sum(), [x, model[2].weight])
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_saved_tensors_in_other_hands() -> None:
    model, x = stack(nn.ReLU), torch.randn(IMAGES, requires_grad=True)
    expected = gradients(model, list(model.parameters()), x)
    for reentrant in (False, True):
        x.grad = None
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, expected[0])
    seen: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    scratchnn.backends.conv.recompute_input = False
    once = seen.copy()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    assert seen == 2 * once
    found = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    for mine, other in zip(found, expected, strict=False):
        assert torch.equal(mine, other)


def test_backward_twice_and_in_part() -> None:
    model, x = stack(nn.ReLU), torch.randn(IMAGES, requires_grad=True)
    expected = gradients(model, list(model.parameters()), x)
    loss = model(x).square().sum()
    weights = [model[3].weight, model[6].weight]
    for _ in range(2):  # the activations' own passes are not run
        found = torch.autograd.grad(loss, weights, retain_graph=True)
        for mine, other in zip(found, (expected[4], expected[8]), strict=True):
            assert torch.equal(mine, other)
    for mine, other in zip(torch.autograd.grad(loss, [x, *model.parameters()]), expected, strict=False):
        assert torch.equal(mine, other)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_nothing_is_left() -> None:
    """After the backward pass no activation lives on, though the loss does."""
    model, x = stack(nn.ReLU), torch.randn(IMAGES, requires_grad=True)
    y = model[:3](x)
    alive = weakref.ref(y)
    loss = model[3:](y).square().sum()
    del y
    gc.collect()
    assert alive() is None
    assert sum(change.bytes for change in allocations(lambda: loss.backward())) < 4 * x.nbytes  # gradients alone
    gc.collect()


def fused_block() -> tuple[Module, Module]:
    torch.manual_seed(0)

    class Block(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn(self.conv(x)))
            return F.relu(self.bn2(self.conv2(y)) + y)

    fused = Block()
    plain = copy.deepcopy(fused)
    assert len(scratchnn.fuse(fused).fused) == 2
    return plain, fused


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 1e-5 * max(other.norm(), 1e-2)


def test_the_gradient_gives_its_memory() -> None:
    _, fused = fused_block()
    loss = (2 * fused(torch.randn(IMAGES))).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    names = [event.key for event in profile.key_averages()]
    assert "scratchnn::batch_norm_add_clamp_backward_" in names
    assert "scratchnn::batch_norm_add_clamp_backward" not in names


def test_gradients_that_others_hold_are_not_overwritten() -> None:
    plain, fused = fused_block()
    x = torch.randn(IMAGES, requires_grad=True)
    given = torch.randn(IMAGES)
    before = given.clone()
    wanted = torch.autograd.grad(plain(x), [x, *plain.parameters()], given)
    assert_near(torch.autograd.grad(fused(x), [x, *fused.parameters()], given), wanted)
    assert torch.equal(given, before)

    # Those that hooks keep, of the activation between and of the output.
    def with_hooks(model: Module) -> list[Tensor]:
        kept: list[Tensor] = []
        y = model(x)
        y.retain_grad()
        y.register_hook(lambda grad: kept.append(grad))
        z = 2 * y
        found = torch.autograd.grad(z, [x, *model.parameters()], given)
        return [*kept, *found]

    assert_near(with_hooks(fused), with_hooks(plain))
    assert torch.equal(with_hooks(fused)[0], 2 * given)

    # One that is asked for on the way, of a block's output.
    y = fused(x)
    asked, *_ = torch.autograd.grad(2 * y, [y, x, *fused.parameters()], given)
    assert torch.equal(asked, 2 * given)

    # A gradient that goes two ways.
    def shared(model: Module) -> list[Tensor]:
        a, b = model(x), model(x.flip(0))
        return list(torch.autograd.grad((a + b).sin(), [x, *model.parameters()], given))

    assert_near(shared(fused), shared(plain))


def test_a_graph_that_is_kept() -> None:
    plain, fused = fused_block()
    x = torch.randn(IMAGES, requires_grad=True)
    loss = fused(x).square().sum()
    first = torch.autograd.grad(loss, [x, *fused.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *fused.parameters()])
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)
    assert_near(list(first), gradients(plain, list(plain.parameters()), x)[:-1])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()

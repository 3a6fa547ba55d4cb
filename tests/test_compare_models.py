"""Holding two models against each other: what is equal passes, and every kind of fault is found where it was made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scratchnn
from scratchnn.testing import ModelReport, compare_models
from scratchnn.testing.model_report import Fault
from scratchnn.testing.recording import CallName, record
from scratchnn.testing.widening import widening


class Block(nn.Module):
    """A residual block that calls one ReLU twice, the second time on a sum of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def network() -> nn.Sequential:
    model = nn.Sequential()
    model.stem = nn.Conv2d(3, 8, 3)
    model.first, model.second = Block(8), Block(8)
    model.pool = nn.MaxPool2d(2)
    model.flat = nn.Flatten()
    model.drop = nn.Dropout(0.3)
    model.head = nn.Linear(8 * 9, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def images(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def broken(change: Callable[[nn.Module], None]) -> ModelReport:
    """The network beside a copy of it that was changed."""
    reference = network()
    ours = copy.deepcopy(reference)
    change(ours)
    return compare_models(ours, reference, images)


def replace_forward(layer: str, forward: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module], None]:
    """A change that lets a layer compute something else, made of what its class computes."""

    def change(model: nn.Module) -> None:
        part = model.get_submodule(layer)
        part.forward = lambda x: forward(part, x)

    return change


def original(layer: nn.Module, x: Tensor) -> Tensor:
    return type(layer).forward(layer, x)


class WrongGradient(torch.autograd.Function):
    """Right forward, a thousandth too much backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1.001


class NoGradient(torch.autograd.Function):
    """Whose gradient was forgotten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise NotImplementedError("no derivative")


def found(fault: Fault | None) -> tuple[str, str] | None:
    """The layer to blame, and what was wrong with it."""
    return None if fault is None else (fault.name.layer, fault.check.what)


# What is equal.


def test_a_model_equals_its_copy() -> None:
    report = broken(lambda model: None)
    assert report.passed
    assert report.exit_code == 0
    assert report.failures == []
    assert report.first_forward is None
    assert report.first_backward is None
    assert str(report).startswith("equivalent: Sequential and Sequential in float32, 17 calls of layers")
    calls = [str(layer.name) for layer in report.layers]
    assert calls[0] == "stem"
    assert calls[3:9] == ["first.relu", "first.conv2", "first.bn2", "first.relu, call 2", "first", "second.conv1"]
    assert calls[-1] == "the model itself"
    whole = {check.what for check in report.whole}
    assert {"output", "gradient of first.conv1.weight", "second.bn2.running_var after it"} <= whole
    for layer in report.layers:
        assert bool(layer.alone_forward) == bool(layer.alone_backward) == layer.leaf
        assert layer.forward
        assert layer.backward


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_converted_model_is_equivalent(memory_format: torch.memory_format) -> None:
    reference = network().to(memory_format=memory_format)
    ours = copy.deepcopy(reference)
    assert len(scratchnn.convert(ours).converted) == 13
    report = compare_models(ours, reference, lambda seed: images(seed).to(memory_format=memory_format), seeds=3)
    assert report.passed, report
    assert report.seeds == 3
    assert {type(ours.get_submodule(layer.name.layer)).__module__ for layer in report.layers if layer.leaf} >= {
        "scratchnn.nn.conv",
        "scratchnn.nn.norm",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    reference = network().to(dtype)
    ours = copy.deepcopy(reference)
    scratchnn.convert(ours)
    report = compare_models(ours, reference, lambda seed: images(seed).to(dtype), seeds=3)
    assert report.passed, report
    assert report.dtype == dtype


def test_the_models_stay_as_they_were() -> None:
    reference = network()
    reference.first.bn1.eval()
    ours = scratchnn.convert(copy.deepcopy(reference)).model
    before = [copy.deepcopy(model.state_dict()) for model in (ours, reference)]
    modes = [module.training for module in reference.modules()]
    compare_models(ours, reference, images)
    for model, state in zip((ours, reference), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in reference.modules()] == modes


def test_what_is_frozen_stays_frozen() -> None:
    """A reference in training mode sets the mode of each layer; one in evaluation is trained as a whole."""
    for training, modes in ((True, {False}), (False, {True, False})):
        reference = network().train(training)
        reference.first.bn1.eval()
        ours = copy.deepcopy(reference).eval()
        seen = set()
        for model in (ours, reference):
            model.first.bn1.register_forward_pre_hook(lambda layer, _, seen=seen: seen.add(layer.training))
        assert compare_models(ours, reference, images).passed
        assert seen == modes


def test_dropout_draws_the_same_on_all_sides() -> None:
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    report = compare_models(copy.deepcopy(model), model, torch.randn(5, 6))
    assert report.passed
    assert report.turned == 0
    assert max(check.comparison.theirs.relative for layer in report.layers for check in layer.checks) < 1e-5


@pytest.mark.parametrize(
    "draw",
    [
        lambda like: torch.rand_like(like),
        lambda like: torch.randn_like(like),
        lambda like: torch.rand(3, 4, dtype=like.dtype),
        lambda like: torch.randn(3, 4, dtype=like.dtype),
        lambda like: torch.empty_like(like).uniform_(-1, 2),
        lambda like: torch.empty_like(like).normal_(1, 2),
        lambda like: torch.empty_like(like).bernoulli_(0.3),
        lambda like: torch.empty_like(like).exponential_(),
        lambda like: torch.bernoulli(like.abs().clamp(max=1)),
        lambda like: torch.normal(like, 2.0),
        lambda like: torch.rand_like(like, dtype=torch.float32),
    ],
)
def test_draws_are_those_of_the_narrower_type(draw: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4)
    torch.manual_seed(3)
    expected = draw(x)
    torch.manual_seed(3)
    wide = x.double()
    with widening(torch.float32):
        drawn = draw(wide)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn, expected.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_wide_and_does_not_say_so(dtype: torch.dtype) -> None:
    x = torch.randn(3, dtype=torch.float64)
    with widening(dtype):
        told = x.dtype
        made = [
            x.float(),
            x.to(torch.bfloat16),
            x.to(x.dtype),
            x.sum(dtype=dtype),
            torch.zeros(3),
            torch.ones(3, dtype=torch.float16),
        ]
        whole = torch.arange(3), x.argmax()
        integers = whole[0].dtype
    assert told == dtype
    assert integers == torch.int64
    assert {tensor.dtype for tensor in made} == {x.dtype} == {torch.float64}
    assert {tensor.dtype for tensor in whole} == {torch.int64}
    assert torch.equal(made[0], x)
    assert x.float().dtype == torch.float32


class Otherwise(nn.Module):
    """Computes something else in float64, as what draws or decides otherwise there does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.element_size() == 8 else x


def test_what_float64_cannot_follow_is_held_against_the_reference() -> None:
    model = nn.Sequential(nn.Linear(6, 5), Otherwise(), nn.Linear(5, 3))
    assert compare_models(copy.deepcopy(model), model, torch.randn(4, 6)).passed
    ours = copy.deepcopy(model)
    replace_forward("1", lambda layer, x: original(layer, x) * 1.01)(ours)
    report = compare_models(ours, model, torch.randn(4, 6))
    assert found(report.first_forward) == ("1", "output")
    assert "away from the reference, which float64 cannot follow" in str(report)


class Everything(nn.Module):
    """Attention, a parametrized layer, keyword arguments, and an output of several parts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.pool = nn.MaxPool1d(2, return_indices=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        y = self.normed(self.encoder(x)) * scale
        return {"parts": [y, self.pool(y)], "name": "anything"}


def test_outputs_of_all_kinds() -> None:
    model = Everything()
    ours = copy.deepcopy(model)
    scratchnn.convert(ours)
    report = compare_models(ours, model, {"x": torch.randn(3, 4, 8), "scale": 0.5}, seeds=3)
    assert report.passed, report
    outputs = {check.what for check in report.whole if check.what.startswith("output")}
    assert outputs == {"output['parts'][0]", "output['parts'][1][0]", "output['parts'][1][1]"}
    names = [layer.name.layer for layer in report.layers if layer.leaf]
    assert "encoder.self_attn" in names
    assert "normed" in names
    assert "unused" not in names


@pytest.mark.parametrize(
    "inputs", [torch.randn(2, 4), (torch.randn(2, 4),), {"input": torch.randn(2, 4)}, lambda seed: torch.randn(2, 4)]
)
def test_forms_of_inputs(inputs: Any) -> None:
    model = nn.Linear(4, 3)
    assert compare_models(copy.deepcopy(model), model, inputs).passed


def test_inputs_and_loss_of_training() -> None:
    """As a detection model has them: losses in training, results in evaluation."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: list[Tensor], labels: Tensor | None = None) -> Any:
            scores = self.layer(torch.stack(x))
            if labels is None:
                return [{"scores": row} for row in scores]
            return {"loss": nn.functional.cross_entropy(scores, labels)}

    model = Model()
    report = compare_models(
        copy.deepcopy(model),
        model,
        lambda seed: ([*torch.randn(5, 4)],),
        training_inputs=lambda seed: ([*torch.randn(5, 4)], torch.arange(5) % 3),
        loss=lambda losses: losses["loss"],
    )
    assert report.passed
    assert {"output[0]['scores']", "output['loss']", "gradient of layer.weight"} <= {c.what for c in report.whole}


def test_evaluation_alone() -> None:
    model = network()
    report = compare_models(copy.deepcopy(model), model, images, train=False)
    assert report.passed
    assert {check.phase for layer in report.layers for check in layer.checks} == {"evaluation"}
    assert not any(layer.alone_backward or layer.backward for layer in report.layers)


def test_an_input_that_needs_a_gradient() -> None:
    model = nn.Linear(4, 3)
    report = compare_models(copy.deepcopy(model), model, torch.randn(2, 4, requires_grad=True))
    assert "gradient of input [0][0]" in {check.what for check in report.whole}


def test_only_ours_runs_in_the_context() -> None:
    entered = []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append(True)
        before = nn.functional.relu
        nn.functional.relu = lambda x, inplace=False: before(x) * 2
        try:
            yield
        finally:
            nn.functional.relu = before

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    report = compare_models(copy.deepcopy(model), model, torch.randn(3, 4), context=context)
    assert entered
    assert found(report.first_forward) == ("1", "output")


# Faults, each found where it is.


@pytest.mark.parametrize(
    ("change", "layer", "what"),
    [
        (lambda model: setattr(model.second.bn1, "eps", 1e-3), "second.bn1", "output"),
        (lambda model: setattr(model.first.conv2, "padding_mode", "circular"), "first.conv2", "output"),
        (lambda model: setattr(model.second.bn2, "momentum", 0.0), "second.bn2", "running_mean after it"),
        (lambda model: setattr(model.pool, "kernel_size", 3), "pool", "output"),
        (replace_forward("head", lambda head, x: original(head, x).double()), "head", "output"),
        (replace_forward("first.conv1", lambda conv, x: original(conv, x) * float("nan")), "first.conv1", "output"),
        (replace_forward("second.conv1", lambda conv, x: original(conv, x) * (1 + 1e-5)), "second.conv1", "output"),
        (replace_forward("stem", lambda conv, x: original(conv, x)[:3]), "stem", "output"),
    ],
    ids=["eps", "padding", "statistics", "pool", "dtype", "nan", "scale", "shape"],
)
def test_a_fault_of_a_layer(change: Callable[[nn.Module], None], layer: str, what: str) -> None:
    report = broken(change)
    assert not report.passed
    assert report.exit_code == 1
    assert found(report.first_forward) == (layer, what)
    assert report.first_forward.reason == "called by itself with the reference's input"
    assert str(report).startswith("NOT equivalent: ")
    assert f"first forward: {layer}: {what} in " in str(report)


def test_the_first_of_two_faults_is_named() -> None:
    def change(model: nn.Module) -> None:
        model.first.bn2.eps = model.second.bn1.eps = 1e-2
        replace_forward("first.conv2", lambda conv, x: WrongGradient.apply(original(conv, x)))(model)
        replace_forward("second.conv2", lambda conv, x: WrongGradient.apply(original(conv, x)))(model)

    report = broken(change)
    assert found(report.first_forward) == ("first.bn2", "output")
    assert report.first_backward.name.layer == "second.conv2"
    by_themselves = {
        layer.name.layer
        for layer in report.layers
        if not all(c.passed for c in layer.alone_forward + layer.alone_backward)
    }
    assert by_themselves == {"first.bn2", "second.bn1", "first.conv2", "second.conv2"}


def test_a_fault_in_evaluation_alone() -> None:
    def forward(norm: nn.Module, x: Tensor) -> Tensor:
        return original(norm, x) if norm.training else original(norm, x) * 1.001

    report = broken(replace_forward("first.bn2", forward))
    assert found(report.first_forward) == ("first.bn2", "output")
    assert report.first_forward.check.phase == "evaluation"


def test_a_fault_of_the_backward_pass_alone() -> None:
    report = broken(replace_forward("first.conv2", lambda conv, x: original(conv, WrongGradient.apply(x))))
    assert report.first_forward is None
    assert found(report.first_backward) == ("first.conv2", "gradient of input")
    wrong = {check.what for check in report.whole if not check.passed}
    assert "gradient of first.conv1.weight" in wrong
    assert "gradient of first.conv2.weight" not in wrong


def test_a_gradient_that_is_not_there() -> None:
    report = broken(replace_forward("second.conv2", lambda conv, x: original(conv, NoGradient.apply(x))))
    assert report.first_forward is None
    assert found(report.first_backward) == ("second.conv2", "call")
    assert "raises NotImplementedError: no derivative" in str(report)


def test_a_gradient_that_stops() -> None:
    report = broken(replace_forward("second.conv2", lambda conv, x: original(conv, x.detach())))
    assert found(report.first_backward) == ("second.conv2", "gradient of input")
    assert "there is none" in str(report.first_backward)


def test_a_fault_between_the_layers_of_a_block() -> None:
    def forward(block: Block, x: Tensor) -> Tensor:
        y = block.relu(block.bn1(block.conv1(x)) * 1.001)
        return block.relu(block.bn2(block.conv2(y)) + x)

    report = broken(replace_forward("second", forward))
    assert found(report.first_forward) == ("second", "output")
    assert "seen at second.relu, which by itself passes" in report.first_forward.reason


def test_a_fault_at_the_end_of_a_block() -> None:
    report = broken(replace_forward("first", lambda block, x: original(block, x) * 1.001))
    assert found(report.first_forward) == ("first", "output")
    assert "the layers in it pass by themselves" in report.first_forward.reason


def test_a_fault_between_the_layers_of_a_block_backward() -> None:
    def forward(block: Block, x: Tensor) -> Tensor:
        y = block.relu(WrongGradient.apply(block.bn1(block.conv1(x))))
        return block.relu(block.bn2(block.conv2(y)) + x)

    report = broken(replace_forward("second", forward))
    assert report.first_forward is None
    assert found(report.first_backward) == ("second", "gradient of output")
    assert "seen at second.bn1" in report.first_backward.reason


def test_a_model_that_stops_half_way() -> None:
    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    report = broken(replace_forward("second.conv1", forward))
    assert not report.passed
    assert found(report.first_forward) == ("second.conv1", "call")
    assert "raises RuntimeError: out of order" in str(report)
    assert not report.ran


def test_a_layer_that_is_never_called() -> None:
    def forward(block: Block, x: Tensor) -> Tensor:
        y = block.relu(nn.functional.batch_norm(block.conv1(x), None, None, training=True))
        return block.relu(block.bn2(block.conv2(y)) + x)

    report = broken(replace_forward("first", forward))
    assert found(report.first_forward) == ("first", "call")
    assert "it is never called" in str(report.first_forward)


def test_statistics_that_are_wrong_in_the_whole_model_alone() -> None:
    """A buffer that belongs to no innermost layer."""

    class Counting(nn.Sequential):
        def __init__(self, step: float) -> None:
            super().__init__(nn.Linear(3, 3))
            self.step = step
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.mean += self.step * x.mean(0)
            return super().forward(x)

    ours, reference = Counting(0.2), Counting(0.1)
    ours.load_state_dict(reference.state_dict())
    report = compare_models(ours, reference, torch.randn(4, 3))
    assert not report.passed
    assert report.first_forward is None
    assert [line.split(":")[0] for line in report.failures] == [
        "mean after it in evaluation",
        "mean after it in training",
    ]
    assert "mean after it in training: error" in str(report)


def test_a_single_number_may_be_exact_by_luck() -> None:
    """Of a loss the reference gets the very number that float64 gives; ours is off by as much as the layers are."""

    class Loss(nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(6)))
            self.error = error

        def forward(self, x: Tensor) -> Tensor:
            y = self.layers(x)
            return (y - y.detach()).sum() + 1 + self.error

    reference, ours, x = Loss(0.0), Loss(0.0), torch.randn(8, 32)
    ours.load_state_dict(reference.state_dict())
    output = next(check for check in compare_models(ours, reference, x).whole if check.what == "output")
    assert output.count == 1
    assert output.comparison.theirs.relative == 0
    assert 5e-8 < output.usual < 1e-6
    ours.error = 3 * output.usual
    assert compare_models(ours, reference, x).passed
    ours.error = 12 * output.usual
    wrong = [check.what for check in compare_models(ours, reference, x).whole if not check.passed]
    assert wrong == ["output", "output"]  # in evaluation and in training


# Decisions.


class Nudge(nn.Module):
    """Adds a number far below the rounding error of what it adds it to, but not of the smallest of them."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def test_a_decision_that_rounding_turns_over_is_forgiven() -> None:
    """An input of -1e-8 among inputs of 1: the nudge is a tenth of a rounding step, and a ReLU lets it pass."""
    x = torch.randn(4, 16)
    x[:, 3] = -1e-8

    def model(by: float) -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(16, 16), nn.Identity(), Nudge(by), nn.ReLU(), nn.Linear(16, 2))

    reference, ours = model(0.0), model(2e-8)
    with torch.no_grad():
        for one in (reference, ours):
            one[0].weight.copy_(torch.eye(16))
            one[0].bias.zero_()
    report = compare_models(ours, reference, x)
    assert report.passed, report
    assert report.turned > 0
    assert "pass with the reference's decisions only" in str(report)
    turned = next(check for check in report.whole if check.turned)
    assert turned.what == "gradient of 0.weight"
    assert turned.free.ours.relative > 0.1
    # The same nudge is no excuse for a wrong gradient.
    replace_forward("0", lambda layer, x: WrongGradient.apply(original(layer, x)))(ours)
    assert found(compare_models(ours, reference, x).first_backward)[0] == "0"


def test_forced_runs_compute_with_the_other_runs_numbers() -> None:
    reference = network().eval()
    other = copy.deepcopy(reference)
    x = images(0)
    with torch.no_grad():
        wanted = record(reference, ((x,), {}))
        other.first.conv1.weight.mul_(3)
        free, forced = record(other, ((x,), {})), record(other, ((x,), {}), forced=wanted)
    name = CallName("first.conv1", 0)
    assert torch.equal(forced.calls[name].outputs[""], free.calls[name].outputs[""])
    assert not torch.equal(forced.calls[name].outputs[""], wanted.calls[name].outputs[""])
    assert torch.equal(forced.output, wanted.output)
    assert not torch.equal(free.output, wanted.output)


# What cannot be compared.


def test_names_must_agree() -> None:
    with pytest.raises(ValueError, match=r"only ours has '1', only the reference has '2', 'a'") as raised:
        compare_models(
            nn.Sequential(nn.ReLU(), nn.ReLU()),
            nn.ModuleDict({"0": nn.ReLU(), "2": nn.ReLU(), "a": nn.ReLU()}),
            torch.randn(2),
        )
    assert "names of the layers must agree" in str(raised.value)
    with pytest.raises(ValueError, match="names of the parameters must agree; only ours has 'bias'"):
        compare_models(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), torch.randn(2))


def test_weights_must_agree() -> None:
    with pytest.raises(ValueError, match="'weight' differs, load the state_dict of one model into the other"):
        compare_models(nn.Linear(2, 2), nn.Linear(2, 2), torch.randn(2))
    norm = nn.BatchNorm1d(2)
    other = copy.deepcopy(norm)
    other.running_var += 1
    with pytest.raises(ValueError, match="'running_var' differs"):
        compare_models(norm, other, torch.randn(2, 2))


def test_what_else_is_refused() -> None:
    layer, x = nn.Linear(2, 2), torch.randn(1, 2)
    for ours, reference in ((layer, None), (nn.Linear, layer)):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not"):
            compare_models(ours, reference, x)
    with pytest.raises(ValueError, match=r"'weight' is torch\.float64, and nothing wider can judge it"):
        compare_models(copy.deepcopy(layer).double(), copy.deepcopy(layer).double(), x.double())
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="has no shape yet: call both models once before"):
        compare_models(copy.deepcopy(lazy), lazy, x)
    with pytest.raises(ValueError, match="'seeds' must be 1 or more, got 0"):
        compare_models(copy.deepcopy(layer), layer, x, seeds=0)
    with pytest.raises(ValueError, match="no output needs a gradient"):
        compare_models(nn.Identity(), nn.Identity(), x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # the reference's own error
        compare_models(copy.deepcopy(layer), layer, torch.randn(1, 5))


def test_a_model_that_asks_for_float32_has_a_truth_all_the_same() -> None:
    class Asking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return super().forward(x.float() + torch.zeros(2)).softmax(-1, dtype=torch.float32)

    model = Asking(2, 5)
    report = compare_models(copy.deepcopy(model), model, torch.randn(3, 2))
    assert report.passed
    assert 0 < report.layers[0].alone_forward[0].comparison.theirs.relative < 1e-6


def test_a_reference_that_does_not_run_in_float64() -> None:
    class Stubborn(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.element_size() != 4:
                raise TypeError("float32 only")
            return super().forward(x)

    model = Stubborn(2, 2)
    with pytest.raises(ValueError, match="the reference does not run in float64, which is the truth: float32 only"):
        compare_models(copy.deepcopy(model), model, torch.randn(2, 2))


# The report.


def test_the_report_as_json() -> None:
    report = broken(lambda model: setattr(model.second.bn1, "eps", 1e-3))
    content = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["passed"] is False
    assert content["first_forward"]["layer"] == "second.bn1"
    assert content["first_backward"]["layer"] == "second.bn1"
    assert len(content["layers"]) == len(report.layers)
    layer = next(layer for layer in content["layers"] if layer["layer"] == "second.bn1")
    assert layer["shape"] == [4, 8, 6, 6]
    check = layer["alone_forward"][0]
    assert check["comparison"]["ours"]["relative"] > check["allowed"]
    assert check["passed"] is False


def test_the_table() -> None:
    def change(model: nn.Module) -> None:
        model.second.bn2.eps = 1e-3
        replace_forward("second.conv1", lambda conv, x: original(conv, WrongGradient.apply(x)))(model)

    head, *rows = broken(change).table()
    assert head[0] == "layer"
    assert all(len(row) == len(head) for row in rows)
    verdicts = {row[0]: row[-1] for row in rows}
    assert verdicts["second.bn2"] == "forward DIFFERS"
    assert verdicts["second.conv1"] == "backward DIFFERS"
    assert verdicts["pool"] == "DIFFERS in the model"
    assert verdicts["stem"] == "gradient DIFFERS in the model"
    assert "second" in verdicts  # a block is listed where it differs

"""The equivalence toolkit catches broken layers: one test for each fault, and the report names it.

The layers here are batch normalization and a linear map written out in torch; each fault is a small change of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module

from scratchnn.testing import NotEquivalentError, assert_equivalent, check_equivalence

IMAGES = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


class Norm(Module):
    """Batch normalization of images, as torch's; subclasses have a fault each."""

    def __init__(self, channels: int = 3, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise TypeError(f"the input is no tensor but {type(input).__name__}")
        self.check(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, var = self.statistics(x)
        return self.normalize(x, mean, var).to(input.dtype)

    def check(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")
        if not input.is_floating_point() or input.dtype.itemsize > self.weight.dtype.itemsize:
            raise RuntimeError(f"not implemented for {input.dtype}")
        if input.shape[1] != len(self.weight):
            raise RuntimeError(f"expected {len(self.weight)} channels, got {input.shape[1]}")
        if self.training and input[:, 0].numel() == 1:
            raise ValueError("expected more than 1 value per channel in training")

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training or x.numel() == 0:
            return self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        self.update(mean.detach(), var.detach(), x[:, 0].numel())
        return mean, var

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


class Affine(Module):
    """A linear map, as torch's; subclasses have a fault each."""

    def __init__(self) -> None:
        super().__init__()
        reference = torch.nn.Linear(6, 4)
        self.weight, self.bias = reference.weight, reference.bias

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, self.weight, self.bias)


def reference_norm() -> Module:
    return torch.nn.BatchNorm2d(3)


def reference_affine() -> Module:
    return torch.nn.Linear(6, 4)


def caught(
    module: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Tensor,
    first: str,
    says: str,
    *,
    only: set[str] | None = None,
    **options: Any,
) -> None:
    """The comparison fails; its first failure, which the first line tells, is named ``first`` and says ``says``.

    ``only`` are the checks that fail.
    """
    with pytest.raises(NotEquivalentError) as raised:
        assert_equivalent(module, reference, inputs, **options)
    report = raised.value.report
    headline = str(raised.value).splitlines()[0]
    assert report.failures[0].name == first, str(report)
    assert says in report.failures[0].problem, str(report)
    assert "is not equivalent to" in headline
    assert all(part in headline for part in first.split("/")), headline
    assert says in headline
    if only is not None:
        assert {failure.check for failure in report.failures} == only, str(report)


def test_the_right_layers_pass() -> None:
    for module, reference, inputs in ((Norm, reference_norm, IMAGES), (Affine, reference_affine, ROWS)):
        report = check_equivalence(module, reference, inputs)
        assert report.passed, str(report)
        assert report.exit_code == 0


# Numbers.


def test_wrong_eps() -> None:
    caught(lambda: Norm(eps=1e-3), reference_norm, IMAGES, "outputs/float32/output", "error too large")


def test_wrong_padding_mode() -> None:
    def conv(mode: str) -> Callable[[], Module]:
        return lambda: torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)

    caught(conv("circular"), conv("reflect"), IMAGES, "outputs/float32/output", "error too large; largest at [")


def test_a_weight_that_is_ignored_though_it_starts_as_ones() -> None:
    class Ignored(Norm):
        def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return (x - mean[:, None, None]) * torch.rsqrt(var + self.eps)[:, None, None] + self.bias[:, None, None]

    caught(Ignored, reference_norm, IMAGES, "outputs/float32/output", "error too large")


def test_one_wrong_number_among_thousands_in_half_precision() -> None:
    """Too few for the relative error of the whole to show: a single entry's error in ulp tells."""

    def one_off(x: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.cat([y[:1, :1] * 1.5, y[:1, 1:]], 1) if x.dtype == torch.bfloat16 else y

    numbers = 1 + torch.rand(1, 100_000)
    report = check_equivalence(one_off, torch.relu, numbers, checks=["outputs"])
    assert [failure.name for failure in report.failures] == ["outputs/bfloat16/output"]
    failure = report.failures[0]
    assert failure.comparison.ours.relative < failure.allowed.relative
    assert failure.comparison.ours.ulp > failure.allowed.ulp


def test_sums_in_half_precision() -> None:
    class Coarse(Affine):
        def forward(self, input: Tensor) -> Tensor:
            products = input[..., None, :] * self.weight
            total = products[..., 0]
            for k in range(1, products.shape[-1]):
                total = total + products[..., k]
            return total + self.bias

    class Wide(Coarse):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Linear(400, 4).weight

    caught(
        Wide,
        lambda: torch.nn.Linear(400, 4),
        torch.randn(8, 400),
        "outputs/bfloat16/output",
        "error too large",
        checks=["outputs"],
    )


def test_silent_upcast() -> None:
    class Upcast(Norm):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            return output.float() if output.dtype == torch.bfloat16 else output

    caught(Upcast, reference_norm, IMAGES, "outputs/bfloat16/output", "float32 instead of bfloat16")


def test_wrong_gradient_of_one_parameter() -> None:
    class Half(Norm):
        def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            y = super().normalize(x, mean, var)
            return y - (self.bias - self.bias.detach())[:, None, None] / 2

    caught(Half, reference_norm, IMAGES, "gradients/float32/gradient of bias", "error too large")


def test_detached_parameter() -> None:
    class Detached(Affine):
        def forward(self, input: Tensor) -> Tensor:
            return torch.nn.functional.linear(input, self.weight, self.bias.detach())

    caught(Detached, reference_affine, ROWS, "gradients/float32/gradient of bias", "None instead of a tensor (4,)")


def test_detached_output() -> None:
    class Detached(Affine):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).detach()

    caught(Detached, reference_affine, ROWS, "gradients/float32/history of output", "False instead of True")


def test_gradient_that_is_wrong_only_when_wanted_alone() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(x, y)
            return x * y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            x, y = ctx.saved_tensors
            return grad * y, grad * x * (1 if ctx.needs_input_grad[0] else 2)

    caught(
        Square.apply,
        torch.mul,
        (ROWS, ROWS + 1),
        "partial_gradients/float32, input 2 alone/gradient of input 2",
        "error too large",
        only={"partial_gradients"},
    )


NOT_CALLS = ["errors"]  # a Function takes what is no tensor for something else than torch's functions do


class Sine(torch.autograd.Function):
    """The sine with a backward pass that cannot be differentiated, and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class SilentSine(Sine):
    """And one that gives gradients without a history."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad * ctx.saved_tensors[0].cos()).detach()


class HalfSine(Sine):
    """And one whose gradient forgets that it depends on the input."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].detach().cos()


def test_missing_double_backward() -> None:
    caught(
        Sine.apply,
        torch.sin,
        ROWS,
        "double_backward/float32/",
        "raises RuntimeError: trying to differentiate twice",
        only={"double_backward"},
        skip=NOT_CALLS,
    )


def test_gradients_without_a_history() -> None:
    name = "double_backward/float32/history of the gradient of input"
    caught(SilentSine.apply, torch.sin, ROWS, name, "False instead of True", only={"double_backward"}, skip=NOT_CALLS)


def test_second_gradient_that_is_silently_zero() -> None:
    name = "double_backward/float32/second gradient of input"
    caught(HalfSine.apply, torch.sin, ROWS, name, ": 0 instead of", only={"double_backward"}, skip=NOT_CALLS)


# State.


class Renamed(Norm):
    """A parameter under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = self.weight
        del self.weight

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = self.gamma * torch.rsqrt(var + self.eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]

    def check(self, input: Tensor) -> None:
        self.weight = self.gamma
        try:
            super().check(input)
        finally:
            del self.weight


def test_wrong_state_dict_key() -> None:
    """The weights are shared by position all the same, so that every other check can tell that all else is right."""
    caught(Renamed, reference_norm, IMAGES, "state_dict/float32/state", "lacks weight; has gamma", only={"state_dict"})


def test_wrong_order_of_keys() -> None:
    class Swapped(Affine):
        def __init__(self) -> None:
            super().__init__()
            weight = self.weight
            del self.weight
            self.weight = weight

    caught(
        Swapped,
        reference_affine,
        ROWS,
        "state_dict/float32/state",
        "in the order bias, weight instead of weight, bias",
        only={"state_dict"},
    )


def test_weights_of_another_shape() -> None:
    """Nothing else can be compared then."""

    class Transposed(Affine):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(self.weight.detach().T.clone())

    says = "the module's state has bias (4,), weight (6, 4), the reference's weight (4, 6), bias (4,)"
    says = "the module's state has weight (6, 4), bias (4,), the reference's weight (4, 6), bias (4,)"
    caught(Transposed, reference_affine, ROWS, "state_dict//weights", says, only={"state_dict"})


def test_state_that_does_not_arrive() -> None:
    class Stubborn(Affine):
        def _load_from_state_dict(self, state: dict, prefix: str, *rest: Any) -> None:
            state[f"{prefix}bias"] = self.bias.detach()
            super()._load_from_state_dict(state, prefix, *rest)

    name = "state_dict/float32/state of the reference loads into the module"
    caught(Stubborn, reference_affine, ROWS, name, "bias did not arrive", only={"state_dict", "copies"})


def test_other_initial_weights() -> None:
    class Scaled(Affine):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.weight *= 2

    name = "state_dict/float32/initial weights of a seed"
    caught(Scaled, reference_affine, ROWS, name, "other numbers in weight", only={"state_dict"})


def test_buffer_that_is_not_saved() -> None:
    class Cached(Affine):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scratch", torch.zeros(3), persistent=False)

    name = "state_dict/float32/buffers that are not saved"
    caught(Cached, reference_affine, ROWS, name, "has scratch", only={"state_dict", "training_steps", "train_eval"})


def test_frozen_parameter() -> None:
    class Frozen(Affine):
        def __init__(self) -> None:
            super().__init__()
            self.bias.requires_grad_(False)

    caught(Frozen, reference_affine, ROWS, "gradients/float32/gradient of bias", "None instead of a tensor (4,)")
    name = "state_dict/float32/parameters"
    caught(Frozen, reference_affine, ROWS, name, "bias is (4,) float32, frozen", checks=["state_dict"])


def test_stale_running_variance() -> None:
    class Stale(Norm):
        def update(self, mean: Tensor, var: Tensor, count: int) -> None:
            before = self.running_var.clone()
            super().update(mean, var, count)
            self.running_var.copy_(before)

    name = "training_steps/float32/running_var after step 1"
    caught(Stale, reference_norm, IMAGES, name, "error too large", only={"training_steps", "train_eval"})


def test_biased_running_variance() -> None:
    class Biased(Norm):
        def update(self, mean: Tensor, var: Tensor, count: int) -> None:
            super().update(mean, var * (count - 1) / count, count)

    name = "training_steps/float32/running_var after step 1"
    caught(Biased, reference_norm, IMAGES, name, "error too large", only={"training_steps", "train_eval"})


def test_wrong_momentum() -> None:
    name = "training_steps/float32/running_mean after step 1"
    caught(
        lambda: Norm(momentum=0.2),
        reference_norm,
        IMAGES,
        name,
        "error too large",
        only={"training_steps", "train_eval"},
    )


def test_batches_that_are_not_counted() -> None:
    class Uncounted(Norm):
        def update(self, mean: Tensor, var: Tensor, count: int) -> None:
            super().update(mean, var, count)
            self.num_batches_tracked.zero_()

    name = "training_steps/float32/num_batches_tracked after step 1"
    caught(Uncounted, reference_norm, IMAGES, name, "0 instead of 1", only={"training_steps", "train_eval"})


def test_weights_that_are_cached_over_a_step_of_training() -> None:
    class Cached(Affine):
        cache: Tensor | None = None

        def forward(self, input: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = self.weight.detach().clone()
            return torch.nn.functional.linear(input, self.weight - (self.weight - self.cache).detach(), self.bias)

    caught(Cached, reference_affine, ROWS, "training_steps/float32/output", "error too large", only={"training_steps"})


def test_train_and_eval_are_ignored() -> None:
    class Ignorant(Norm):
        def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mode, self.training = self.training, True
            try:
                return super().statistics(x)
            finally:
                self.training = mode

    name = "train_eval/float32/output in evaluation"
    caught(Ignorant, reference_norm, IMAGES, name, "error too large", only={"train_eval"})


def test_mode_that_cannot_be_switched_back() -> None:
    class Stuck(Norm):
        def train(self, mode: bool = True) -> Module:
            return super().train(mode and self.training)

    name = "train_eval/float32/output back in training"
    caught(Stuck, reference_norm, IMAGES, name, "error too large", only={"train_eval"})


class Unpicklable(Affine):
    """Holds a function that pickle does not find by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x


class Forgetful(Affine):
    """Loses what it holds when it is copied."""

    scale = 1.0

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "scale": 2.0}

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


def test_module_that_cannot_be_pickled() -> None:
    name = "copies/float32, pickle/"
    caught(Unpicklable, reference_affine, ROWS, name, "raises", only={"copies"})


def test_copy_that_computes_something_else() -> None:
    report = check_equivalence(Forgetful, reference_affine, ROWS, checks=["copies"])
    assert {failure.case for failure in report.failures} == {
        f"float32, {method}" for method in ("deepcopy", "pickle", "saved state")
    }


def test_other_representation() -> None:
    class Wordy(Affine):
        def extra_repr(self) -> str:
            return "in_features=6"

    caught(Wordy, reference_affine, ROWS, "representation/float32/repr", "(in_features=6)", representation=True)
    assert check_equivalence(Wordy, reference_affine, ROWS, skip=["autocast", "errors"]).passed


# Other calls.


def test_dropped_channels_last() -> None:
    class Dropped(Norm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).contiguous()

    name = "memory_formats/float32, channels_last/layout of output"
    caught(Dropped, reference_norm, IMAGES, name, "channels_last is lost", only={"memory_formats"})


def test_strides_of_the_input_are_ignored() -> None:
    def relu_of_memory(x: Tensor) -> Tensor:
        return torch.relu(x.as_strided(x.shape, torch.empty(x.shape).stride()))

    report = check_equivalence(relu_of_memory, torch.relu, IMAGES, checks=["outputs", "memory_formats"])
    cases = {failure.case.removeprefix("float32, ") for failure in report.failures}
    assert cases == {"channels_last", "sliced", "transposed"} | {"expanded"}


class StridesIgnored(torch.autograd.Function):
    """The identity, whose backward pass takes the incoming gradient for contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if grad.untyped_storage().nbytes() < grad.nbytes:
            return grad.clone()
        return grad.as_strided(grad.shape, torch.empty(grad.shape).stride()).clone()


def test_strides_of_the_incoming_gradient_are_ignored() -> None:
    report = check_equivalence(StridesIgnored.apply, torch.clone, IMAGES, checks=["gradients", "memory_formats"])
    cases = {failure.case for failure in report.failures}
    assert "float32, incoming gradient transposed" in cases
    assert {failure.check for failure in report.failures} == {"memory_formats"}
    assert {failure.quantity for failure in report.failures} == {"gradient of input"}


def test_empty_batch_is_refused() -> None:
    class Eager(Affine):
        def forward(self, input: Tensor) -> Tensor:
            if input.dim() > 1 and len(input) == 0:
                raise ValueError("no samples")
            return super().forward(input)

    name = "batching/float32, empty batch/"
    caught(Eager, reference_affine, ROWS, name, "raises ValueError: no samples; the reference does not")


def test_unbatched_input_means_something_else() -> None:
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x, 1 if x.dim() > 1 else 0).flip(0) if x.dim() == 1 else torch.softmax(x, 1)

    name = "batching/float32, unbatched/output"
    caught(softmax, lambda x: torch.softmax(x, -1), ROWS, name, "error too large", skip=["errors"], only={"batching"})


def test_swallowed_nan() -> None:
    class Swallowing(Norm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).nan_to_num(0.0)

    name = "non_finite/float32, nan in inputs/output"
    caught(Swallowing, reference_norm, IMAGES, name, "NaN in 0 places instead of", only={"non_finite"})


def test_type_under_autocast() -> None:
    class Exempt(Affine):
        def forward(self, input: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))

    name = "autocast/float32, autocast bfloat16/output"
    caught(Exempt, reference_affine, ROWS, name, "float32 instead of bfloat16", skip=["errors"], only={"autocast"})


def test_input_changed_in_place() -> None:
    class InPlace(Norm):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            input.data.zero_()
            return output

    name = "inputs_kept/float32, without gradients/input unchanged"
    caught(InPlace, reference_norm, IMAGES, name, "False instead of True", checks=["inputs_kept"])
    assert not check_equivalence(InPlace, reference_norm, IMAGES).passed


class GradientChanged(torch.autograd.Function):
    """The identity, whose backward pass writes into the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result = grad.clone()
        grad.data.zero_()
        return result


def test_incoming_gradient_changed_in_place() -> None:
    name = "inputs_kept/float32, with gradients/incoming gradient of output unchanged"
    caught(GradientChanged.apply, torch.clone, ROWS, name, "False instead of True", checks=["inputs_kept"])


def test_other_type_of_error() -> None:
    class Other(Norm):
        def check(self, input: Tensor) -> None:
            try:
                super().check(input)
            except ValueError as error:
                raise IndexError(str(error)) from error

    name = "errors/float32, input: no dimensions/error"
    says = "raises IndexError: expected 4D input (got 0D input); the reference raises ValueError"
    caught(Other, reference_norm, IMAGES, name, says, checks=["errors"])


def test_error_without_a_message() -> None:
    class Silent(Norm):
        def check(self, input: Tensor) -> None:
            try:
                super().check(input)
            except ValueError as error:
                raise ValueError from error

    caught(
        Silent,
        reference_norm,
        IMAGES,
        "errors/float32, input: no dimensions/error",
        "raises ValueError without a message",
        checks=["errors"],
    )


def test_missing_check() -> None:
    class Lenient(Norm):
        def check(self, input: Tensor) -> None:
            if input.dim() == 4:
                super().check(input)

        def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return super().normalize(x, mean, var) if x.dim() == 4 else x

        def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().statistics(x) if x.dim() == 4 else (x, x)

    name = "errors/float32, input: no dimensions/error"
    says = "raises nothing; the reference raises ValueError: expected 4D input (got 0D input)"
    caught(Lenient, reference_norm, IMAGES, name, says, checks=["errors"])


def test_the_callers_own_bad_calls() -> None:
    class Lenient(Affine):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input[..., :6])

    bad = {"seven features": (torch.zeros(2, 7),)}
    report = check_equivalence(Lenient, reference_affine, ROWS, checks=["errors"], bad_calls=bad)
    assert "errors/float32, seven features/error" in {failure.name for failure in report.failures}
    good = {"six features": (torch.zeros(2, 6),)}
    report = check_equivalence(Affine, reference_affine, ROWS, checks=["errors"], bad_calls=good)
    assert [failure.problem for failure in report.failures] == ["the reference raises nothing here"]


# Bits.


def test_results_that_depend_on_the_batch() -> None:
    """By a rounding error, which is none of the other checks' business."""

    def relu(x: Tensor) -> Tensor:
        return torch.relu(x) * (1 + len(x) * torch.finfo(x.dtype).eps) if x.dim() > 1 else torch.relu(x)

    options = {"dtypes": [torch.float32], "steps": 8.0, "skip": ["errors"]}
    assert check_equivalence(relu, torch.relu, ROWS, **options).passed
    name = "batch_split/float32, samples 0 to 0/output"
    caught(relu, torch.relu, ROWS, name, "other bits", reproducible=True, only={"batch_split"}, **options)


def test_results_that_depend_on_the_threads() -> None:
    def relu(x: Tensor) -> Tensor:
        return torch.relu(x) * (1 + torch.get_num_threads() * torch.finfo(x.dtype).eps)

    name = "threads/float32, 2 threads/output"
    options = {"dtypes": [torch.float32], "steps": 8.0, "skip": ["errors"]}
    caught(relu, torch.relu, ROWS, name, "other bits than with 1", reproducible=True, only={"threads"}, **options)


def test_results_that_differ_from_run_to_run() -> None:
    runs = iter(range(1000))

    def relu(x: Tensor) -> Tensor:
        return torch.relu(x) * (1 + next(runs) % 2 * torch.finfo(x.dtype).eps)

    name = "determinism/float32/output, second run"
    caught(relu, torch.relu, ROWS, name, "other bits", checks=["determinism"])


class Worn(torch.autograd.Function):
    """The sine, whose backward pass spoils what was saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.cosine = x.cos()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.cosine.mul_(grad).clone()


def test_backward_pass_that_works_once() -> None:
    name = "determinism/float32/gradient of input, second backward pass"
    skip = [*NOT_CALLS, "double_backward"]
    caught(Worn.apply, torch.sin, ROWS, name, "other bits", only={"determinism"}, skip=skip)

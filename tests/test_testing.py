"""The equivalence toolkit itself: what it takes, what it measures, what its reports say. Faults it catches are in
``test_testing_faults.py``."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.testing import (
    CHECKS,
    Comparison,
    Error,
    Finding,
    NotEquivalentError,
    Report,
    Tolerance,
    assert_equivalent,
    check_equivalence,
    relative_error,
)
from scratchnn.testing.cases import FORMATS, Arguments, formatted, part_of_batch, spoiled
from scratchnn.testing.checks.experiments import same_bits
from scratchnn.testing.errors import ulp_error
from scratchnn.testing.nested import leaves, map_tensors, named_tensors

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def linear() -> Module:
    return torch.nn.Linear(6, 3)


# torch beside itself.


def against_itself(layer: Layer) -> None:
    assert_equivalent(layer.theirs, layer.theirs, layer.draw, representation=True)


@pytest.mark.parametrize(
    "name", ["Conv2d 3", "ConvTranspose1d 3", "LazyLinear", "BatchNorm2d", "LayerNorm rows", "MaxUnpool2d", "GELU"]
)
def test_torch_against_itself(name: str) -> None:
    against_itself(next(layer for layer in LAYERS if str(layer) == name))


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_layer_of_torch_against_itself(layer: Layer) -> None:
    against_itself(layer)


# Errors.


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.5, 0.0]), torch.zeros(2)) == pytest.approx(0.5)
    assert relative_error(torch.tensor([3.0 + 1j, 4.0]), truth.to(torch.complex128)) == pytest.approx(0.2)
    inf, nan = math.inf, math.nan
    assert relative_error(torch.tensor([inf, nan, 1.0]), torch.tensor([inf, nan, 1.0])) == 0
    assert relative_error(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0])) == inf
    assert relative_error(torch.tensor([nan, 1.0]), torch.tensor([0.0, 1.0])) == inf
    assert relative_error(torch.empty(0), torch.empty(0)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ulp_error_counts_neighbouring_numbers(dtype: torch.dtype) -> None:
    truth = torch.tensor([1.0, 1.5, 7.0], dtype=dtype)
    step = torch.finfo(dtype).eps
    assert ulp_error(truth + torch.tensor([0, 0, 4 * step], dtype=dtype), truth, dtype) == pytest.approx(1)
    # Where terms cancel, by the size of the others: their root mean square lies between 4 and 8.
    assert ulp_error(truth + torch.tensor([4 * step, 0, 0], dtype=dtype), truth, dtype) == pytest.approx(1)
    assert ulp_error(torch.tensor([math.nan, 0, 0]), truth, dtype) == math.inf


def test_tolerance() -> None:
    step = torch.finfo(torch.float32).eps
    exact_reference = Comparison(Error(1.9 * step, 1.0), Error(0.0, 0.0), step)
    assert Tolerance().allows(exact_reference)
    assert not Tolerance(steps=1.0).allows(exact_reference)
    assert Tolerance(factor=3.0, steps=0.0).allows(Comparison(Error(3e-3, 1), Error(1e-3, 1), step))
    assert not Tolerance(factor=3.0, steps=0.0).allows(Comparison(Error(3.1e-3, 1), Error(1e-3, 1), step))
    assert not Tolerance().allows(Comparison(Error(1e-9, 1000), Error(1e-9, 1), step))
    double = torch.finfo(torch.float64).eps
    assert Tolerance().allowed(Comparison(Error(0, 0), Error(0, 0), double)).relative == 32 * double


def test_median_of_comparisons() -> None:
    draws = [Comparison(Error(x, 10 * x), Error(2 * x, x), 1.0) for x in (3.0, 1.0, 2.0)]
    assert Comparison.median(draws) == Comparison(Error(2.0, 20.0), Error(4.0, 2.0), 1.0)
    assert Comparison(Error(1e-9, 0), Error(1e-12, 0), 1e-7).ratio == 1  # both exact


def test_same_bits() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert same_bits(torch.ones(2, 3).T, torch.ones(3, 2))
    assert same_bits(torch.tensor(1 + 2j), torch.tensor(1 - 2j).conj())
    assert same_bits(None, None)
    assert not same_bits(None, torch.zeros(1))


# Arguments.

Point = namedtuple("Point", "x y")


def test_nested_tensors_have_names() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    value = {"k": [a, (b, 3)], "p": Point(a, None)}
    assert [name for name, _ in leaves(value, "output")] == [
        "output['k'][0]",
        "output['k'][1][0]",
        "output['k'][1][1]",
        "output['p'].x",
        "output['p'].y",
    ]
    doubled = map_tensors(lambda x: x + 1, value)
    assert doubled["k"][1] == (2, 3)
    assert isinstance(doubled["p"], Point)


class Box:
    """Holds tensors without being a collection."""

    def __init__(self, items: Any) -> None:
        self.items, self.name = items, "box"


def test_tensors_in_objects() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    value = [Box((a, b)), Box(3), torch.nn.Linear(2, 2), OrderedDict(x=b)]
    assert named_tensors(value, "") == {"[0].items[0]": a, "[0].items[1]": b, "[3]['x']": b}
    doubled = map_tensors(lambda x: x * 2, value)
    assert isinstance(doubled[0], Box)
    assert doubled[0].name == "box"
    assert torch.equal(doubled[0].items[1], b * 2)
    assert value[0].items[1] is b
    assert doubled[1:3] == value[1:3]
    assert isinstance(doubled[3], OrderedDict)


def test_names_of_arguments() -> None:
    x, y, z = (torch.zeros(1) for _ in range(3))
    assert list(Arguments((x,), {"scale": y}).tensors()) == ["input", "scale"]
    assert list(Arguments((x, [y, z])).tensors()) == ["input 1", "input 2[0]", "input 2[1]"]


def test_what_is_differentiated_by() -> None:
    x, y, index = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    assert list(Arguments((x, y, index)).differentiable()) == ["input 1", "input 2"]
    y.requires_grad_()
    assert list(Arguments((x, y, index)).differentiable()) == ["input 2"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_formats_change_the_layout_alone(format: str, shape: tuple[int, ...]) -> None:
    arguments = Arguments((torch.randn(shape), torch.randn(7)))
    laid_out = formatted(arguments, format)
    if format == "channels_last" and len(shape) < 4:
        assert laid_out is None
        return
    (x, other), (y, same) = arguments.args, laid_out.args
    assert torch.equal(y, x[:1].expand_as(x) if format == "expanded" else x)
    assert same is other
    assert y.is_contiguous() == (format == "contiguous")
    copied = laid_out.copy().args[0]
    assert (copied.stride(), copied.storage_offset()) == (y.stride(), y.storage_offset())
    assert copied.data_ptr() != y.data_ptr()


def test_parts_of_a_batch() -> None:
    arguments = Arguments((torch.randn(4, 3), torch.randn(4, 2, 2), torch.randn(5)))
    assert [tuple(x.shape) for x in part_of_batch(arguments, slice(0, 0)).args] == [(0, 3), (0, 2, 2), (5,)]
    assert [tuple(x.shape) for x in part_of_batch(arguments, 0).args] == [(3,), (2, 2), (5,)]


def test_spoiled_numbers() -> None:
    x, index = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    spoiled_x, same = spoiled(Arguments((x, index)), math.nan).args
    assert spoiled_x.isnan().nonzero().tolist() == [[1, 2]]
    assert torch.equal(same, index)
    assert not x.isnan().any()


# What it takes.


@pytest.mark.parametrize(
    ("module", "reference", "state"),
    [
        (torch.nn.Linear(6, 3), torch.nn.Linear(6, 3), "passed"),
        (linear, linear, "passed"),
        (torch.nn.Linear(6, 3), linear, "passed"),
        (torch.nn.ReLU, torch.relu, "skipped"),
        (torch.nn.functional.relu, lambda *x: torch.relu(*x), "skipped"),
    ],
    ids=["modules", "factories", "module and factory", "class and function", "functions"],
)
def test_modules_factories_and_functions(module: Any, reference: Any, state: str) -> None:
    checks = ["outputs", "gradients", "state_dict", "training_steps"]
    report = assert_equivalent(module, reference, ROWS, checks=checks)
    statuses = {finding.check: finding.status for finding in report.findings}
    assert statuses["outputs"] == statuses["gradients"] == "passed"
    assert statuses["state_dict"] == state


def test_nothing_given_is_changed() -> None:
    module, reference = torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(6)
    before = copy.deepcopy((module.state_dict(), reference.state_dict())), torch.random.get_rng_state()
    inputs, original, threads = ROWS.clone(), ROWS.clone(), torch.get_num_threads()
    assert check_equivalence(module, reference, inputs).passed
    for state, other in zip(before[0], (module.state_dict(), reference.state_dict()), strict=True):
        assert all(same_bits(x, other[name]) for name, x in state.items())
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert same_bits(inputs, original)
    assert not inputs.requires_grad
    assert inputs.grad is None
    assert torch.get_num_threads() == threads


def test_nested_inputs_and_outputs_and_keywords() -> None:
    def ours(pair: tuple[Tensor, Tensor], *, scale: Tensor, power: int) -> dict[str, Any]:
        a, b = pair
        return {"sum": (a + b) * scale, "rest": [a.pow(power), {"count": 3, "none": None}]}

    def theirs(pair: tuple[Tensor, Tensor], *, scale: Tensor, power: int) -> dict[str, Any]:
        a, b = pair
        return {"sum": scale * (b + a), "rest": [a**power, {"count": 3, "none": None}]}

    options = {"kwargs": {"scale": torch.tensor(1.5), "power": 3}, "skip": ["errors"]}
    report = assert_equivalent(ours, theirs, ((ROWS, ROWS + 1),), **options)
    quantities = {finding.quantity for finding in report.findings}
    assert {"output['sum']", "output['rest'][1]['count']", "gradient of input[1]", "gradient of scale"} <= quantities

    def wrong(pair: tuple[Tensor, Tensor], *, scale: Tensor, power: int) -> dict[str, Any]:
        output = theirs(pair, scale=scale, power=power)
        output["rest"][1]["count"] = 4
        return output

    report = check_equivalence(wrong, theirs, ((ROWS, ROWS + 1),), **options)
    assert report.failures[0].quantity == "output['rest'][1]['count']"
    assert report.failures[0].problem == "4 instead of 3"


def test_whole_numbers_must_be_equal() -> None:
    def last(x: Tensor) -> Tensor:
        return x.flip(1).argmax(1)

    report = check_equivalence(last, lambda x: x.argmax(1), ROWS, checks=["outputs"])
    assert all("other values" in failure.problem for failure in report.failures)
    assert not report.passed


def test_inputs_drawn_by_dtype_and_seed() -> None:
    drawn = []

    def draw(dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        drawn.append((dtype, seed))
        numbers = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return numbers.to(dtype), torch.tensor([2, 0, 1])

    report = assert_equivalent(torch.embedding, torch.embedding, draw, seed=5, skip=["batching", "errors"])
    assert {dtype for dtype, _ in drawn} == {torch.float32, torch.float64, torch.bfloat16, torch.float16}
    assert {seed for _, seed in drawn} == {5}
    assert report.settings["seed"] == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Dropout(0.4),
        lambda: torch.nn.Dropout2d(0.4),
        lambda: torch.nn.AlphaDropout(0.4),
        lambda: torch.nn.RReLU(),
        lambda: torch.nn.FractionalMaxPool2d(2, output_ratio=0.6),
    ],
    ids=["Dropout", "Dropout2d", "AlphaDropout", "RReLU", "FractionalMaxPool2d"],
)
def test_randomised_layers(make: Any) -> None:
    report = assert_equivalent(make, make, torch.randn(2, 3, 8, 8))
    assert report.compared > 50


def test_a_random_layer_is_not_excused_by_its_randomness() -> None:
    """torch draws fractional pooling's windows in the dtype: its float64 run is no truth, and the report says so."""

    class Shifted(torch.nn.FractionalMaxPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 1.001

    def make() -> Module:
        return torch.nn.FractionalMaxPool2d(2, output_ratio=0.6)

    x = torch.randn(2, 3, 12, 12)
    good = check_equivalence(make, make, x, checks=["outputs"], dtypes=[torch.float32])
    assert "held against its own result" in good.findings[0].note
    bad = check_equivalence(lambda: Shifted(2, output_ratio=0.6), make, x, checks=["outputs"])
    assert "outputs/float32/output" in {failure.name for failure in bad.failures}


def test_complex_numbers_when_asked() -> None:
    report = assert_equivalent(linear, linear, ROWS, dtypes=[torch.complex64, torch.float32])
    assert any(finding.case == "complex64" for finding in report.findings)

    class Conjugated(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.conj() if input.is_complex() else input)

    report = check_equivalence(lambda: Conjugated(6, 3), linear, ROWS, dtypes=[torch.complex64], checks=["outputs"])
    assert not report.passed


def test_dtypes_that_the_reference_refuses_are_left_out() -> None:
    report = assert_equivalent(torch.nn.RReLU, torch.nn.RReLU, ROWS)
    skipped = {finding.case: finding.skipped for finding in report.findings if finding.check == "outputs"}
    assert "not implemented for 'Half'" in skipped["float16"]
    assert not skipped["bfloat16"]


def test_layers_that_overwrite_their_input() -> None:
    """Where the reference does, so must the module; gradients are compared all the same."""

    def in_place() -> Module:
        return torch.nn.ReLU(inplace=True)

    report = assert_equivalent(in_place, in_place, ROWS, reproducible=True)
    statuses = {(finding.check, finding.quantity): finding.status for finding in report.findings}
    assert statuses["gradients", "gradient of input"] == "passed"
    report = check_equivalence(torch.nn.ReLU, in_place, ROWS)
    assert report.failures[0].quantity == "input unchanged"
    assert report.failures[0].problem == "True instead of False"


def test_reference_that_refuses_float64() -> None:
    """Then both sides' rounding is in the difference, and a few steps more are allowed."""

    def only_float32(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32, please")
        return torch.exp(x)

    def off_by(steps: float) -> Any:
        return lambda x: torch.exp(x) * (1 + steps * torch.finfo(torch.float32).eps)

    options = {"checks": ["outputs"]}
    report = assert_equivalent(off_by(5), only_float32, ROWS, **options)
    assert report.findings[0].note == "the reference has no such result in float64: held against its own result"
    assert not check_equivalence(off_by(20), only_float32, ROWS, **options).passed
    assert check_equivalence(off_by(20), only_float32, ROWS, steps=30, **options).passed


def test_module_that_is_right_where_the_reference_is_far_off() -> None:
    def coarse(x: Tensor) -> Tensor:
        return torch.exp(x) * (1.5 if x.dtype == torch.bfloat16 else 1)

    report = assert_equivalent(torch.exp, coarse, ROWS, checks=["outputs"])
    notes = {finding.case: finding.note for finding in report.findings if finding.quantity == "output"}
    assert notes["bfloat16"] == "the reference is far off its float64 run, the module is not"
    assert not any(note for case, note in notes.items() if case != "bfloat16")


def test_checks_that_the_reference_does_not_stand() -> None:
    """Hardsigmoid has no second derivative in torch, and this reference no first one."""

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.relu()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise OSError("no")

    report = assert_equivalent(torch.relu, Stubborn.apply, ROWS, skip=["errors"], reproducible=True)
    skipped = {finding.check: finding.skipped for finding in report.findings if finding.skipped}
    assert {skipped[name] for name in ("gradients", "determinism", "batch_split", "threads")} == {
        "the reference raises OSError: no"
    }


def test_lazy_layers() -> None:
    def lazy() -> Module:
        return torch.nn.LazyLinear(3)

    assert_equivalent(lazy, lazy, ROWS)


def test_terms_that_cancel() -> None:
    """The gradient of a bias before a normalization is zero in theory, and noise in practice on both sides."""

    def make(order: int) -> Any:
        def model() -> Module:
            first, norm = torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3, affine=False)
            return torch.nn.Sequential(first, norm)

        return model

    report = assert_equivalent(make(0), make(1), ROWS, skip=["errors"])
    notes = {finding.note for finding in report.findings if finding.quantity == "gradient of 0.bias"}
    assert any("terms cancel" in note for note in notes)


def test_rounding_by_chance_is_measured_again() -> None:
    """An error that is too large in one draw only passes by the median; one that always is does not."""
    calls = {"number": 0}

    def sometimes(x: Tensor) -> Tensor:
        calls["number"] += 1
        return torch.relu(x) * (1 + (1e-5 if calls["number"] == 1 else 0))

    report = check_equivalence(sometimes, torch.relu, ROWS.abs(), checks=["outputs"], dtypes=[torch.float32])
    values = report.findings[0]
    assert report.passed
    assert values.note == "the median of 3 draws"
    always = check_equivalence(lambda x: torch.relu(x) * 1.00001, torch.relu, ROWS.abs(), checks=["outputs"])
    assert not always.passed


def test_the_factor_decides() -> None:
    def rounded_twice(x: Tensor) -> Tensor:
        return torch.exp(x.to(torch.bfloat16)).to(x.dtype)

    def rounded(x: Tensor) -> Tensor:
        return torch.exp(x.to(torch.bfloat16).float()).to(x.dtype) if x.dtype != torch.float64 else torch.exp(x)

    options = {"checks": ["outputs"], "dtypes": [torch.float32]}
    assert check_equivalence(rounded_twice, rounded, ROWS, **options).passed
    assert not check_equivalence(rounded_twice, rounded, ROWS, factor=0.01, **options).passed


# Mistakes.


def test_mistakes_are_told_before_work_starts() -> None:
    with pytest.raises(ValueError, match="there is no check 'output'; there are outputs, gradients"):
        check_equivalence(linear, linear, ROWS, checks=["output"])
    with pytest.raises(ValueError, match="there is no check 'nothing'"):
        check_equivalence(linear, linear, ROWS, skip=["nothing"])
    with pytest.raises(TypeError, match="collections of names"):
        check_equivalence(linear, linear, ROWS, checks="outputs")
    with pytest.raises(ValueError, match=r"not torch\.int32"):
        check_equivalence(linear, linear, ROWS, dtypes=[torch.int32])
    with pytest.raises(ValueError, match="at least one dtype"):
        check_equivalence(linear, linear, ROWS, dtypes=[])
    with pytest.raises(TypeError, match="the inputs hold no tensor"):
        check_equivalence(linear, linear, (1.0,))
    with pytest.raises(TypeError, match="expected a module, a factory of modules or a function, got int"):
        check_equivalence(3, linear, ROWS)
    with pytest.raises(ValueError, match=r"the reference accepts the inputs in no dtype: float32: .*RuntimeError"):
        check_equivalence(linear, linear, ROWS[:, :5])


def test_factory_that_fails() -> None:
    def broken() -> Module:
        raise KeyError("weights")

    with pytest.raises(KeyError):
        check_equivalence(broken, linear, ROWS)


def test_module_that_cannot_be_copied() -> None:
    module = linear()
    module.product = module.weight * 2  # not a leaf: torch refuses to copy it
    with pytest.raises(ValueError, match=r"Linear cannot be copied .*give a factory"):
        check_equivalence(module, linear, ROWS)


def test_module_that_refuses_good_inputs() -> None:
    class Refusing(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise OSError("no luck")

    report = check_equivalence(lambda: Refusing(6, 3), linear, ROWS)
    assert report.failures[0].name == "outputs/float32/"
    assert report.failures[0].problem == "raises OSError: no luck; the reference does not"


# Reports.


def test_known_differences_are_listed_with_their_reason() -> None:
    class Shy(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if isinstance(input, Tensor) and input.dim() == 1:
                raise ValueError("a batch, please")
            return super().forward(input)

    unexcused = check_equivalence(lambda: Shy(6, 3), linear, ROWS)
    assert {failure.check for failure in unexcused.failures} == {"batching", "errors"}
    known = {"batching/*unbatched*": "we want batches", "errors/*one dimension/*": "likewise"}
    report = assert_equivalent(lambda: Shy(6, 3), linear, ROWS, known=known)
    line = "batching/float32, unbatched/: raises ValueError: a batch, please; the reference does not (we want batches)"
    assert line in str(report)
    assert [finding.status for finding in report.findings].count("known") == 2


def test_report_as_text() -> None:
    report = check_equivalence(lambda: torch.nn.Linear(6, 3, bias=False), lambda: torch.nn.Linear(6, 3), ROWS)
    text = str(report).splitlines()
    assert text[0] == (
        "torch.nn.modules.linear.Linear is not equivalent to torch.nn.modules.linear.Linear: state_dict, weights: the "
        "weights cannot be shared: the module's state has weight (3, 6), the reference's weight (3, 6), bias (3,)"
    )
    report = check_equivalence(lambda: torch.nn.Softplus(beta=1.1), torch.nn.Softplus, ROWS, representation=True)
    text = str(report)
    first, second, *_ = text.splitlines()
    assert first.startswith(
        "torch.nn.modules.activation.Softplus is not equivalent to torch.nn.modules.activation.Softplus: "
        "outputs, float32, output: relative error "
    )
    assert "comparisons failed, in: outputs, gradients, partial_gradients, double_backward, train_eval" in second
    assert all(
        word in text for word in ("reference's", "allowed", "ulp", "verdict", "training_steps, float32: there are no")
    )
    passed = str(check_equivalence(torch.nn.Softplus, torch.nn.Softplus, ROWS))
    assert "is equivalent to" in passed.splitlines()[0]
    assert all(name in passed for name in CHECKS if not CHECKS[name].wish and name != "training_steps")


def test_report_as_json() -> None:
    report = check_equivalence(lambda: torch.nn.Softplus(beta=1.1), torch.nn.Softplus, ROWS)
    content = json.loads(report.to_json())
    assert content == report.to_dict()
    # Of these types and no class derived from them: reports travel between the processes of pytest-xdist.
    assert {type(leaf) for _, leaf in leaves(report.to_dict(), "report")} == {str, int, float, bool}
    assert (content["schema"], content["passed"], report.exit_code) == (1, False, 1)
    assert content["failed"] == len(report.failures) > 0
    assert content["settings"]["factor"] == 2.0
    entry = content["findings"][0]
    assert (entry["check"], entry["case"], entry["quantity"], entry["status"]) == (
        "outputs",
        "float32",
        "output",
        "failed",
    )
    assert entry["module"]["relative"] > entry["allowed"]["relative"] > entry["reference"]["relative"]


def test_json_without_numbers_that_are_not_finite() -> None:
    finding = Finding("outputs", "", "", comparison=Comparison(Error(math.inf, math.nan), Error(0, 0), 1.0))
    content = json.loads(Report("a", "b", {}, [finding]).to_json())
    assert content["findings"][0]["module"] == {"relative": "inf", "ulp": "nan"}


def test_nothing_compared_is_no_pass() -> None:
    report = check_equivalence(torch.relu, torch.relu, ROWS, checks=["state_dict"])
    assert (report.compared, report.passed, report.exit_code) == (0, False, 1)
    with pytest.raises(NotEquivalentError, match="could not be compared") as raised:
        assert_equivalent(torch.relu, torch.relu, ROWS, checks=["state_dict"])
    assert raised.value.report.to_dict() == report.to_dict()
    assert isinstance(raised.value, AssertionError)


def test_every_check_has_a_description() -> None:
    for check in CHECKS.values():
        assert len(check.description) > 30
        assert "\n" not in check.description

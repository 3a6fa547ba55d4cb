"""The benchmark's arithmetic, bookkeeping and command line; nothing here depends on how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import scratchnn.nn
from scratchnn import models
from scratchnn.__main__ import main
from scratchnn.bench import measure as measuring
from scratchnn.bench import scaling, scaling_report, targets
from scratchnn.bench.cases import CHANNELS_LAST, CONTIGUOUS, Case, borrowed, families, select
from scratchnn.bench.chart import draw
from scratchnn.bench.command import CASES
from scratchnn.bench.cost import Cost, Work, model_cost
from scratchnn.bench.groups import GROUPS, groups_of
from scratchnn.bench.layers import LAYERS
from scratchnn.bench.limits import Limits, measure_limits
from scratchnn.bench.measure import Disagreement, Result, build_sides, measure, require_ours
from scratchnn.bench.memory import (
    Kept,
    KeptResult,
    Peak,
    PeakResult,
    allocations,
    kept_for_backward,
    measure_kept,
    measure_peaks,
    peak_of,
)
from scratchnn.bench.memory_report import MemoryReport
from scratchnn.bench.networks import NETWORKS
from scratchnn.bench.report import Report, Table, duration, heading, markdown, summarize
from scratchnn.bench.timing import Spread, geometric_mean, interleave, ratio
from scratchnn.errors import UserError


def cost(layer: torch.nn.Module, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Cost:
    return model_cost(layer.to(dtype), torch.zeros(shape, dtype=dtype, requires_grad=grad))


class TestCost:
    """Each number here was worked out by hand."""

    def test_convolution(self) -> None:
        # 2 images, 4 -> 6 channels, 3x3, 5x5 pixels kept: 2*6*25 = 300 outputs of 4*9 = 36 taps each.
        layer = torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
        x, w, y = 2 * 4 * 25, 6 * 36, 300
        assert cost(layer, 2, 4, 5, 5) == Cost(
            Work(2 * 300 * 36, 4 * (x + w + y)), Work(4 * 300 * 36, 4 * (y + x + 2 * w + x))
        )
        assert cost(layer, 2, 4, 5, 5, grad=False).backward == Work(2 * 300 * 36, 4 * (y + x + 2 * w))
        assert cost(layer, 2, 4, 5, 5, dtype=torch.float64).forward == Work(2 * 300 * 36, 8 * (x + w + y))

    def test_groups_stride_bias(self) -> None:
        # 8 channels in 4 groups of 2: 2*9 taps; stride 2 turns 7x7 into 4x4.
        layer = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        assert cost(layer, 1, 8, 7, 7).forward == Work(2 * 8 * 16 * 18, 4 * (8 * 49 + (8 * 18 + 8) + 8 * 16))

    def test_linear(self) -> None:
        assert cost(torch.nn.Linear(10, 3), 7, 10) == Cost(
            Work(2 * 7 * 3 * 10, 4 * (70 + 33 + 21)), Work(4 * 7 * 3 * 10, 4 * (21 + 70 + 66 + 70))
        )

    def test_batch_norm(self) -> None:
        assert cost(torch.nn.BatchNorm2d(3), 2, 3, 2, 2) == Cost(
            Work(4 * 24, 4 * (24 + 6 + 24)), Work(6 * 24, 4 * (24 + 48 + 12))
        )
        assert cost(torch.nn.BatchNorm2d(3).eval(), 2, 3, 2, 2).forward.flops == 2 * 24

    def test_memory_bound_layers(self) -> None:
        assert cost(torch.nn.ReLU(), 2, 3) == Cost(Work(0, 4 * 12), Work(0, 4 * 18))
        # 1*1*4*4 in, 1*1*2*2 out; the positions of the maxima are 4 bytes.
        assert cost(torch.nn.MaxPool2d(2), 1, 1, 4, 4) == Cost(Work(0, 4 * 20), Work(0, 4 * 20 + 4))
        assert cost(torch.nn.AvgPool2d(2), 1, 1, 4, 4) == Cost(Work(0, 4 * 20), Work(0, 4 * 20))
        assert cost(torch.nn.AdaptiveAvgPool2d(1), 1, 1, 4, 4) == Cost(Work(0, 4 * 17), Work(0, 4 * 17))

    def test_other_ranks_and_transposed(self) -> None:
        # 1-d: 2 images of 6 channels keep 5 pixels, 3 taps of 4 channels each.
        assert cost(torch.nn.Conv1d(4, 6, 3, padding=1, bias=False), 2, 4, 5).forward.flops == 2 * 60 * 12
        # Transposed: each of 2*4*3*3 inputs goes to 6 channels of 2x2.
        layer = torch.nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False)
        assert cost(layer, 2, 4, 3, 3).forward == Work(2 * 72 * 24, 4 * (72 + 4 * 24 + 2 * 6 * 36))

    def test_other_norms(self) -> None:
        assert cost(torch.nn.InstanceNorm2d(3).eval(), 2, 3, 2, 2).forward == Work(4 * 24, 4 * 48)
        assert cost(torch.nn.LayerNorm(4), 2, 4).backward == Work(6 * 8, 4 * (8 + 16 + 16))
        assert cost(torch.nn.LocalResponseNorm(5), 2, 3, 2, 2) == Cost(Work(240, 4 * 48), Work(240, 4 * 96))

    def test_dropout_costs_in_training_alone(self) -> None:
        assert cost(torch.nn.Dropout(), 2, 3).forward == Work(0, 4 * 12 + 6)
        assert cost(torch.nn.Dropout().eval(), 2, 3) == Cost()

    def test_layers_derived_from_torchs_count(self) -> None:
        class Mine(torch.nn.ReLU):
            pass

        assert cost(Mine(), 2, 3) == cost(torch.nn.ReLU(), 2, 3)

    def test_a_model_is_the_sum_of_its_layers(self) -> None:
        first, second = torch.nn.Linear(4, 5), torch.nn.Linear(5, 2)
        model = torch.nn.Sequential(first, torch.nn.Identity(), torch.nn.ReLU(), second)
        parts = [cost(first, 3, 4), cost(torch.nn.ReLU(), 3, 5), cost(second, 3, 5)]
        assert cost(model, 3, 4) == parts[0] + parts[1] + parts[2]

    def test_resnet20_has_the_multiplications_of_the_paper(self) -> None:
        # 40.55 million multiply-adds an image in convolutions and the linear layer; batch norm adds some.
        case = next(case for case in CASES if case.label == "resnet20")
        assert case.cost().forward.flops / 2 / case.shape[0] == pytest.approx(40.8e6, rel=0.01)

    def test_unknown_layers_are_refused(self) -> None:
        with pytest.raises(NotImplementedError, match="PixelShuffle"):
            cost(torch.nn.PixelShuffle(2), 2, 4, 3, 3)


class TestCases:
    def test_names_are_unique(self) -> None:
        names = [case.name for case in CASES]
        assert len(set(names)) == len(names)

    def test_every_family_has_a_case(self) -> None:
        modules = {layer.__module__ for layer in scratchnn.nn.implemented().values()}
        assert {module.rpartition(".")[2] for module in modules} <= {case.family for case in CASES}

    def test_there_are_networks_types_and_formats_enough(self) -> None:
        assert len(LAYERS) >= 80
        assert {len(case.shape) for case in LAYERS if case.family == "conv"} == {3, 4, 5}
        assert {case.dtype for case in LAYERS} >= {torch.float64, torch.bfloat16}
        assert all(case.net for case in CASES)
        assert {case.label for case in NETWORKS} >= {
            "resnet20",
            "resnet18",
            "resnet50",
            "mobilenet_v2",
            "convnext_tiny",
        }

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_shapes_fit_and_work_is_positive(self, case: Case) -> None:
        work = case.cost()
        assert work.forward.bytes > 0
        assert work.backward.bytes > 0
        assert case.work(case.passes[1]) == work.forward + work.backward

    def test_selection(self) -> None:
        assert select(CASES) == CASES
        assert {case.family for case in select(CASES, ["pool", "norm"])} == {"pool", "norm"}
        assert all("nchw" in case.name for case in select(CASES, None, "NCHW$"))
        assert select(CASES, ["linear"], "3x3") == []
        assert set(families(CASES)) == {case.family for case in CASES}

    def test_torchs_own_layers_are_not_timed_as_ours(self) -> None:
        model = torch.nn.Sequential(scratchnn.nn.ReLU(), torch.nn.Identity(), torch.nn.Dropout())
        assert borrowed(model) == ["Dropout"]
        with pytest.raises(UserError, match="Dropout"):
            require_ours([Case("dropout", "activation", lambda nn: nn.Dropout(), (1, 2))])
        require_ours(LAYERS)

    def test_of_a_model_only_layers_that_scratchnn_has_count(self) -> None:
        model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout())
        assert borrowed(model, lacking=False) == ["ReLU"]
        scratchnn.convert(model)
        assert borrowed(model, lacking=False) == []

    def test_names_tell_formats_apart(self) -> None:
        def case(shape: tuple[int, ...], **options: str) -> str:
            return Case("relu", "activation", lambda nn: nn.ReLU(), shape, **options).name

        assert case((2, 3, 4, 5)) == "relu 4x5 n2"
        assert case((2, 3, 4, 5), memory_format=CONTIGUOUS) == "relu 4x5 n2 nchw"
        assert case((2, 3, 4, 5, 6), memory_format=CONTIGUOUS) == "relu 4x5x6 n2 ncdhw"
        assert case((2, 3, 4)) == "relu 4 n2"
        assert case((2, 3), memory_format=CONTIGUOUS) == "relu n2"

    def test_groups_follow_from_the_layer(self) -> None:
        def groups(shape: tuple[int, ...], name: str, *args: int, **options: object) -> tuple[str, ...]:
            of_case = {key: options.pop(key) for key in ("dtype", "memory_format") if key in options}
            family = "pool" if "Pool" in name else "conv"
            return groups_of(Case("", family, lambda nn: getattr(nn, name)(*args, **options), shape, **of_case))

        image = (1, 32, 8, 8)
        assert groups(image, "Conv2d", 32, 32, 3) == ("3x3 stride 1, 32 channels and more",)
        assert groups(image, "Conv2d", 32, 32, 3, stride=2) == groups(image, "Conv2d", 32, 32, 1) == ()
        assert groups((1, 16, 8, 8), "Conv2d", 16, 16, 3) == ("3x3 stride 1, 16 channels",)
        assert groups(image, "Conv2d", 32, 32, 3, groups=32) == ("depthwise convolution",)
        assert groups(image, "Conv2d", 32, 32, 3, dtype=torch.float64) == ("float64 convolution",)
        assert groups(image, "MaxPool2d", 2) == ()
        assert groups(image, "MaxPool2d", 2, memory_format=CONTIGUOUS) == ("pooling, NCHW",)
        assert groups((1, 3, 8, 8, 8), "AvgPool3d", 2) == ("pooling, 3d",)

    def test_every_group_and_goal_has_cases(self) -> None:
        found = {group for case in LAYERS for group in groups_of(case)}
        assert found == set(GROUPS) == set(targets.GROUP_GOALS)
        assert {*targets.STEP_GOALS, *targets.FUSED_INFERENCE_GOALS} <= {case.net for case in NETWORKS}


class FakeClock:
    """Time passes only when a candidate runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *durations: float) -> Callable[[], None]:
        """A candidate that takes these durations in turn, over and over."""

        def run() -> None:
            self.now += durations[self.calls.count(name) % len(durations)]
            self.calls.append(name)

        return run


class TestTiming:
    def test_candidates_take_turns_in_changing_order(self) -> None:
        clock = FakeClock()
        samples = interleave([clock.candidate("a", 1), clock.candidate("b", 2)], 11, 1, clock)
        assert "".join(clock.calls) == "aabb" + "ab" + "ba" + "ab" + "ba"  # warm-up, rounds of 3 s
        assert samples == [[1] * 4, [2] * 4]

    def test_three_candidates_go_through_all_orders(self) -> None:
        clock = FakeClock()
        interleave([clock.candidate(name, 1) for name in "abc"], 18, 1, clock)
        rounds = "".join(clock.calls[6:])
        assert {rounds[i : i + 3] for i in range(0, 18, 3)} == {"abc", "acb", "bac", "bca", "cab", "cba"}

    def test_there_are_enough_rounds_whatever_the_budget(self) -> None:
        clock = FakeClock()
        assert len(interleave([clock.candidate("a", 10)], 0, 5, clock)[0]) == 5

    def test_short_candidates_are_called_several_times_a_sample(self) -> None:
        clock = FakeClock()
        samples = interleave([clock.candidate("a", 5e-5), clock.candidate("b", 2e-4)], 0, 2, clock)
        assert clock.calls.count("a") == clock.calls.count("b") == 2 + 2 * 4
        assert samples[0] == pytest.approx([5e-5, 5e-5])
        assert samples[1] == pytest.approx([2e-4, 2e-4])

    def test_drift_does_not_move_the_ratio(self) -> None:
        ours = [1.0, 2.0, 4.0, 8.0]
        assert ratio(ours, [3 * time for time in ours]) == Spread(3, 3, 3)

    def test_statistics(self) -> None:
        assert Spread.of([5, 1, 4, 2, 3]) == Spread(median=3, lower=2, upper=4)
        assert geometric_mean([2, 0.5]) == pytest.approx(1)
        assert geometric_mean([1, 4]) == pytest.approx(2)


def result(case: str, family: str, which: str, median: float, **options: Any) -> Result:
    ours = Spread(1e-3, 0.9e-3, 1.2e-3)
    theirs = {"channels_last": Spread(median * 1e-3, 1e-3, 2e-3), "contiguous": Spread(5e-3, 4e-3, 6e-3)}
    ratios = {"channels_last": Spread(median, median * 0.95, median * 1.04), "contiguous": Spread(9, 8, 10)}
    given = {
        "case": case,
        "family": family,
        "groups": (),
        "net": "a network",
        "which": which,
        "side": "layers",
        "layer": "ReLU()",
        "shape": (2, 3),
        "dtype": "float32",
        "memory_format": "channels_last",
        "flops": 10**9 if family == "conv" else 0,
        "bytes": 10**7,
        "rounds": 12,
        "ours": ours,
        "torch": theirs,
        "ratios": ratios,
        "torch_format": "channels_last",
    }
    return Result(**{**given, **options})


@pytest.fixture
def report() -> Report:
    return Report(
        date="2026-01-02T03:04:05+00:00",
        versions={"scratchnn": "1", "torch": "2"},
        hardware={"processor": "abacus", "cores": 2},
        settings={
            "threads": 2,
            "instruction_set": "AVX2",
            "allocator": "kept memory",
            "torch_format": "best",
            "compile": False,
            "seconds": 1.0,
            "min_rounds": 5,
            "load_before": 0.1,
        },
        limits=Limits(copy=2e10, matmul={"float32": 2e11}),
        results=[
            result("a", "conv", "forward", 2.0),
            result("a", "conv", "forward+backward", 0.5),
            result("b", "conv", "forward", 8.0),
            result("c", "pool", "forward", 1.0),
        ],
        disagreements=["d: results differ"],
    )


class TestReport:
    def test_json_gives_back_the_report(self, report: Report) -> None:
        assert Report.from_json(report.to_json()) == report

    def test_json_of_another_schema_is_refused(self, report: Report) -> None:
        content = json.loads(report.to_json()) | {"schema": 0}
        with pytest.raises(ValueError, match="schema 0"):
            Report.from_json(json.dumps(content))

    def test_summaries(self, report: Report) -> None:
        first, second, third = summarize(report.results)
        assert (first.family, first.which, third.family) == ("conv", "forward", "pool")
        assert first.mean == pytest.approx(4)
        assert first.verdicts == {"faster": 2, "even": 0, "slower": 0}
        assert second.verdicts == {"faster": 0, "even": 0, "slower": 1}
        assert third.verdicts == {"faster": 0, "even": 1, "slower": 0}

    def test_table(self, report: Report) -> None:
        table = Table(["a", "b", "c"], report.limits)
        lines = [line for entry in report.results for line in table.rows(entry)]
        assert [line for line in lines if not line.startswith(" ")] == ["conv", "pool"]
        assert "2.00x" in lines[1]
        assert "1000.0  500%" in lines[1]  # 1 GFLOP in 1 ms, of 200 GFLOP/s
        assert "10.0   50%" in lines[1]  # 10 MB in 1 ms, of 20 GB/s
        assert "SLOWER" in lines[2]
        assert "EVEN" in lines[-1]

    def test_heading(self, report: Report) -> None:
        text = "\n".join(heading(report))
        assert "kept memory" in text
        assert "200 GFLOP/s float32" in text
        assert "WARNING" not in text
        report.settings["load_before"] = 1.5
        assert "busy (load average 1.5)" in "\n".join(heading(report))

    def test_markdown(self, report: Report) -> None:
        text = markdown(report)
        assert "| conv | forward | 4.00x | 2 | 0 | 0 |" in text
        assert (
            "| conv | a | a network | forward | 1.00 +-0.15 ms | 2.00 +-0.50 ms | 2.00x | 1.90 to 2.08 | 12 |" in text
        )

    def test_compiled_models_have_columns_of_their_own(self, report: Report, tmp_path: Path) -> None:
        compiled = {"compiled": Spread(3e-3, 2.9e-3, 3.1e-3), "compiled_ratio": Spread(3.0, 2.9, 3.1)}
        report.results = [
            result("e", "model", "training step", 2.0, **compiled),
            result("e", "model", "training step", 2.5, side="fused"),
        ]
        report.settings["compile"] = True
        assert Report.from_json(report.to_json()) == report
        first, second = (line for line in markdown(report).splitlines() if line.startswith("| model | e"))
        assert "1.90 to 2.08 | 3.00 +-0.10 ms | 3.00x | 12 |" in first
        assert "| model | e, fused |" in second
        assert second.count("|") == first.count("|")
        table = Table(["e, fused"], report.limits, compiled=True)
        rows = [line for entry in report.results for line in table.rows(entry)]
        assert "3.00 +-0.10 ms   3.00x" in rows[1]
        assert rows[1].index("10.0   50%") == rows[2].index("10.0   50%")
        draw(report, tmp_path / "chart.png")

    def test_durations_have_a_suitable_unit(self) -> None:
        assert duration(Spread(2, 1, 2)) == "2.00 +-0.50 s"
        assert duration(Spread(0.25, 0.25, 0.25)) == "250.0 +-0.0 ms"
        assert duration(Spread(3e-6, 1e-6, 2e-6)) == "3.00 +-0.50 us"

    def test_chart(self, report: Report, tmp_path: Path) -> None:
        draw(report, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def standing(standings: list[targets.Standing], what: str) -> targets.Standing:
    (found,) = (entry for entry in standings if entry.what == what)
    return found


class TestTargets:
    def test_means_and_the_slowest_case(self, report: Report) -> None:
        standings = targets.of_times(report.results)
        forward = standing(standings, "all layers, forward")
        assert forward.reached == pytest.approx((2 * 8 * 1) ** (1 / 3))
        assert (forward.cases, forward.verdict) == (3, "reached")
        slowest = standing(standings, "the slowest case of all layers")
        assert (slowest.reached, slowest.cases, slowest.verdict) == (0.5, 4, "missed")
        assert standing(standings, "InstanceNorm, forward").verdict == "not measured"

    def test_groups(self) -> None:
        group = "pooling, NCHW"
        results = [
            result("a", "pool", "forward", 4.0, groups=(group,), memory_format="contiguous"),
            result("b", "pool", "forward", 100.0),
            result("a", "pool", "forward+backward", 6.0, groups=(group,)),
        ]
        standings = targets.of_times(results)
        forward = standing(standings, f"{group}, forward")
        assert (forward.reached, forward.same_format, forward.verdict) == (pytest.approx(4), pytest.approx(9), "missed")
        assert standing(standings, f"{group}, forward+backward").verdict == "reached"

    def test_models(self) -> None:
        net, compiled = "ResNet-50", Spread(1.1, 1.0, 1.2)
        results = [
            result("m", "model", "training step", 1.3, net=net, compiled=Spread(1, 1, 1), compiled_ratio=compiled),
            result("m", "model", "training step", 1.6, net=net, side=targets.FUSED),
            result("m", "model", "forward", 1.0, net=net),
            result("m", "model", "forward", 1.25, net=net, side=targets.FUSED),
        ]
        standings = targets.of_times(results)
        assert standing(standings, f"{net}, training step").reached == pytest.approx(1.3)
        assert standing(standings, f"{net}, training step, fused").reached == pytest.approx(1.6)
        assert standing(standings, f"{net}, training step, against torch.compile").reached == pytest.approx(1.1)
        assert standing(standings, f"{net}, inference, fused").verdict == "reached"
        assert standing(standings, "all layers, forward").verdict == "not measured"

    def test_bounds_from_above(self) -> None:
        assert targets.Standing("memory", 0.8, 0.79, 1, at_most=True).verdict == "reached"
        assert targets.Standing("memory", 0.8, 0.81, 1, at_most=True).verdict == "missed"

    def test_tables(self, report: Report) -> None:
        standings = targets.of_times(report.results)
        lines = targets.text(standings)
        assert len(lines) == 5
        assert lines[1].split() == ["all", "layers,", "forward", ">=", "1.50x", "2.52x", "2.52x", "3", "reached"]
        assert "further goals" in lines[-1]
        page = targets.markdown(standings)
        assert len(page) == 2 + len(standings)
        assert "| the slowest case of all layers | >= 0.95x | 0.50x | 0.50x | 4 | missed |" in page


SMALL = Case("relu", "activation", lambda nn: nn.ReLU(), (2, 3, 4, 5))


TINY_MODEL = Case("resnet8", "model", lambda nn: models.build("resnet8", nn=nn), (4, 3, 8, 8), input_gradient=False)


class TestMeasure:
    def test_a_layer(self) -> None:
        forward, both = measure(SMALL, seconds=0, min_rounds=2)
        assert (forward.which, both.which) == ("forward", "forward+backward")
        assert forward.rounds == both.rounds == 2
        assert set(forward.torch) == {"channels_last", "contiguous"}
        assert forward.torch_format in forward.torch
        assert all(math.isfinite(value) and value > 0 for value in dataclasses.astuple(both.ours))

    def test_a_model(self) -> None:
        inference, _, step, fused = measure(TINY_MODEL, seconds=0, min_rounds=2)
        assert (inference.which, inference.side) == ("forward", "layers")
        assert (step.which, step.side) == ("training step", "layers")
        assert (fused.which, fused.side) == ("training step", "fused")
        assert inference.layer == "resnet8"
        assert inference.compiled is None
        assert 0 < inference.flops < step.flops

    @pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
    def test_every_layer_runs_in_every_format(self, case: Case) -> None:
        """On smaller inputs: the results agree, and there are times of both sides."""
        batch, *rest = case.shape
        spatial = 256 if len(rest) == 2 else 16
        small = (min(batch, 2), *rest[:1], *(min(size, spatial) for size in rest[1:]))
        results = list(measure(dataclasses.replace(case, shape=small), seconds=0, min_rounds=2))
        assert [entry.which for entry in results] == list(case.passes)
        assert all(set(entry.torch) == set(case.torch_formats()) for entry in results)

    def test_each_way_in_which_ours_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def eager(model: torch.nn.Module) -> torch.nn.Module:
            return torch.nn.Sequential(model)

        monkeypatch.setitem(measuring.OUR_SIDES, "wrapped", eager)
        results = list(measure(TINY_MODEL, seconds=0, min_rounds=2, every_format=False))
        assert [(entry.side, entry.which) for entry in results] == [
            (side, which) for which in ("forward", "training step") for side in ("layers", "fused", "wrapped")
        ]
        assert results[2].name == "resnet8 8x8 n4, wrapped"
        assert results[0].torch == results[2].torch  # timed once, beside all

    def test_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled = []

        def compile(model: torch.nn.Module) -> torch.nn.Module:
            compiled.append(model)
            return model

        monkeypatch.setattr(torch, "compile", compile)
        inference, _, step, _ = measure(TINY_MODEL, seconds=0, min_rounds=2, every_format=False, compile=True)
        (model,) = compiled
        assert not any(type(layer).__module__.startswith("scratchnn.nn") for layer in model.modules())
        assert inference.compiled_ratio is not None
        assert step.compiled is not None
        assert all(entry.compiled is None for entry in measure(SMALL, seconds=0, min_rounds=2, compile=True))

    def test_models_of_torchvision_are_converted(self) -> None:
        (case,) = (case for case in NETWORKS if case.label == "mobilenet_v2")
        ours, theirs = build_sides(dataclasses.replace(case, shape=(2, 3, 32, 32)), (CHANNELS_LAST,))
        mine, other = ours["layers"], theirs[CHANNELS_LAST]
        assert borrowed(mine.layer, lacking=False) == []
        torch.testing.assert_close(mine.passes()[0](), other.passes()[0]())

    def test_volumes_are_laid_out(self) -> None:
        case = Case("conv", "conv", lambda nn: nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5))
        ours, theirs = build_sides(case, case.torch_formats())
        for side, layout in (
            (ours["layers"], torch.channels_last_3d),
            (theirs[CHANNELS_LAST], torch.channels_last_3d),
            (theirs[CONTIGUOUS], torch.contiguous_format),
        ):
            assert side.input.is_contiguous(memory_format=layout)
            assert side.layer.weight.is_contiguous(memory_format=layout)

    def test_only_the_format_of_the_case(self) -> None:
        forward, _ = measure(SMALL, seconds=0, min_rounds=2, every_format=False)
        assert set(forward.torch) == {"channels_last"}

    def test_wrong_results_are_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Wrong(torch.nn.ReLU):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return super().forward(input) * 1.001

        monkeypatch.setattr(scratchnn.nn, "ReLU", Wrong)
        monkeypatch.setattr(measuring, "interleave", None)
        with pytest.raises(Disagreement, match="relu 4x5 n2: results differ"):
            next(measure(SMALL, seconds=0))

    def test_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("scratchnn.bench.limits.COPY_BYTES", 1 << 16)
        monkeypatch.setattr("scratchnn.bench.limits.MATMUL_SIZE", 16)
        limits = measure_limits({torch.float64, torch.float32}, seconds=0)
        assert limits.copy > 0
        assert list(limits.matmul) == ["float32", "float64"]


class TestMemory:
    def test_what_a_layer_keeps(self) -> None:
        def kept(layer: torch.nn.Module, *shape: int) -> Kept:
            x = torch.randn(shape, requires_grad=True)
            return kept_for_backward(lambda: layer(x), [x], layer.parameters())

        size = 4 * 2 * 3 * 4 * 4
        assert kept(torch.nn.ReLU(), 2, 3, 4, 4) == Kept(input=0, output=size, other=0)
        assert kept(torch.nn.GELU(), 2, 3, 4, 4) == Kept(input=size, output=0, other=0)
        assert kept(torch.nn.Conv2d(3, 3, 1), 2, 3, 4, 4) == Kept(input=size, output=0, other=0)
        # Where each maximum was: 8 bytes for a quarter of the pixels.
        assert kept(torch.nn.MaxPool2d(2), 2, 3, 4, 4) == Kept(input=size, output=0, other=size // 2)

    def test_a_storage_counts_once_and_as_a_whole(self) -> None:
        x = torch.randn(8, requires_grad=True)

        def run() -> torch.Tensor:
            y = x * 1.0  # keeps nothing but a number
            return y[:2] * y[2:4]  # keeps two views of one storage

        assert kept_for_backward(run, [x], []) == Kept(input=0, output=0, other=32)

    @pytest.mark.parametrize(
        "build",
        [
            lambda nn: nn.Conv2d(8, 8, 3, padding=1),
            lambda nn: nn.MaxPool2d(2),
            lambda nn: nn.BatchNorm2d(8),
            lambda nn: nn.GELU(),
            lambda nn: nn.LocalResponseNorm(3),
        ],
    )
    @pytest.mark.parametrize("namespace", [scratchnn.nn, torch.nn], ids=["ours", "torch"])
    def test_the_hooks_see_what_the_allocator_sees(self, build: Callable, namespace: Any) -> None:
        """Nothing is kept past autograd's hooks: what stays allocated is what they tell, and the output."""
        layer = build(namespace)
        x = torch.randn(4, 8, 16, 16, requires_grad=True)
        kept = kept_for_backward(lambda: layer(x), [x], [*layer.parameters(), *layer.buffers()])
        outputs: list[torch.Tensor] = []
        left = sum(change.bytes for change in allocations(lambda: outputs.append(layer(x))))
        wrapped = 16  # numbers that torch makes tensors of, such as the factor of x * 0.5
        assert 0 <= left - kept.other - outputs[0].untyped_storage().nbytes() <= wrapped

    def test_a_case(self) -> None:
        found = measure_kept(Case("pool", "pool", lambda nn: nn.MaxPool2d(2), (2, 3, 8, 8), net="a network"))
        assert (found.case, found.family, found.net) == ("pool 8x8 n2", "pool", "a network")
        assert found.ours == Kept(input=0, output=0, other=2 * 3 * 16)  # a byte for each maximum
        assert not found.exceeds

    def test_more_than_torchs_is_marked(self) -> None:
        def exceeds(ours: Kept, theirs: Kept) -> bool:
            return KeptResult("", "", "", ours, theirs).exceeds

        assert not exceeds(Kept(8, 0, 0), Kept(8, 0, 0))
        assert exceeds(Kept(0, 0, 1), Kept(8, 0, 0))
        assert exceeds(Kept(8, 0, 0), Kept(0, 0, 4))  # holds on to the input

    def test_peak_of_a_function(self) -> None:
        def run() -> None:
            a = torch.empty(1 << 20)  # 4 MiB
            b = torch.empty(1 << 19)  # 2 MiB
            del b
            kept.append(torch.empty(1 << 18))  # 1 MiB
            c = torch.empty(3 << 17)  # 1.5 MiB
            del a, c

        prepared, kept = [], []
        peak = peak_of(run, lambda: prepared.append(None))
        assert peak.allocated == (13 << 20) // 2
        assert peak.activations == 6 << 20
        assert len(prepared) == 2

    def test_peak_of_a_training_step(self) -> None:
        found, fused = measure_peaks(TINY_MODEL)
        assert (found.side, fused.side) == ("layers", "fused")
        assert set(found.torch) == {CHANNELS_LAST, CONTIGUOUS}
        # At least the gradients, at the end of the step.
        model = models.build("resnet8")
        gradients = sum(parameter.numel() * 4 for parameter in model.parameters())
        for peak in (found.ours, *found.torch.values()):
            assert gradients < peak.allocated <= peak.activations + gradients

    def test_report(self) -> None:
        small, large = Kept(8000, 0, 0), Kept(8000, 0, 1000)
        report = MemoryReport("2026-01-02", {"torch": "2"}, {"processor": "abacus", "threads": 2})
        assert {entry.verdict for entry in report.standings()} == {"not measured"}
        report.kept = [KeptResult("a", "conv", "b", small, large), KeptResult("c", "conv", "d", large, small)]
        peak, smaller = Peak(10**6, 9 * 10**5, None), Peak(2 * 10**6, 18 * 10**5, 3 * 10**6)
        theirs = {CHANNELS_LAST: Peak(3 * 10**6, 2 * 10**6, None), CONTIGUOUS: smaller}
        report.peaks = [PeakResult("m", "CIFAR ResNet-18", "layers", peak, theirs)]
        counted, reached, fused = report.standings()
        assert (counted.reached, counted.cases, counted.verdict) == (1, 2, "missed")
        assert (reached.reached, reached.verdict, fused.verdict) == (0.5, "reached", "not measured")
        page = report.markdown()
        assert "| m | 1.0 |  | 2.0 | 3.0 | 0.50x | 0.9 | 1.8 | 0.50x |  |" in page
        assert "| conv | a | b | 8.0 | 0.0 | 0.0 | 8.0 | 0.0 | 1.0 |  |" in page
        assert "| conv | c | d | 8.0 | 0.0 | 1.0 | 8.0 | 0.0 | 0.0 | EXCEEDS by 1000 B |" in page
        assert json.loads(report.to_json())["kept"][0]["ours"] == {"input": 8000, "output": 0, "other": 0}


TINY_KIND = scaling.Kind("ReLU", lambda nn, c: nn.ReLU(), batch=1)


class TestScaling:
    def test_each_factor_multiplies_the_work(self) -> None:
        for kind in scaling.KINDS:
            for axis in scaling.AXES:
                first, *others = (kind.work(kind.case(axis, factor)) for factor in scaling.FACTORS)
                power = 2 if axis == "channels" and kind.arithmetic else 1
                for factor, work in zip(scaling.FACTORS[1:], others, strict=True):
                    assert work / first == pytest.approx(factor**power, rel=0.05)

    def test_exponents(self) -> None:
        work = [1.0, 2.0, 4.0]
        ours = [Spread(time, time, time) for time in (1.0, 2.0, 4.0)]
        theirs = [Spread(time, time, time) for time in (1.0, 4.0, 16.0)]
        growth = scaling.Growth("relu", "batch", work, ours, theirs)
        assert growth.exponent == pytest.approx(1)
        assert growth.torch_exponent == pytest.approx(2)

    def test_efficiency_is_held_against_what_memory_allows(self) -> None:
        spread = Spread(0.6, 0.6, 0.6)
        assert scaling.Efficiency("relu", 2, spread, spread, 0.7, bound_by_memory=True).attainable == 0.7
        assert scaling.Efficiency("conv", 2, spread, spread, 0.7, bound_by_memory=False).attainable == 1

    def test_threads_are_given_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scaling, "FACTORS", (1,))
        before = torch.get_num_threads()
        found = scaling.measure_efficiency(TINY_KIND, 2, 0.5, seconds=0, min_rounds=2)
        assert (found.kind, found.threads, found.copy) == ("ReLU", 2, 0.5)
        assert torch.get_num_threads() == before

    def test_report(self, tmp_path: Path) -> None:
        spreads = [Spread(time, time, time) for time in (1e-3, 2e-3)]
        steep = [Spread(time, time, time) for time in (1e-3, 4e-3)]
        report = scaling_report.ScalingReport(
            "2026-01-02",
            {"torch": "2"},
            {"processor": "abacus"},
            {"threads": 2, "allocator": "kept memory"},
            [scaling.Growth("relu", axis, [1.0, 2.0], spreads, steep) for axis in scaling.AXES],
            [scaling.Efficiency("relu", 2, Spread(0.6, 0.5, 0.7), Spread(0.5, 0.4, 0.6), 0.65, True)],
        )
        *growth, efficiency = report.standings()
        assert [entry.verdict for entry in growth] == ["reached"] * 3
        assert efficiency.reached == pytest.approx(0.6 / 0.65)
        assert efficiency.verdict == "reached"
        page = report.markdown()
        assert "| relu | area | 1.00 | 2.00 | 1.00 +-0.00 ms | 2.00 +-0.00 ms |" in page
        assert "| relu | 2 | 0.60 | 0.50 | 0.65 |" in page
        assert json.loads(report.to_json())["efficiencies"][0]["threads"] == 2
        scaling_report.draw(report, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


class TestCommand:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 + len(CASES)
        assert all(case.name in line for case, line in zip(CASES, lines[2:], strict=True))

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--filter", "no such case"], "no case"),
            (["--filter", "("], "not a regular expression"),
            (["--family", "activation", "--seconds", "0"], "--seconds must be above 0"),
            (["--family", "activation", "--threads", "0"], "--threads must be 1 or more"),
            (["--family", "nothing"], "invalid choice"),
            (["--scaling", "--filter", "no such layer"], "choose from 3x3 convolution"),
            (["--scaling", "--memory"], "not allowed with"),
        ],
    )
    def test_mistakes_end_in_one_sentence(
        self, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["bench", *options]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1

    def test_a_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("scratchnn.bench.command.CASES", [SMALL])
        monkeypatch.setattr("scratchnn.bench.command.measure_limits", lambda *_, **__: Limits(1e10, {"float32": 1e11}))
        options = [
            "--quick",
            "--seconds",
            "0.01",
            "--no-keep-memory",
            "--threads",
            "1",
            "--out",
            str(tmp_path),
        ]
        assert main(["bench", *options]) == 0
        (path,) = tmp_path.glob("*.json")
        report = Report.from_json(path.read_text())
        assert [entry.which for entry in report.results] == ["forward", "forward+backward"]
        assert report.settings["allocator"] == "the system's default"
        assert report.settings["threads"] == 1
        assert path.with_suffix(".png").exists()
        assert "relu 4x5 n2" in path.with_suffix(".md").read_text()
        assert str(path) in capsys.readouterr().out

    def test_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("scratchnn.bench.command.CASES", [SMALL, TINY_MODEL])
        monkeypatch.setattr("scratchnn.bench.memory.return_freed_memory", lambda: None)  # lasts beyond this test
        assert main(["bench", "--memory", "--threads", "1", "--out", str(tmp_path)]) == 0
        (path,) = tmp_path.glob("memory-*.json")
        content = json.loads(path.read_text())
        assert [entry["case"] for entry in content["kept"]] == [SMALL.name]
        assert [(entry["case"], entry["side"]) for entry in content["peaks"]] == [
            (TINY_MODEL.name, "layers"),
            (TINY_MODEL.name, "fused"),
        ]
        assert "relu 4x5 n2" in path.with_suffix(".md").read_text()
        assert "layers that keep more for backward than torch's" in capsys.readouterr().out

    def test_scaling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(scaling, "FACTORS", (1, 2))
        monkeypatch.setattr(scaling, "KINDS", (TINY_KIND,))
        monkeypatch.setattr("scratchnn.bench.limits.COPY_BYTES", 1 << 16)
        options = ["--quick", "--seconds", "0.001", "--no-keep-memory", "--threads", "2"]
        before = torch.get_num_threads()
        try:
            assert main(["bench", "--scaling", *options, "--out", str(tmp_path)]) == 0
        finally:
            torch.set_num_threads(before)
        (path,) = tmp_path.glob("scaling-*.json")
        content = json.loads(path.read_text())
        assert [entry["axis"] for entry in content["growths"]] == list(scaling.AXES)
        assert [entry["threads"] for entry in content["efficiencies"]] == [2]
        assert path.with_suffix(".png").exists()
        assert "lowest parallel efficiency" in capsys.readouterr().out

    def test_interruption_leaves_what_was_done(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("scratchnn.bench.command.CASES", [SMALL, TINY_MODEL])
        monkeypatch.setattr("scratchnn.bench.memory.return_freed_memory", lambda: None)
        monkeypatch.setattr("scratchnn.bench.memory.measure_peaks", interrupted)
        assert main(["bench", "--memory", "--out", str(tmp_path)]) == 130
        (path,) = tmp_path.glob("memory-*.json")
        assert len(json.loads(path.read_text())["kept"]) == 1

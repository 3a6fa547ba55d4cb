"""The benchmark's arithmetic, bookkeeping and command line; nothing here depends on how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import scratchnn.nn
from scratchnn import models
from scratchnn.__main__ import main
from scratchnn.bench import measure as measuring
from scratchnn.bench.cases import CASES, Case, borrowed, families, select
from scratchnn.bench.chart import draw
from scratchnn.bench.cost import Cost, Work, model_cost
from scratchnn.bench.limits import Limits, measure_limits
from scratchnn.bench.measure import Disagreement, Result, measure, require_ours
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
        with pytest.raises(NotImplementedError, match="Softmax"):
            cost(torch.nn.Softmax(-1), 2, 3)


class TestCases:
    def test_names_are_unique(self) -> None:
        names = [case.name for case in CASES]
        assert len(set(names)) == len(names)

    def test_every_family_has_a_case(self) -> None:
        modules = {layer.__module__ for layer in scratchnn.nn.implemented().values()}
        assert {module.rpartition(".")[2] for module in modules} <= {case.family for case in CASES}

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
        assert set(families()) == {case.family for case in CASES}

    def test_torchs_own_layers_are_not_timed_as_ours(self) -> None:
        model = torch.nn.Sequential(scratchnn.nn.ReLU(), torch.nn.Identity(), torch.nn.Dropout())
        assert borrowed(model) == ["Dropout"]
        with pytest.raises(UserError, match="Dropout"):
            require_ours([Case("dropout", "activation", lambda nn: nn.Dropout(), (1, 2))])
        require_ours(select(CASES, ["activation"]))


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


def result(case: str, family: str, which: str, median: float, dtype: str = "float32") -> Result:
    ours = Spread(1e-3, 0.9e-3, 1.2e-3)
    theirs = {"channels_last": Spread(median * 1e-3, 1e-3, 2e-3), "contiguous": Spread(5e-3, 4e-3, 6e-3)}
    return Result(
        case=case,
        family=family,
        which=which,
        layer="ReLU()",
        shape=(2, 3),
        dtype=dtype,
        memory_format="channels_last",
        flops=10**9 if family == "conv" else 0,
        bytes=10**7,
        rounds=12,
        ours=ours,
        torch=theirs,
        torch_format="channels_last",
        ratio=Spread(median, median * 0.95, median * 1.04),
    )


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
        assert "| conv | a | forward | 1.00 +-0.15 ms | 2.00 +-0.50 ms | 2.00x | 1.90 to 2.08 | 12 |" in text

    def test_durations_have_a_suitable_unit(self) -> None:
        assert duration(Spread(2, 1, 2)) == "2.00 +-0.50 s"
        assert duration(Spread(0.25, 0.25, 0.25)) == "250.0 +-0.0 ms"
        assert duration(Spread(3e-6, 1e-6, 2e-6)) == "3.00 +-0.50 us"

    def test_chart(self, report: Report, tmp_path: Path) -> None:
        draw(report, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


SMALL = Case("relu", "activation", lambda nn: nn.ReLU(), (2, 3, 4, 5))


class TestMeasure:
    def test_a_layer(self) -> None:
        forward, both = measure(SMALL, seconds=0, min_rounds=2)
        assert (forward.which, both.which) == ("forward", "forward+backward")
        assert forward.rounds == both.rounds == 2
        assert set(forward.torch) == {"channels_last", "contiguous"}
        assert forward.torch_format in forward.torch
        assert all(math.isfinite(value) and value > 0 for value in dataclasses.astuple(both.ours))

    def test_a_model(self) -> None:
        case = Case(
            "resnet8",
            "model",
            lambda nn: models.build("resnet8", nn=nn),
            (4, 3, 8, 8),
            input_gradient=False,
            model=True,
        )
        inference, step = measure(case, seconds=0, min_rounds=2)
        assert (inference.which, step.which) == ("forward", "training step")
        assert inference.layer == "resnet8"
        assert 0 < inference.flops < step.flops

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
        monkeypatch.setattr("scratchnn.bench.cases.CASES", [SMALL])
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

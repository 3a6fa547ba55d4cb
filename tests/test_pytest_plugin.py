"""The pytest plugin, run in sessions of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from scratchnn.testing import equivalence_tests

LAYERS = """
    import torch
    from torch import nn

    class Good(nn.Linear):
        pass

    class Bad(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 0.01

    INPUTS = torch.randn(4, 6)

    def good(): return Good(6, 3)
    def bad(): return Bad(6, 3)
    def reference(): return nn.Linear(6, 3)
"""


def run(pytester: pytest.Pytester, tests: str, *arguments: str, ini: str = "") -> pytest.RunResult:
    """Run tests that know the layers above, in a session with the plugin."""
    pytester.makepyfile(layers=LAYERS)
    pytester.makepyfile(test_it=f"from layers import *\n{tests}")
    pytester.makeini(f"[pytest]\npythonpath = .\n{ini}")
    # Without the plugin of hypothesis, which is slow to load.
    options = ("-p", "scratchnn.testing.plugin", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")
    return pytester.runpytest(*options, *arguments)


FIXTURE = """
def test_good(equivalence):
    assert equivalence(good, reference, INPUTS).passed

def test_bad(equivalence):
    equivalence(bad, reference, INPUTS)
"""


def test_fixture(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*layers.Bad is not equivalent to *Linear: outputs, float32, output: relative error*"])
    result.stdout.no_fnmatch_line("*check_equivalence(module, reference*")  # the table, not our code


def test_session_report(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE, "--equivalence-report=all.json")
    result.stdout.fnmatch_lines(["equivalence: 2 reports, 1 not equivalent, in *all.json"])
    content = json.loads((pytester.path / "all.json").read_text())
    assert (content["schema"], content["passed"]) == (1, False)
    good, bad = content["reports"]
    assert good["test"].endswith("test_it.py::test_good")
    assert good["passed"]
    assert bad["module"] == "layers.Bad"
    assert bad["findings"][0]["status"] == "failed"


def test_session_report_that_cannot_be_written(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE, "--equivalence-report=missing/all.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--equivalence-report: there is no folder *missing"])


ITEMS = """
from scratchnn.testing import equivalence_tests

test_good = equivalence_tests(good, reference, INPUTS, reproducible=True, skip=["batch_split"])
test_bad = equivalence_tests(bad, reference, INPUTS, checks=["state_dict", "outputs"], dtypes=[torch.float32])
"""


def test_an_item_for_each_check_and_dtype(pytester: pytest.Pytester) -> None:
    result = run(pytester, ITEMS, "-v", "-k", "bad or threads or (outputs and good)")
    result.assert_outcomes(passed=6, failed=1, deselected=20)
    for name in ("float32", "float64", "bfloat16", "float16"):
        result.stdout.fnmatch_lines([f"*::test_good?outputs-{name}? PASSED*"])
    result.stdout.fnmatch_lines(["*::test_good?threads? PASSED*"])
    result.stdout.fnmatch_lines(["*::test_bad?state_dict? PASSED*"])
    result.stdout.fnmatch_lines(["*::test_bad?outputs-float32? FAILED*"])


def test_items_of_what_does_not_apply_are_skipped(pytester: pytest.Pytester) -> None:
    tests = """
    from scratchnn.testing import equivalence_tests
    test_relu = equivalence_tests(torch.relu, nn.functional.relu, INPUTS, checks=["outputs", "state_dict"])
    test_rrelu = equivalence_tests(nn.RReLU, nn.RReLU, INPUTS, checks=["outputs"])
    test_mistake = equivalence_tests(good, reference, INPUTS[:, :5], checks=["state_dict"])
    """
    result = run(pytester, tests.replace("\n    ", "\n"), "-rs")
    result.assert_outcomes(passed=7, skipped=2, failed=1)
    result.stdout.fnmatch_lines(["SKIPPED*not both sides are modules"])
    result.stdout.fnmatch_lines(["SKIPPED*the reference accepts the inputs in no dtype: float16:*"])
    result.stdout.fnmatch_lines(["*ReferenceRefusesError: the reference accepts the inputs in no dtype: float32*"])


OPTIONS = """
import pytest

@pytest.mark.equivalence(skip=["outputs"], factor=3.0)
class TestMarked:
    def test_class(self, equivalence):
        report = equivalence(good, reference, INPUTS)
        assert report.settings["factor"] == 3.0
        assert report.settings["dtypes"] == ["float64", "float32"]
        assert report.settings["seed"] == 7
        assert "outputs" not in report.settings["checks"]
        assert "autocast" in report.settings["checks"]

    @pytest.mark.equivalence(factor=4.0)
    def test_closest_marker(self, equivalence):
        assert equivalence(good, reference, INPUTS).settings["factor"] == 4.0

    def test_call(self, equivalence):
        report = equivalence(good, reference, INPUTS, factor=5.0, dtypes=[torch.float32])
        assert report.settings["factor"] == 5.0
        assert report.settings["dtypes"] == ["float32"]

def test_unmarked(equivalence):
    report = equivalence(good, reference, INPUTS)
    assert report.settings["factor"] == 2.5
    assert "autocast" not in report.settings["checks"]
"""


def test_options_from_everywhere(pytester: pytest.Pytester) -> None:
    ini = "equivalence_factor = 2.5\nequivalence_dtypes = float64 float32\nequivalence_skip = autocast errors\n"
    result = run(pytester, OPTIONS, "--equivalence-seed=7", "--strict-markers", ini=ini)
    result.assert_outcomes(passed=4)


def test_wrong_option(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE, ini="equivalence_dtypes = float31\n")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*equivalence_dtypes: torch has no dtype 'float31'"])


def test_other_sessions_are_left_alone() -> None:
    """Loaded as from an installed package, the plugin imports neither torch nor scratchnn and writes nothing."""
    script = """
import sys, pytest
code = pytest.main(["-p", "scratchnn_pytest", "-p", "no:cacheprovider", "-q", "--co", "/dev/null"])
assert "scratchnn_pytest" in sys.modules
loaded = [name for name in ("torch", "scratchnn") if name in sys.modules]
sys.exit(f"imported {loaded}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equivalence" not in done.stdout


test_a_layer_of_torch = equivalence_tests(
    lambda: torch.nn.GroupNorm(2, 4), lambda: torch.nn.GroupNorm(2, 4), torch.randn(2, 4, 5, 5)
)

"""A pytest plugin: the fixture ``equivalence``, its marker and options, and a report of the whole session as JSON.

pytest imports it in every run of an environment that has scratchnn. It therefore lies outside of the package, whose
import takes seconds, and imports nothing of it before a test asks for the fixture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_REPORTS = pytest.StashKey[list]()

_MARKER = (
    "equivalence(**options): options of the `equivalence` fixture in this test, as factor=4.0 or skip=['autocast']"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("equivalence", "equivalence of layers (scratchnn.testing)")
    group.addoption("--equivalence-report", metavar="FILE", help="write all equivalence reports of the session as JSON")
    group.addoption("--equivalence-seed", type=int, metavar="N", help="the seed of everything random (0 unless given)")
    parser.addini("equivalence_factor", "how many times the reference's error is allowed (2 unless given)")
    parser.addini("equivalence_dtypes", "names of the dtypes to check in, as float32 float64", type="args")
    parser.addini("equivalence_skip", "names of checks not to make", type="args")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    file = config.getoption("equivalence_report")
    if file and not hasattr(config, "workerinput"):  # a worker of pytest-xdist leaves the file to the main process
        path = config.invocation_params.dir / file
        if not path.parent.is_dir():
            raise pytest.UsageError(f"--equivalence-report: there is no folder {path.parent}")
        config.pluginmanager.register(_Session(path), "scratchnn_pytest_session")


@pytest.fixture
def equivalence(request: pytest.FixtureRequest) -> Any:
    """``scratchnn.testing.assert_equivalent`` with the options of ini file, command line and markers.

    Options given in the call come before those of a marker, these before the command line and the ini file. Where
    nothing could be compared, the test is skipped.
    """
    from scratchnn.testing.plugin import Equivalence

    reports = request.node.stash.setdefault(_REPORTS, [])
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("equivalence"))):  # the closest comes last and wins
        options |= marker.kwargs
    return Equivalence(request.config, options, reports.append)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if call.when == "call" and item.stash.get(_REPORTS, []):
        report.equivalence = item.stash[_REPORTS]  # travels with the report, from the workers of pytest-xdist as well
    return report


class _Session:
    """Gathers the reports of all tests and writes them to one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.reports = path, []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports += [{"test": report.nodeid, **content} for content in getattr(report, "equivalence", [])]

    def pytest_sessionfinish(self) -> None:
        passed = all(report["passed"] for report in self.reports)
        content = {"schema": 1, "passed": passed, "reports": self.reports}
        self.path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        failed = sum(not report["passed"] for report in self.reports)
        terminalreporter.write_line(
            f"equivalence: {len(self.reports)} reports, {failed} not equivalent, in {self.path}"
        )

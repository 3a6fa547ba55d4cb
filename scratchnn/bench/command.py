"""``scratchnn bench``: from command-line options to a table, its JSON and Markdown files, and a picture."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import scratchnn
from scratchnn.bench import cases as catalogue
from scratchnn.bench import memory, memory_report, overhead, scaling, targets
from scratchnn.bench.cases import Case
from scratchnn.bench.layers import LAYERS
from scratchnn.bench.limits import measure_limits
from scratchnn.bench.measure import Disagreement, measure, names_of, require_ours
from scratchnn.bench.memory_report import MemoryReport
from scratchnn.bench.networks import NETWORKS
from scratchnn.bench.report import Report, Table, heading, markdown, summarize
from scratchnn.environment import describe_hardware, describe_versions
from scratchnn.errors import UserError, require

HELP = "time the layers of scratchnn and torch side by side"

CASES: list[Case] = [*LAYERS, *NETWORKS]

WRONG_RESULTS, INTERRUPTED = 1, 130

SECONDS, QUICK_SECONDS = 4.0, 0.4
MIN_ROUNDS, QUICK_MIN_ROUNDS = 5, 3
OVERHEAD_SECONDS = 0.3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the cases and the work in each; time nothing")
    what.add_argument(
        "--memory",
        action="store_true",
        help="measure memory instead: what each layer keeps for backward, and the peak of each model's training step",
    )
    what.add_argument(
        "--scaling",
        action="store_true",
        help="time some layers as batch, channels and area grow, and with one thread and more; see --filter",
    )
    what.add_argument(
        "--overhead",
        action="store_true",
        help="time calls on tiny tensors instead, where Python and dispatch are all there is; see --filter, --seconds",
    )
    families = catalogue.families(CASES)
    parser.add_argument(
        "--family", action="append", choices=families, help="only this family of layers; may be repeated"
    )
    parser.add_argument("--filter", metavar="REGEX", help='only cases whose "family name" contains this, see --list')
    parser.add_argument("--threads", type=int, help="threads that compute (default: torch's choice)")
    parser.add_argument("--seconds", type=float, help=f"time to spend on each case, set-up aside (default {SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help=f"a first look: {QUICK_SECONDS:g} seconds for each case")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run models of torch.nn under torch.compile as well, in columns of their own (needs a C++ compiler)",
    )
    parser.add_argument(
        "--torch-format",
        choices=("best", "same"),
        default="best",
        help="run torch in the better memory format of its two, or in that of the case (default best)",
    )
    parser.add_argument(
        "--no-keep-memory",
        dest="keep_memory",
        action="store_false",
        help="leave the allocator as it is: on both sides, each large tensor then costs page faults",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for the results (default runs/bench)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure what the options select.

    Returns:
        0; 1 when a layer's results differed from torch's; 130 when interrupted, with what was done on file.
    """
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds must be above 0, got {args.seconds:g}")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads must be 1 or more, got {args.threads}")
    if args.overhead:
        return _run_overhead(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.scaling:
        return _run_scaling(args)
    cases = _select(args)
    if args.list:
        _list(cases)
        return 0
    require_ours(cases)
    return _run_memory(args, cases) if args.memory else _run_times(args, cases)


def _run_times(args: argparse.Namespace, cases: list[Case]) -> int:
    require("matplotlib", extra="train")
    seconds, min_rounds = _budget(args)
    load = os.getloadavg()[0]
    allocator = _allocator(args)
    now = datetime.now(timezone.utc)
    report = Report(
        **_about(now),
        settings={
            "threads": torch.get_num_threads(),
            "instruction_set": torch.ops.scratchnn.instruction_set(),
            "allocator": allocator,
            "torch_format": args.torch_format,
            "compile": args.compile,
            "seconds": seconds,
            "min_rounds": min_rounds,
            "load_before": round(load, 2),
        },
        limits=measure_limits({case.dtype for case in cases}, seconds=0.3 if args.quick else 1.0),
    )
    with _interruptible() as interruption:
        _time(cases, report)
    from scratchnn.bench.chart import draw

    if report.results:
        print("geometric means")
        for summary in summarize(report.results):
            print(summary)
        print("\n".join(targets.text(targets.of_times(report.results))))
        files = _files(args, "bench", now)
        draw(report, files.with_suffix(".png"))
        _write(files, report.to_json(), markdown(report))
    for disagreement in report.disagreements:
        print(f"not timed, wrong results: {disagreement}")
    return interruption.status or (WRONG_RESULTS if report.disagreements else 0)


def _time(cases: list[Case], report: Report) -> None:
    """Time the cases, printing each result when it is there."""
    print("\n".join(heading(report)))
    settings = report.settings
    table = Table([name for case in cases for name in names_of(case)], report.limits, settings["compile"])
    print(table.header())
    best = settings["torch_format"] == "best"
    for case in cases:
        try:
            for result in measure(case, settings["seconds"], settings["min_rounds"], best, settings["compile"]):
                report.results.append(result)
                print("\n".join(table.rows(result)), flush=True)
        except Disagreement as disagreement:
            report.disagreements.append(str(disagreement))
            print(f"  WRONG {disagreement}", flush=True)


def _run_memory(args: argparse.Namespace, cases: list[Case]) -> int:
    memory.return_freed_memory()  # whatever --no-keep-memory says: kept memory would hide what is freed
    now = datetime.now(timezone.utc)
    report = MemoryReport(**_about(now))
    width = max(len(name) for case in cases for name in names_of(case))
    layers, models = ([case for case in cases if case.model is model] for model in (False, True))
    with _interruptible() as interruption:
        if layers:
            print(memory_report.EXPLANATION)
            print(memory_report.kept_header(width))
        for case in layers:
            report.kept.append(memory.measure_kept(case))
            print(memory_report.kept_row(report.kept[-1], width), flush=True)
        if models:
            print(memory_report.PEAK_EXPLANATION)
            print(memory_report.peak_header(width))
        for case in models:
            found = memory.measure_peaks(case, args.torch_format == "best", args.compile)
            report.peaks += found
            print("\n".join(memory_report.peak_rows(found, width)), flush=True)
    print("\n".join(targets.text(report.standings())))
    _write(_files(args, "memory", now), report.to_json(), report.markdown())
    return interruption.status


def _run_scaling(args: argparse.Namespace) -> int:
    require("matplotlib", extra="train")
    from scratchnn.bench.scaling_report import ScalingReport, draw, efficiency_row, growth_row

    kinds = [kind for kind in scaling.KINDS if _expression(args).search(kind.name)]
    if not kinds:
        names = ", ".join(kind.name for kind in scaling.KINDS)
        raise UserError(f"no layer has a name that contains {args.filter!r}, choose from {names}")
    seconds, min_rounds = _budget(args)
    now = datetime.now(timezone.utc)
    settings = {"threads": torch.get_num_threads(), "allocator": _allocator(args), "seconds": seconds}
    report = ScalingReport(**_about(now), settings=settings)
    counts = scaling.thread_counts()
    with _interruptible() as interruption:
        for kind in kinds:
            for axis in scaling.AXES:
                report.growths.append(scaling.measure_growth(kind, axis, seconds, min_rounds))
                print(growth_row(report.growths[-1]), flush=True)
        for threads in counts:
            copy = scaling.copy_efficiency(threads, seconds)
            for kind in kinds:
                report.efficiencies.append(scaling.measure_efficiency(kind, threads, copy, seconds, min_rounds))
                print(efficiency_row(report.efficiencies[-1]), flush=True)
    if not counts:
        print("  no parallel efficiency: there is one thread")
    print("\n".join(targets.text(report.standings())))
    files = _files(args, "scaling", now)
    draw(report, files.with_suffix(".png"))
    _write(files, report.to_json(), report.markdown())
    return interruption.status


def _run_overhead(args: argparse.Namespace) -> int:
    calls = [call for call in overhead.CALLS if _expression(args).search(call.name)]
    if not calls:
        raise UserError(f"no layer has a name that contains {args.filter!r}")
    torch.set_num_threads(1)
    now = datetime.now(timezone.utc)
    about = {**describe_versions(), **describe_hardware(), "date": now.isoformat()}
    print(
        f"{about['processor']}, {about['instruction_set']}, torch {about['torch']}, 1 thread, processor time, medians"
    )
    print(overhead.heading())
    results = []
    for call in calls:
        results.append(overhead.measure_overhead(call, args.seconds or OVERHEAD_SECONDS))
        print(overhead.row(results[-1]), flush=True)
    print(overhead.summary(results))
    file = _files(args, "overhead", now).with_suffix(".json")
    overhead.write(results, about, file)
    print(f"file: {file}")
    return 0


def _select(args: argparse.Namespace) -> list[Case]:
    cases = catalogue.select(CASES, args.family, _expression(args).pattern)
    if not cases:
        raise UserError("no case has such a family and name, see scratchnn bench --list")
    return cases


def _expression(args: argparse.Namespace) -> re.Pattern[str]:
    try:
        return re.compile(args.filter or "", re.IGNORECASE)
    except re.error as error:
        raise UserError(f"--filter {args.filter!r} is not a regular expression: {error}") from error


def _list(cases: list[Case]) -> None:
    width = max(len(case.name) for case in cases)
    net = max(len(case.net) for case in cases)
    print(f"{'':<{width + net + 14}}  {'forward':>20}  {'backward':>20}")
    units = f"  {'GFLOP':>9}  {'MB':>9}" * 2
    print(f"{'family':<12}{'case':<{width}}  {'as in':<{net}}{units}")
    for case in cases:
        cost = case.cost()
        columns = [f"{work.flops / 1e9:9.3f}  {work.bytes / 1e6:9.3f}" for work in (cost.forward, cost.backward)]
        print(f"{case.family:<12}{case.name:<{width}}  {case.net:<{net}}  {'  '.join(columns)}")


def _budget(args: argparse.Namespace) -> tuple[float, int]:
    """Seconds and rounds at least."""
    seconds = args.seconds if args.seconds is not None else (QUICK_SECONDS if args.quick else SECONDS)
    return seconds, QUICK_MIN_ROUNDS if args.quick else MIN_ROUNDS


def _allocator(args: argparse.Namespace) -> str:
    """Set up the allocator and name it."""
    return "kept memory" if args.keep_memory and scratchnn.keep_memory() else "the system's default"


def _about(now: datetime) -> dict[str, Any]:
    return {
        "date": now.isoformat(timespec="seconds"),
        "versions": describe_versions(),
        "hardware": describe_hardware(),
    }


class _Interruption:
    """Whether the user cut the measurement short, as an exit status."""

    status = 0


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Measure until the end or Ctrl-C: what is there by then is reported all the same."""
    interruption = _Interruption()
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.status = INTERRUPTED
        print("interrupted: the cases after this are missing")


def _files(args: argparse.Namespace, name: str, now: datetime) -> Path:
    """The name of the files of this run, without suffix; their folder is made."""
    args.out.mkdir(parents=True, exist_ok=True)
    return args.out / f"{name}-{now:%Y%m%d-%H%M%S}"


def _write(files: Path, data: str, page: str) -> None:
    files.with_suffix(".json").write_text(data)
    files.with_suffix(".md").write_text(page)
    print(f"files: {', '.join(str(file) for file in sorted(files.parent.glob(f'{files.name}.*')))}")

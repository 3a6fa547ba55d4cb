"""``scratchnn bench``: from command-line options to a table, its JSON and Markdown files, and a picture."""

from __future__ import annotations

import argparse
import os
import re
from datetime import datetime, timezone
from pathlib import Path

import torch

import scratchnn
from scratchnn.bench import cases as catalogue
from scratchnn.bench import overhead
from scratchnn.bench.cases import Case
from scratchnn.bench.limits import measure_limits
from scratchnn.bench.measure import Disagreement, measure, require_ours
from scratchnn.bench.report import Report, Table, heading, markdown, summarize
from scratchnn.environment import describe_hardware, describe_versions
from scratchnn.errors import UserError, require

HELP = "time the layers of scratchnn and torch side by side"

WRONG_RESULTS, INTERRUPTED = 1, 130

SECONDS, QUICK_SECONDS = 4.0, 0.4
MIN_ROUNDS, QUICK_MIN_ROUNDS = 5, 3
OVERHEAD_SECONDS = 0.3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    families = catalogue.families()
    parser.add_argument(
        "--family", action="append", choices=families, help="only this family of layers; may be repeated"
    )
    parser.add_argument("--filter", metavar="REGEX", help='only cases whose "family name" contains this, see --list')
    parser.add_argument("--list", action="store_true", help="list the cases and the work in each; time nothing")
    parser.add_argument("--threads", type=int, help="threads that compute (default: torch's choice)")
    parser.add_argument(
        "--overhead",
        action="store_true",
        help="time calls on tiny tensors instead, where Python and dispatch are all there is; see --filter, --seconds",
    )
    parser.add_argument("--seconds", type=float, help=f"time to spend on each case, set-up aside (default {SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help=f"a first look: {QUICK_SECONDS:g} seconds for each case")
    parser.add_argument(
        "--torch-format",
        choices=("best", "same"),
        default="best",
        help="run torch in the faster memory format of its two, or in that of the case (default best)",
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
    """Time what the options select.

    Returns:
        0; 1 when a layer's results differed from torch's; 130 when interrupted, with what was done on file.
    """
    if args.overhead:
        return _run_overhead(args)
    cases = _select(args)
    if args.list:
        _list(cases)
        return 0
    require("matplotlib", extra="train")
    seconds = args.seconds if args.seconds is not None else (QUICK_SECONDS if args.quick else SECONDS)
    if seconds <= 0:
        raise UserError(f"--seconds must be above 0, got {seconds:g}")
    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads must be 1 or more, got {args.threads}")
        torch.set_num_threads(args.threads)
    require_ours(cases)
    load = os.getloadavg()[0]
    kept = args.keep_memory and scratchnn.keep_memory()
    now = datetime.now(timezone.utc)
    report = Report(
        date=now.isoformat(timespec="seconds"),
        versions=describe_versions(),
        hardware=describe_hardware(),
        settings={
            "threads": torch.get_num_threads(),
            "instruction_set": torch.ops.scratchnn.instruction_set(),
            "allocator": "kept memory" if kept else "the system's default",
            "torch_format": args.torch_format,
            "seconds": seconds,
            "min_rounds": QUICK_MIN_ROUNDS if args.quick else MIN_ROUNDS,
            "load_before": round(load, 2),
        },
        limits=measure_limits({case.dtype for case in cases}, seconds=0.3 if args.quick else 1.0),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    files = args.out / f"bench-{now:%Y%m%d-%H%M%S}"
    interrupted = False
    try:
        _measure(cases, report)
    except KeyboardInterrupt:
        interrupted = True
    return _finish(report, files, interrupted)


def _run_overhead(args: argparse.Namespace) -> int:
    calls = [call for call in overhead.CALLS if re.search(args.filter or "", call.name)]
    if not calls:
        raise UserError(f"no layer has a name that contains {args.filter!r}")
    torch.set_num_threads(1)
    about = {**describe_versions(), **describe_hardware(), "date": datetime.now(timezone.utc).isoformat()}
    print(
        f"{about['processor']}, {about['instruction_set']}, torch {about['torch']}, 1 thread, processor time, medians"
    )
    print(overhead.heading())
    results = []
    for call in calls:
        results.append(overhead.measure_overhead(call, args.seconds or OVERHEAD_SECONDS))
        print(overhead.row(results[-1]), flush=True)
    print(overhead.summary(results))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"overhead-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    overhead.write(results, about, file)
    print(f"file: {file}")
    return 0


def _select(args: argparse.Namespace) -> list[Case]:
    try:
        cases = catalogue.select(catalogue.CASES, args.family, args.filter)
    except re.error as error:
        raise UserError(f"--filter {args.filter!r} is not a regular expression: {error}") from error
    if not cases:
        raise UserError("no case has such a family and name, see scratchnn bench --list")
    return cases


def _list(cases: list[Case]) -> None:
    width = max(len(case.name) for case in cases)
    print(f"{'':<{width + 12}}  {'forward':>20}  {'backward':>20}")
    units = f"  {'GFLOP':>9}  {'MB':>9}" * 2
    print(f"{'family':<12}{'case':<{width}}{units}")
    for case in cases:
        cost = case.cost()
        columns = [f"{work.flops / 1e9:9.3f}  {work.bytes / 1e6:9.3f}" for work in (cost.forward, cost.backward)]
        print(f"{case.family:<12}{case.name:<{width}}  {'  '.join(columns)}")


def _measure(cases: list[Case], report: Report) -> None:
    """Time the cases, printing each result when it is there."""
    print("\n".join(heading(report)))
    table = Table([case.name for case in cases], report.limits)
    print(table.header())
    settings = report.settings
    for case in cases:
        try:
            for result in measure(
                case, settings["seconds"], settings["min_rounds"], settings["torch_format"] == "best"
            ):
                report.results.append(result)
                print("\n".join(table.rows(result)), flush=True)
        except Disagreement as disagreement:
            report.disagreements.append(str(disagreement))
            print(f"  WRONG {disagreement}", flush=True)


def _finish(report: Report, files: Path, interrupted: bool) -> int:
    from scratchnn.bench.chart import draw

    if report.results:
        print("geometric means")
        for summary in summarize(report.results):
            print(summary)
        data, table, picture = (files.with_suffix(suffix) for suffix in (".json", ".md", ".png"))
        data.write_text(report.to_json())
        table.write_text(markdown(report))
        draw(report, picture)
        print(f"files: {data}, {table}, {picture}")
    for disagreement in report.disagreements:
        print(f"not timed, wrong results: {disagreement}")
    if interrupted:
        print("interrupted: the cases after this are missing")
        return INTERRUPTED
    return WRONG_RESULTS if report.disagreements else 0

# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator history`: show earlier runs on this machine, and flaky results."""

from __future__ import annotations

import argparse
import dataclasses

from orchestrator.commands import document
from orchestrator.options import whole

NAME = "history"
HELP = "show earlier runs on this machine, and flaky results"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel",
        default="*",
        metavar="GLOB",
        help="show only kernels whose name or release matches (default: all)",
    )
    parser.add_argument(
        "--failed",
        metavar="GLOB",
        help="show only runs in which a matching scenario or check failed",
    )
    parser.add_argument(
        "--flaky",
        action="store_true",
        help="show scenarios and checks that both passed and failed on the same kernel",
    )
    parser.add_argument(
        "--count",
        type=whole(1, 1_000_000),
        default=20,
        metavar="N",
        help="show the newest N runs (default: 20)",
    )
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.many import history

    if options.flaky:
        if options.json:
            rows = [dataclasses.asdict(result) for result in history.flaky(kernel=options.kernel)]
            return document.show("history", flaky=rows)
        for result in history.flaky(kernel=options.kernel):
            cell = f"{result.kernel} ({result.digest[:12]}) smp{result.smp} {result.accel}"
            counts = f"passed {result.passed} times, failed {result.failed}"
            kind = "check" if result.kind == "claim" else result.kind
            ui.show(f"{cell}: {kind} {result.name} {counts}")
        return 0
    runs = history.past(kernel=options.kernel, scenario=options.failed, count=options.count)
    if options.json:
        return document.show("history", runs=[dataclasses.asdict(run) for run in runs])
    for line in history.table(runs):
        ui.show(line)
    return 0

# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator history`: earlier runs on this machine, and what is flaky."""

from __future__ import annotations

import argparse

NAME = "history"
HELP = "show earlier runs on this machine, and flaky results"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", default="*", metavar="GLOB", help="only kernels whose name or release matches"
    )
    parser.add_argument(
        "--failed", metavar="GLOB", help="only runs in which a matching scenario or claim failed"
    )
    parser.add_argument(
        "--flaky", action="store_true", help="show what both passed and failed on the same kernel"
    )
    parser.add_argument(
        "--count", type=int, default=20, metavar="N", help="newest N runs (default: 20)"
    )


def main(options: argparse.Namespace) -> int:
    from orchestrator.many import history

    if options.flaky:
        for found in history.flaky(kernel=options.kernel):
            cell = f"{found.kernel} ({found.digest[:12]}) smp{found.smp} {found.accel}"
            counts = f"passed {found.passed} times, failed {found.failed}"
            print(f"{cell}: {found.kind} {found.name} {counts}")
        return 0
    runs = history.past(kernel=options.kernel, scenario=options.failed, count=options.count)
    for line in history.table(runs):
        print(line)
    return 0

# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator history`: show earlier runs on this machine, and flaky results."""

from __future__ import annotations

import argparse
import dataclasses

from orchestrator.commands import document
from orchestrator.commands.options import add_kernel_filter
from orchestrator.errors import UsageError
from orchestrator.options import number, seconds, whole

NAME = "history"
HELP = "show earlier runs on this machine, and flaky results"
EXAMPLES = (
    ("history --count 50", ""),
    ("history --failed sync", "runs in which this check failed"),
    ("history --prune --older-than 30d", "free space"),
)
COUNT = 20
"""Runs that are shown if nobody says how many."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_kernel_filter(parser)
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
        metavar="N",
        help=f"show the newest N runs (default: {COUNT})",
    )
    prune = parser.add_argument_group("remove directories of runs (their lines stay)")
    prune.add_argument(
        "--prune",
        action="store_true",
        help="remove what --older-than and --keep say, and the images of the guest, which every "
        "run makes again",
    )
    prune.add_argument(
        "--older-than", type=seconds, metavar="TIME", help="remove runs older than TIME (30d, 12h)"
    )
    prune.add_argument(
        "--keep",
        type=number(0, 1e9),
        metavar="GIB",
        help="remove the oldest runs until GIB remain",
    )
    prune.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.many import history

    if options.prune:
        if options.kernel != "*" or options.failed or options.flaky or options.count:
            raise UsageError(
                "--prune goes by age and size: --kernel, --failed, --flaky and --count only choose "
                "what is shown"
            )
        return _prune(options)
    if options.older_than is not None or options.keep is not None or options.dry_run:
        raise UsageError("--older-than, --keep and --dry-run need --prune")
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
    count = options.count or COUNT
    runs = history.past(kernel=options.kernel, scenario=options.failed, count=count)
    if options.json:
        return document.show("history", runs=[dataclasses.asdict(run) for run in runs])
    for line in history.table(runs):
        ui.show(line)
    if not runs:
        ui.say("no such run is recorded")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from orchestrator.many import prune

    keep = None if options.keep is None else int(options.keep * (1 << 30))
    removed = list(prune.prune(older=options.older_than, keep=keep, dry=options.dry_run))
    if options.json:
        rows = [dataclasses.asdict(entry) for entry in removed]
        return document.show("history", removed=rows)
    for entry in removed:
        print(f"{entry.bytes / (1 << 20):9.1f} MiB  {entry.directory.name}, {entry.what}")
    total = sum(entry.bytes for entry in removed) / (1 << 30)
    print(f"{total:.2f} GiB {'would be' if options.dry_run else 'were'} freed")
    return 0

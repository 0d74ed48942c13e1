# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator replay`: run the free-running part of a finished run once more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.commands import document
from orchestrator.commands.show import directory_of
from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE, UsageError
from orchestrator.options import whole

NAME = "replay"
HELP = "repeat the free-running part of a finished run, event by event, or stop it at an event"
EXAMPLES = (
    ("replay 12", "run 12 of the history"),
    ("replay 12 --at failure", "open GDB where it failed"),
    ("replay 12 --at sites:4711 --back 20", "20 events before [record 4711 of sites]"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="number, name or directory of a run, as `history` shows them"
    )
    parser.add_argument(
        "--at",
        metavar="EVENT",
        help="stop at an event: its number as in [record N], BRANCH:N, the name of a broken claim, "
        "or `failure`. On a terminal GDB is opened, otherwise the state is printed",
    )
    parser.add_argument(
        "--back",
        type=whole(0, 1_000_000_000),
        default=0,
        metavar="N",
        help="with --at: stop N events earlier",
    )
    parser.add_argument(
        "--gdb", action="store_true", help="with --at: open GDB, also without a terminal"
    )
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    if options.at is None and (options.gdb or options.back):
        raise UsageError("--gdb and --back need --at EVENT")
    if options.gdb and options.json:
        raise UsageError("choose one of --gdb and --json")
    directory = directory_of(options.run)
    return _stop(directory, options) if options.at is not None else _compare(directory, options)


def _compare(directory: Path, options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.replay import replay

    branches, status = [], EXIT_PASS
    for one in replay(directory):
        course = "the same course"
        if one.differs_at is not None:
            course, status = f"another course from event {one.differs_at:,} on", EXIT_UNTESTABLE
        branches.append({"name": one.name, "events": one.events, "differs_at": one.differs_at})
        if not options.json:
            ui.show(f"{one.name}: {course} ({one.events:,} events)")
    return document.show("replay", status, branches=branches) if options.json else status


def _stop(directory: Path, options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.host import keeper
    from orchestrator.replay import debug, described, stopped

    with stopped(directory, options.at, options.back) as stop:
        exact = stop.differs_at is None and not stop.steps
        status = EXIT_PASS if exact else EXIT_UNTESTABLE
        lines = [*described(stop)]
        if options.json:
            at = {"branch": stop.branch.name, "event": stop.event, "differs_at": stop.differs_at}
            return document.show("replay --at", status, **at, steps=stop.steps, lines=lines)
        for line in lines:
            ui.show(line)
        if options.gdb or (sys.stdin.isatty() and sys.stdout.isatty()):
            with keeper.temporary_directory() as temporary:
                sys.stdout.flush()
                return debug(stop, temporary) or status
    return status

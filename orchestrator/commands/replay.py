# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator replay`: run the free-running part of a finished run once more."""

from __future__ import annotations

import argparse

from orchestrator.commands import document
from orchestrator.commands.show import directory_of
from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE

NAME = "replay"
HELP = "repeat the free-running part of a finished run, event by event"
EXAMPLES = (("replay 12", "run 12 of the history"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="number, name or directory of a run, as `history` shows them"
    )
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.replay import replay

    branches, status = [], EXIT_PASS
    for one in replay(directory_of(options.run)):
        course = "the same course"
        if one.differs_at is not None:
            course, status = f"another course from event {one.differs_at:,} on", EXIT_UNTESTABLE
        branches.append({"name": one.name, "events": one.events, "differs_at": one.differs_at})
        if not options.json:
            ui.show(f"{one.name}: {course} ({one.events:,} events)")
    return document.show("replay", status, branches=branches) if options.json else status

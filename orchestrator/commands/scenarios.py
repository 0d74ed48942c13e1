# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator scenarios`: list the scenarios, and what the kernel promises in each."""

from __future__ import annotations

import argparse
import textwrap

from orchestrator.commands import document

NAME = "scenarios"
HELP = "list the scenarios of a run and what the kernel promises in each"
EXAMPLES = (
    ("scenarios", ""),
    ("scenarios --json", "for a program"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator.scenarios import scenario

    if options.json:
        rows = [
            {"name": entry.name, "title": entry.title, "promise": entry.promise.strip()}
            for entry in scenario.load_all()
        ]
        return document.show("scenarios", scenarios=rows)
    for entry in scenario.load_all():
        indent = " " * 15
        print(f"{entry.name:<14} {entry.title}")
        print(textwrap.fill(entry.promise, 100, initial_indent=indent, subsequent_indent=indent))
    return 0

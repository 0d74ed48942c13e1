# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator nightly`: sweep what changed since the last night, and report what is new."""

from __future__ import annotations

import argparse

from orchestrator.commands import document, sweep

NAME = "nightly"
HELP = "sweep what changed since the last night and report what is new"
EXAMPLES = (
    ("nightly matrix.yaml", ""),
    ("nightly matrix.yaml --strict", "fail for known failures as well"),
)
STATUSES = (
    (0, "nothing is newly failing"),
    (1, "a cell is newly failing, or fails in another way"),
    (125, "a cell lost its verdict, or no cell has one"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    sweep.add_options(parser)
    parser.description = (
        "Runs the cells of a matrix (docs/sweep.md) whose kernel changed since the last night, and "
        "reports what is new (docs/nightly.md)."
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 for known failures as well"
    )


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.host.paths import state_dir
    from orchestrator.many import nightly
    from orchestrator.report import sweep as report

    directory, results, seconds = sweep.perform(options, state_dir() / "nightly")
    night = nightly.finish(directory, results, strict=options.strict)
    if options.json:
        content = report.content(results, seconds)
        news = [{"cell": entry.cell, "kind": entry.kind} for entry in night.news]
        return document.show(
            "nightly", night.exit_status, directory=directory, news=news, **content
        )
    ui.show(night.text)
    return night.exit_status

# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator nightly`: sweep what changed since the last night, and report what is new."""

from __future__ import annotations

import argparse

from orchestrator.commands import sweep

NAME = "nightly"
HELP = "sweep what changed since the last night and report what is new"


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
    from orchestrator.host.paths import state_dir
    from orchestrator.many import nightly

    directory, results = sweep.perform(options, state_dir() / "nightly")
    return nightly.finish(directory, results, strict=options.strict)

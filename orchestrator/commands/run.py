# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator run`: do one run, write its reports, and exit with the verdict's status."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from orchestrator.commands.options import add_kernel, add_output, run_spec
from orchestrator.options import add_options as add_declared
from orchestrator.spec import MACHINE, POKING, RUN, RunSpec

if TYPE_CHECKING:
    from orchestrator.machine.machine import Machine
    from orchestrator.verdict.result import RunResult

NAME = "run"
HELP = "boot a kernel, poke it on every CPU, and report the verdict"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_kernel(parser)
    add_declared(parser, RunSpec, MACHINE, POKING, RUN)
    add_output(parser, "directory for the results (default: a new one in the state directory)")
    parser.add_argument(
        "--keep",
        nargs="?",
        const="failure",
        choices=("failure", "always"),
        metavar="always",
        help="keep the guest for `orchestrator gdb` if the run does not pass (or always)",
    )


def main(options: argparse.Namespace) -> int:
    from orchestrator.attach import owner
    from orchestrator.run import run

    spec = run_spec(options)

    def keep(result: RunResult, machine: Machine | None) -> None:
        _report(result)
        if options.keep == "always" or result.verdict.exit_status:
            owner.keep(machine, result.directory)

    if options.keep:
        return run(spec, keep).verdict.exit_status
    result = run(spec)
    _report(result)
    return result.verdict.exit_status


def _report(result: RunResult) -> None:
    """Write every report. A report that cannot be written is a line on stderr, and no failure."""
    import sqlite3

    from orchestrator.many import history
    from orchestrator.report import files, page, terminal
    from orchestrator.ui import SafeConsole, show

    def text(result: RunResult) -> None:
        with (result.directory / "report.txt").open("w") as file:
            terminal.show(result, SafeConsole(file=file, width=120))

    def annotations(result: RunResult) -> None:
        for annotation in files.github(result):
            show(annotation)

    reports = {
        "junit.xml and results.ktap": files.write,
        "report.html": page.write,
        "the history": history.record,
        "report.txt": text,
        "GitHub's summary": annotations,
    }
    for name, write in reports.items():
        try:
            write(result)
        except (OSError, sqlite3.Error) as error:  # a full disk does not change the verdict
            print(f"orchestrator: {name} could not be written: {error}", file=sys.stderr)
    try:
        terminal.show(result, SafeConsole())
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # The reader (`| head`) is gone. rich would exit with 1, which means that the kernel failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

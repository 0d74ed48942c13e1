# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator run`: do one run, write its reports, and exit with the verdict's status."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
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
    from orchestrator.host import interrupts
    from orchestrator.run import run

    spec = run_spec(options)

    def keep(result: RunResult, machine: Machine | None) -> None:
        _report(result)
        wanted = options.keep == "always" or result.verdict.exit_status
        if wanted and not interrupts.received():
            with interrupts.ending_with_ctrl_c():
                owner.keep(machine, result.directory)

    if options.keep:
        return run(spec, keep).verdict.exit_status
    result = run(spec)
    _report(result)
    return result.verdict.exit_status


def _report(result: RunResult) -> None:
    """Write every report. One that cannot be written costs a line, and never changes the verdict.

    The history comes last: it may have to wait for other processes.
    """
    from orchestrator.host import failures
    from orchestrator.host.files import write_report
    from orchestrator.many import history
    from orchestrator.report import files, page, terminal
    from orchestrator.ui import SafeConsole, show

    def text(result: RunResult) -> None:
        content = io.StringIO()
        terminal.show(result, SafeConsole(file=content, width=120))
        write_report(result.directory / "report.txt", content.getvalue())

    def annotations(result: RunResult) -> None:
        for annotation in files.github(result):
            show(annotation)

    def screen(result: RunResult) -> None:
        try:
            terminal.show(result, SafeConsole())
        except Exception:
            print(f"{result.verdict.outcome.upper()}  {result.verdict.reason}")
            print(f"results: {result.directory}")
            raise
        finally:
            sys.stdout.flush()

    reports: dict[str, Callable[[RunResult], None]] = {
        "junit.xml and results.ktap": files.write,
        "report.html": page.write,
        "report.txt": text,
        "GitHub's summary": annotations,
        "the report": screen,
        "the history": history.record,
    }
    for name, write in reports.items():
        try:
            write(result)
        except Exception as error:
            if failures.debugging() and not failures.expected(error):
                raise
            described = failures.described(error, result.directory)
            print(f"orchestrator: {name} could not be written: {described}", file=sys.stderr)

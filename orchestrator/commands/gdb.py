# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator gdb`: debug a new guest, a kept guest, or the symbols of a finished run."""

from __future__ import annotations

import argparse

from orchestrator.commands.options import add_kernel, add_output, add_verbosity, run_spec
from orchestrator.options import add_options as add_declared
from orchestrator.spec import MACHINE, RunSpec

NAME = "gdb"
HELP = "open GDB, with symbols, on a kept guest, a new guest or a finished run"
EXAMPLES = (
    ("gdb", "the newest kept guest"),
    ("gdb --now --smp 2", "a new guest"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="name or directory of a run (default: the newest kept one)",
    )
    which.add_argument(
        "--now", action="store_true", help="boot a new guest, as described by the options below"
    )
    add_kernel(parser)
    add_declared(parser, RunSpec, MACHINE)
    add_verbosity(parser, guest=True)
    add_output(parser, "directory for the logs (default: a new one in the state directory)")


def main(options: argparse.Namespace) -> int:
    from orchestrator.attach.client import attach
    from orchestrator.run import debug

    return debug(run_spec(options)) if options.now else attach(options.run)

# SPDX-License-Identifier: GPL-2.0-only
"""The program's entry: finds the command, runs it, and turns exceptions into exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from orchestrator import __version__
from orchestrator.commands import (
    bisect,
    doctor,
    export,
    gdb,
    history,
    kernels,
    mutants,
    nightly,
    run,
    scenarios,
    sweep,
)
from orchestrator.errors import (
    EXIT_INTERRUPTED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    EXIT_USAGE,
    OrchestratorError,
)

COMMANDS = (
    run, gdb, kernels, scenarios, mutants, history, bisect, sweep, nightly, export, doctor,
)  # fmt: skip
"""In the order of `orchestrator --help`. See orchestrator/commands/__init__.py."""


class Parser(argparse.ArgumentParser):
    """argparse with our exit status for wrong usage: `git bisect run` takes 2 for a bad kernel."""

    def __init__(self, **arguments: Any) -> None:
        # An abbreviation in a script would break as soon as another option starts like it.
        super().__init__(**{**arguments, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"orchestrator: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. arguments: None for those of the process."""
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except OrchestratorError as error:
        _complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        print("orchestrator: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has all that it needs and is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PASS
    except OSError as error:  # a full disk, a directory that cannot be written
        _complain(error)
        return EXIT_UNTESTABLE
    except Exception:  # Python's own status would be 1, which means that the kernel failed
        traceback.print_exc()
        print(
            "orchestrator: this is a bug in orchestrator and says nothing about the kernel",
            file=sys.stderr,
        )
        return EXIT_UNTESTABLE


def _complain(error: Exception) -> None:
    """Show an error, whose text may quote what a stranger wrote."""
    from orchestrator.ui import printable

    print(f"orchestrator: {printable(str(error))}", file=sys.stderr)


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(
        prog="orchestrator", description="Does this kernel patch its own code safely on every CPU?"
    )
    top.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = top.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )
    for command in COMMANDS:
        description = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        subparser = commands.add_parser(command.NAME, help=command.HELP, description=description)
        command.add_options(subparser)
        subparser.set_defaults(command=command.main)
    return top

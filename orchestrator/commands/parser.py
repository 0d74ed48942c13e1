# SPDX-License-Identifier: GPL-2.0-only
"""The parser of the whole command line."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any, NoReturn

from orchestrator.errors import UsageError, shortened

COMMANDS = (
    "run", "gdb", "kernels", "scenarios", "mutants", "history", "show", "bisect", "sweep",
    "nightly", "export", "doctor",
)  # fmt: skip
"""In the order of `orchestrator --help`. See orchestrator/commands/__init__.py."""


VALUE = "argument "
"""What argparse's messages about a value begin with."""


class Parser(argparse.ArgumentParser):
    """argparse, for which wrong usage is our UsageError.

    Its own exit status would be 2, which is a bad kernel for `git bisect run`.
    """

    def __init__(self, **arguments: Any) -> None:
        # An abbreviation in a script would break as soon as another option starts like it.
        super().__init__(**{**arguments, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        if message.startswith(VALUE):  # then the sentence says all there is
            message = message.removeprefix(VALUE).replace(": takes", " takes", 1)
        else:
            self.print_usage(sys.stderr)
        raise UsageError(shortened(message, 500))


class ShowVersion(argparse.Action):
    """`--version`. Unlike argparse's own, it asks for the commit only when it is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        from orchestrator.host import version

        print(f"orchestrator {version.version()}")
        parser.exit()


def parser() -> Parser:
    """A parser for all commands."""
    top = Parser(
        prog="orchestrator", description="Does this kernel patch its own code safely on every CPU?"
    )
    top.add_argument(
        "--version", action=ShowVersion, nargs=0, help="show version and commit, and exit"
    )
    commands = top.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )
    for name in COMMANDS:
        command = importlib.import_module(f"orchestrator.commands.{name}")
        description = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        subparser = commands.add_parser(command.NAME, help=command.HELP, description=description)
        command.add_options(subparser)
        subparser.set_defaults(command=command.main)
    return top

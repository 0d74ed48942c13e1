# SPDX-License-Identifier: GPL-2.0-only
"""The parser of the whole command line."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from orchestrator.errors import UsageError, nearest, shortened

COMMANDS = (
    "run", "explore", "gdb", "kernels", "scenarios", "mutants", "history", "show", "site", "replay",
    "bisect", "sweep", "nightly", "export", "doctor", "completion",
)  # fmt: skip
"""In the order of `orchestrator --help`. See orchestrator/commands/__init__.py."""


STATUSES = (
    (0, "done"),
    (125, "it could not be done"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)
"""Exit statuses of a command that has no STATUSES of its own."""
ABOUT = """\
Tells you whether a Linux kernel patches its own code safely. It boots the kernel in QEMU, pokes
(changes) instructions while every CPU executes them, and judges each write, sync and int3."""
FIRST_STEPS = """\
first steps:
  # what is missing on this host
  orchestrator doctor
  # test the default kernel on 4 CPUs; building it takes some minutes, once
  orchestrator run --smp 4

`orchestrator COMMAND --help` shows the options of a command, with examples and exit statuses."""
VALUE = "argument "
"""What argparse's messages about a value begin with."""


class Parser(argparse.ArgumentParser):
    """argparse, for which wrong usage is our UsageError.

    Its own exit status would be 2, which is a bad kernel for `git bisect run`.
    """

    def __init__(self, **arguments: Any) -> None:
        # An abbreviation in a script would break as soon as another option starts like it.
        fixed = {"allow_abbrev": False, "formatter_class": HelpFormatter}
        super().__init__(**{**arguments, **fixed})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is not known here, where all options of the command are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            close = nearest(unknown[0].partition("=")[0], names)
            hint = close if unknown[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            close = nearest(str(value), choices)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{close} (choose from {', '.join(choices)})"
            )

    def error(self, message: str) -> NoReturn:
        if message.startswith(VALUE):  # then the sentence says all there is
            message = message.removeprefix(VALUE).replace(": takes", " takes", 1)
            message = message.replace(": ignored explicit argument ", " takes no value, such as ")
        else:
            self.print_usage(sys.stderr)
        raise UsageError(shortened(message, 500))


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, and keeps indented lines as they are: examples and lists."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            # argparse forgets that commands are indented, and breaks the line behind a long one.
            self._action_max_length += self._indent_increment

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        paragraph: list[str] = []
        for line in [*text.splitlines(), ""]:
            if line and not line.startswith(" "):
                paragraph.append(line)
                continue
            lines += textwrap.wrap(" ".join(paragraph), width)
            paragraph = []
            lines.append(line)
        return "\n".join(indent + line for line in lines).rstrip()


class ShowVersion(argparse.Action):
    """`--version`. Unlike argparse's own, it asks for the commit only when it is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        from orchestrator.host import version

        print(f"orchestrator {version.version()}")
        parser.exit()


def parser() -> Parser:
    """A parser for all commands."""
    top = Parser(prog="orchestrator", description=ABOUT, epilog=FIRST_STEPS)
    top.add_argument(
        "--version", action=ShowVersion, nargs=0, help="show version and commit, and exit"
    )
    commands = top.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )
    for name in COMMANDS:
        command = importlib.import_module(f"orchestrator.commands.{name}")
        subparser = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=_epilog(command),
        )
        command.add_options(subparser)
        subparser.set_defaults(command=command.main, judges=hasattr(command, "STATUSES"))
    return top


def _epilog(command: ModuleType) -> str:
    """Examples and exit statuses, for the end of the command's help."""
    examples: Sequence[tuple[str, str]] = command.EXAMPLES
    lines = []
    for line, about in examples:
        lines += [f"  # {about}"] if about else []
        lines.append(f"  orchestrator {line}")
    statuses = [f"  {code:<5}{text}" for code, text in getattr(command, "STATUSES", STATUSES)]
    return "\n".join(["examples:", *lines, "", "exit status:", *statuses])

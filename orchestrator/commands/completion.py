# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator completion`: a script that completes command lines in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

NAME = "completion"
HELP = "print a script for your shell that completes command lines"
EXAMPLES = (
    ("completion bash >~/.local/share/bash-completion/completions/orchestrator", ""),
    ("completion zsh >~/.zfunc/_orchestrator", ""),
)
SHELLS = ("bash", "zsh", "tcsh")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def main(options: argparse.Namespace) -> int:
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The script for `shell`, which knows files, scenarios and kernels."""
    import shtab

    from orchestrator.commands.parser import parser
    from orchestrator.kernel import definition
    from orchestrator.scenarios import scenario

    top = parser()
    scenarios = [entry.name for entry in scenario.load_all()]
    for action in _actions(top):
        if action.type is Path:
            complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
            action.complete = complete  # type: ignore[attr-defined]
        elif action.dest in ("scenarios", "skip"):
            action.choices = scenarios
        elif action.dest == "selector":
            action.choices = definition.names()
    return str(shtab.complete(top, shell=shell, root_prefix="orchestrator"))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)

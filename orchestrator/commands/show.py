# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator show`: the report of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.commands import document
from orchestrator.errors import EXIT_PASS, UsageError, sentence
from orchestrator.host.files import write_whole

NAME = "show"
HELP = "show the report of a finished run"
EXAMPLES = (
    ("show 12", "run 12 of the history"),
    ("show 20261126-150840-6.1-int3-smp8-a1a7 --json", ""),
    ("show 12 --mail", "a mail to those who wrote the code"),
    ("show 12 --trace trace.json", "for ui.perfetto.dev"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="number, name or directory of a run, as `history` shows them"
    )
    parser.add_argument(
        "--mail", action="store_true", help="print the run as a mail to those who wrote the code"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write the run in Chrome's trace format to FILE, for Perfetto",
    )
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.report import mail, trace
    from orchestrator.verdict import result

    if options.mail and options.json:
        raise UsageError("--mail and --json cannot be combined: each prints the whole output")
    directory = directory_of(options.run)
    try:
        verdict = result.read(directory)
    except OSError as error:
        raise UsageError(f"{directory} has no verdict: that run has not ended") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.trace:
        _check_foreign(options.trace, directory, trace.FILE)
        _write(options.trace, trace.text(directory, verdict))
    if options.mail:
        ui.show(mail.mail(directory, verdict).rstrip())
        return EXIT_PASS
    if options.json:
        return document.show("show", directory=directory, verdict=result.as_json(verdict))
    try:
        ui.show((directory / "report.txt").read_text(errors="replace").rstrip())
    except OSError:
        ui.show(f"results: {directory}\n{verdict.outcome.upper()}  {verdict.reason}")
    return EXIT_PASS


def _check_foreign(file: Path, directory: Path, own: str) -> None:
    """Raises UsageError if the file is one of a run's own, apart from the one named `own`."""
    inside = file.resolve().is_relative_to(directory.resolve())
    if inside and file.exists() and file.name != own:
        raise UsageError(f"{file} belongs to the run: name another file")


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole; write to what is none, such as /dev/stdout or a pipe."""
    try:
        target = file.resolve()
        if target.exists() and not target.is_file():
            target.write_text(text)
        else:
            write_whole(target, text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be written: {sentence(error)}") from error


def directory_of(name: str) -> Path:
    """The directory of a run. Raises UsageError if there is none."""
    from orchestrator.attach.client import find_run
    from orchestrator.many import history

    if not name.isdecimal() or Path(name).is_dir():
        return find_run(name)
    found = history.find(int(name)) if len(name) < 10 else None
    if not found:
        raise UsageError(f"the history has no run {name}: see `orchestrator history`")
    if not Path(found).is_dir():
        raise UsageError(f"run {name} was in {found}, which was removed")
    return Path(found)

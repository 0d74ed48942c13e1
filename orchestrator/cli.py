# SPDX-License-Identifier: GPL-2.0-only
"""The program's entry: runs the command, and turns exceptions into sentences and exit statuses.

Everything that takes long to import is imported once signals are handled.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import EXIT_SIGNAL, EXIT_UNTESTABLE, OrchestratorError, printable, sentence
from orchestrator.host import interrupts, stdio

if TYPE_CHECKING:
    import argparse

    from orchestrator.commands.parser import Parser

JSON = "--json"
"""Known here so that wrong usage gets a document as well: see commands/document.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    arguments: None for those of the process, which then belongs to this function.
    """
    stdio.ensure_open()
    as_json = JSON in (sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments is None:
            threading.excepthook = _on_thread_failure
            sys.unraisablehook = _on_hidden_failure
            interrupts.install()
        status = _main(arguments, as_json)
        interrupts.hold()
    except KeyboardInterrupt as error:
        interrupts.hold()
        if interrupts.received():
            status = EXIT_UNTESTABLE
        else:  # the handlers are not ours
            status = EXIT_SIGNAL + 2
            _say_interrupted(error, status, as_json)
    if interrupted := interrupts.received():
        status = interrupted.exit_status
        _say_interrupted(interrupted, status, as_json)
    return status


def parser() -> Parser:
    """The parser of the whole command line."""
    from orchestrator.commands.parser import parser

    return parser()


def _main(arguments: Sequence[str] | None, as_json: bool) -> int:
    if arguments is None:
        _restart_if_needed()
    stdio.prepare()
    try:
        options = parser().parse_args(arguments)
        _silence_libraries()
        _set_verbosity(options)
        status = int(options.command(options))
        judges = options.judges and not getattr(options, "dry_run", False)
        return status if judges else _unless_lost(status)
    except SystemExit as done:  # after --help or --version
        return _unless_lost(int(done.code or 0))
    except Exception as error:
        if interrupts.received():  # it came of the signal, for example of a broken import
            return EXIT_UNTESTABLE
        return _failed(error, as_json)


def _unless_lost(status: int) -> int:
    """The exit status of a command that was to print something; its own is `status`."""
    return EXIT_UNTESTABLE if status == 0 and stdio.output_lost() else status


def _failed(error: Exception, as_json: bool) -> int:
    """Print what is to be known about `error`. Returns the exit status."""
    from orchestrator.host import failures

    _say(failures.described(error).removeprefix("orchestrator "))
    status = error.exit_status if isinstance(error, OrchestratorError) else EXIT_UNTESTABLE
    if as_json:
        _print_document(error, status)
    return status


def _say_interrupted(error: KeyboardInterrupt, status: int, as_json: bool) -> None:
    _say(sentence(error))
    if as_json:
        _print_document(error, status)


def _print_document(error: BaseException, status: int) -> None:
    from orchestrator.commands import document

    with contextlib.suppress(OSError):  # nobody reads it any more
        document.show_error(error, status)


def _say(text: str) -> None:
    print(f"orchestrator: {printable(text)}", file=sys.stderr)


DISTURBING = ("PYTHONDEVMODE", "PYTHONINSPECT", "PYTHONWARNINGS")
"""Settings with which Python ends with another status than ours, or takes warnings for errors."""


def _restart_if_needed() -> None:
    """Start again without DISTURBING, and in UTF-8 mode if the locale has another encoding.

    All our files are in UTF-8. Python does this by itself in the locale C.
    """
    utf8 = sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode
    options = [] if utf8 else ["-X", "utf8"]
    if [name for name in DISTURBING if os.environ.pop(name, "")] or options:
        interrupts.block()
        os.execv(sys.executable, [sys.executable, *options, *sys.orig_argv[1:]])


def _silence_libraries() -> None:
    """Print no log messages of libraries: some are tracebacks of what we report ourselves."""
    import logging

    from orchestrator.host import failures

    if not failures.debugging():
        logging.getLogger().addHandler(logging.NullHandler())


def _set_verbosity(options: argparse.Namespace) -> None:
    from orchestrator import ui

    ui.quiet = getattr(options, "quiet", False)
    ui.verbose = getattr(options, "verbose", False)


def _on_thread_failure(failure: threading.ExceptHookArgs) -> None:
    _say_hidden(failure.thread.name if failure.thread else "a thread", failure.exc_value)


def _on_hidden_failure(unraisable: sys.UnraisableHookArgs) -> None:
    """Called for an exception in a destructor, which changes nothing."""
    _say_hidden(f"ignored in {type(unraisable.object).__name__}", unraisable.exc_value)


def _say_hidden(where: str, error: BaseException | None) -> None:
    """Print what is to be known about an error that nobody can catch."""
    if isinstance(error, Exception):
        from orchestrator.host import failures

        _say(f"{where}: {failures.described(error)}")

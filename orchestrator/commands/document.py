# SPDX-License-Identifier: GPL-2.0-only
"""`--json`: one JSON document on standard output, and nothing else; progress goes to stderr.

orchestrator/report/json.schema.json describes all documents (docs/json.md).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from orchestrator.errors import OrchestratorError, sentence

FLAG = "--json"
SCHEMA = 1
"""Goes up when a field goes away or changes its meaning, not when one is added."""

_printed = False


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        FLAG, action="store_true", help="print one JSON document instead of text (docs/json.md)"
    )


def show(command: str, exit_status: int = 0, **content: Any) -> int:
    """Print the document of `command`. Returns the exit status.

    content: its own fields, of what JSON can hold, tuples, and paths, which become text.
    """
    global _printed
    from orchestrator.host import version

    document = {
        "schema": SCHEMA,
        "command": command,
        "version": version.version(),
        "exit_status": exit_status,
        **content,
    }
    # ASCII, as names may hold anything: lone surrogates, or what a terminal obeys.
    print(json.dumps(document, indent=1, default=str), flush=True)
    _printed = True
    return exit_status


def show_error(error: BaseException, exit_status: int) -> None:
    """Print the document of a command that ended with `error`, unless it has printed its own."""
    if not _printed:
        kind = error.outcome if isinstance(error, OrchestratorError) else "infra"
        show("error", exit_status, error={"kind": kind, "text": sentence(error)})

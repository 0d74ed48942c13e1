# SPDX-License-Identifier: GPL-2.0-only
"""Failures of this program itself: a sentence for the user, the traceback for a file.

With $ORCHESTRATOR_DEBUG, which the tests set, they are shown in full instead, and none becomes the
verdict of a run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from orchestrator.errors import InfraError, OrchestratorError, sentence
from orchestrator.host.paths import state_dir

FILE = "internal-error.txt"
DEBUG = "ORCHESTRATOR_DEBUG"


def debugging() -> bool:
    return bool(os.environ.get(DEBUG))


def expected(error: BaseException) -> bool:
    """Whether `error` is no mistake of this program: ours, or of the disk and its kind."""
    return isinstance(error, OrchestratorError | OSError)


def described(error: BaseException, directory: Path | None = None) -> str:
    """The sentence about `error`, whose traceback goes into a file.

    directory: where to write the file, if that is possible; by default the state directory.
    """
    if isinstance(error, OrchestratorError):
        return str(error)
    lines = traceback.format_exception(error)
    if debugging() and not expected(error):
        sys.stderr.writelines(lines)
    where = ""
    with contextlib.suppress(OSError, InfraError):
        file = (directory or state_dir()) / FILE
        file.write_text("".join(lines), errors="backslashreplace")
        where = f" (see {file})"
    return sentence(error) if expected(error) else f"{sentence(error)}{where}"

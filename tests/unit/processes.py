# SPDX-License-Identifier: GPL-2.0-only
"""Finding the processes that a test leaves behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 4.0
"""Within this time everything that belongs to a dead orchestrator is gone."""


def marked(text: str) -> list[int]:
    """The processes with `text` in their environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if text.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until `condition()`, for at most `seconds`. Returns whether it came true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True

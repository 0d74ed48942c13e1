# SPDX-License-Identifier: GPL-2.0-only
"""What the user sees during a run: a line per step with its duration, and the current progress.

It goes to standard error, so that standard output has the report and nothing else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

console = Console(stderr=True, highlight=False)
durations: dict[str, float] = {}
"""Seconds that each finished step took, by name, in order. The report shows them."""


class Progress:
    """A step in progress."""

    def __init__(self, name: str, status: Status | None) -> None:
        self.name = name
        self._status = status
        self._last_plain = time.monotonic()

    def progress(self, text: str) -> None:
        """Show how far the step has got."""
        if self._status is not None:
            self._status.update(f"{self.name}: {text}")
        elif time.monotonic() - self._last_plain > 20:  # a log file (CI) gets only a few lines
            self._last_plain = time.monotonic()
            console.print(f"  … {self.name}: {text}", markup=False)


@contextlib.contextmanager
def step(name: str) -> Iterator[Progress]:
    """Show `name` while the block runs, and afterwards how long it took."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status(name)) if console.is_terminal else None
        if status is None:
            console.print(f"  … {name}", markup=False)
        yield Progress(name, status)
    took = time.monotonic() - start
    durations[name] = durations.get(name, 0.0) + took
    console.print(f"  {took:6.1f} s  {name}", markup=False)


def say(text: str) -> None:
    """Print one line between the steps."""
    console.print(f"           {text}", markup=False, soft_wrap=True)

"""What the user sees while something takes time: one line a step, with its duration, and the last line of progress.

Steps go to standard error, so that standard output stays the report alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

console = Console(stderr=True, highlight=False)
durations: dict[str, float] = {}
"""Seconds that each finished step took, by its name, in order; the report shows them."""


class Progress:
    """A step under way; `progress(text)` shows how far it is."""

    def __init__(self, name: str, status: Status | None) -> None:
        self.name = name
        self._status = status
        self._last_plain = time.monotonic()

    def progress(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{self.name}: {text}")
        elif (
            time.monotonic() - self._last_plain > 20
        ):  # a log file (CI) gets a sign of life, not a flood
            self._last_plain = time.monotonic()
            console.print(f"  … {self.name}: {text}", markup=False)


@contextlib.contextmanager
def step(name: str) -> Iterator[Progress]:
    """Show `name` while the block runs, and how long it took when it is done."""
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
    """One line between the steps."""
    console.print(f"           {text}", markup=False, soft_wrap=True)

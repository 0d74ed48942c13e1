# SPDX-License-Identifier: GPL-2.0-only
"""What the user sees during a run: a line per step with its duration, and the current progress.

It goes to standard error, so that standard output has the report and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from orchestrator.errors import printable, sentence

WORKFLOW_COMMAND = re.compile(r"(?m)^\s*::|##\[")
"""What GitHub Actions obeys in the output of a step, such as `::add-mask::` or `##[error]`."""


NARROWEST = 40
"""Columns that a console has at least. A narrower terminal wraps the lines by itself."""


def _harmless(text: str) -> str:
    text = printable(text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        text = WORKFLOW_COMMAND.sub(lambda match: match[0][:-1] + "\\" + match[0][-1], text)
    return text


class SafeConsole(Console):
    """A console that shows only printable text, whoever wrote it, in colours of our own.

    It has a width in which a table can be read, whatever $COLUMNS says: rich prints nothing
    at all if that is 0.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)
        if self.width < NARROWEST:
            self.width = NARROWEST

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_harmless(segment.text))


def show(text: str) -> None:
    """Print to standard output, for text that somebody else may have written."""
    print(printable(text))


console = SafeConsole(stderr=True, highlight=False)
quiet = False
"""Whether progress is not shown; warnings still are."""
verbose = False
"""Whether the guest's console is shown as it boots."""
durations: dict[str, float] = {}
"""Seconds that each finished step took, by name, in order. The report shows them."""


BAR = 24
"""Width of a progress bar."""


def left(seconds: float) -> str:
    """A duration that is an estimate, in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


class Progress:
    """A step in progress."""

    def __init__(self, name: str, status: Status | None) -> None:
        self.name = name
        self._status = status
        self._last_plain = self._start = time.monotonic()

    def count(self, done: int, total: int | None, what: str) -> None:
        """Show that `done` of about `total` are done, if that is known, and when all will be.

        what: of what, in the plural.
        """
        if not total or done > total:
            self.progress(f"{done} {what}")
            return
        text = f"{done} of about {total} {what}"
        if done * 50 > total:  # before that, an estimate would be a guess
            text += f", {left((time.monotonic() - self._start) * (total - done) / done)} left"
        if self._status is not None:
            filled = BAR * done // total
            text = f"{'━' * filled}{'─' * (BAR - filled)} {text}"
        self.progress(text)

    def progress(self, text: str) -> None:
        """Show how far the step has got."""
        if quiet:
            return
        if self._status is not None:
            self._status.update(Text(f"{self.name}: {text}"))
        elif time.monotonic() - self._last_plain > 20:  # a log file (CI) gets only a few lines
            self._last_plain = time.monotonic()
            console.print(f"  … {self.name}: {text}", markup=False)


@contextlib.contextmanager
def step(name: str) -> Iterator[Progress]:
    """Show `name` while the block runs, and afterwards how long it took."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        shown = console.is_terminal and not quiet
        status = stack.enter_context(console.status(Text(name))) if shown else None
        if status is None and not quiet:
            console.print(f"  … {name}", markup=False)
        yield Progress(name, status)
    took = time.monotonic() - start
    durations[name] = durations.get(name, 0.0) + took
    if not quiet:
        console.print(f"  {took:6.1f} s  {name}", markup=False)


def say(text: str) -> None:
    """Print one line between the steps."""
    if not quiet:
        console.print(f"           {text}", markup=False, soft_wrap=True)


def guest_line(line: str) -> None:
    """Print a line of the guest's console, if that was asked for."""
    if verbose:
        console.print(f"  guest |  {line}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def saying_what_fails(what: str) -> Iterator[None]:
    """Make a file that the block cannot write a line on the screen, and no failure.

    For results that are known, and shown elsewhere as well: a full disk does not change them.
    """
    try:
        yield
    except OSError as error:
        text = f"{what} could not be written: {sentence(error)}"
        console.print(f"           {text}", markup=False, soft_wrap=True)

# SPDX-License-Identifier: GPL-2.0-only
"""Standard output and standard error that never fail, so that they cannot change a verdict.

A reader may go away (`| head`), a terminal or a disk may fail, a stream may be closed (`>&-`), and
a locale may lack the characters that we print.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class _Sink(io.FileIO):
    """A file descriptor for which every write succeeds. What cannot be written is lost."""

    failed = False
    lost = False
    """Whether it is standard output, and something is lost that somebody wants."""

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # somebody made it non-blocking
                select.select([], [self], [])
            return count
        except OSError as error:
            # A reader that is gone had all that it wants. Anything else the user may want to know.
            if not self.failed and error.errno != errno.EPIPE and self.fileno() != 2:
                with contextlib.suppress(OSError):
                    os.write(2, f"orchestrator: standard output: {error.strerror}\n".encode())
                self.lost = self.fileno() == 1
            self.failed = True
            return len(data)


def prepare() -> None:
    """Make the streams of this process robust. Streams that somebody has replaced stay."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = _robust(sys.__stdout__, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _robust(sys.__stderr__, 2)


def output_lost() -> bool:
    """Whether standard output could not be written, though its reader is there."""
    sys.stdout.flush()
    sink = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(sink, _Sink) and sink.lost


def ensure_open() -> None:
    """Open /dev/null where a standard stream is closed. Called before anything else is opened.

    The next file or pipe would get the number, and with it what we and our children print: signals
    come through a pipe, in which a newline is SIGUSR1.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # they are opened in order, so it has the right number


def _robust(stream: TextIO | None, number: int) -> TextIO:
    sink = _Sink(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(sink),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or sink.isatty(),
    )

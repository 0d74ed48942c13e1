# SPDX-License-Identifier: GPL-2.0-only
"""The transport of the guest's console: every line as it arrives, with its time.

What the lines mean is decided elsewhere: guest/klog.py finds the kernel's faults in them, and
guest/ktap.py the test module's report.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pexpect import EOF
from pexpect.fdpexpect import fdspawn

from orchestrator import ui
from orchestrator.guest.klog import READY, FaultScanner, Finding
from orchestrator.host.logs import Log
from orchestrator.machine.waiting import Reader

PIPE_SIZE = 1 << 20
"""The most that an unprivileged process may set. A full pipe blocks the guest in printk."""

KEPT = 10_000
"""Minimum number of lines kept in memory, once there have been that many."""

MAX_LINE = 4096
"""Longest line in bytes; the rest of a longer one is dropped. printk's lines have at most 1024."""


class GuestConsole:
    """Reads the console in a thread, from the guest's first byte to QEMU's end.

    The console is a pipe; QEMU gets the end `output`. Each line goes to `scanner`, to `lines`, and
    to the log as {"time": seconds since the epoch, "line": text}. When QEMU ends, an unfinished
    line counts as a line, because a crash can cut the last one short.

    history: lines that were shown before, if this is not the first machine of the guest.

    Whatever happens, the pipe is read to its end: a guest that nobody reads would hang.
    """

    def __init__(self, log: Path, history: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        """All lines so far; in a long run only the newest, but at least KEPT of them."""
        self.scanner = FaultScanner()
        self.log = Log(log)
        self._ready = threading.Event()
        self._input, self.output = os.pipe()
        fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._reader = Reader("the console", self._run)
        for line in history:
            self._note(line)
        self._known = len(self.scanner.findings)

    def start(self) -> None:
        """Start reading. Call it once QEMU has inherited `output`: this closes our copy of it."""
        os.close(self.output)
        self._reader.start()

    @property
    def ready(self) -> bool:
        """Whether the guest's init has reported that it is ready."""
        return self._ready.is_set()

    @property
    def new_findings(self) -> list[Finding]:
        """Faults that were found since the history."""
        return self.scanner.findings[self._known :]

    @property
    def lost(self) -> str:
        """Why the console was not read from beginning to end; empty if it was."""
        return self._reader.lost

    @property
    def ended(self) -> bool:
        """Whether QEMU has closed its end."""
        return not self._reader.is_alive()

    def shows(self, text: str) -> bool:
        """Whether one of the newest lines contains `text`."""
        return any(text in line for line in self.lines[-KEPT:])

    def close(self) -> None:
        """Read the rest, which QEMU may have left in the pipe when it ended, and stop."""
        self._reader.join(5)
        self.log.close()

    def _run(self) -> None:
        for raw in self._raw_lines():
            try:
                self._take(raw)
            except Exception as error:  # a fault of this program must not stop the guest
                self._reader.lose(error)

    def _raw_lines(self) -> Iterator[bytes]:
        spawn: Any = fdspawn(self._input, timeout=None, maxread=65536)
        line = bytearray()
        while True:
            try:
                data: bytes = spawn.read_nonblocking(65536, timeout=None)
            except EOF:
                break
            *ends, rest = data.split(b"\n")
            for end in ends:
                self._extend(line, end)
                yield bytes(line)
                line.clear()
            self._extend(line, rest)
        if line:
            yield bytes(line)
        spawn.close()

    def _extend(self, line: bytearray, part: bytes) -> None:
        room = MAX_LINE - len(line)
        line += part[:room]
        if len(part.rstrip(b"\r")) > room:
            self._reader.lose(
                f"line {self.scanner.lines + 1} of the console is longer than {MAX_LINE} bytes, "
                "and its rest was not scanned"
            )

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").strip("\r")
        ui.guest_line(line)
        self._note(line)

    def _note(self, line: str) -> None:
        self.scanner.feed(line)
        self.lines.append(line)
        if len(self.lines) > 2 * KEPT:
            del self.lines[:KEPT]
        if READY in line:
            self._ready.set()
        self.log.write(json.dumps({"time": round(time.time(), 6), "line": line}) + "\n")

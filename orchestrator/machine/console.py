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
from pathlib import Path
from typing import Any

from pexpect import EOF
from pexpect.fdpexpect import fdspawn

from orchestrator.guest.klog import READY, FaultScanner

PIPE_SIZE = 1 << 20
"""The most that an unprivileged process may set. A full pipe blocks the guest in printk."""

KEPT = 10_000
"""Minimum number of lines kept in memory, once there have been that many."""


class GuestConsole:
    """Reads the console in a thread, from the guest's first byte to QEMU's end.

    The console is a pipe; QEMU gets the end `output`. Each line goes to `lines`, to the file `log`
    as {"time": seconds since the epoch, "line": text}, and to `scanner`. When QEMU ends, an
    unfinished line counts as a line, because a crash can cut the last one short.
    """

    def __init__(self, log: Path) -> None:
        self.lines: list[str] = []
        """All lines so far; in a long run only the newest, but at least KEPT of them."""
        self.scanner = FaultScanner()
        self._ready = threading.Event()
        self._log = log.open("a", buffering=1)
        self._input, self.output = os.pipe()
        fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        """Start reading. Call it once QEMU has inherited `output`: this closes our copy of it."""
        os.close(self.output)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the guest's init has reported that it is ready."""
        return self._ready.is_set()

    def close(self) -> None:
        """Read the rest, which QEMU may have left in the pipe when it ended, and stop."""
        self._thread.join(5)
        self._log.close()

    def _run(self) -> None:
        spawn: Any = fdspawn(self._input, timeout=None, maxread=65536)
        while spawn.expect_exact([b"\n", EOF]) == 0:
            self._add(spawn.before)
        if spawn.before:
            self._add(spawn.before)
        spawn.close()

    def _add(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").strip("\r")
        self._log.write(json.dumps({"time": round(time.time(), 6), "line": line}) + "\n")
        self.lines.append(line)
        if len(self.lines) > 2 * KEPT:
            del self.lines[:KEPT]
        self.scanner.feed(line)
        if READY in line:
            self._ready.set()

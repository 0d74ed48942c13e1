"""The guest's console: every line with the time at which it came, for evidence and for the scanner."""

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

from orchestrator.guest.klog import READY, Scanner

PIPE_SIZE = 1 << 20
"""What an unprivileged process may ask for. The guest waits in every printk when the pipe is full."""

KEPT = 10_000
"""Lines kept in memory."""


class Console:
    """Reads the console, a pipe whose other end `output` is QEMU's, in a thread: from its first byte to QEMU's end.

    lines: all of them; of a long run the newest (KEPT and more). Each also goes to the file `log` as {"time": seconds
    since the epoch, "line": text}, and through `scanner`. An unfinished line is taken as a line when QEMU ends: a crash
    can cut the last one short.
    """

    def __init__(self, log: Path) -> None:
        self.lines: list[str] = []
        self.scanner = Scanner()
        self.ended = threading.Event()
        self._ready = threading.Event()
        self._log = log.open("a", buffering=1)
        self._input, self.output = os.pipe()
        fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        """Read from here on. Call it when QEMU has got `output`, which is closed on our side."""
        os.close(self.output)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the guest's init has said that it is there."""
        return self._ready.is_set()

    def tail(self, count: int = 10) -> list[str]:
        return self.lines[-count:]

    def close(self) -> None:
        """Wait for the last lines, which are still to be read when QEMU has just ended."""
        self._thread.join(5)
        self._log.close()

    def _run(self) -> None:
        spawn: Any = fdspawn(self._input, timeout=None, maxread=65536)
        while spawn.expect_exact([b"\n", EOF]) == 0:
            self._take(spawn.before)
        if spawn.before:
            self._take(spawn.before)
        spawn.close()
        self.ended.set()

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").strip("\r")
        self._log.write(json.dumps({"time": round(time.time(), 6), "line": line}) + "\n")
        self.lines.append(line)
        if len(self.lines) > 2 * KEPT:
            del self.lines[:KEPT]
        self.scanner.feed(line)
        if READY in line:
            self._ready.set()

"""The guest's console: every line with the time at which it came, for evidence and for the scanner."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from pexpect import EOF, TIMEOUT
from pexpect.socket_pexpect import SocketSpawn

from orchestrator.verdict.console import Scanner

READY = "orchestrator: guest ready"
"""What guest/init/init says when the guest can be worked with."""


class Console:
    """Reads the console in a thread, from its first byte to QEMU's end.

    lines: all of them. Each also goes to the file `log` as {"time": seconds since the epoch, "line": text}, and through
    `scanner`. An unfinished line is taken as a line when QEMU ends: a crash can cut the last one short.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self.lines: list[str] = []
        self.scanner = Scanner()
        self.ended = threading.Event()
        self._ready = threading.Event()
        self._log = log.open("a", buffering=1)
        self._connection = connection
        # Searching only the last bytes of what is pending keeps a megabyte without a newline from costing seconds.
        self._spawn: Any = SocketSpawn(connection, timeout=None, maxread=65536)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the guest's init has said that it is there."""
        return self._ready.is_set()

    def tail(self, count: int = 10) -> list[str]:
        return self.lines[-count:]

    def close(self) -> None:
        """Wait for the last lines, which are still to be read when QEMU has just ended, and stop reading."""
        self._thread.join(2)
        if self._thread.is_alive():
            self._connection.shutdown(socket.SHUT_RDWR)
            self._thread.join(2)
        self._connection.close()
        self._log.close()

    def _run(self) -> None:
        while self._spawn.expect_exact([b"\n", EOF, TIMEOUT]) != 1:
            self._take(self._spawn.before)
        if self._spawn.before:
            self._take(self._spawn.before)
        self.ended.set()

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").strip("\r")
        self._log.write(json.dumps({"time": round(time.time(), 6), "line": line}) + "\n")
        self.lines.append(line)
        self.scanner.feed(line)
        if READY in line:
            self._ready.set()

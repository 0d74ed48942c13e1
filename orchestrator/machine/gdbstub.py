# SPDX-License-Identifier: GPL-2.0-only
"""A client of QEMU's gdbstub, with the few commands that the probe of an accelerator needs.

GDB's remote protocol: `$COMMAND#CHECKSUM`, acknowledged by `+`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from dataclasses import dataclass

RIP = 0x10
"""Number of the register in QEMU's description of x86-64. Those before it have 8 bytes each."""


class StubError(Exception):
    """The stub did not do what it was asked for. The message says what it did."""


@dataclass(frozen=True)
class Stop:
    """A stop of the guest."""

    signal: int
    """5 for a breakpoint."""
    thread: str
    """The CPU that caused it, as the stub names it: `01` for CPU 0. It is selected then."""
    rip: int


class Stub:
    """The client's end of a connection to the stub.

    Every method raises TimeoutError at `deadline` (of time.monotonic()), and EOFError or an OSError
    when QEMU has ended.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._unparsed = b""
        # The stub has commands for single registers only for a client that has read their names.
        self.ask("qXfer:features:read:target.xml:0,ffb")

    def ask(self, command: str) -> str:
        """Send `command` and return the reply, which is empty if the stub does not know it."""
        checksum = sum(command.encode()) & 0xFF
        self._connection.sendall(f"${command}#{checksum:02x}".encode())
        return self._receive()

    def set_breakpoint(self, address: int) -> None:
        """Set a hardware breakpoint."""
        self._expect_ok(f"Z1,{address:x},1")

    def resume(self) -> Stop | None:
        """Let all CPUs run until the next stop. None if the guest has ended QEMU."""
        reply = self.ask("c")
        if reply.startswith(("W", "X")):
            return None
        match = re.match(r"T([0-9a-f]{2}).*?thread:(?:p[0-9a-f]+\.)?([0-9a-f]+)", reply)
        if not match:
            raise StubError(f"QEMU's gdbstub answered {reply!r} to `continue`")
        self._expect_ok(f"Hg{match[2]}")
        # All registers are read, because only then QEMU fetches them from KVM.
        registers = bytes.fromhex(self.ask("g"))
        rip = int.from_bytes(registers[8 * RIP : 8 * RIP + 8], "little")
        return Stop(int(match[1], 16), match[2], rip)

    def set_rip(self, address: int) -> None:
        """Change the rip of the CPU that caused the last stop."""
        self._expect_ok(f"P{RIP:x}={address.to_bytes(8, 'little').hex()}")

    def _expect_ok(self, command: str) -> None:
        reply = self.ask(command)
        if reply != "OK":
            raise StubError(f"QEMU's gdbstub answered {reply!r} to {command!r}")

    def _receive(self) -> str:
        while not (match := re.search(rb"\$([^#]*)#..", self._unparsed, re.DOTALL)):
            self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
            data = self._connection.recv(65536)
            if not data:
                raise EOFError
            self._unparsed += data
        self._unparsed = self._unparsed[match.end() :]
        with contextlib.suppress(OSError):  # QEMU ends when it has reported its end
            self._connection.sendall(b"+")
        return match[1].decode("latin-1")

# SPDX-License-Identifier: GPL-2.0-only
"""A gdbstub of one CPU that never executes anything, for a real GDB to talk to."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class FakeStub:
    """Listens on the unix socket `path`.

    deaf_to: how many interrupts it loses.
    breakpoints: whether it takes hardware breakpoints.
    """

    def __init__(self, path: Path, *, deaf_to: int = 0, breakpoints: bool = True) -> None:
        self.deaf_to = deaf_to
        self.breakpoints = breakpoints
        self.interrupts = 0
        """Number of interrupts that have arrived."""
        self.running = False
        self.pc = 0x1000
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def hang_up(self) -> None:
        """End the connection, as a QEMU does that is killed."""
        self._gdb.shutdown(socket.SHUT_RDWR)

    def stop_by_itself(self, signal: int = 5) -> None:
        """Stop the CPU and tell GDB."""
        self.running = False
        self._reply(f"T{signal:02x}thread:01;")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._gdb, _ = self._listener.accept()
            unparsed = b""
            while data := self._gdb.recv(65536):
                unparsed += data
                while unparsed:
                    if unparsed[:1] == b"\x03":
                        self._interrupt()
                    elif unparsed[:1] == b"$":
                        if b"#" not in unparsed or len(unparsed) < unparsed.index(b"#") + 3:
                            break
                        end = unparsed.index(b"#")
                        self._gdb.sendall(b"+")
                        self._handle(unparsed[1:end].decode())
                        unparsed = unparsed[end + 3 :]
                        continue
                    unparsed = unparsed[1:]

    def _interrupt(self) -> None:
        if self.running:
            self.interrupts += 1
            if self.interrupts > self.deaf_to:
                self.stop_by_itself(2)

    def _reply(self, text: str) -> None:
        checksum = sum(text.encode()) % 256
        self._gdb.sendall(f"${text}#{checksum:02x}".encode())

    def _handle(self, packet: str) -> None:
        if packet.startswith(("vCont;c", "c")):
            self.running = True  # the reply is the next stop
        elif packet.startswith("Z1"):
            self._reply("OK" if self.breakpoints else "E01")
        elif packet == "g":
            self._reply("00" * 128 + self.pc.to_bytes(8, "little").hex() + "00" * 28)
        elif packet.startswith(("vCont;s", "s")):
            self.pc += 1
            self._reply("T05thread:01;")
        elif packet.startswith("m"):
            self._reply("00" * int(packet.partition(",")[2], 16))
        elif packet.startswith(("H", "z1", "T", "D")):
            self._reply("OK")
        else:
            self._reply(
                {
                    "qC": "QC1",
                    "?": "T05thread:01;",
                    "qfThreadInfo": "m1",
                    "qsThreadInfo": "l",
                    "qAttached": "1",
                    "vCont?": "vCont;c;C;s;S",
                }.get(packet.partition(":")[0], "PacketSize=1000" if "qSupp" in packet else "")
            )

# SPDX-License-Identifier: GPL-2.0-only
"""GDB as a child process, driven over MI. Each command is matched to its result by token.

pygdbmi starts GDB and parses its output. Its write() is not used: it waits a fixed time for
whatever may come, which was measured as 200 ms per command. Here every command carries a token, and
returns as soon as the result with that token has arrived.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pygdbmi.gdbcontroller import GdbController

from orchestrator.errors import InfraError
from orchestrator.host.proc import mortal, need

Record = dict[str, Any]
"""One record of GDB's output, as pygdbmi parses it."""

SETTINGS = (
    "pagination off",
    "confirm off",
    "mi-async on",
    "architecture i386:x86-64",
    "width 0",
    "remotetimeout 30",
    "startup-with-shell off",
    "debuginfod enabled off",
)


class Refused(InfraError):
    """GDB answered a command with an error."""


class Gdb:
    """One GDB session. Use it as a context manager: no process is left when the block ends.

    log: gets every line that is sent and received.
    alive: called between reads. It raises when the machine has died, which ends the wait.
    """

    def __init__(self, log: Path, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._token = 0
        self._log = log.open("a", buffering=1)
        self._stops: list[Record] = []
        # A session of its own keeps Ctrl-C from GDB: we handle it.
        gdb = ["setsid", need("gdb", "gdb"), "-nx", "-quiet", "--interpreter=mi3"]
        self.command = mortal([*gdb, "-iex", "set auto-load off"])
        self._log.write("$ " + " ".join(self.command) + "\n")
        self._controller = GdbController(
            command=self.command, time_to_check_for_additional_output_sec=1e-6
        )
        for setting in SETTINGS:
            try:
                self.execute(f"-gdb-set {setting}")
            except Refused:
                pass  # a GDB built without debuginfod does not know that setting
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Gdb:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        process = self._controller.gdb_process
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._log.close()

    # -- MI

    def _read(self, timeout: float) -> list[Record]:
        process = self._controller.gdb_process
        if process is None or process.poll() is not None:
            status = process.returncode if process else "?"
            raise InfraError(f"GDB ended with status {status}: see {self._log.name}")
        records: list[Record] = self._controller.get_gdb_response(
            timeout, raise_error_on_timeout=False
        )
        for record in records:
            kind, message = record["type"], record["message"]
            if message not in ("running", "thread-created", "library-loaded"):
                self._log.write(f"{kind} {record.get('token')} {message} {record['payload']!r}\n")
            if kind == "notify" and message == "stopped":
                self._stops.append(record)
        return records

    def poll(self) -> None:
        """Read what GDB has written, so that its pipe never fills. Does not wait."""
        self._read(0)

    def execute(self, command: str, timeout: float = 30.0) -> tuple[Record, str]:
        """Run one MI command. Returns its result record, and GDB's console output until then.

        Raises Refused if GDB answers with an error, InfraError if it does not answer within
        `timeout` seconds or has ended.
        """
        self._token += 1
        token = self._token
        self._log.write(f"> {token}{command}\n")
        # A broken pipe means that GDB has ended: _read() reports its status.
        with contextlib.suppress(OSError):
            self._controller.io_manager.write(f"{token}{command}", read_response=False)
        console: list[str] = []
        errors: list[str] = []
        end = time.monotonic() + timeout
        while True:
            for record in self._read(0.2):
                if record["type"] == "console":
                    console.append(record["payload"] or "")
                if record["type"] == "log":
                    errors.append((record["payload"] or "").strip())
                if record["type"] == "result" and record.get("token") == token:
                    if record["message"] == "error":
                        reason = record["payload"].get("msg", "error")
                        text = " ".join([*filter(None, errors[-3:]), reason])
                        raise Refused(f"GDB: {text} (after {command!r})")
                    return record, "".join(console)
            self._alive()
            if time.monotonic() > end:
                raise InfraError(f"GDB did not answer {command!r} within {timeout:.0f} s")

    def console(self, line: str, timeout: float = 30.0) -> str:
        """Run one line of GDB's command language, and return what it printed. Raises as execute."""
        escaped = line.replace("\\", "\\\\").replace('"', '\\"')
        return self.execute(f'-interpreter-exec console "{escaped}"', timeout)[1]

    # -- the guest

    def attach(self, target: Path) -> None:
        """Connect to QEMU's gdbstub on the unix socket `target`, which stops the guest."""
        self.execute(f"-target-select remote {target}")

    def resume(self) -> None:
        self._stops.clear()
        self.execute("-exec-continue")

    def interrupt(self, timeout: float = 30.0) -> None:
        """Stop every CPU of the guest. Raises InfraError if that takes over `timeout` seconds."""
        self.poll()
        if not self._stops:
            # Refused means that the guest has just stopped by itself. The loop below sees that.
            with contextlib.suppress(Refused):
                self.execute("-exec-interrupt")
        end = time.monotonic() + timeout
        while not self._stops:
            self._read(0.2)
            self._alive()
            if time.monotonic() > end:
                raise InfraError(f"GDB did not stop the guest within {timeout:.0f} s")
        self._stops.clear()

    @property
    def stopped_by_itself(self) -> bool:
        """Whether the guest stopped without interrupt(): at a breakpoint, or by a signal."""
        return bool(self._stops)

    @property
    def signal(self) -> str | None:
        """The signal of the last such stop; None if it was not by a signal."""
        payload = self._stops[-1]["payload"] if self._stops else None
        return payload.get("signal-name") if isinstance(payload, dict) else None

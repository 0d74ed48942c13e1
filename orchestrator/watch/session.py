# SPDX-License-Identifier: GPL-2.0-only
"""GDB as a child process, driven over MI. Each command is matched to its result by token.

pygdbmi starts GDB. Its write() is not used: it waits a fixed time for whatever may come, which was
measured as 200 ms per command. Here every command carries a token, and returns as soon as the
result with that token has arrived. Nor is its parser: see mi.py.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pygdbmi.gdbcontroller import GdbController

from orchestrator.errors import InfraError, shortened
from orchestrator.host.logs import Log
from orchestrator.host.proc import mortal, need, without_python
from orchestrator.machine.waiting import POLL, settle, until
from orchestrator.watch.mi import Output, Record

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


INTERRUPT_SECONDS = 0.1
"""Interval between two attempts to stop the guest. A single one is lost now and then, when it
arrives at QEMU while a CPU is stopping at a breakpoint."""


class Refused(InfraError):
    """GDB answered a command with an error."""


class Gdb:
    """One GDB session. Use it as a context manager: no process is left when the block ends.

    log: gets every line that is sent and received.
    check: called in every wait. It raises when the machine has died, which ends the wait.
    """

    def __init__(self, log: Path, check: Callable[[], None]) -> None:
        self.log = Log(log)
        self.busy = False
        """Whether a command is in progress: what GDB writes meanwhile is read by execute()."""
        self._check = check
        self._token = 0
        self._errors: deque[str] = deque(maxlen=5)  # what GDB said about errors of late
        self._stop: Record | None = None
        self._running = False
        self._resumed = 0  # token of the last -exec-continue
        self._not_resumed: Record | None = None  # its error, if it came after its first answer
        # A session of its own keeps Ctrl-C from GDB: we handle it.
        gdb = ["setsid", need("gdb", "gdb"), "-nx", "-quiet", "--interpreter=mi3"]
        self.command = mortal(without_python([*gdb, "-iex", "set auto-load off"]))
        self.log.write(f"$ {shlex.join(self.command)}\n")
        self._controller = GdbController(
            command=self.command, time_to_check_for_additional_output_sec=1e-6
        )
        process = self._controller.gdb_process
        assert process is not None and process.stdout is not None and process.stderr is not None
        self._output = Output([process.stdout, process.stderr])
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
        self.log.close()

    # -- MI

    def _read(self, timeout: float) -> list[Record]:
        process = self._controller.gdb_process
        if process is None or process.poll() is not None:
            status = process.returncode if process else "?"
            raise InfraError(f"GDB ended with status {status}: see {self.log.path.name}")
        records = self._output.records(timeout)
        for record in records:
            kind, message = record["type"], record["message"]
            if message not in ("running", "thread-created", "library-loaded"):
                self.log.write(f"{kind} {record.get('token')} {message} {record['payload']!r}\n")
            if kind == "log":
                self._errors.append((record["payload"] or "").strip())
            if message == "error" and record.get("token") == self._resumed:
                self._running, self._not_resumed = False, record
            if kind == "notify" and message == "running":
                self._running, self._stop = True, None
            if kind == "notify" and message == "stopped":
                self._running, self._stop = False, record
        return records

    def poll(self) -> None:
        """Read what GDB has written, so that its pipe never fills. Does not wait."""
        self._read(0)

    def _send(self, command: str) -> int:
        """Send one MI command. Returns its token."""
        self._token += 1
        self.log.write(f"> {self._token}{command}\n")
        # A broken pipe means that GDB has ended: _read() reports its status.
        with contextlib.suppress(OSError):
            self._controller.io_manager.write(f"{self._token}{command}", read_response=False)
        return self._token

    def execute(self, command: str, timeout: float = 30.0) -> tuple[Record, str]:
        """Run one MI command. Returns its result record, and GDB's console output until then.

        Raises Refused if GDB answers with an error, InfraError if it does not answer within
        `timeout` seconds or has ended.
        """
        console: list[str] = []
        results: list[Record] = []
        self._errors.clear()
        token = self._send(command)

        def answered() -> bool:
            for record in self._read(POLL):
                if record["type"] == "console":
                    console.append(record["payload"] or "")
                if record["type"] == "result" and record.get("token") == token:
                    results.append(record)
            return bool(results)

        busy, self.busy = self.busy, True
        try:
            if not until(answered, timeout, self._check, pause=0):
                raise InfraError(f"GDB did not answer {command!r} within {timeout:.0f} s")
        finally:
            self.busy = busy
        if results[0]["message"] == "error":
            settle(self._check)  # without a QEMU, GDB refuses almost everything
            raise self._refused(results[0], command)
        return results[0], "".join(console)

    def _refused(self, record: Record, command: str) -> Refused:
        reason = record["payload"].get("msg", "error")
        return Refused(
            f"GDB: {' '.join([*filter(None, self._errors), reason])} (after {command!r})"
        )

    def console(self, line: str, timeout: float = 30.0) -> str:
        """Run one line of GDB's command language, and return what it printed. Raises as execute."""
        return self.execute(f"-interpreter-exec console {_quoted(line)}", timeout)[1]

    def call(self, function: str, *arguments: str, timeout: float = 30.0) -> str:
        """Call a function of GDB's Python with strings. Returns what it printed.

        The strings reach it as they are, whatever characters they have. Raises as execute().
        """
        return self.console(f"python {function}({', '.join(map(ascii, arguments))})", timeout)

    def evaluate(self, expression: str, timeout: float = 30.0) -> Any:
        """The value of an expression of GDB's Python, carried over as JSON. Raises as execute().

        It is found by a mark, since GDB may print something in between: how the guest has ended.
        """
        mark = f"answer {self._token}: "
        line = f"python print({mark!r} + json.dumps({expression}))"
        _, marked, rest = self.console(line, timeout).rpartition(mark)
        try:
            return json.loads(rest.partition("\n")[0] if marked else "")
        except ValueError as error:
            raise InfraError(
                f"GDB did not answer {expression!r}, but {shortened(rest)!r}"
            ) from error

    # -- the guest

    def attach(self, target: Path) -> None:
        """Connect to QEMU's gdbstub on the unix socket `target`, which stops the guest."""
        self.execute(f"-target-select remote {target}")
        self._running, self._stop = False, None

    def resume(self) -> None:
        """Let the guest run. Raises Refused if GDB cannot insert a breakpoint."""
        self._stop = self._not_resumed = None
        self._resumed = self._token + 1
        self.execute("-exec-continue")
        self._running = self._stop is None
        # GDB answers before it inserts the breakpoints. By the next answer it has, or says why not.
        if not self._not_resumed:
            said = [*self._errors]  # it may be read in parts: the reason now, the refusal later
            self.execute("-gdb-show confirm")
            self._errors.extendleft(reversed(said))
        if failed := self._not_resumed:
            raise self._refused(failed, "-exec-continue")

    def interrupt(self, timeout: float = 30.0) -> None:
        """Stop every CPU of the guest, if it runs.

        Raises InfraError if that takes over `timeout` seconds.
        """
        last = 0.0

        def stopped() -> bool:
            nonlocal last
            if self._running and time.monotonic() - last > INTERRUPT_SECONDS:
                # The answer does not matter: an error says that the guest has just stopped.
                self._send("-exec-interrupt")
                last = time.monotonic()
            self._read(POLL / 2 if self._running else 0)
            return not self._running

        self.poll()
        busy, self.busy = self.busy, True
        try:
            if not until(stopped, timeout, self._check, pause=0):
                raise InfraError(f"GDB did not stop the guest within {timeout:.0f} s")
        finally:
            self.busy = busy
        self._stop = None

    @property
    def stopped_by_itself(self) -> bool:
        """Whether the guest stopped without interrupt(): at a breakpoint, or by a signal."""
        return self._stop is not None

    @property
    def signal(self) -> str | None:
        """The signal of the last such stop; None if it was not by a signal."""
        payload = self._stop["payload"] if self._stop else None
        return payload.get("signal-name") if isinstance(payload, dict) else None


def _quoted(text: str) -> str:
    """`text` as a string of MI."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

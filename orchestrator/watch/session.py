"""GDB as a child process, driven over MI with commands matched to their answers by token.

pygdbmi starts GDB and parses its output. Its own write() waits a fixed time for whatever may come, 200 ms a command
as measured; here every command carries a token and returns when the result with that token is there.
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


class Refused(InfraError):
    """GDB answered a command with an error."""


class Gdb:
    """One GDB session; a context manager that leaves no process behind.

    `alive` is called between reads and may raise (the machine died): no wait here outlives what it waits for. `log`
    gets every line sent and received.
    """

    def __init__(self, log: Path, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._token = 0
        self._log = log.open("a", buffering=1)
        self._stops: list[Record] = []
        self.command = mortal(
            # A session of its own: Ctrl-C is for us to handle.
            [
                "setsid",
                need("gdb", "gdb"),
                "-nx",
                "-quiet",
                "--interpreter=mi3",
                "-iex",
                "set auto-load off",
            ]
        )
        self._log.write("$ " + " ".join(self.command) + "\n")
        self._controller = GdbController(
            command=self.command, time_to_check_for_additional_output_sec=1e-6
        )
        for setting in (
            "pagination off",
            "confirm off",
            "mi-async on",
            "architecture i386:x86-64",
            "width 0",
            "remotetimeout 30",
            "startup-with-shell off",
            "debuginfod enabled off",
        ):
            try:
                self.execute(f"-gdb-set {setting}")
            except Refused:
                pass  # a GDB without debuginfod does not know that setting
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
            raise InfraError(
                f"GDB ended with status {process.returncode if process else '?'}: see {self._log.name}"
            )
        records: list[Record] = self._controller.get_gdb_response(
            timeout, raise_error_on_timeout=False
        )
        for record in records:
            if record["message"] not in ("running", "thread-created", "library-loaded"):
                self._log.write(
                    f"{record['type']} {record.get('token')} {record['message']} {record['payload']!r}\n"
                )
            if record["type"] == "notify" and record["message"] == "stopped":
                self._stops.append(record)
        return records

    def poll(self) -> None:
        """Take in what GDB has said, so that its pipe never fills, without waiting."""
        self._read(0)

    def execute(self, command: str, timeout: float = 30.0) -> tuple[Record, str]:
        """Send one MI command; its result record and what it wrote to GDB's console until then.

        Raises Refused when GDB answers with an error, InfraError when it does not answer within `timeout` seconds or is
        gone.
        """
        self._token += 1
        token = self._token
        self._log.write(f"> {token}{command}\n")
        with contextlib.suppress(
            OSError
        ):  # its pipe is broken: GDB has ended, which _read() says better
            self._controller.io_manager.write(f"{token}{command}", read_response=False)
        text: list[str] = []
        aside: list[str] = []
        end = time.monotonic() + timeout
        while True:
            for record in self._read(0.2):
                if record["type"] == "console":
                    text.append(record["payload"] or "")
                if record["type"] == "log":
                    aside.append((record["payload"] or "").strip())
                if record["type"] == "result" and record.get("token") == token:
                    if record["message"] == "error":
                        why = " ".join(
                            [*filter(None, aside[-3:]), record["payload"].get("msg", "error")]
                        )
                        raise Refused(f"GDB: {why} (after {command!r})")
                    return record, "".join(text)
            self._alive()
            if time.monotonic() > end:
                raise InfraError(f"GDB did not answer {command!r} within {timeout:.0f} s")

    def console(self, line: str, timeout: float = 30.0) -> str:
        """Run one line of GDB's own language and return what it printed."""
        escaped = line.replace("\\", "\\\\").replace('"', '\\"')
        return self.execute(f'-interpreter-exec console "{escaped}"', timeout)[1]

    # -- the guest

    def attach(self, target: Path) -> None:
        """Connect to QEMU's stub on the unix socket `target`; the guest is stopped then."""
        self.execute(f"-target-select remote {target}")

    def resume(self) -> None:
        self._stops.clear()
        self.execute("-exec-continue")

    def interrupt(self, timeout: float = 30.0) -> None:
        """Stop every CPU of the guest and return when they are."""
        self.poll()
        if not self._stops:
            with contextlib.suppress(
                Refused
            ):  # it stopped by itself in this very moment: seen below
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
        """Whether the guest stopped though nobody asked: a breakpoint's wish, or a signal."""
        return bool(self._stops)

    @property
    def signal(self) -> str | None:
        """The signal that the guest was last stopped with, None when it was not by one."""
        payload = self._stops[-1]["payload"] if self._stops else None
        return payload.get("signal-name") if isinstance(payload, dict) else None

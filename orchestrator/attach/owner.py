# SPDX-License-Identifier: GPL-2.0-only
"""The process that owns the guest: it accepts one GDB, and runs GDB's commands in the guest."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator import ui
from orchestrator.attach.client import gdb_command
from orchestrator.attach.notes import LIVE, SYMBOLS
from orchestrator.errors import InfraError, OrchestratorError, printable, sentence
from orchestrator.host import interrupts, proc
from orchestrator.host.paths import remembered, write_whole
from orchestrator.machine.machine import Machine

POLL = 0.2
"""Interval between two checks that the guest and GDB still run, in seconds."""
GDB_SECONDS = 2.0
"""Time for GDB to end by itself."""
COMMAND_SECONDS = 86400.0
"""Timeout of a command in the guest. It may sit at a breakpoint for as long as the user thinks."""


class _GdbQuit(Exception):
    """GDB has quit while a command was running in the guest."""


class GdbConnection:
    """The owner's end of GDB's connection. live.json exists for as long as this is open.

    Use it as a context manager, then call serve(). One JSON object per line goes each way. What the
    guest printed is escaped here, because GDB shows it on a terminal:

        owner: {"cpus": N}                      the greeting, or {"error": ...} for a second GDB
        GDB:   {"run": COMMAND}
        owner: {"status": S, "said": OUTPUT}    the result, or {"error": ...}
    """

    def __init__(self, machine: Machine, directory: Path, no_shell: str = "") -> None:
        """no_shell: why no commands can be run in the guest; empty if they can."""
        self._machine = machine
        self._no_shell = no_shell
        self._live = directory / LIVE
        self._gdb: socket.socket | None = None
        self._unparsed = b""

    def __enter__(self) -> GdbConnection:
        path = self._machine.gdb_path.with_name("line")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        try:
            content = {"gdb": str(self._machine.gdb_path), "line": str(path)}
            write_whole(self._live, json.dumps(content) + "\n")
        except OSError:
            self._listener.close()
            raise
        self._machine.ignore_faults = True
        self._machine.on_poll.append(self._on_poll)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._live.unlink()
        self._machine.on_poll.remove(self._on_poll)
        self._listener.close()
        if self._gdb:
            self._gdb.close()

    def serve(self, keep_going: Callable[[], bool] = lambda: True) -> bool:
        """Run GDB's commands until it quits, and return True.

        Returns False when QEMU has ended, or when `keep_going()` returns False.
        """
        try:
            while keep_going() and self._machine.process.poll() is None:
                sockets = [self._listener, *([self._gdb] if self._gdb else [])]
                for ready in select.select(sockets, [], [], POLL)[0]:
                    if ready is self._listener:
                        self._accept()
                    elif not self._receive():
                        return True
        except _GdbQuit:
            return True
        return False

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        if self._gdb:
            with caller, contextlib.suppress(OSError):
                _send(
                    caller,
                    error="another GDB is attached to this guest, and QEMU takes only one: "
                    "quit that one first",
                )
            return
        self._gdb = caller
        _send(caller, cpus=self._machine.spec.smp)

    def _receive(self) -> bool:
        """Read from GDB and run each complete command; False when GDB has quit."""
        assert self._gdb
        data = self._gdb.recv(65536)
        self._unparsed += data
        *lines, self._unparsed = self._unparsed.split(b"\n")
        for line in lines:
            try:
                if self._no_shell:
                    raise InfraError(self._no_shell)
                status, output = self._machine.ssh.run(json.loads(line)["run"], COMMAND_SECONDS)
                _send(self._gdb, status=status, said=printable(output))
            except OrchestratorError as error:
                _send(self._gdb, error=str(error))
            except OSError:
                return False
        return bool(data)

    def _on_poll(self) -> None:
        """Notice that GDB quits while a command runs in the guest."""
        gdb = self._gdb
        if gdb and select.select([gdb], [], [], 0)[0] and not gdb.recv(1, socket.MSG_PEEK):
            raise _GdbQuit


def _send(connection: socket.socket, **content: object) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def keep(machine: Machine | None, directory: Path) -> None:
    """Keep the guest of a finished run until a GDB has attached and quit, or until Ctrl-C."""
    if machine is None or machine.process.poll() is not None or not (directory / SYMBOLS).exists():
        ui.say("there is no guest to keep: it has ended, or its test module was never loaded")
        return
    try:
        with GdbConnection(machine, directory) as connection:
            ui.say(
                "the guest is kept until Ctrl-C here, or until a GDB quits: "
                f"orchestrator gdb {_short_name(directory)}"
            )
            with contextlib.suppress(KeyboardInterrupt):
                ui.say("GDB has quit" if connection.serve() else "QEMU has ended")
    except OSError as error:  # the verdict stands
        ui.say(f"the guest cannot be kept: {sentence(error)}")


def run_gdb(
    machine: Machine, directory: Path, no_shell: str = "", commands: Sequence[str] = ()
) -> int:
    """Run a GDB on our terminal, attached to the guest, until it quits. Returns its exit status.

    no_shell: as for GdbConnection.
    commands: what GDB does first.
    """
    first = [word for command in commands for word in ("-ex", command)]
    with GdbConnection(machine, directory, no_shell) as connection, interrupts.sigint_for_another():
        gdb = subprocess.Popen(proc.mortal([*gdb_command(directory), *first]))
        try:
            connection.serve(lambda: gdb.poll() is None)
            return gdb.wait(10)
        finally:
            if gdb.poll() is None:
                gdb.terminate()  # SIGTERM: GDB then restores the terminal, unlike on SIGKILL
                with contextlib.suppress(subprocess.TimeoutExpired):
                    gdb.wait(GDB_SECONDS)
                gdb.kill()
                gdb.wait()


def _short_name(directory: Path) -> str:
    """What the user types to name the run: just its name in the usual place."""
    return directory.name if directory.parent == remembered("runs") else str(directory)

# SPDX-License-Identifier: GPL-2.0-only
"""Runs inside the user's GDB: loads a run's symbols, attaches to its guest, adds `guest`.

GDB loads this file with `source`. It uses only the standard library, because the rest of the
program cannot be imported there. client.py calls start() with what it has read and checked, and
owner.py is the other end of the socket and describes what goes over it.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading

import gdb

HELP = """
The guest is stopped. Its {cpus} CPUs are threads.
`continue` resumes the guest, Ctrl-C stops it, `quit` ends it.
  guest COMMAND        run COMMAND with the guest's shell, over ssh; resumes the guest meanwhile.
                       To poke a site:
                       guest echo 'step site=nop5 how=direct ms=100 cpu=0' > /dev/orchestrator
                       and to see the results: guest cat /dev/orchestrator
  hbreak FUNCTION      set a hardware breakpoint; `break` under KVM writes to the text under test
  x/2gx &orch_window   show the poke in progress, if any: site address, then length and `gated`
  {directory}/console.log is the guest's console
"""

OWNER_GONE = "the orchestrator process that owns the guest has ended"


class Guest(gdb.Command):
    """guest COMMAND: run COMMAND with the guest's shell and show its output.

    A stopped guest is resumed for it and stopped again when COMMAND has ended. If a breakpoint
    stops the guest first, COMMAND waits in the guest until you `continue`. Its output is shown
    when it has ended."""

    def __init__(self, connection):
        super().__init__("guest", gdb.COMMAND_RUNNING)
        self._connection = connection
        self._answers = connection.makefile("rb")
        self._answer = None
        self._command_running = False  # in the guest
        self._in_continue = False  # invoke() is inside the `continue` that it made

    def invoke(self, command, from_tty):
        self.dont_repeat()
        if not command:
            raise gdb.GdbError("usage: guest COMMAND (a command for the guest's shell)")
        if self._command_running:
            raise gdb.GdbError(
                "the previous command is still running in the guest: `continue` to let it finish"
            )
        try:
            self._connection.sendall(json.dumps({"run": command}).encode() + b"\n")
        except OSError:
            raise gdb.GdbError(OWNER_GONE) from None
        self._command_running = True
        # The new thread inherits the mask: only GDB's own thread may take signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Thread(target=self._wait, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if any(thread.is_running() for thread in gdb.selected_inferior().threads()):
            return  # the guest runs already (`continue &`): the output is shown when it is there
        self._in_continue = True
        try:
            quietly("continue")  # GDB shows a stop at a breakpoint all the same
        finally:
            self._in_continue = False
        if self._command_running:
            gdb.write("The command is still running in the guest.\n")
        else:
            self._show()

    def _wait(self):
        """Wait for the answer, in a thread: GDB must go on handling the guest's stops."""
        try:
            raw = self._answers.readline()
        except OSError:
            raw = b""
        self._answer = json.loads(raw) if raw else {"error": OWNER_GONE}
        gdb.post_event(self._ended)

    def _ended(self):
        self._command_running = False
        if self._in_continue:
            quietly("interrupt")  # makes `continue` return, and invoke() shows the answer
        else:
            self._show()

    def _show(self):
        answer = self._answer
        output = answer.get("said", "")
        gdb.write(output if not output or output.endswith("\n") else output + "\n")
        if "error" in answer:
            gdb.write(f"guest: {answer['error']}\n")
        elif answer["status"]:
            gdb.write(f"guest: ended with status {answer['status']}\n")


def quietly(command):
    return gdb.execute(command, to_string=True)


def quoted(path):
    """`path` as one argument of a GDB command that splits its arguments: gdb_buildargv() in GDB."""
    return re.sub(r"([^\w./+-])", r"\\\1", path)


def load(run):
    """Load the symbols of the kernel and of the test module."""
    # A symbol file can carry Python code (.debug_gdb_scripts), or have it in a file beside it.
    for setting in ("auto-load off", "debuginfod enabled off"):
        with contextlib.suppress(gdb.error):  # a GDB built without debuginfod
            quietly(f"set {setting}")
    if run["kernel"]:
        # A file made from kallsyms has symbols but no code, so it must not be the exec file.
        quietly(f"{'file' if run['code'] else 'symbol-file'} {quoted(run['kernel'])}")
    else:
        gdb.write("No kernel symbols: there is no vmlinux, and the guest was never kept.\n")
    if run["module"]:
        sections = " ".join(f"-s {name} {address:#x}" for name, address in run["sections"].items())
        quietly(f"add-symbol-file {quoted(run['module'])} {sections}")
    elif run["sections"]:
        gdb.write("No test module symbols: the module does not exist any more.\n")


def start(run):
    """Open a run, and attach to its guest if that still runs. run: see client.gdb_command()."""
    for setting in ("confirm off", "architecture i386:x86-64"):
        quietly(f"set {setting}")
    load(run)
    name = run["directory"].rpartition("/")[2]
    if run["line"] is None:
        gdb.write(f"{name} is finished: there is no guest, only symbols to look up addresses.\n")
        return
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(run["line"])
    greeting = json.loads(connection.makefile("rb").readline() or "{}")
    if "cpus" not in greeting:
        gdb.write(f"{greeting.get('error', 'the guest has just ended')}\n", gdb.STDERR)
        gdb.execute("quit 125")
    quietly(f"target remote {run['gdb']}")
    Guest(connection)
    gdb.write(HELP.format(cpus=greeting["cpus"], directory=run["directory"]))
